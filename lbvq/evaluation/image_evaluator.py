"""Evaluator of image instance segmentation on COCO and LVIS: writes results.json and scores it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lbvq.data.catalog import MetadataCatalog
from lbvq.engine import comm
from lbvq.evaluation.base import DatasetEvaluator, Results
from lbvq.evaluation.coco import score_coco
from lbvq.evaluation.lvis import LvisScorer
from lbvq.evaluation.mask_file import read_mask_file
from lbvq.evaluation.result_files import ResultParts
from lbvq.evaluation.tables import format_results
from lbvq.masks import rle

logger = logging.getLogger(__name__)


class ImageInstanceEvaluator(DatasetEvaluator):
    """For data sets in COCO form. Masks travel between processes through the output folder."""

    def __init__(self, dataset_name: str, output_dir: str | Path, *, metric: str = "coco") -> None:
        """Prepare.

        Args:
            dataset_name: a registered data set.
            output_dir: gets results.json and results.zip.
            metric: "coco" or "lvis".
        """
        if metric not in ("coco", "lvis"):
            raise ValueError(f"metric must be 'coco' or 'lvis', got {metric!r}")
        self._metadata = MetadataCatalog.get(dataset_name)
        self._metric = metric
        self._parts = ResultParts(output_dir)
        self._seen: set[Any] = set()

    def reset(self) -> None:
        """Forget all predictions."""
        self._parts.reset()
        self._seen.clear()

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Take the predictions for a batch of images.

        Args:
            inputs: samples with `image_id`.
            outputs: as many dicts with `instances`: `scores`, `pred_classes` and `pred_masks` (N, H, W), and
                `pred_boxes` if the model has any.
        """
        category_ids = {index: each for each, index in self._metadata.thing_dataset_id_to_contiguous_id.items()}
        for sample, output in zip(inputs, outputs, strict=True):
            if sample["image_id"] in self._seen:
                logger.warning("Image %s was predicted twice; the second prediction is ignored.", sample["image_id"])
                continue
            self._seen.add(sample["image_id"])
            self._parts.add(self._entries(sample["image_id"], output["instances"], category_ids))

    def _entries(self, image_id: Any, instances: Any, category_ids: Mapping[int, int]) -> list[dict[str, Any]]:
        scores, classes = instances.scores.tolist(), instances.pred_classes.tolist()
        unknown = sorted(set(classes) - set(category_ids))
        if unknown:
            raise ValueError(
                f"class indices {unknown[:5]} are not among the {len(category_ids)} of {self._metadata.name}; "
                "does MODEL.SEM_SEG_HEAD.NUM_CLASSES fit the data set?"
            )
        entries = [
            {"image_id": image_id, "category_id": category_ids[label], "score": score}
            for score, label in zip(scores, classes, strict=True)
        ]
        if instances.has("pred_masks"):
            masks = rle.encode_many(instances.pred_masks > 0)
            entries = [{**entry, "segmentation": mask} for entry, mask in zip(entries, masks, strict=True)]
        if instances.has("pred_boxes"):
            corners = getattr(instances.pred_boxes, "tensor", instances.pred_boxes).tolist()
            boxes = [[x0, y0, x1 - x0, y1 - y0] for x0, y0, x1, y1 in corners]
            entries = [{**entry, "bbox": box} for entry, box in zip(entries, boxes, strict=True)]
        return entries

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
        if self._metric == "lvis":
            results = {"segm": LvisScorer(truth).update(path).compute()}
        else:
            results = score_coco(truth, path)
        logger.info("%s", format_results(results))
        return results
