"""Reader of videos in YouTube-VIS format: YouTube-VIS, OVIS, HQ-YTVIS, LV-VIS, BURST, and our synthetic ones."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from lbvq.data.annotation_files import (
    check_mask_size,
    clean_box,
    clean_segmentation,
    list_of,
    needed_size,
    read_annotation_file,
    read_categories,
)
from lbvq.data.catalog import DatasetCatalog, MetadataCatalog
from lbvq.files import rules
from lbvq.masks.rle import area, to_rle
from mask2former.structures import BoxMode

logger = logging.getLogger(__name__)

Record = dict[str, Any]

_NO_BOX = "%d masks whose box is null were left out, as published (needs_boxes). The first: %s."


def load_ytvis_json(
    json_file: str | Path,
    image_root: str | Path,
    dataset_name: str | None = None,
    *,
    segmentations_key: str = "segmentations",
    needs_boxes: bool = False,
    size_from_image: bool = False,
    windows_paths: bool = False,
) -> list[Record]:
    """Read the videos of a file, in the order of their ids.

    Args:
        json_file: {"videos": [...], "categories": [...], "annotations": [...] or null}.
        image_root: `file_names` are relative to it, and must not leave it.
        dataset_name: whose metadata must agree with the categories of the file, and get them when it has none.
        segmentations_key: where masks are, in preference to "segmentations" (HQ-YTVIS: "segmentations_refined").
        needs_boxes: as published for YouTube-VIS, leave out a mask whose box is null. Otherwise masks alone decide
            where an object is visible, and boxes that are missing or have no area are made from them.
        size_from_image: the size of the image files replaces the one in the file, which is known to be unreliable.
        windows_paths: of `file_names` with backslashes keep folder and file, as some files of LV-VIS have them.

    Returns:
        One dict per video: `file_names`, `height`, `width`, `length`, `video_id`, `annotations` (for each frame a list
        of dicts `iscrowd`, `category_id` (contiguous), `id`, `bbox`, `bbox_mode`, `segmentation`), and `eval_idx` when
        the file has it.
    """
    content = read_annotation_file(json_file)
    if content.get("videos") is None and isinstance(content.get("images"), list):
        raise ValueError(
            f"{json_file} has a list 'images' and no list 'videos': it is in COCO form, for register_coco_instances."
        )
    id_map = read_categories(content, json_file, dataset_name)
    records = {}
    for video_id, video in rules.by_id(content, "videos", "video", str(json_file)).items():
        names = rules.frame_names(video, f"{json_file}: video {video_id}", windows=windows_paths)
        records[video_id] = _record(video_id, video, names, image_root, f"{json_file}: video {video_id}")
        if size_from_image:
            records[video_id]["size_from_image"] = True
    annotations = list_of(content, "annotations", json_file)
    found = list(rules.linked(annotations, records, id_map, "video", str(json_file)))
    logger.info("Loaded %d videos in YTVIS format from %s", len(records), json_file)

    tally = rules.Tally()
    for each in found:
        key = segmentations_key if each.entry.get(segmentations_key) is not None else "segmentations"
        label = id_map[each.category_id]
        _add_annotation(records[each.parent_id], each, label, key, needs_boxes, tally)
    tally.report(logger)
    return list(records.values())


def register_ytvis_instances(
    name: str, metadata: dict[str, Any], json_file: str | Path, image_root: str | Path, **options: Any
) -> None:
    """Register a data set of one's own in YouTube-VIS format; `options` go to `load_ytvis_json`."""
    DatasetCatalog.register(name, partial(load_ytvis_json, json_file, image_root, name, **options))
    facts = {"evaluator_type": "ytvis", "kind": "video", "pseudo_table": "", **metadata}
    MetadataCatalog.get(name).set(json_file=str(json_file), image_root=str(image_root), **facts)


def _record(video_id: int, video: Mapping[str, Any], names: list[str], image_root: str | Path, where: str) -> Record:
    """Make the record of one video, still without objects."""
    length = rules.num_frames(video, len(names), where)
    if not names or length is None:
        raise ValueError(f"{where} has no file_names.")
    for kind in ("neg", "not_exhaustive"):  # only scoring needs them
        rules.id_list(video, f"{kind}_category_ids", where)
    height, width = needed_size(video, where)
    record = {
        "file_names": [str(Path(image_root) / name) for name in names[:length]],
        "height": height,
        "width": width,
        "length": length,
        "video_id": video_id,
    }
    if "eval_idx" in video:
        record["eval_idx"] = video["eval_idx"]
    record["annotations"] = [[] for _ in range(length)]
    return record


def _add_annotation(
    record: Record, annotation: rules.Linked, label: int, key: str, needs_boxes: bool, tally: rules.Tally
) -> None:
    """Append one object to the frames it is visible in."""
    entry, where = annotation.entry, annotation.where
    if key not in entry and "segmentation" in entry:
        raise ValueError(f"{where} has one 'segmentation'; an object of a video has a list 'segmentations'.")
    segmentations = rules.per_frame(entry, key, record["length"], where)
    has_boxes = entry.get("bboxes") is not None
    boxes = rules.per_frame(entry, "bboxes", record["length"], where) if has_boxes else [None] * len(segmentations)
    size_hw = (record["height"], record["width"])
    for t, (mask, box) in enumerate(zip(segmentations, boxes, strict=True)):
        if rules.is_nothing(mask):
            continue
        place = f"{where}, frame {t}"
        if has_boxes and rules.is_nothing(box) and _is_left_out(mask, size_hw, needs_boxes, place, tally):
            continue
        if not record.get("size_from_image"):
            check_mask_size(mask, size_hw, place)
        segmentation = clean_segmentation(mask, size_hw, place, tally)
        if segmentation is None:
            continue
        found: dict[str, Any] = {"iscrowd": int(annotation.is_crowd), "category_id": label, "id": annotation.id}
        box = clean_box(box, place, tally)
        if box:
            found |= {"bbox": box, "bbox_mode": BoxMode.XYWH_ABS}
        record["annotations"][t].append({**found, "segmentation": segmentation})


def _is_left_out(mask: Any, size_hw: tuple[int, int], needs_boxes: bool, where: str, tally: rules.Tally) -> bool:
    """Whether a mask without a box shows no object: it is empty, or the data set wants boxes."""
    if isinstance(mask, dict) and mask.get("size") == list(size_hw):
        if area(to_rle(mask, *size_hw, where)) == 0:
            return True
    if needs_boxes:
        tally.add(_NO_BOX, where)
    return needs_boxes
