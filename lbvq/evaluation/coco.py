"""Box and mask AP of images as in COCO, computed by pycocotools on checked input.

pycocotools reads uninitialised memory or hangs on broken masks, and takes the area of a mask from its box when a result
has both; so every mask is checked and rewritten first, and each task gets areas of its own kind.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from lbvq.evaluation.diagnosis.outcomes import Outcomes
from lbvq.evaluation.tube_ap_result import to_percent, unique_names
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
    return {task: _evaluate(*pair, task) for task, pair in _read_both(ground_truth, predictions, tasks).items()}


def judge_coco(
    ground_truth: str | Path | Mapping[str, Any] | MaskFile, predictions: str | Path | Iterable[Mapping[str, Any]]
) -> dict[str, Outcomes]:
    """Task -> what became of every detection that counts, as pycocotools matches them."""
    return {task: _judge(*pair, task) for task, pair in _read_both(ground_truth, predictions, None).items()}


def _read_both(ground_truth: Any, predictions: Any, tasks: Sequence[str] | None) -> dict[str, tuple[COCO, COCO]]:
    """Task -> annotations and detections."""
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
    return {task: (truth, _read_detections(file, sizes, truth, task)) for task in tasks}


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


def _judge(truth: COCO, detections: COCO, task: str) -> Outcomes:
    """Read the matches of objects of all sizes; images stand for videos."""
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, detections, task)
        evaluation.params.areaRng, evaluation.params.areaRngLbl = evaluation.params.areaRng[:1], ["all"]
        evaluation.evaluate()
    params = evaluation.params
    places = {category_id: index for index, category_id in enumerate(params.catIds)}
    none: dict[str, Any] = {
        "category_id": params.catIds[0] if params.catIds else 0,
        "image_id": 0,
        "dtIds": [],
        "dtScores": [],
    }
    empty = np.zeros((len(params.iouThrs), 0), bool)
    none |= {"dtMatches": empty, "dtIgnore": empty, "gtIgnore": []}
    found = [none, *filter(None, evaluation.evalImgs)]
    place, image, own_ids = (np.array(list(each), np.int64) for each in zip(*_keys(found, places), strict=True))
    score = np.concatenate([np.array(each["dtScores"], np.float64) for each in found])
    order = np.argsort(-score, kind="stable")
    matched, ignored = (
        np.concatenate([np.asarray(each[key], bool) for each in found], axis=1).T[order]
        for key in ("dtMatches", "dtIgnore")
    )
    counted = [~np.asarray(each["gtIgnore"], bool) for each in found]
    index = np.repeat(np.arange(len(found)), own_ids)[order]
    track = np.repeat(np.arange(len(found)), [len(each) for each in counted])
    names = {each: str(truth.cats[each]["name"]) for each in params.catIds}
    return Outcomes(
        thresholds=np.array(params.iouThrs),
        recalls=np.array(params.recThrs),
        names=tuple(unique_names(names).values()),
        source=order,
        order=np.concatenate([np.array(each["dtIds"], np.int64) for each in found])[order] - 1,
        video=image[index],
        place=place[index],
        score=score[order],
        true=matched & ~ignored,
        false=~matched & ~ignored,
        track=np.full(matched.shape, -1),
        counted=np.concatenate(counted),
        track_place=place[track],
        track_video=image[track],
    )


def _keys(found: Iterable[Mapping[str, Any]], places: Mapping[int, int]) -> Iterator[tuple[int, int, int]]:
    """Position of the category, id of the image, and number of detections of each comparison."""
    for each in found:
        yield places.get(each["category_id"], 0), each["image_id"], len(each["dtIds"])


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
