"""Turn the annotations of BURST into YouTube-VIS form.

    python datasets/prepare_burst.py --split val        burst/annotations/val/all_classes.json -> burst/b2y_val.json

Paths are below DETECTRON2_DATASETS (or --root). Only frames that are annotated become frames of a video; category ids
are positions in BURST's list, from 1, annotation ids count from 1. Categories keep their TAO id and frequency, and get
their `split` (common or uncommon) when info/class_split.json is there. The result is checked before it is written, and
a file that exists is kept unless --overwrite.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from lbvq.data.annotation_files import list_of, need, read_annotation_file
from lbvq.data.catalog import dataset_root
from lbvq.engine.user_errors import user_command
from lbvq.files.writing import write_text
from lbvq.masks.rle import area, to_bbox, validate_rle

Content = dict[str, Any]


def convert(content: Content, source: str | Path, class_split: dict[str, list[int]] | None = None) -> Content:
    """Turn BURST's content into {"videos", "annotations", "categories"}.

    Args:
        content: {"sequences": [...], "categories": [...]}.
        source: where it comes from, for messages.
        class_split: TAO ids of the `common` and the `uncommon` categories.

    Returns:
        A track that is nowhere annotated is left out; a frame without a track has the mask None.
    """
    listed = list_of(content, "categories", source, required=True)
    categories = [_category(each, position, class_split) for position, each in enumerate(listed, 1)]
    ids = {each["tao_id"]: each["id"] for each in categories}
    videos: list[Content] = []
    annotations: list[Content] = []
    for sequence in list_of(content, "sequences", source, required=True):
        where = f"{source}: sequence {sequence.get('seq_name', len(videos))}"
        video = _video(sequence, where)
        if any(video["id"] == other["id"] for other in videos):
            raise ValueError(f"{where}: another sequence has the id {video['id']} too.")
        videos.append(video)
        for track, tao_id in need(sequence, "track_category_ids", where).items():
            if tao_id not in ids:
                raise ValueError(f"{where}, track {track}: there is no category {tao_id}.")
            masks = _track_masks(sequence, track, (video["height"], video["width"]), where)
            if any(masks):
                annotation = {"id": len(annotations) + 1, "video_id": video["id"], "category_id": ids[tao_id]}
                annotations.append({**annotation, **_geometry(masks, video)})
    return {"split": content.get("split"), "videos": videos, "annotations": annotations, "categories": categories}


def _category(category: Content, position: int, class_split: dict[str, list[int]] | None) -> Content:
    found = {**category, "id": position, "tao_id": category["id"]}
    if class_split is not None:
        found["split"] = "common" if category["id"] in class_split["common"] else "uncommon"
    return found


def _video(sequence: Content, where: str) -> Content:
    folder = f"{need(sequence, 'dataset', where)}/{need(sequence, 'seq_name', where)}"
    files = [f"{folder}/{name}" for name in need(sequence, "annotated_image_paths", where)]
    return {
        "id": need(sequence, "id", where),
        "width": need(sequence, "width", where),
        "height": need(sequence, "height", where),
        "length": len(files),
        "file_names": files,
        "neg_category_ids": sequence.get("neg_category_ids", []),  # TAO ids, like the next
        "not_exhaustive_category_ids": sequence.get("not_exhaustive_category_ids", []),
        "metadata": {"dataset": sequence["dataset"]},
    }


def _track_masks(sequence: Content, track: str, size_hw: tuple[int, int], where: str) -> list[Content | None]:
    """Compressed RLE of a track in every annotated frame; None where it is not annotated."""
    frames = need(sequence, "segmentations", where)
    if len(frames) != len(sequence["annotated_image_paths"]):
        raise ValueError(
            f"{where}: {len(frames)} frames of segmentations for {len(sequence['annotated_image_paths'])} images."
        )
    masks: list[Content | None] = []
    for t, frame in enumerate(frames):
        found = frame.get(track)
        if found is None:
            masks.append(None)
            continue
        rle = {"size": list(size_hw), "counts": need(found, "rle", f"{where}, track {track}, frame {t}")}
        validate_rle(rle, size_hw, f"{where}, track {track}, frame {t}")
        masks.append(rle)
    return masks


def _geometry(masks: list[Content | None], video: Content) -> Content:
    return {
        "segmentations": masks,
        "bboxes": [None if rle is None else [int(side) for side in to_bbox(rle)] for rle in masks],
        "areas": [None if rle is None else int(area(rle)) for rle in masks],
        "iscrowd": 0,
        "width": video["width"],
        "height": video["height"],
        "length": video["length"],
    }


@user_command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", default="val", choices=("train", "val", "test"))
    parser.add_argument("--root", default=str(dataset_root()), help="default: DETECTRON2_DATASETS, else ./datasets")
    parser.add_argument("--annotations", help="default: burst/annotations/SPLIT/all_classes.json below the root")
    parser.add_argument("--class-split", help="default: burst/annotations/info/class_split.json, if it is there")
    parser.add_argument("--overwrite", action="store_true", help="replace the result if it exists")
    args = parser.parse_args()
    folder = Path(args.root) / "burst"
    result = folder / f"b2y_{args.split}.json"
    if result.exists() and not args.overwrite:
        print(f"{result} exists and is kept; --overwrite makes it again.")
        return
    source = Path(args.annotations or folder / "annotations" / args.split / "all_classes.json")
    split_file = Path(args.class_split or folder / "annotations" / "info" / "class_split.json")
    class_split = None
    if args.class_split or split_file.exists():
        class_split = json.loads(split_file.read_text(encoding="utf-8"))
    content = convert(read_annotation_file(source), source, class_split)
    result.parent.mkdir(parents=True, exist_ok=True)
    write_text(result, json.dumps(content))
    print(f"{result}: {len(content['videos'])} videos, {len(content['annotations'])} tracks.")


if __name__ == "__main__":
    sys.exit(main())
