"""Box and mask AP of images as in COCO, computed by pycocotools on checked input.

pycocotools reads uninitialised memory or hangs on broken masks, and takes the area of a mask from its box when a result
has both; so every mask is checked and rewritten first, and each task gets areas of its own kind.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from lbvq.evaluation.annotations import check_size
from lbvq.evaluation.mask_file import MaskFile, read_mask_file
from lbvq.evaluation.tube_ap_result import to_percent
from lbvq.masks.rle import area, to_bbox, to_rle

logger = logging.getLogger(__name__)

COCO_TASKS = ("bbox", "segm")
_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
Entry = dict[str, Any]


def score_coco(
    ground_truth: str | Path | Mapping[str, Any] | MaskFile,
    predictions: str | Path | Iterable[Mapping[str, Any]],
    tasks: Sequence[str] | None = None,
) -> dict[str, dict[str, float]]:
    """Score predictions on images.

    Args:
        ground_truth: path or content of an annotation file in COCO form.
        predictions: path of a results file or its list [{"image_id", "category_id", "score", "segmentation" and/or
            "bbox" (x, y, width, height)}].
        tasks: of COCO_TASKS; by default those that every prediction has the field for.

    Returns:
        task -> name -> percent, nan where there is nothing to measure; "AP-<class>" for classes.
    """
    truth_file = _read(ground_truth, "ground truth")
    sizes = _image_sizes(truth_file)
    truth = _read_truth(truth_file, sizes)
    file = _read(predictions, "predictions")
    if not isinstance(file.document, list):
        raise ValueError(f"{file.name}: results must be a list of objects, got {type(file.document).__name__}")
    if tasks is None:
        fields = {"bbox": "bbox", "segm": "segmentation"}
        tasks = [task for task in COCO_TASKS if all(_has(entry, fields[task]) for entry in file.document)]
        if not tasks:
            raise ValueError(f"{file.name}: some detections have no 'segmentation' and some have no 'bbox'")
    return {task: _evaluate(truth, _read_detections(file, sizes, truth, task), task) for task in tasks}


def _has(entry: Any, key: str) -> bool:
    return isinstance(entry, Mapping) and entry.get(key) is not None


def _read(source: Any, name: str) -> MaskFile:
    if isinstance(source, MaskFile):
        return source
    if isinstance(source, (str, Path)):
        return read_mask_file(source)
    return MaskFile(name, source if isinstance(source, Mapping) else list(source), [], [])


def _image_sizes(file: MaskFile) -> dict[Any, tuple[int, int]]:
    """Image id -> height, width."""
    content = file.document
    for key in ("images", "categories", "annotations"):
        if not isinstance(content, Mapping) or not isinstance(content.get(key), list):
            raise ValueError(f"{file.name}: expected annotations of images with a list '{key}'")
    return {
        image["id"]: check_size((image.get("height"), image.get("width")), f"{file.name}: image {image.get('id')}")
        for image in content["images"]
    }


def _read_truth(file: MaskFile, sizes: Mapping[Any, tuple[int, int]]) -> COCO:
    annotations = []
    for index, entry in enumerate(file.document["annotations"], start=1):
        where = f"{file.name}: image {entry.get('image_id')}, annotation {entry.get('id')}"
        size = sizes.get(entry.get("image_id"))
        if size is None:
            raise ValueError(f"{where}: there is no image with this id in the file")
        mask = _mask(entry.get("segmentation"), file, size, where)
        box = entry.get("bbox") or (to_bbox(mask) if mask else None)
        if box is None:
            raise ValueError(f"{where}: has neither 'segmentation' nor 'bbox'")
        own_area = entry.get("area")
        if own_area is None:
            own_area = area(mask) if mask else box[2] * box[3]
        # Ids count from 1 here: pycocotools takes a match with id 0 for none.
        annotations.append(
            {
                "id": index,
                "image_id": entry["image_id"],
                "category_id": entry["category_id"],
                "iscrowd": int(entry.get("iscrowd") or 0),
                "ignore": 0,
                "area": own_area,
                "bbox": _box(box, where),
                "segmentation": mask or to_rle([], *size),
            }
        )
    return _as_coco(file.document["images"], file.document["categories"], annotations)


def _read_detections(file: MaskFile, sizes: Mapping[Any, tuple[int, int]], truth: COCO, task: str) -> COCO:
    detections, unknown = [], set()
    for index, entry in enumerate(file.document):
        where = f"{file.name}: detection {index} (image {entry.get('image_id')})"
        size = sizes.get(entry.get("image_id"))
        if size is None:
            raise ValueError(f"{where}: the ground truth has no image with this id")
        score = entry.get("score")
        if not isinstance(score, (int, float, np.number)) or not math.isfinite(score):
            raise ValueError(f"{where}: 'score' must be a finite number, got {score!r}")
        if entry.get("category_id") not in truth.cats:
            unknown.add(entry.get("category_id"))
            continue
        mask = _mask(entry.get("segmentation"), file, size, where) if task == "segm" else None
        if task == "segm" and mask is None:
            raise ValueError(f"{where}: has no 'segmentation'")
        box = to_bbox(mask) if mask else _box(entry.get("bbox"), where)
        detections.append(
            {
                "id": index + 1,
                "image_id": entry["image_id"],
                "category_id": entry["category_id"],
                "score": float(score),
                "iscrowd": 0,
                "area": area(mask) if mask else box[2] * box[3],
                "bbox": box,
                "segmentation": mask,
            }
        )
    if unknown:
        logger.warning("%s: categories that the ground truth does not list were ignored: %s", file.name, unknown)
    return _as_coco(list(truth.imgs.values()), list(truth.cats.values()), detections)


def _mask(segmentation: Any, file: MaskFile, size: tuple[int, int], where: str) -> Entry | None:
    """Any form of segmentation -> checked compressed mask; None for none."""
    if isinstance(segmentation, range):
        index = segmentation.start
        segmentation = {"size": json.loads(file.sizes[index]), "counts": json.loads(file.texts[index])}
    return to_rle(segmentation, *size, where) if segmentation else None


def _box(box: Any, where: str) -> list[float]:
    if not isinstance(box, (list, tuple)) or len(box) != 4 or not all(isinstance(side, (int, float)) for side in box):
        raise ValueError(f"{where}: 'bbox' must be [x, y, width, height], got {box!r:.60}")
    return [float(side) for side in box]


def _as_coco(images: list[Entry], categories: list[Entry], annotations: list[Entry]) -> COCO:
    coco = COCO()
    coco.dataset = {"images": images, "categories": categories, "annotations": annotations}
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _evaluate(truth: COCO, detections: COCO, task: str) -> dict[str, float]:
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, detections, task)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    table = {name: to_percent(value) for name, value in zip(_NAMES, evaluation.stats.tolist(), strict=True)}
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # (IoU, recall, category)
    for index, category_id in enumerate(evaluation.params.catIds):
        values = precision[:, :, index]
        values = values[values > -1]
        name = truth.cats[category_id].get("name", category_id)
        table[f"AP-{name}"] = to_percent(float(values.mean()) if values.size else -1.0)
    return table
