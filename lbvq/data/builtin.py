"""The data sets known by name, one row per split; paths are relative to DETECTRON2_DATASETS."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from lbvq.data.catalog import LONG_VIDEO_FRAMES, DatasetCatalog, MetadataCatalog, dataset_root
from lbvq.data.categories import category_table, class_names, contiguous_ids

_AS_PUBLISHED = {"needs_boxes": True}  # a mask without a box is not trained on


@dataclass(frozen=True)
class Row:
    """One registered data set.

    Attributes:
        name: as in DATASETS.TRAIN and DATASETS.TEST.
        kind: "video" (YouTube-VIS format), "image" (COCO format) or "lvis" (COCO format with LVIS' extra lists).
        images: folder of the images; of several, the first that exists is used.
        json: annotation file; of several, the first that exists is used.
        categories: table in datasets/metadata.
        evaluator_type: what scores results on it.
        pseudo_table: table that maps COCO categories to this target, "" if there is none.
        options: further arguments of the reader.
        facts: further metadata.
    """

    name: str
    kind: str
    images: tuple[str, ...]
    json: tuple[str, ...]
    categories: str
    evaluator_type: str
    pseudo_table: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


def rows() -> Iterator[Row]:
    """Yield every data set that is known by name."""
    yield from _youtube_vis()
    yield from _ovis()
    yield from _open_vocabulary()
    yield from _images()
    for split in ("train", "val"):
        folder = f"synthetic/{split}"
        files = (f"{folder}/JPEGImages",), (f"{folder}.json",)  # hq: the same videos, scored at boundaries too
        yield Row(f"synthetic_{split}", "video", *files, "synthetic", "ytvis")
        yield Row(f"hq_synthetic_{split}", "video", *files, "synthetic", "hq_ytvis")


def _youtube_vis() -> Iterator[Row]:
    splits = [(year, split, split) for year in (2019, 2021) for split in ("train", "val", "test")]
    splits += [(2022, "val", "val"), (2019, "val_all_frames", "valid_all_frames")]
    for year, split, folder in splits:
        folder = f"ytvis_{year}/{'valid' if folder == 'val' else folder}"
        table = f"ytvis_{min(year, 2021)}"  # 2022 has the categories of 2021
        facts = {"long_videos": LONG_VIDEO_FRAMES} if year == 2022 else {}
        files = (f"{folder}/JPEGImages",), (f"{folder}.json",)
        yield Row(f"ytvis_{year}_{split}", "video", *files, table, "ytvis", table, _AS_PUBLISHED, facts)
    for split in ("train", "val", "test"):  # the videos of every HQ split are training videos of YouTube-VIS 2019
        yield Row(
            f"hq_ytvis_{split}",
            "video",
            ("ytvis_2019/train/JPEGImages", "ytvis/train/JPEGImages"),
            (f"ytvis_2019/annotations/ytvis_hq-{split}.json", f"ytvis/annotations/ytvis_hq-{split}.json"),
            "ytvis_2019",
            "hq_ytvis",
            "ytvis_2019",
            {"segmentations_key": "segmentations_refined", **_AS_PUBLISHED},
        )


def _ovis() -> Iterator[Row]:
    for split, folder in (("train", "train"), ("val", "valid"), ("test", "test")):
        files = (
            f"ovis/annotations/{folder}.json",
            f"ovis/annotations/annotations_{folder}.json",
            f"ovis/{folder}.json",
        )
        yield Row(f"ovis_{split}", "video", (f"ovis/{folder}",), files, "ovis", "ytvis", "ovis", _AS_PUBLISHED)


def _open_vocabulary() -> Iterator[Row]:
    lvvis = {
        "train": ("LVVIS/train/train_instances_nonovel.json",),
        "val": ("LVVIS/val/val_instances_.json", "LVVIS/val/val_instances.json"),
        "test": ("LVVIS/test/test_instances.json",),
    }
    for split, files in lvvis.items():
        images = (f"LVVIS/{split}/JPEGImages",)
        options = {"size_from_image": True, "windows_paths": True}  # its files are not right everywhere
        yield Row(f"lvvis_{split}", "video", images, files, "lvvis", "lvvis", "", options)
        if split != "train":
            frames = (f"LVVIS/{split}/image_{split}_instances.json",)
            yield Row(f"lvvis_oracle_{split}", "image", images, frames, "lvvis", "coco")
    yield Row("burst_val", "video", ("burst/val",), ("burst/b2y_val.json",), "burst", "burst")


def _images() -> Iterator[Row]:
    for split in ("train", "val"):
        images = (f"coco/{split}2017",)
        files = (f"coco/annotations/instances_{split}2017.json",)
        yield Row(f"coco_2017_{split}", "image", images, files, "coco", "coco")
        for target in ("ytvis2019", "ytvis2021", "ovis"):
            name = f"coco2{target}_{split}"
            yield Row(name, "image", images, (f"coco/annotations/{name}.json",), "coco", "coco")
    for split in ("train", "train_norare", "val"):
        yield Row(f"lvis_v1_{split}", "lvis", ("coco",), (f"lvis/lvis_v1_{split}.json",), "lvis_v1", "lvis")


def first_existing(candidates: tuple[str, ...]) -> str:
    """Return the first candidate that exists below the data root, else the first of all (for the error message)."""
    paths = [dataset_root() / candidate for candidate in candidates]
    return str(next((path for path in paths if path.exists()), paths[0]))


def register_builtin_datasets() -> None:
    """Register every row, once."""
    for row in rows():
        if row.name not in DatasetCatalog:
            DatasetCatalog.register(row.name, functools.partial(_load, row))
            _describe(row)


def _load(row: Row) -> list[dict[str, Any]]:
    """Read the records of one row."""
    from lbvq.data.coco import load_coco_json, load_lvis_json  # imported here: they need the catalog
    from lbvq.data.ytvis import load_ytvis_json

    reader = {"video": load_ytvis_json, "image": load_coco_json, "lvis": load_lvis_json}[row.kind]
    return reader(first_existing(row.json), first_existing(row.images), row.name, **row.options)


def _describe(row: Row) -> None:
    """Fill the metadata of one row; category tables are read when somebody asks for them."""
    table = row.categories
    lazy: dict[str, Callable[[], Any]] = {
        "json_file": lambda: first_existing(row.json),
        "image_root": lambda: first_existing(row.images),
        "thing_classes": lambda: class_names(table),
        "thing_dataset_id_to_contiguous_id": lambda: contiguous_ids(table),
        "categories": lambda: category_table(table)["categories"],
    }
    if table in ("ytvis_2019", "ytvis_2021", "ovis", "coco", "synthetic"):
        lazy["thing_colors"] = lambda: [category["color"] for category in category_table(table)["categories"]]
    if table in ("ytvis_2019", "ytvis_2021", "lvvis", "lvis_v1", "burst"):
        lazy["novel_dataset_ids"] = lambda: category_table(table)["novel_ids"]
    metadata = MetadataCatalog.get(row.name).set_lazily(**lazy)
    metadata.set(
        evaluator_type=row.evaluator_type,
        kind="video" if row.kind == "video" else "image",
        category_table=table,
        pseudo_table=row.pseudo_table,
        **row.facts,
    )
