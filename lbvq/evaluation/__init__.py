"""Scores of video and image instance segmentation.

`TubeAP` is the core and needs no model: annotation file in, results in, numbers out. `VideoScorer` knows which settings
each benchmark uses, `build_evaluator` makes the evaluator that goes with a registered data set.

Everything named in `__all__` is loaded when it is first used: scoring files does not wait for torch to be imported.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {  # public name: module that defines it
    "DatasetEvaluator": "base",
    "DatasetEvaluators": "base",
    "GroundTruth": "annotations",
    "ImageInstanceEvaluator": "image_evaluator",
    "LvisScorer": "lvis",
    "TubeAP": "tube_ap",
    "TubeApSettings": "tube_ap_settings",
    "VideoInstanceEvaluator": "video_evaluator",
    "VideoScorer": "video_metrics",
    "build_evaluator": "build",
    "score_burst": "burst",
    "score_coco": "coco",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(_HOME)}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
