"""Drop the annotations of novel categories, for training open-vocabulary models on base categories only.

    python datasets/prepare_open_vocabulary.py lvis     lvis/lvis_v1_train.json -> lvis/lvis_v1_train_norare.json
    python datasets/prepare_open_vocabulary.py lvvis    LVVIS/train/train_instances.json (or train_instances_.json)
                                                        -> LVVIS/train/train_instances_nonovel.json

Paths are below DETECTRON2_DATASETS (or --root). Novel are LVIS' rare categories and LV-VIS' partitions 2 and 3; images,
videos and categories stay, so some have no annotation left. A file that exists is kept unless --overwrite.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from lbvq.data.annotation_files import list_of, read_annotation_file
from lbvq.data.catalog import dataset_root
from lbvq.data.categories import category_table

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
    unfinished = result.with_suffix(".json.part")
    unfinished.write_text(json.dumps({**content, "annotations": kept}), encoding="utf-8")
    os.replace(unfinished, result)
    return len(kept), len(annotations)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="+", choices=sorted(FILES))
    parser.add_argument("--root", default=str(dataset_root()), help="default: DETECTRON2_DATASETS, else ./datasets")
    parser.add_argument("--overwrite", action="store_true", help="make files again that exist")
    args = parser.parse_args()
    for name in args.datasets:
        table, sources, result = FILES[name]
        paths = [Path(args.root) / source for source in sources]
        source, target = next((path for path in paths if path.exists()), paths[0]), Path(args.root) / result
        if target.exists() and not args.overwrite:
            print(f"{target} exists and is kept; --overwrite makes it again.")
            continue
        kept, total = drop_novel(source, target, set(category_table(table)["novel_ids"]))
        print(f"{target}: {kept} of {total} annotations kept.")


if __name__ == "__main__":
    main()
