"""A development split of a data folder: the work behind `lbvq split`."""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLES = """examples:
  lbvq split data/pets --dev 0.2
  lbvq split data/pets --dev 0.25 --seed 3

Whole videos go to one part or the other, so that every class has about the same share in both; a class of a single
video stays in training. train.json and dev.json are written beside annotations.json, which stays as it is.
"""
PARTS = {"train": "train.json", "dev": "dev.json"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command line of `run`."""
    parser.add_argument("data", type=Path, help="data folder, or an annotation file in YouTube-VIS form")
    parser.add_argument("--dev", type=float, default=0.2, metavar="SHARE", help="of the videos (default 0.2)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (default 0)")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier split")


def run(args: argparse.Namespace) -> int:
    """Split; raises ValueError or OSError for what is wrong with the input."""
    from lbvq.evaluation.splits import write_split

    file = args.data / "annotations.json" if args.data.is_dir() else args.data
    targets = {part: file.parent / name for part, name in PARTS.items()}
    for line in write_split(file, targets, args.dev, args.seed, overwrite=args.overwrite):
        print(line)
    return 0
