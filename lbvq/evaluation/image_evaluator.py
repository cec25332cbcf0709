"""Evaluator of image instance segmentation on COCO and LVIS: writes results.json and scores it."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lbvq.data.catalog import MetadataCatalog
from lbvq.engine import comm
from lbvq.evaluation.annotations import GroundTruth
from lbvq.evaluation.base import DatasetEvaluator, Results
from lbvq.evaluation.class_ids import ClassIds
from lbvq.evaluation.image_metrics import IMAGE_CHECKS, IMAGE_METRICS
from lbvq.evaluation.result_files import ResultParts
from lbvq.evaluation.tables import format_results
from lbvq.files.class_list import ClassList
from lbvq.files.mask_file import read_mask_file
from lbvq.masks import rle
from lbvq.masks.tubes import MaskTubes

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FoundInImage:
    """N objects: scores, class indices, and run lengths and boxes [x, y, width, height] where there are any."""

    scores: Sequence[float]
    classes: Sequence[int]
    masks: Sequence[dict[str, Any]] | None = None
    boxes: Sequence[Sequence[float]] | None = None


class ImageInstanceEvaluator(DatasetEvaluator):
    """For data sets in COCO form, image models, and video models that are given an image as a video of one frame.

    Masks travel between processes through the output folder.
    """

    def __init__(
        self, dataset_name: str, output_dir: str | Path, *, metric: str = "coco", classes: ClassList | None = None
    ) -> None:
        """Prepare.

        Args:
            dataset_name: a registered data set.
            output_dir: gets results.json and results.zip.
            metric: one of `IMAGE_METRICS`.
            classes: of the model; None takes its class indices for those of the data set.
        """
        if metric not in IMAGE_METRICS:
            raise ValueError(f"metric must be one of {', '.join(IMAGE_METRICS)}, got {metric!r}")
        self._metadata = MetadataCatalog.get(dataset_name)
        self._metric = metric
        self._classes = classes
        self._ids: ClassIds | None = None
        self._parts = ResultParts(output_dir)
        self._seen: set[Any] = set()

    def check(self) -> None:
        """Read the annotations and every mask of them by the rules of scoring; nothing of them is kept."""
        truth = read_mask_file(self._metadata.json_file)
        if isinstance(truth.document, Mapping) and truth.document.get("annotations") is None:
            GroundTruth(truth, noun="image")  # their ids and sizes still count
        else:
            IMAGE_CHECKS[self._metric](truth)

    def reset(self) -> None:
        """Forget all predictions."""
        self._parts.reset()
        self._seen.clear()

    def process(
        self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]] | Mapping[str, Any]
    ) -> None:
        """Take the predictions for a batch of images.

        Args:
            inputs: samples with `image_id`.
            outputs: as many dicts with `instances`: `scores`, `pred_classes` and `pred_masks` (N, H, W), and
                `pred_boxes` if the model has any. Or what a video model returns for one sample: `pred_scores` and
                `pred_labels`, lists of N, and `pred_masks`, (N, T, H, W) bool or `MaskTubes`, of which the first frame
                counts.
        """
        found = [_of_video(outputs)] if isinstance(outputs, Mapping) else [_of_image(each) for each in outputs]
        if self._ids is None:
            self._ids = ClassIds(self._metadata, self._classes)
        for sample, image in zip(inputs, found, strict=True):
            if sample["image_id"] in self._seen:
                logger.warning("Image %s was predicted twice; the second prediction is ignored.", sample["image_id"])
                continue
            self._seen.add(sample["image_id"])
            self._parts.add(self._entries(sample["image_id"], image, self._ids))

    def _entries(self, image_id: Any, found: FoundInImage, ids: ClassIds) -> list[dict[str, Any]]:
        categories = [ids[label] for label in found.classes]
        if not all(map(math.isfinite, found.scores)):
            raise ValueError(
                f"a prediction for image {image_id} has a score that is no number: {list(found.scores)[:5]}"
            )
        entries: list[dict[str, Any]] = [
            {"image_id": image_id, "category_id": category_id, "score": score}
            for score, category_id in zip(found.scores, categories, strict=True)
        ]
        for key, values in (("segmentation", found.masks), ("bbox", found.boxes)):
            if values is not None:
                entries = [{**entry, key: value} for entry, value in zip(entries, values, strict=True)]
        return [entry for entry in entries if entry["category_id"] is not None]

    def evaluate(self) -> Results:
        """Write the files and score; {} without annotations, and on every process but the main one."""
        path = self._parts.finish()
        if not comm.is_main_process():
            return {}
        logger.info("Results written to %s", path)
        truth = read_mask_file(self._metadata.json_file)
        if not isinstance(truth.document, Mapping) or truth.document.get("annotations") is None:
            logger.warning("Annotations are not available for evaluation: %s has none.", self._metadata.json_file)
            return {}
        results = IMAGE_METRICS[self._metric](truth, path)
        logger.info("%s", format_results(results))
        return results


def _of_image(output: Mapping[str, Any]) -> FoundInImage:
    """Read the results of an image model."""
    instances = output["instances"]
    masks = rle.encode_many(instances.pred_masks > 0) if instances.has("pred_masks") else None
    boxes = None
    if instances.has("pred_boxes"):
        corners = getattr(instances.pred_boxes, "tensor", instances.pred_boxes).tolist()
        boxes = [[x0, y0, x1 - x0, y1 - y0] for x0, y0, x1, y1 in corners]
    return FoundInImage(instances.scores.tolist(), instances.pred_classes.tolist(), masks, boxes)


def _of_video(output: Mapping[str, Any]) -> FoundInImage:
    """Read the first frame of the results of a video model, which have no boxes."""
    masks = output["pred_masks"]
    tubes = masks if isinstance(masks, MaskTubes) else MaskTubes.from_dense(masks[:, :1])
    empty = rle.to_rle([], *tubes.size)
    codes = [tubes.rles(n)[0] or dict(empty) for n in range(len(tubes))]
    return FoundInImage(list(output["pred_scores"]), list(output["pred_labels"]), codes)
