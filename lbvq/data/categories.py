"""Category tables of the data sets, kept in `datasets/metadata/*.json`, and the way from COCO to video categories."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).resolve().parent.parent


def metadata_folder() -> Path:
    """Folder of the category tables: inside an installed package, or `datasets/metadata` of a checkout."""
    candidates = [_PACKAGE / "metadata", _PACKAGE.parent / "datasets" / "metadata"]
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"The category tables are missing: looked in {candidates}; reinstall lbvq.")


@functools.cache
def category_table(name: str) -> dict[str, Any]:
    """Read table `name`; its `categories` are sorted by id, so their position is the contiguous class index.

    Args:
        name: ytvis_2019, ytvis_2021, ovis, coco, lvis_v1, lvvis, burst or synthetic.
    """
    path = metadata_folder() / f"{name}.json"
    if not path.is_file():
        names = sorted(each.stem for each in path.parent.glob("*.json"))
        raise KeyError(f"No category table {name!r}; there are {names}.")
    table = json.loads(path.read_text(encoding="utf-8"))
    if "categories" in table:
        table["categories"].sort(key=lambda category: category["id"])
    return table


def class_names(table: str) -> list[str]:
    """Names in the order of the contiguous class index."""
    return [category["name"] for category in category_table(table)["categories"]]


def contiguous_ids(table: str) -> dict[int, int]:
    """Category id of the annotation file -> contiguous class index."""
    return {category["id"]: index for index, category in enumerate(category_table(table)["categories"])}


PSEUDO_SOURCE = "coco"  # the table whose ids `coco_to_video` maps


def coco_to_video(table: str) -> dict[int, int]:
    """COCO category id -> category id of a video data set (ytvis_2019, ytvis_2021 or ovis)."""
    tables = category_table("coco_to_video")
    if table == "title" or table not in tables:
        raise KeyError(f"COCO has no mapping to {table!r}; there is one to {sorted(set(tables) - {'title'})}.")
    return {int(source): target for source, target in tables[table].items()}
