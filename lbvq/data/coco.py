"""Readers of image annotations in COCO format and in LVIS' variant of it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from lbvq.data.annotation_files import (
    INVALID_SEGMENTATIONS,
    check_mask_size,
    clean_box,
    clean_segmentation,
    list_of,
    need,
    needed_size,
    read_annotation_file,
    read_categories,
)
from lbvq.data.catalog import DatasetCatalog, MetadataCatalog
from lbvq.files import rules
from mask2former.structures import BoxMode

logger = logging.getLogger(__name__)

Record = dict[str, Any]

_LINKS = ("video_id", "track_id", "instance_id")  # of images and annotations that are frames and objects of videos


def load_coco_json(json_file: str | Path, image_root: str | Path, dataset_name: str | None = None) -> list[Record]:
    """Read the images of a file, in the order of their ids.

    Args:
        json_file: {"images": [...], "categories": [...], "annotations": [...] or null}.
        image_root: `file_name` is relative to it, and must not leave it.
        dataset_name: whose metadata must agree with the categories of the file, and get them when it has none.

    Returns:
        One dict per image: `file_name`, `height`, `width`, `image_id`, `annotations` (list of dicts `iscrowd`, `bbox`,
        `category_id` (contiguous), `segmentation`, `bbox_mode`).
    """
    content = _read_images(json_file)
    id_map = read_categories(content, json_file, dataset_name)
    records = {}
    for image_id, image in rules.by_id(content, "images", "image", str(json_file)).items():
        where = f"{json_file}: image {image_id}"
        file_name = rules.file_name(need(image, "file_name", where), where)
        records[image_id] = _record(image_id, image, Path(image_root) / file_name, where)
    found = list(rules.linked(list_of(content, "annotations", json_file), records, id_map, "image", str(json_file)))
    logger.info("Loaded %d images in COCO format from %s", len(records), json_file)
    _add_objects(records, found, id_map)
    _hint_at_videos(content, json_file)
    return list(records.values())


def load_lvis_json(json_file: str | Path, image_root: str | Path, dataset_name: str | None = None) -> list[Record]:
    """Read an LVIS file. As `load_coco_json`, and each record says which classes were looked for.

    Crowds are dropped. `neg_category_ids` (contiguous classes that are verified absent) and
    `not_exhaustive_category_ids` (category ids of the file, as published) are added to each record.
    """
    content = _read_images(json_file)
    id_map = read_categories(content, json_file, dataset_name)
    records = {}
    for image_id, image in rules.by_id(content, "images", "image", str(json_file)).items():
        where = f"{json_file}: image {image_id}"
        record = _record(image_id, image, Path(image_root) / _lvis_file_name(image, where), where)
        negative = rules.id_list(image, "neg_category_ids", where)
        unknown = [each for each in negative if each not in id_map]
        if unknown:
            raise ValueError(f"{where}: category {unknown[0]} is not among the file's {rules.few(id_map)}.")
        record["neg_category_ids"] = [id_map[each] for each in negative]
        record["not_exhaustive_category_ids"] = rules.id_list(image, "not_exhaustive_category_ids", where)
        records[image_id] = record
    found = list(rules.linked(list_of(content, "annotations", json_file), records, id_map, "image", str(json_file)))
    logger.info("Loaded %d images in the LVIS format from %s", len(records), json_file)
    _add_objects(records, [each for each in found if not each.is_crowd], id_map)
    return list(records.values())


def register_coco_instances(name: str, metadata: dict[str, Any], json_file: str | Path, image_root: str | Path) -> None:
    """Register a data set of one's own in COCO format."""
    DatasetCatalog.register(name, partial(load_coco_json, json_file, image_root, name))
    facts = {"evaluator_type": "coco", "kind": "image", "pseudo_table": "", **metadata}
    MetadataCatalog.get(name).set(json_file=str(json_file), image_root=str(image_root), **facts)


def _read_images(json_file: str | Path) -> dict[str, Any]:
    content = read_annotation_file(json_file)
    if content.get("images") is None and isinstance(content.get("videos"), list):
        raise ValueError(
            f"{json_file} has a list 'videos' and no list 'images': it is in YouTube-VIS form, for "
            "register_ytvis_instances."
        )
    return content


def _hint_at_videos(content: Mapping[str, Any], json_file: str | Path) -> None:
    """Say that the images of a file are frames of videos, which are lost when each image is taken alone."""
    for key in ("images", "annotations"):
        linking = [entry for entry in list_of(content, key, json_file) if any(link in entry for link in _LINKS)]
        if linking:
            link = next(link for link in _LINKS if link in linking[0])
            logger.warning(
                "%s: %d of its %s have a %r, so they belong to videos, but the COCO form takes every image alone: "
                "tracks are not trained on. `lbvq convert` makes a file in YouTube-VIS form of it.",
                *(json_file, len(linking), key, link),
            )
            return


def _record(image_id: int, image: Mapping[str, Any], file_name: Path, where: str) -> Record:
    height, width = needed_size(image, where)
    record: Record = {"file_name": str(file_name), "height": height, "width": width, "image_id": image_id}
    return {**record, "annotations": []}


def _add_objects(records: Mapping[int, Record], found: list[rules.Linked], id_map: Mapping[int, int]) -> None:
    """Append the objects with a valid segmentation to the records of their images."""
    tally = rules.Tally()
    for each in found:
        record = records[each.parent_id]
        segmentation = each.entry.get("segmentation")
        if not rules.is_nothing(segmentation):
            size_hw = (record["height"], record["width"])
            check_mask_size(segmentation, size_hw, each.where)
            segmentation = clean_segmentation(segmentation, size_hw, each.where, tally)
        else:
            tally.add(INVALID_SEGMENTATIONS, each.where)
        if not rules.is_nothing(segmentation):
            record["annotations"].append(_object(each, segmentation, id_map[each.category_id], tally))
    tally.report(logger)


def _object(annotation: rules.Linked, segmentation: Any, label: int, tally: rules.Tally) -> dict[str, Any]:
    found: dict[str, Any] = {"iscrowd": int(annotation.is_crowd)}
    box = clean_box(annotation.entry.get("bbox"), annotation.where, tally)
    if box:
        found["bbox"] = box
    found |= {"category_id": label, "segmentation": segmentation}
    if annotation.entry.get("keypoints"):
        found["keypoints"] = annotation.entry["keypoints"]
    if box:
        found["bbox_mode"] = BoxMode.XYWH_ABS
    return found


def _lvis_file_name(image: Mapping[str, Any], where: str) -> str:
    """Folder and name below the COCO root; LVIS takes its images from all COCO folders and names them by URL."""
    if "file_name" in image:
        return rules.file_name(image["file_name"], where)
    return rules.file_name("/".join(str(need(image, "coco_url", where)).split("/")[-2:]), where)
