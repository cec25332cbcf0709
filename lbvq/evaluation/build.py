"""Which evaluator a data set gets."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lbvq.data.catalog import MetadataCatalog
from lbvq.data.categories import category_table
from lbvq.evaluation.base import DatasetEvaluator
from lbvq.evaluation.image_evaluator import ImageInstanceEvaluator
from lbvq.evaluation.image_metrics import IMAGE_METRICS
from lbvq.evaluation.video_evaluator import VideoInstanceEvaluator
from lbvq.evaluation.video_metrics import VIDEO_METRICS
from lbvq.files.class_list import ClassList

if TYPE_CHECKING:
    from mask2former.cfg import Cfg

logger = logging.getLogger(__name__)


def _video(metric: str) -> Callable[..., DatasetEvaluator]:
    def build(
        dataset_name: str, output_dir: Path, open_vocabulary: bool, classes: ClassList | None, **wanted: Any
    ) -> DatasetEvaluator:
        base_novel = (open_vocabulary and VIDEO_METRICS[metric].base_novel_if_open) or None
        long_videos = MetadataCatalog.get(dataset_name).get("long_videos")
        options = {"base_novel": base_novel, "long_videos": long_videos, **wanted}
        return VideoInstanceEvaluator(dataset_name, output_dir, metric=metric, classes=classes, **options)

    return build


def _image(metric: str) -> Callable[..., DatasetEvaluator]:
    def build(
        dataset_name: str, output_dir: Path, open_vocabulary: bool, classes: ClassList | None, **wanted: Any
    ) -> DatasetEvaluator:
        if wanted.get("report"):
            logger.warning("%s has images: there is a report of the scores of videos only.", dataset_name)
        return ImageInstanceEvaluator(dataset_name, output_dir, metric=metric, classes=classes)

    return build


# `evaluator_type` of a data set -> function of (name, output_dir, open_vocabulary, classes; analysis, report).
EVALUATORS: dict[str, Callable[..., DatasetEvaluator]] = {
    **{metric: _video(metric) for metric in VIDEO_METRICS},
    **{metric: _image(metric) for metric in IMAGE_METRICS},
}


def build_evaluator(
    cfg: Cfg,
    dataset_name: str,
    output_dir: str | Path | None = None,
    *,
    open_vocabulary: bool = False,
    analysis: bool = False,
    report: str | Path | None = None,
) -> DatasetEvaluator:
    """Build the evaluator of a registered data set.

    Args:
        cfg: configuration; the categories of the model in it are matched with those of the data set by name.
        dataset_name: as in DATASETS.TEST.
        output_dir: where results are written; by default OUTPUT_DIR/inference.
        open_vocabulary: the classes of the model are given as text; base and novel categories are then reported apart
            on closed data sets, too.
        analysis: of videos, tell where AP is lost.
        report: folder of a report of the scores of videos.
    """
    metadata = MetadataCatalog.get(dataset_name)
    kind, table = metadata.get("evaluator_type"), metadata.get("category_table")
    if table:  # as published OVIS is registered as YouTube-VIS, but it has occlusion ranges
        kind = category_table(table).get("evaluators", {}).get(kind, kind)
    if kind not in EVALUATORS:
        raise ValueError(
            f"data set {dataset_name!r} has the evaluator_type {kind!r}; there are {', '.join(sorted(EVALUATORS))}. "
            "Set it with MetadataCatalog.get(name).set(evaluator_type=...)."
        )
    folder = Path(output_dir or Path(cfg.OUTPUT_DIR) / "inference")
    classes = None if open_vocabulary else ClassList.from_config(cfg)
    return EVALUATORS[kind](dataset_name, folder, open_vocabulary, classes, analysis=analysis, report=report)
