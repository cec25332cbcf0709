"""Scores of video and image instance segmentation.

`TubeAP` is the core and needs no model: annotation file in, results in, numbers out. `VideoScorer` knows which settings
each benchmark uses, `build_evaluator` makes the evaluator that goes with a registered data set.

Everything named in `__all__` is loaded when it is first used: scoring files does not wait for torch to be imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mask2former.lazy import lazy_names

if TYPE_CHECKING:
    from .annotations import GroundTruth as GroundTruth
    from .base import DatasetEvaluator as DatasetEvaluator
    from .base import DatasetEvaluators as DatasetEvaluators
    from .build import build_evaluator as build_evaluator
    from .burst import score_burst as score_burst
    from .coco import score_coco as score_coco
    from .image_evaluator import ImageInstanceEvaluator as ImageInstanceEvaluator
    from .lvis import LvisScorer as LvisScorer
    from .tube_ap import TubeAP as TubeAP
    from .tube_ap_settings import TubeApSettings as TubeApSettings
    from .video_evaluator import VideoInstanceEvaluator as VideoInstanceEvaluator
    from .video_metrics import VideoScorer as VideoScorer

_HOME = {  # public name: module that defines it
    "DatasetEvaluator": "lbvq.evaluation.base",
    "DatasetEvaluators": "lbvq.evaluation.base",
    "GroundTruth": "lbvq.evaluation.annotations",
    "ImageInstanceEvaluator": "lbvq.evaluation.image_evaluator",
    "LvisScorer": "lbvq.evaluation.lvis",
    "TubeAP": "lbvq.evaluation.tube_ap",
    "TubeApSettings": "lbvq.evaluation.tube_ap_settings",
    "VideoInstanceEvaluator": "lbvq.evaluation.video_evaluator",
    "VideoScorer": "lbvq.evaluation.video_metrics",
    "build_evaluator": "lbvq.evaluation.build",
    "score_burst": "lbvq.evaluation.burst",
    "score_coco": "lbvq.evaluation.coco",
}

__all__ = list(_HOME)

__getattr__, __dir__ = lazy_names(__name__, _HOME)
