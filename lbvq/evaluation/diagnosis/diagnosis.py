"""Where AP is lost: errors by kind, what each costs, and AP if things were right.

    diagnosis = Diagnosis(GroundTruth("valid.json"), read_mask_file("results.json"), TubeApSettings())
    print(diagnosis.summary())
    diagnosis.to_dict()["errors"][0]      # the error that costs most

Everything is in percent of tube AP (the mean over IoU 0.5 to 0.95 and over categories), under the rules of the metric
that the settings describe; boundaries do not count.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import numpy as np

from lbvq.evaluation.annotations import GroundTruth, read_predictions
from lbvq.evaluation.bootstrap import (
    CONFIDENCE,
    RESAMPLES,
    Interval,
    draw_videos,
    summaries,
    weighted_ap,
)
from lbvq.evaluation.diagnosis.frames import frame_pixels
from lbvq.evaluation.diagnosis.joining import Joining, best_joining
from lbvq.evaluation.diagnosis.kinds import (
    BACKGROUND,
    CLASS,
    DUPLICATE,
    FRAGMENT,
    KINDS,
    LOCALISATION,
    MISSED,
    SWITCH,
    find_errors,
)
from lbvq.evaluation.diagnosis.mending import error_costs, mended_precision
from lbvq.evaluation.diagnosis.outcomes import compare_all, mean_precision, outcomes
from lbvq.evaluation.tube_ap_result import to_percent
from lbvq.evaluation.tube_ap_settings import TubeApSettings
from lbvq.files.mask_file import MaskFile

IDENTITIES = "identities"
ORACLES: dict[str, tuple[int, ...]] = {  # what is right then -> kinds of errors that are mended for it
    "classes": (CLASS,),
    "masks": (LOCALISATION, SWITCH, FRAGMENT),
    "missed": (MISSED,),
    "duplicates": (DUPLICATE,),
    "background": (BACKGROUND,),
    "duplicates_background": (DUPLICATE, BACKGROUND),
}
TITLES = {
    "classes": "classes were right",
    IDENTITIES: "identities were right (masks joined best)",
    "masks": "masks were right",
    "missed": "missed objects were found",
    "duplicates": "duplicates were gone",
    "background": "background was gone",
    "duplicates_background": "duplicates and background were gone",
}


class Diagnosis:
    """The errors of one results file."""

    def __init__(self, ground_truth: GroundTruth, predictions: MaskFile, settings: TubeApSettings) -> None:
        """Compare.

        Args:
            ground_truth: with annotations.
            predictions: results file.
            settings: of the metric.
        """
        self.ground_truth = ground_truth
        self.settings = settings
        self.detections = read_predictions(predictions, ground_truth, max_per_video=settings.max_per_video)
        self.collected = compare_all(ground_truth, predictions, settings)
        self.frames = list(frame_pixels(ground_truth, self.detections, use_categories=settings.use_categories))
        self.judged = outcomes(ground_truth, settings, self.collected)
        self.errors = find_errors(self.judged, self.collected, self.frames)
        self._base = self.judged.precision()

    @cached_property
    def joining(self) -> Joining:
        """The best joining of masks into tracks."""
        return best_joining(self.judged, self.collected, self.frames)

    @cached_property
    def precision(self) -> dict[str, np.ndarray]:
        """ "AP", every oracle and every kind of error (mended alone) -> (S, R, K) precision."""
        found = {"AP": self._base}
        found |= {name: mended_precision(self.judged, self.errors, own, self._base) for name, own in ORACLES.items()}
        found[IDENTITIES] = self._joined_precision()
        single = {own[0]: name for name, own in ORACLES.items() if len(own) == 1}
        for number, kind in enumerate(KINDS):
            known = single.get(number)
            found[f"kind {kind}"] = (
                found[known] if known else mended_precision(self.judged, self.errors, (number,), self._base)
            )
        return found

    def _joined_precision(self) -> np.ndarray:
        """The best of all joinings, for each category and threshold."""
        best = self._base.copy()
        for variant in self.joining.variants:
            other = outcomes(self.ground_truth, self.settings, variant).precision()
            better = other.mean(1) > best.mean(1)  # (S, K)
            best = np.where(better[:, None], other, best)
        return best

    def oracles(self) -> dict[str, float]:
        """Oracle -> AP in percent, nan where there is nothing to measure; never below AP."""
        base = mean_precision(self._base)
        return {name: to_percent(max(base, mean_precision(self.precision[name]))) for name in TITLES}

    @cached_property
    def intervals(self) -> dict[str, Interval]:
        """Of videos drawn anew: AP, AP50, AP75 in percent, and under "class <name>" AP of each class with tracks."""
        videos = np.array(sorted(self.ground_truth.videos), np.int64)
        ap = weighted_ap(self.judged, videos, draw_videos(len(videos)))
        samples = summaries(self.judged, ap)
        rows: dict[str, slice | np.ndarray] = {"AP": slice(None)}
        rows |= {name: np.isclose(self.judged.thresholds, int(name[2:]) / 100) for name in samples if name != "AP"}
        found = {
            name: Interval.of(to_percent(mean_precision(self._base[own])), samples[name]) for name, own in rows.items()
        }
        for k in np.flatnonzero(self.judged.num_tracks).tolist():
            value = to_percent(mean_precision(self._base[..., k]))
            found[f"class {self.judged.names[k]}"] = Interval.of(value, 100 * ap[..., k].mean(1))
        return found

    @property
    def interval(self) -> Interval:
        """AP in percent with its interval."""
        return self.intervals["AP"]

    def kinds(self) -> dict[str, dict[str, float]]:
        """Kind -> number of errors at the least IoU threshold, mean number over all of them, and cost in AP."""
        base = mean_precision(self._base)
        rows = {}
        for number, kind in enumerate(KINDS):
            is_own = self.errors.missed if number == MISSED else self.errors.kind == number
            counts = is_own.sum(0)
            cost = max(0.0, mean_precision(self.precision[f"kind {kind}"]) - base)
            rows[kind] = {"count": int(counts[0]), "mean_count": float(counts.mean()), "cost": 100 * cost}
        return rows

    def list_errors(self) -> list[dict[str, Any]]:
        """Every error, those that cost most first; see docs/evaluation.md for what is told of each."""
        costs, missed_costs = error_costs(self.judged, self.errors)
        rows = []
        for number in range(len(KINDS)):
            is_own = self.errors.kind == number
            for row in np.flatnonzero(is_own.any(1)).tolist():
                first = int(is_own[row].argmax())
                target = int(self.errors.target[row, first])
                about = self._about_prediction(int(self.judged.order[row])) | self._about_track(target)
                own = self._about_error(number, is_own[row], float(costs[row][is_own[row]].sum()))
                rows.append(own | about | {"iou": float(self.errors.iou[row, first])})
        for track in np.flatnonzero(self.errors.missed.any(1)).tolist():
            own = self._about_error(MISSED, self.errors.missed[track], float(missed_costs[track].sum()))
            rows.append(own | self._about_prediction(-1) | self._about_track(track) | {"iou": 0.0})
            rows[-1]["video_id"] = self.ground_truth.tracks[track].video_id
        return sorted(rows, key=lambda each: -each["cost"])

    def _about_error(self, number: int, at: np.ndarray, cost: float) -> dict[str, Any]:
        thresholds = [round(each, 6) for each in self.judged.thresholds[at].tolist()]
        return {"kind": KINDS[number], "cost": 100 * max(0.0, cost), "thresholds": thresholds}

    def _about_prediction(self, position: int) -> dict[str, Any]:
        if position < 0:
            return {"video_id": None, "prediction": None, "class": None, "score": None}
        found = self.detections[position]
        name = self.ground_truth.category_name(found.category_id)
        return {"video_id": found.video_id, "prediction": found.index, "class": name, "score": found.score}

    def _about_track(self, index: int) -> dict[str, Any]:
        if index < 0:
            return {"annotation": None, "annotation_class": None}
        track = self.ground_truth.tracks[index]
        return {"annotation": track.id, "annotation_class": self.ground_truth.category_name(track.category_id)}

    def per_class(self) -> dict[str, dict[str, Any]]:
        """Name of a category with tracks -> its tracks, AP, and AP of every oracle."""
        rows: dict[str, dict[str, Any]] = {}
        for k in np.flatnonzero(self.judged.num_tracks).tolist():
            values = {name: 100 * float(self.precision[name][..., k].mean()) for name in ("AP", *TITLES)}
            oracles = {name: max(values["AP"], values[name]) for name in TITLES}
            tracks = int(self.judged.num_tracks[k])
            name = self.judged.names[k]
            own = self.intervals[f"class {name}"]
            row = {"tracks": tracks, "AP": values["AP"], "interval": [own.low, own.high], "oracles": oracles}
            rows[name] = row
        return rows

    def per_video(self, errors: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Every video: its errors by kind, and what they cost one by one, together; the worst first."""
        rows: dict[int, dict[str, Any]] = {
            video.id: {"video_id": video.id, "name": video.name, "cost": 0.0, "errors": dict.fromkeys(KINDS, 0)}
            for video in self.ground_truth.videos.values()
        }
        for each in errors:
            row = rows[each["video_id"]]
            row["cost"] += each["cost"]
            row["errors"][each["kind"]] += 1
        return sorted(rows.values(), key=lambda each: -each["cost"])

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON; docs/evaluation.md describes it."""
        errors = self.list_errors()
        joined = [
            {
                "video_id": self.ground_truth.tracks[each.track].video_id,
                **self._about_track(each.track),
                "predictions": [self.detections[int(self.collected["order"][part])].index for part in each.parts],
                "iou_before": each.iou_before,
                "iou": each.iou,
            }
            for each in self.joining.tracks
        ]
        return {
            "AP": to_percent(mean_precision(self._base)),
            "interval": [self.interval.low, self.interval.high],
            "intervals": {
                name: [each.low, each.high] for name, each in self.intervals.items() if not name.startswith("class ")
            },
            "oracles": self.oracles(),
            "kinds": self.kinds(),
            "identities": {"exact": self.joining.exact, "joined": joined},
            "per_class": self.per_class(),
            "per_video": self.per_video(errors),
            "errors": errors,
        }

    def summary(self) -> str:
        """Both tables as text."""
        ap = to_percent(mean_precision(self._base))
        if math.isnan(ap):
            return "Where AP is lost: there is no track to find."
        low, high = self.interval.low, self.interval.high
        share = f"{CONFIDENCE:.0%} of {RESAMPLES} draws of the videos give {low:.3f} to {high:.3f}"
        lines = [f"Where AP is lost ({ap:.3f}; {share}):", f"{'AP if':44}{'AP':>9}{'gain':>9}"]
        lines += [f"{TITLES[name]:44}{value:9.3f}{value - ap:9.3f}" for name, value in self.oracles().items()]
        lines.append(f"{'errors':20}{'at IoU 0.5':>12}{'mean':>12}{'AP if mended':>18}")
        for kind, row in self.kinds().items():
            lines.append(f"{kind:20}{row['count']:12d}{row['mean_count']:12.1f}{row['cost']:+18.3f}")
        return "\n".join(lines)
