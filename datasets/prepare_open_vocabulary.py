"""Drop the annotations of novel categories, for training open-vocabulary models on base categories only.

    python datasets/prepare_open_vocabulary.py lvis     lvis/lvis_v1_train.json -> lvis/lvis_v1_train_norare.json
    python datasets/prepare_open_vocabulary.py lvvis    LVVIS/train/train_instances.json (or train_instances_.json)
                                                        -> LVVIS/train/train_instances_nonovel.json

    python datasets/prepare_open_vocabulary.py lvvis_counts
                                                        LVVIS/train/train_instances_nonovel.json
                                                        -> datasets/metadata/lvvis_train_cat_info.json

The last counts for every category the training images that show it, from which OVFormer draws negative classes.
Paths are below DETECTRON2_DATASETS (or --root). Novel are LVIS' rare categories and LV-VIS' partitions 2 and 3; images,
videos and categories stay, so some have no annotation left. A file that exists is kept unless --overwrite.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from lbvq.data.annotation_files import list_of, read_annotation_file
from lbvq.data.catalog import dataset_root
from lbvq.data.categories import category_table
from lbvq.engine.user_errors import user_command
from lbvq.files.writing import write_text

FILES = {  # data set: (category table, sources of which the first that exists is used, result)
    "lvis": ("lvis_v1", ("lvis/lvis_v1_train.json",), "lvis/lvis_v1_train_norare.json"),
    "lvvis": (
        "lvvis",
        ("LVVIS/train/train_instances.json", "LVVIS/train/train_instances_.json"),
        "LVVIS/train/train_instances_nonovel.json",
    ),
}


def drop_novel(source: Path, result: Path, novel_ids: set[int]) -> tuple[int, int]:
    """Write `result` and return how many annotations were kept, of how many."""
    content = read_annotation_file(source)
    annotations = list_of(content, "annotations", source, required=True)
    kept = [each for each in annotations if each["category_id"] not in novel_ids]
    write_text(result, json.dumps({**content, "annotations": kept}))
    return len(kept), len(annotations)


def count_images(source: Path, result: Path) -> tuple[int, int]:
    """Write the categories of `source` with their numbers of images; returns how many occur, of how many.

    As published: a video counts with all its frames for every category in it, and a category of the file without
    any is novel ("n").
    """
    content = read_annotation_file(source)
    lengths = {video["id"]: video["length"] for video in list_of(content, "videos", source, required=True)}
    videos: dict[int, set[int]] = {}
    instances: dict[int, int] = {}
    for each in list_of(content, "annotations", source, required=True):
        if each["video_id"] not in lengths:
            raise ValueError(
                f"{source}: annotation {each['id']} belongs to video {each['video_id']}, which is not there."
            )
        videos.setdefault(each["category_id"], set()).add(each["video_id"])
        length = each.get("length", lengths[each["video_id"]])
        instances[each["category_id"]] = instances.get(each["category_id"], 0) + length
    categories = []
    for category in list_of(content, "categories", source, required=True):
        count = sum(lengths[video] for video in videos.get(category["id"], ()))
        facts = {"image_count": count, "instance_count": instances.get(category["id"], 0)}
        categories.append({**category, **facts, "frequency": "b" if count else "n"})
    result.parent.mkdir(parents=True, exist_ok=True)
    write_text(result, json.dumps(categories))
    return len(videos), len(categories)


COUNTS = "lvvis_counts"
COUNTED = "LVVIS/train/train_instances_nonovel.json"


@user_command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="+", choices=[*sorted(FILES), COUNTS])
    parser.add_argument("--root", default=str(dataset_root()), help="default: DETECTRON2_DATASETS, else ./datasets")
    parser.add_argument("--counts", default="datasets/metadata/lvvis_train_cat_info.json", help=f"result of {COUNTS}")
    parser.add_argument("--overwrite", action="store_true", help="make files again that exist")
    args = parser.parse_args()
    for name in args.datasets:
        if name == COUNTS:
            if Path(args.counts).exists() and not args.overwrite:
                print(f"{args.counts} exists and is kept; --overwrite makes it again.")
                continue
            known, total = count_images(Path(args.root) / COUNTED, Path(args.counts))
            print(f"{args.counts}: {known} of {total} categories occur.")
            continue
        table, sources, result = FILES[name]
        paths = [Path(args.root) / source for source in sources]
        source, target = next((path for path in paths if path.exists()), paths[0]), Path(args.root) / result
        if target.exists() and not args.overwrite:
            print(f"{target} exists and is kept; --overwrite makes it again.")
            continue
        kept, total = drop_novel(source, target, set(category_table(table)["novel_ids"]))
        print(f"{target}: {kept} of {total} annotations kept.")


if __name__ == "__main__":
    sys.exit(main())
