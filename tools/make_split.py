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
from lbvq.evaluation.splits import part_of, split_videos
from lbvq.files.mask_file import read_mask_file, write_mask_file


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
    existing = [str(path) for path in targets.values() if path.exists()]
    if existing and not args.overwrite:
        raise ValueError(f"{', '.join(existing)} exist already; choose another --output or --overwrite them")
    file = read_mask_file(args.annotations)
    for key in ("videos", "categories", "annotations"):
        if not isinstance(file.document, dict) or not isinstance(file.document.get(key), list):
            raise ValueError(f"{args.annotations}: expected an annotation file in YouTube-VIS form with a list '{key}'")
    split = split_videos(file.document, args.share, args.seed)
    args.output.mkdir(parents=True, exist_ok=True)
    for part, path in targets.items():
        write_mask_file(path, part_of(file, getattr(split, part)), file)
        print(f"{path}: {len(getattr(split, part))} videos")
    names = {category["id"]: category.get("name", category["id"]) for category in file.document["categories"]}
    print(f"{'category':24s}{'train':>8s}{'dev':>8s}{'share':>8s}   tracks")
    for category, (train, dev) in split.tracks.items():
        share = f"{dev / (train + dev):8.1%}" if train + dev else f"{'-':>8s}"
        print(f"{names.get(category, category)!s:24.24s}{train:8d}{dev:8d}{share}")


if __name__ == "__main__":
    sys.exit(main())
