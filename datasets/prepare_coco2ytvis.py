"""Make the annotation files of COCO images that train together with videos: python datasets/prepare_coco2ytvis.py

Reads `coco/annotations/instances_{train,val}2017.json` below DETECTRON2_DATASETS (or --root) and writes
`coco2{ytvis2019,ytvis2021,ovis}_{train,val}.json` beside them. Of the annotations those of categories that the videos
also have are kept; images, categories and category ids stay as they are. Files that exist are kept unless --overwrite.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from lbvq.data.annotation_files import list_of, read_annotation_file
from lbvq.data.catalog import dataset_root
from lbvq.data.categories import coco_to_video
from lbvq.engine.user_errors import user_command
from lbvq.files.writing import write_text

TARGETS = {"coco2ytvis2019": "ytvis_2019", "coco2ytvis2021": "ytvis_2021", "coco2ovis": "ovis"}  # name: category table


def keep_categories(content: dict[str, Any], category_ids: set[int], source: Path) -> dict[str, Any]:
    """Return the same annotation file with only the annotations of the given categories."""
    annotations = list_of(content, "annotations", source, required=True)
    return {**content, "annotations": [each for each in annotations if each["category_id"] in category_ids]}


def convert(source: Path, overwrite: bool) -> None:
    """Write the three files made from one COCO file."""
    split = "train" if "train" in source.name else "val"
    wanted = {source.with_name(f"{name}_{split}.json"): table for name, table in TARGETS.items()}
    missing = {path: table for path, table in wanted.items() if overwrite or not path.exists()}
    for path in sorted(set(wanted) - set(missing)):
        print(f"{path} exists and is kept; --overwrite makes it again.")
    if not missing:
        return
    content = read_annotation_file(source)
    for path, table in missing.items():
        kept = keep_categories(content, set(coco_to_video(table)), source)
        write_text(path, json.dumps(kept))
        print(f"{path}: {len(kept['annotations'])} of {len(content['annotations'])} items converted.")


@user_command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default=str(dataset_root()), help="default: DETECTRON2_DATASETS, else ./datasets")
    parser.add_argument("--splits", nargs="+", default=["train", "val"], choices=["train", "val"])
    parser.add_argument("--overwrite", action="store_true", help="make files again that exist")
    args = parser.parse_args()
    for split in args.splits:
        convert(Path(args.root) / "coco" / "annotations" / f"instances_{split}2017.json", args.overwrite)


if __name__ == "__main__":
    sys.exit(main())
