"""Evaluator of video instance segmentation: writes results.json and scores it where annotations are at hand."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lbvq.data.catalog import MetadataCatalog
from lbvq.engine import comm
from lbvq.evaluation.analysis import Analysis
from lbvq.evaluation.base import DatasetEvaluator, Results
from lbvq.evaluation.class_ids import ClassIds
from lbvq.evaluation.report import write_report
from lbvq.evaluation.result_files import ResultParts
from lbvq.evaluation.tables import format_results
from lbvq.evaluation.video_metrics import Scores, VideoScorer, read_ground_truth
from lbvq.files.class_list import ClassList
from lbvq.files.json_files import to_json
from lbvq.files.mask_file import MaskFile, read_mask_file
from lbvq.files.writing import write_text
from lbvq.masks.rle import to_rle
from lbvq.masks.tubes import MaskTubes

logger = logging.getLogger(__name__)


class VideoInstanceEvaluator(DatasetEvaluator):
    """For YouTube-VIS, OVIS, HQ-YTVIS, LV-VIS, BURST and data sets in their format.

    Every process scores its own videos as they come; only a few numbers per prediction travel between processes.
    """

    def __init__(
        self,
        dataset_name: str,
        output_dir: str | Path,
        *,
        metric: str = "ytvis",
        classes: ClassList | None = None,
        analysis: bool = False,
        report: str | Path | None = None,
        **options: Any,
    ) -> None:
        """Prepare; annotations are read when the first prediction arrives.

        Args:
            dataset_name: a registered data set.
            output_dir: gets results.json and results.zip.
            metric: one of `video_metrics.VIDEO_METRICS`.
            classes: of the model; None takes its class indices for those of the data set.
            analysis: tell where AP is lost, too, and write analysis.json.
            report: folder of a report, see `write_report`; None writes none.
            options: `reference`, `base_novel` and `long_videos` of `VideoScorer`.
        """
        self._metadata = MetadataCatalog.get(dataset_name)
        self._metric = metric
        self._options = options
        self._classes = classes
        self._analysis = analysis
        self._report = report
        self._ids: ClassIds | None = None
        self._parts = ResultParts(output_dir)
        self._scorer: VideoScorer | None = None
        self._is_ready = False
        self._seen: set[int] = set()

    def check(self) -> None:
        """Read the annotations and every mask of them by the rules of scoring; nothing of them is kept."""
        truth = read_ground_truth(
            self._metric, self._metadata.json_file, reference=bool(self._options.get("reference"))
        )
        if truth.has_annotations:
            VideoScorer(self._metric, truth, **self._options).check_masks()

    def reset(self) -> None:
        """Forget all predictions."""
        self._parts.reset()
        self._seen.clear()
        if self._scorer is not None:
            self._scorer.reset()

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Mapping[str, Any]) -> None:
        """Take the prediction for one video.

        Args:
            inputs: one sample with `video_id`.
            outputs: `pred_scores` and `pred_labels`, lists of N, and `pred_masks`, (N, T, H, W) bool or `MaskTubes`.
        """
        if len(inputs) != 1:
            raise ValueError(f"one video at a time is evaluated, got a batch of {len(inputs)}")
        video_id = int(inputs[0]["video_id"])
        if video_id in self._seen:
            logger.warning("Video %d was predicted twice; the second prediction is ignored.", video_id)
            return
        self._seen.add(video_id)
        self._prepare()
        entries = self._entries(video_id, outputs)
        self._parts.add(entries)
        if self._scorer is not None:
            self._scorer.update(entries, f"predictions for video {video_id}")

    def _prepare(self) -> None:
        """Read the annotations, if there are any."""
        if self._is_ready:
            return
        self._ids = ClassIds(self._metadata, self._classes)
        file = read_mask_file(self._metadata.json_file)
        if isinstance(file.document, Mapping) and file.document.get("annotations") is not None:
            truth = read_ground_truth(self._metric, file, reference=bool(self._options.get("reference")))
            self._scorer = VideoScorer(self._metric, truth, **self._options)
        self._is_ready = True

    def _entries(self, video_id: int, outputs: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Entries of results.json; every frame has a mask, empty or not, as published."""
        masks = outputs["pred_masks"]
        if len(masks) == 0:
            return []
        tubes = masks if isinstance(masks, MaskTubes) else MaskTubes.from_dense(masks)
        ids = ClassIds(self._metadata, self._classes) if self._ids is None else self._ids
        scores, labels = list(outputs["pred_scores"]), list(outputs["pred_labels"])
        if not len(scores) == len(labels) == len(tubes):
            raise ValueError(f"{len(tubes)} masks need as many scores and labels, got {len(scores)} and {len(labels)}")
        empty = to_rle([], *tubes.size)
        entries = []
        for index, (score, label) in enumerate(zip(scores, labels, strict=True)):
            category_id = ids[int(label)]
            if not math.isfinite(score):
                raise ValueError(f"prediction {index} for video {video_id} has a score that is no number: {score}")
            if category_id is None:
                continue
            entries.append(
                {
                    "video_id": video_id,
                    "score": float(score),
                    "category_id": category_id,
                    "segmentations": [empty if mask is None else mask for mask in tubes.rles(index)],
                }
            )
        return entries

    def evaluate(self) -> Results:
        """Write the files and score; {} without annotations, and on every process but the main one."""
        path = self._parts.finish()
        self._prepare()
        states = comm.gather(None if self._scorer is None else self._scorer.state())
        if not comm.is_main_process():
            return {}
        logger.info("Results written to %s, and packed for submission to %s", path, path.with_suffix(".zip"))
        if self._scorer is None:
            logger.warning("Annotations are not available for evaluation: %s has none.", self._metadata.json_file)
            return {}
        for state in states[1:]:  # the first one is our own
            self._scorer.merge(state)
        scores = self._scorer.compute()
        logger.info("%s", format_results(scores.tables))
        if self._analysis or self._report is not None:
            predictions = read_mask_file(path)
            analysis = Analysis(self._scorer.ground_truth, predictions, scores.main.settings)
            if self._analysis:
                logger.info("%s", analysis.summary())
                content = analysis.to_dict(self._metadata.get("image_root"))
                write_text(path.with_name("analysis.json"), to_json(content) + "\n")
            if self._report is not None:
                self._write_report(self._report, scores, predictions, analysis, path)
        return scores.tables

    def _write_report(
        self, folder: str | Path, scores: Scores, predictions: MaskFile, analysis: Analysis, path: Path
    ) -> None:
        about = {"results": path, "ground truth": self._metadata.json_file, "metric": self._metric, **self._options}
        about = {key: str(value) for key, value in about.items() if value is not None}
        frames = self._metadata.get("image_root")
        truth = analysis.ground_truth
        page = write_report(folder, scores, truth, predictions, frames=frames, about=about, analysis=analysis)
        logger.info("Report written to %s", page)
