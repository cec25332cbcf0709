"""Readers of image annotations in COCO format and in LVIS' variant of it."""

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


def load_coco_json(json_file: str | Path, image_root: str | Path, dataset_name: str | None = None) -> list[Record]:
    """Read the images of a file, in the order of their ids.

    Args:
        json_file: {"images": [...], "categories": [...], "annotations": [...] or null}.
        image_root: `file_name` is relative to it.
        dataset_name: whose metadata must agree with the categories of the file, and get them when it has none.

    Returns:
        One dict per image: `file_name`, `height`, `width`, `image_id`, `annotations` (list of dicts `iscrowd`, `bbox`,
        `category_id` (contiguous), `segmentation`, `bbox_mode`).
    """
    content = read_annotation_file(json_file)
    id_map = read_categories(content, json_file, dataset_name)
    images, by_image = _images_and_annotations(content, json_file)
    logger.info("Loaded %d images in COCO format from %s", len(images), json_file)
    records, num_invalid = [], 0
    for image_id in sorted(images):
        image, where = images[image_id], f"{json_file}: image {image_id}"
        record = _record(image, str(Path(image_root) / need(image, "file_name", where)), where)
        for annotation in by_image.get(image_id, []):
            found = _object(annotation, record, id_map, f"{where}, annotation {annotation['id']}")
            if found is None:
                num_invalid += 1
            else:
                record["annotations"].append(found)
        records.append(record)
    if num_invalid:
        logger.warning(INVALID_SEGMENTATIONS.format(num_invalid))
    return records


def load_lvis_json(json_file: str | Path, image_root: str | Path, dataset_name: str | None = None) -> list[Record]:
    """Read an LVIS file. As `load_coco_json`, and each record says which classes were looked for.

    Crowds are dropped. `neg_category_ids` (contiguous classes that are verified absent) and
    `not_exhaustive_category_ids` (category ids of the file, as published) are added to each record.
    """
    content = read_annotation_file(json_file)
    id_map = read_categories(content, json_file, dataset_name)
    images, by_image = _images_and_annotations(content, json_file)
    logger.info("Loaded %d images in the LVIS format from %s", len(images), json_file)
    records = []
    for image_id in sorted(images):
        image, where = images[image_id], f"{json_file}: image {image_id}"
        record = _record(image, str(Path(image_root) / _lvis_file_name(image, where)), where)
        negative = image.get("neg_category_ids") or []
        record["neg_category_ids"] = [contiguous_class(each, id_map, where) for each in negative]
        record["not_exhaustive_category_ids"] = list(image.get("not_exhaustive_category_ids") or [])
        for annotation in by_image.get(image_id, []):
            found = _object(annotation, record, id_map, f"{where}, annotation {annotation['id']}")
            if found is not None and not found["iscrowd"]:
                record["annotations"].append(found)
        records.append(record)
    return records


def register_coco_instances(name: str, metadata: dict[str, Any], json_file: str | Path, image_root: str | Path) -> None:
    """Register a data set of one's own in COCO format."""
    DatasetCatalog.register(name, partial(load_coco_json, json_file, image_root, name))
    facts = {"evaluator_type": "coco", "kind": "image", "pseudo_table": "", **metadata}
    MetadataCatalog.get(name).set(json_file=str(json_file), image_root=str(image_root), **facts)


def _images_and_annotations(
    content: dict[str, Any], json_file: str | Path
) -> tuple[dict[int, dict[str, Any]], dict[int, list[dict[str, Any]]]]:
    """Image id -> image, and image id -> its annotations in the order of the file."""
    images = {}
    for image in list_of(content, "images", json_file, required=True):
        image_id = need(image, "id", f"{json_file}: an image")
        if image_id in images:
            raise ValueError(f"{json_file}: two images have the id {image_id}.")
        images[image_id] = image
    by_image: dict[int, list[dict[str, Any]]] = {}
    seen = set()
    for annotation in list_of(content, "annotations", json_file):
        annotation_id = need(annotation, "id", f"{json_file}: an annotation")
        if annotation_id in seen:
            raise ValueError(f"{json_file}: two annotations have the id {annotation_id}.")
        seen.add(annotation_id)
        image_id = need(annotation, "image_id", f"{json_file}: annotation {annotation_id}")
        by_image.setdefault(image_id, []).append(annotation)
    num_lost = sum(len(found) for image_id, found in by_image.items() if image_id not in images)
    if num_lost:
        logger.warning("%s: %d annotations belong to no image of the file and are ignored.", json_file, num_lost)
    return images, by_image


def _record(image: dict[str, Any], file_name: str, where: str) -> Record:
    size = {"height": need(image, "height", where), "width": need(image, "width", where)}
    return {"file_name": file_name, **size, "image_id": image["id"], "annotations": []}


def _object(annotation: dict[str, Any], record: Record, id_map: dict[int, int], where: str) -> dict[str, Any] | None:
    """Make the object of one annotation; None when it has no valid segmentation."""
    label = contiguous_class(need(annotation, "category_id", where), id_map, where)
    segmentation = annotation.get("segmentation")
    if segmentation:
        segmentation = clean_segmentation(segmentation, (record["height"], record["width"]), where)
    if not segmentation:
        return None
    found: dict[str, Any] = {"iscrowd": int(annotation.get("iscrowd") or 0)}
    if annotation.get("bbox"):
        found["bbox"] = annotation["bbox"]
    found |= {"category_id": label, "segmentation": segmentation}
    if annotation.get("keypoints"):
        found["keypoints"] = annotation["keypoints"]
    if "bbox" in found:
        found["bbox_mode"] = BoxMode.XYWH_ABS
    return found


def _lvis_file_name(image: dict[str, Any], where: str) -> str:
    """Folder and name below the COCO root; LVIS takes its images from all COCO folders and names them by URL."""
    if "file_name" in image:
        return image["file_name"]
    return "/".join(need(image, "coco_url", where).split("/")[-2:])
