"""Write the built-in data set of moving shapes: python datasets/make_synthetic.py [--root FOLDER].

The result is registered as `synthetic_train` and `synthetic_val` when DETECTRON2_DATASETS points to the same folder.
A split that is there already with the same settings is kept.
"""

from __future__ import annotations

import argparse
import logging
import sys

from lbvq.data.catalog import dataset_root
from lbvq.data.synthetic import SyntheticSettings, write_dataset
from lbvq.engine.user_errors import user_command


@user_command
def main() -> None:
    default = SyntheticSettings()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default=str(dataset_root()), help="default: DETECTRON2_DATASETS, else ./datasets")
    parser.add_argument("--num-train", type=int, default=600, help="training videos (default 600)")
    parser.add_argument("--num-val", type=int, default=150, help="validation videos (default 150)")
    parser.add_argument("--seed", type=int, default=0, help="of the whole data set (default 0)")
    parser.add_argument("--num-frames", type=int, default=default.num_frames, help="per video (default 10)")
    parser.add_argument("--height", type=int, default=default.height, help="of a frame in pixels (default 96)")
    parser.add_argument("--width", type=int, default=default.width, help="of a frame in pixels (default 128)")
    parser.add_argument("--overwrite", action="store_true", help="replace splits written with other settings")
    args = parser.parse_args()

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    scale = min(args.height / default.height, args.width / default.width)
    settings = SyntheticSettings.scaled(scale, height=args.height, width=args.width, num_frames=args.num_frames)
    files = write_dataset(
        args.root,
        num_train=args.num_train,
        num_val=args.num_val,
        seed=args.seed,
        settings=settings,
        overwrite=args.overwrite,
    )
    for split, json_file in files.items():
        print(f"synthetic_{split}: {json_file}")


if __name__ == "__main__":
    sys.exit(main())
