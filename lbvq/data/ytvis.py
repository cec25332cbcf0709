"""Reader of videos in YouTube-VIS format: YouTube-VIS, OVIS, HQ-YTVIS, LV-VIS, BURST, and our synthetic ones."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any

from lbvq.data.annotation_files import (
    INVALID_SEGMENTATIONS,
    clean_segmentation,
    contiguous_class,
    list_of,
    need,
    read_annotation_file,
    read_categories,
)
from lbvq.data.catalog import DatasetCatalog, MetadataCatalog
from mask2former.structures import BoxMode

logger = logging.getLogger(__name__)

Record = dict[str, Any]


def load_ytvis_json(
    json_file: str | Path,
    image_root: str | Path,
    dataset_name: str | None = None,
    *,
    segmentations_key: str = "segmentations",
    needs_boxes: bool = True,
    size_from_image: bool = False,
) -> list[Record]:
    """Read the videos of a file, in the order of their ids.

    Args:
        json_file: {"videos": [...], "categories": [...], "annotations": [...] or null}.
        image_root: `file_names` are relative to it.
        dataset_name: whose metadata must agree with the categories of the file, and get them when it has none.
        segmentations_key: where masks are, in preference to "segmentations" (HQ-YTVIS: "segmentations_refined").
        needs_boxes: skip an object in frames whose box is null, as YouTube-VIS does; otherwise, and where the file has
            no boxes at all, boxes are made from masks.
        size_from_image: the size of the image files replaces the one in the file, which is known to be unreliable.

    Returns:
        One dict per video: `file_names`, `height`, `width`, `length`, `video_id`, `annotations` (for each frame a list
        of dicts `iscrowd`, `category_id` (contiguous), `id`, `bbox`, `bbox_mode`, `segmentation`), and `eval_idx` when
        the file has it.
    """
    content = read_annotation_file(json_file)
    id_map = read_categories(content, json_file, dataset_name)
    videos: dict[int, dict[str, Any]] = {}
    for video in list_of(content, "videos", json_file, required=True):
        video_id = need(video, "id", f"{json_file}: a video")
        if video_id in videos:
            raise ValueError(f"{json_file}: two videos have the id {video_id}.")
        videos[video_id] = video
    annotations = list_of(content, "annotations", json_file)
    by_video = _group_by_video(annotations, videos, json_file)
    logger.info("Loaded %d videos in YTVIS format from %s", len(videos), json_file)

    records, num_invalid = [], 0
    for video_id in sorted(videos):
        record = _record(videos[video_id], image_root, f"{json_file}: video {video_id}")
        if size_from_image:
            record["size_from_image"] = True
        for annotation in by_video.get(video_id, []):
            where = f"{json_file}: video {video_id}, annotation {annotation['id']}"
            key = segmentations_key if annotation.get(segmentations_key) is not None else "segmentations"
            num_invalid += _add_annotation(record, annotation, key, id_map, needs_boxes, where)
        records.append(record)
    if num_invalid:
        logger.warning(INVALID_SEGMENTATIONS.format(num_invalid))
    return records


def register_ytvis_instances(
    name: str, metadata: dict[str, Any], json_file: str | Path, image_root: str | Path, **options: Any
) -> None:
    """Register a data set of one's own in YouTube-VIS format; `options` go to `load_ytvis_json`."""
    DatasetCatalog.register(name, partial(load_ytvis_json, json_file, image_root, name, **options))
    facts = {"evaluator_type": "ytvis", "kind": "video", "pseudo_table": "", **metadata}
    MetadataCatalog.get(name).set(json_file=str(json_file), image_root=str(image_root), **facts)


def _group_by_video(
    annotations: list[dict[str, Any]], videos: dict[int, Any], json_file: str | Path
) -> dict[int, list[dict[str, Any]]]:
    """Video id -> its annotations in the order of the file; those of unknown videos are reported and dropped."""
    grouped: dict[int, list[dict[str, Any]]] = {}
    seen = set()
    for annotation in annotations:
        annotation_id = need(annotation, "id", f"{json_file}: an annotation")
        video_id = need(annotation, "video_id", f"{json_file}: annotation {annotation_id}")
        if (video_id, annotation_id) in seen:
            raise ValueError(f"{json_file}: video {video_id} has two annotations with the id {annotation_id}.")
        seen.add((video_id, annotation_id))
        if video_id in videos:
            grouped.setdefault(video_id, []).append(annotation)
    num_matched = sum(map(len, grouped.values()))
    if num_matched < len(annotations):
        logger.warning(
            "%s contains %d annotations, but only %d of them match to images in the file.",
            json_file,
            len(annotations),
            num_matched,
        )
    return grouped


def _record(video: dict[str, Any], image_root: str | Path, where: str) -> Record:
    """Make the record of one video, still without objects."""
    names = list_of(video, "file_names", where, required=True)
    length = video.get("length", len(names))
    if not 0 < length <= len(names):
        raise ValueError(f"{where} has length {length} but {len(names)} file_names.")
    record = {
        # as published: `length` decides how many frames there are
        "file_names": [str(Path(image_root) / _relative_path(str(name))) for name in names[:length]],
        "height": need(video, "height", where),
        "width": need(video, "width", where),
        "length": length,
        "video_id": video["id"],
    }
    if "eval_idx" in video:
        record["eval_idx"] = video["eval_idx"]
    record["annotations"] = [[] for _ in range(length)]
    return record


def _relative_path(name: str) -> str:
    """Keep folder and file of a Windows path, as some LV-VIS files have them; leave others alone."""
    return "/".join(name.split("\\")[-2:]) if "\\" in name else name


def _add_annotation(
    record: Record, annotation: dict[str, Any], key: str, id_map: dict[int, int], needs_boxes: bool, where: str
) -> int:
    """Append one object to the frames it is visible in; return in how many frames its segmentation was unusable."""
    label = contiguous_class(need(annotation, "category_id", where), id_map, where)
    segmentations = list_of(annotation, key, where, required=True)
    boxes = annotation.get("bboxes")
    for field, values in ((key, segmentations), ("bboxes", boxes)):
        if values is not None and len(values) < record["length"]:
            raise ValueError(f"{where} has {len(values)} {field} for the {record['length']} frames of the video.")
    num_invalid = 0
    for t in range(record["length"]):
        box = boxes[t] if boxes is not None else None
        if not segmentations[t] or (needs_boxes and boxes is not None and not box):
            continue
        size_hw = (record["height"], record["width"])
        segmentation = clean_segmentation(segmentations[t], size_hw, f"{where}, frame {t}")
        if segmentation is None:
            num_invalid += 1
            continue
        found = {"iscrowd": int(annotation.get("iscrowd") or 0), "category_id": label, "id": annotation["id"]}
        if box:
            found |= {"bbox": box, "bbox_mode": BoxMode.XYWH_ABS}
        record["annotations"][t].append({**found, "segmentation": segmentation})
    return num_invalid
