"""Everything that the page shows, as one document: the numbers of the other files of a report, and the videos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lbvq.evaluation.analysis import MATCH_IOU, MISSED, NOTHING, Analysis, precision_curves
from lbvq.evaluation.bootstrap import CONFIDENCE, RESAMPLES
from lbvq.evaluation.diagnosis.diagnosis import ORACLES, TITLES
from lbvq.evaluation.diagnosis.kinds import KINDS
from lbvq.evaluation.page.gallery import make_gallery
from lbvq.evaluation.tube_ap_result import TubeApResult, to_percent
from lbvq.evaluation.video_metrics import Scores

_MAX_CURVES = 200  # classes with curves of their own, those with most tracks


def page_content(
    about: Mapping[str, Any],
    scores: Scores,
    classes: Sequence[Mapping[str, Any]],
    analysis: Analysis,
    numbers: Mapping[str, Any],
    frames: str | Path | None,
) -> dict[str, Any]:
    """What `write_page` takes.

    Args:
        about: what was evaluated.
        scores: of a `VideoScorer`.
        classes: rows of classes.csv.
        analysis: of the same results.
        numbers: `analysis.to_dict()`.
        frames: folder to which `file_names` of the videos are relative; None shows masks on grey.
    """
    videos = make_gallery(analysis, numbers["per_video"], None if frames is None else Path(frames))
    return {
        "about": dict(about),
        "draws": {"confidence": CONFIDENCE, "resamples": RESAMPLES},
        "scores": {task: _without_classes(table) for task, table in scores.tables.items()},
        "sets": _videos_of_scores(scores, analysis),
        "analysis": numbers,
        "oracles": {
            name: {"title": title, "kinds": [KINDS[each] for each in ORACLES.get(name, ())]}
            for name, title in TITLES.items()
        },
        "kinds": list(KINDS),
        "classes": list(classes),
        "curves": _curves(scores.main, analysis),
        "confusion": {
            "missed": MISSED,
            "nothing": NOTHING,
            "iou": MATCH_IOU,
            "min_score": analysis.min_score,
            "table": analysis.confusion(),
            "cases": analysis.confusion_cases(),
        },
        "frames": frames is not None,
        "videos": videos,
    }


def _without_classes(table: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in table.items() if not name.startswith("AP-")}


def _videos_of_scores(scores: Scores, analysis: Analysis) -> dict[str, list[int]]:
    """Name of a score of some tracks only -> ids of the videos that have such tracks."""
    ranges = analysis.track_ranges(scores.main.settings)
    counted = analysis.diagnosis.judged.counted
    tracks = analysis.ground_truth.tracks
    own_group = {"": counted}
    for letter, categories in scores.groups.items():
        own_group[letter] = counted & np.array([each.category_id in categories for each in tracks], bool)
    sets = {}
    for name, chosen in scores.main.lines().items():
        keys = [key for key in ("area", "occlusion") if key in chosen]
        inside = np.ones(len(tracks), bool)
        for key in keys:
            inside &= ranges[key][chosen[key]]
        for letter, members in own_group.items():
            if letter or keys:
                sets[f"{name}{letter}"] = sorted({tracks[each].video_id for each in np.flatnonzero(inside & members)})
    return sets


def _curves(result: TubeApResult, analysis: Analysis) -> dict[str, Any]:
    """Precision over recall, of all classes and of single ones, and AP at each IoU threshold."""
    by_tracks = sorted(analysis.diagnosis.per_class().items(), key=lambda each: -each[1]["tracks"])
    shown = {name for name, _ in by_tracks[:_MAX_CURVES]}
    names = analysis.diagnosis.judged.names
    chosen = {name: each for name, each in zip(names, result.categories, strict=True) if name in shown}
    thresholds = [round(each, 6) for each in result.settings.iou_thresholds]
    return {
        "recalls": list(result.settings.recall_thresholds),
        "all": _rounded(precision_curves(result)),
        "classes": {name: _rounded(precision_curves(result, [each])) for name, each in chosen.items()},
        "iou": {"thresholds": thresholds, "AP": [to_percent(result.average("AP", iou=each)) for each in thresholds]},
    }


def _rounded(curves: Mapping[str, np.ndarray]) -> dict[str, list[float]]:
    return {name: np.round(values, 5).tolist() for name, values in curves.items()}
