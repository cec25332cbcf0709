"""How a data set is named by its paths, on a command line and in DATASETS.REGISTER: the module imports nothing else."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FRAMES = "frames"  # folder beside an annotation file, where no other is named
ANNOTATIONS = "annotations.json"  # in a data folder
SYNTAX = "NAME=ANNOTATIONS.json:FRAMES"


@dataclass(frozen=True)
class PathEntry:
    """One data set: its name, its annotation file in YouTube-VIS or COCO form, and the folder `file_names` are in."""

    name: str
    json_file: Path
    image_root: Path

    def __str__(self) -> str:
        return f"{self.name}={self.json_file}:{self.image_root}"


def parse_entry(text: str) -> PathEntry:
    """Read `name=annotations.json:frames`, or `name=folder` of a data folder; paths become absolute."""
    name, equals, paths = text.partition("=")
    if not equals or not re.fullmatch(r"[\w.-]+", name) or not paths:
        raise ValueError(f"A data set is given as {SYNTAX}, or as name=FOLDER of `lbvq convert`, got {text!r}.")
    found = re.fullmatch(r"((?:[A-Za-z]:[\\/])?[^:]+)(?::((?:[A-Za-z]:[\\/])?[^:]+))?", paths)  # C:\ is no separator
    if found is None:
        raise ValueError(f"{text!r} has too many colons: expected {SYNTAX}.")
    file = Path(found[1]).expanduser().resolve()
    if file.is_dir():
        file = file / ANNOTATIONS
    root = Path(found[2]).expanduser().resolve() if found[2] else file.parent / FRAMES
    return PathEntry(name, file, root)


def add_data_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--data`, whose values go through `data_options`."""
    parser.add_argument(
        "--data",
        action="append",
        default=[],
        metavar=SYNTAX,
        help="a data set by path (may be repeated): the first is trained on, the last is tested on, unless "
        "DATASETS.TRAIN and DATASETS.TEST say otherwise",
    )


def data_options(entries: Sequence[str]) -> list[Any]:
    """Settings that stand for `--data`: the first data set is trained on, the last one is tested on.

    Put them before the settings of the user, who may say otherwise by DATASETS.TRAIN and DATASETS.TEST.
    """
    if not entries:
        return []
    parsed = [parse_entry(text) for text in entries]
    names = {"DATASETS.TRAIN": parsed[0].name, "DATASETS.TEST": parsed[-1].name}
    options: list[Any] = ["DATASETS.REGISTER", tuple(map(str, parsed))]
    for key, name in names.items():
        options += [key, (name,)]
    return [*options, "DATASETS.DATASET_RATIO", []]
