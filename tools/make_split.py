"""Split a training file into training and development videos, class by class, without touching any mask.

    python tools/make_split.py datasets/ytvis_2021/train.json --output splits --share 0.1 --seed 0

writes splits/train_dev_seed0.json (90 % of the videos) and splits/dev_seed0.json (the others). The same file, share and
seed always give the same split, so two methods can be compared on it without a server. Works for every data set in
YouTube-VIS form. Register the parts with lbvq.data.register_ytvis_instances, or name them in a copied data folder.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lbvq.engine.user_errors import user_command
from lbvq.evaluation.splits import write_split


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("annotations", type=Path, help="training file, for instance ytvis_2021/train.json")
    parser.add_argument("--output", type=Path, default=Path(), help="folder of the new files (default: here)")
    parser.add_argument("--share", type=float, default=0.1, help="of the videos for development (default 0.1)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--overwrite", action="store_true", help="replace files of an earlier split")
    return parser.parse_args(arguments)


@user_command
def main(arguments: list[str] | None = None) -> None:
    args = parse_arguments(arguments)
    targets = {
        "train": args.output / f"train_dev_seed{args.seed}.json",
        "dev": args.output / f"dev_seed{args.seed}.json",
    }
    for line in write_split(args.annotations, targets, args.share, args.seed, overwrite=args.overwrite):
        print(line)


if __name__ == "__main__":
    sys.exit(main())
