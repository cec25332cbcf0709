"""Box and mask AP of images as in COCO, computed by pycocotools on checked input.

pycocotools reads uninitialised memory or hangs on broken masks, and takes the area of a mask from its box when a result
has both; so every mask is checked and rewritten first, and each task gets areas of its own kind.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from lbvq.evaluation.tube_ap_result import to_percent
from lbvq.files import rules
from lbvq.files.mask_file import MaskFile, read_mask_file
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


def check_coco(ground_truth: str | Path | Mapping[str, Any] | MaskFile) -> None:
    """Raise ValueError where `score_coco` would because of the annotations."""
    file = _read(ground_truth, "ground truth")
    _read_truth(file, _image_sizes(file))


def _has(entry: Any, key: str) -> bool:
    return isinstance(entry, Mapping) and entry.get(key) is not None


def _read(source: Any, name: str) -> MaskFile:
    if isinstance(source, MaskFile):
        return source
    if isinstance(source, (str, Path)):
        return read_mask_file(source)
    return MaskFile.of(source if isinstance(source, Mapping) else list(source), name)


def _image_sizes(file: MaskFile) -> dict[int, tuple[int, int]]:
    """Image id -> height, width."""
    if not isinstance(file.document, Mapping):
        raise ValueError(f"{file.name}: expected annotations of images, got {type(file.document).__name__}")
    sizes = {}
    for number, image in rules.by_id(file.document, "images", "image", file.name).items():
        sizes[number] = rules.frame_size((image.get("height"), image.get("width")), f"{file.name}: image {number}")
    return sizes


def _read_truth(file: MaskFile, sizes: Mapping[int, tuple[int, int]]) -> COCO:
    categories = rules.categories(file.document, file.name)
    found = rules.linked(rules.entries(file.document, "annotations", file.name), sizes, categories, "image", file.name)
    annotations = []
    for index, each in enumerate(found, start=1):
        size = sizes[each.parent_id]
        mask = _mask(each.entry.get("segmentation"), file, size, each.where)
        box = each.entry.get("bbox")
        if rules.is_nothing(box):
            box = to_bbox(mask) if mask else None
        if box is None:
            raise ValueError(f"{each.where}: has neither 'segmentation' nor 'bbox'")
        box = rules.sized_box(box, each.where)
        # Ids count from 1 here: pycocotools takes a match with id 0 for none.
        annotations.append(
            {
                "id": index,
                "image_id": each.parent_id,
                "category_id": each.category_id,
                "iscrowd": int(each.is_crowd),
                "ignore": 0,
                "area": _own_area(each, mask, box),
                "bbox": box,
                "segmentation": mask or to_rle([], *size),
            }
        )
    images = [{"id": number, "height": height, "width": width} for number, (height, width) in sizes.items()]
    names = [{"id": number, "name": str(entry.get("name", number))} for number, entry in categories.items()]
    return _as_coco(images, names, annotations)


def _own_area(annotation: rules.Linked, mask: Entry | None, box: Sequence[float]) -> float:
    """As published the area in the file decides, where it has one."""
    if annotation.entry.get("area") is None:
        return area(mask) if mask else box[2] * box[3]
    return rules.finite(annotation.entry, "area", annotation.where)


def _read_detections(file: MaskFile, sizes: Mapping[int, tuple[int, int]], truth: COCO, task: str) -> COCO:
    detections = []
    unknown: set[int] = set()
    for index, entry in enumerate(file.document):
        where = f"{file.name}: detection {index}"
        head = rules.result_head(entry, sizes, "image", where, "the ground truth")
        where = f"{where} (image {head.parent_id})"
        mask = None
        if task == "segm":
            mask = _mask(entry.get("segmentation"), file, sizes[head.parent_id], where, polygons=False)
            if mask is None:
                raise ValueError(f"{where}: has no 'segmentation'")
        box = to_bbox(mask) if mask else rules.sized_box(entry.get("bbox"), where)
        if head.category_id not in truth.cats:
            unknown.add(head.category_id)
            continue
        detections.append(
            {
                "id": index + 1,
                "image_id": head.parent_id,
                "category_id": head.category_id,
                "score": head.score,
                "iscrowd": 0,
                "area": area(mask) if mask else box[2] * box[3],
                "bbox": box,
                "segmentation": mask,
            }
        )
    if unknown:
        text = "%s: categories that the ground truth does not list were ignored: %s"
        logger.warning(text, file.name, rules.few(sorted(unknown)))
    return _as_coco(list(truth.imgs.values()), list(truth.cats.values()), detections)


def _mask(
    segmentation: Any, file: MaskFile, size: tuple[int, int], where: str, *, polygons: bool = True
) -> Entry | None:
    """Any form of segmentation -> checked compressed mask; None for none."""
    if isinstance(segmentation, range):
        index = segmentation.start
        segmentation = {"size": _json(file.sizes[index], where), "counts": _json(file.texts[index], where)}
    if rules.is_nothing(segmentation):
        return None
    if not polygons and isinstance(segmentation, (list, tuple)):
        raise ValueError(f"{where}: polygons are no form of results; write run lengths, {{'size', 'counts'}}")
    return to_rle(segmentation, *size, where)


def _json(text: bytes, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where}: the mask is not valid JSON ({error})") from None


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
