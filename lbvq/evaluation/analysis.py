"""Where the points are lost: precision by size, length and occlusion, confused classes, tracks that were missed.

Everything comes from one more pass over the overlaps in which categories do not matter, that of `Diagnosis`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lbvq.evaluation.annotations import GroundTruth
from lbvq.evaluation.bootstrap import summaries, weighted_ap
from lbvq.evaluation.camera_motion import camera_motion, motion_groups
from lbvq.evaluation.diagnosis.diagnosis import Diagnosis
from lbvq.evaluation.tracking_scores import tracking_scores
from lbvq.evaluation.tube_ap import TubeAP
from lbvq.evaluation.tube_ap_result import TubeApResult, to_percent
from lbvq.evaluation.tube_ap_settings import OCCLUSION_RANGES, TubeApSettings
from lbvq.files.mask_file import MaskFile

MISSED, NOTHING = "(missed)", "(nothing)"  # a track without a prediction, and the opposite
MATCH_IOU = 0.5
SIZE_RANGES = {
    "all": (0.0, 1e10),
    "to 32²": (0.0, 32.0**2),
    "32² to 64²": (32.0**2, 64.0**2),
    "64² to 128²": (64.0**2, 128.0**2),
    "128² to 256²": (128.0**2, 256.0**2),
    "from 256²": (256.0**2, 1e10),
}
OBJECT_RANGES = {"1": (1, 1), "2": (2, 2), "3 to 4": (3, 4), "5 to 8": (5, 8), "from 9": (9, 1 << 40)}
LENGTH_RANGES = {
    "all": (0.0, 1e9),
    "1 to 5": (1.0, 5.0),
    "6 to 10": (6.0, 10.0),
    "11 to 20": (11.0, 20.0),
    "21 to 36": (21.0, 36.0),
    "from 37": (37.0, 1e9),
}


@dataclass(frozen=True)
class TrackReport:
    """How well one track of the ground truth was found.

    Attributes:
        track: position in `ground_truth.tracks`.
        iou: of the best prediction of the same category, 0 without any.
        score: of that prediction, nan without any.
        detection: its position in `Analysis.detections`, -1 without any.
        iou_any: of the best prediction of any category.
        category_any: category id of that prediction, None without any.
        detection_any: its position in `Analysis.detections`, -1 without any.
    """

    track: int
    iou: float
    score: float
    detection: int
    iou_any: float
    category_any: int | None
    detection_any: int = -1


class Analysis:
    """Predictions of one data set, looked at from several sides."""

    def __init__(
        self, ground_truth: GroundTruth, predictions: MaskFile, settings: TubeApSettings, min_score: float = 0.3
    ) -> None:
        """Compare everything.

        Args:
            ground_truth: with annotations.
            predictions: results file.
            settings: of the metric; ranges are replaced.
            min_score: predictions below it are not looked at for confused classes.
        """
        self.ground_truth = ground_truth
        self.diagnosis = Diagnosis(ground_truth, predictions, settings)  # where AP is lost
        self.detections = self.diagnosis.detections
        self.min_score = min_score
        self._ap = TubeAP(ground_truth, replace(settings, occlusion_ranges=None, boundary_ratio=None))
        self._ap.update(predictions, name=predictions.name)
        self.lengths = self._ap.track_lengths()  # (G,) frames in which each track is visible
        self._collected = self.diagnosis.collected
        best_first = np.lexsort((self._collected["order"], -self._collected["score"]))
        self._pairs_of: dict[int, list[tuple[int, float]]] = {int(each): [] for each in best_first}
        for detection, track, iou in zip(
            *(self._collected[f"pair_{key}"].tolist() for key in ("detection", "track", "iou")), strict=True
        ):
            self._pairs_of[detection].append((track, iou))

    def by_size(self) -> list[dict[str, Any]]:
        """AP, AR and number of tracks for ranges of the mean area in pixels."""
        return self._rows(self._ap.compute(area_ranges=SIZE_RANGES), SIZE_RANGES, self._ap.track_areas(), "area")

    def by_length(self) -> list[dict[str, Any]]:
        """AP, AR and number of tracks for ranges of the number of frames in which an object is visible."""
        return self._rows(self._ap.compute_by_length(LENGTH_RANGES), LENGTH_RANGES, self.lengths, "area")

    def by_occlusion(self) -> list[dict[str, Any]]:
        """AP, AR and number of tracks for the ranges of OVIS; empty when the file does not tell."""
        levels = [track.occlusion for track in self.ground_truth.tracks]
        if not levels or None in levels:
            return []
        result = self._ap.compute(occlusion_ranges=OCCLUSION_RANGES)
        return self._rows(result, OCCLUSION_RANGES, np.array(levels, np.float64), "occlusion")

    def by_num_objects(self) -> list[dict[str, Any]]:
        """AP and number of tracks in videos with so many of them."""
        counted = self.diagnosis.judged.counted
        videos, number = np.unique(self.diagnosis.judged.track_video[counted], return_counts=True)
        groups = {
            name: videos[(low <= number) & (number <= high)].tolist() for name, (low, high) in OBJECT_RANGES.items()
        }
        return self._video_rows(groups)

    def by_camera_motion(self, frames: str | Path) -> list[dict[str, Any]]:
        """AP and number of tracks in videos of still and moving cameras, see `camera_motion`; empty without frames."""
        motion = camera_motion(self.ground_truth, frames)
        return self._video_rows(motion_groups(motion)) if motion else []

    def track_ranges(self, settings: TubeApSettings) -> dict[str, dict[str, np.ndarray]]:
        """ "area" and "occlusion" -> name of a range of the metric -> (G,) whether each track lies in it."""
        levels = [0.0 if track.occlusion is None else track.occlusion for track in self.ground_truth.tracks]
        values = {"area": self._ap.track_areas(), "occlusion": np.array(levels, np.float64)}
        ranges = {"area": settings.area_ranges, "occlusion": settings.occlusion_ranges or {}}
        return {
            key: {name: (low <= values[key]) & (values[key] <= high) for name, (low, high) in own.items()}
            for key, own in ranges.items()
        }

    def _video_rows(self, groups: Mapping[str, Sequence[int]]) -> list[dict[str, Any]]:
        """One row per group of videos, counted as if there were no others."""
        judged = self.diagnosis.judged
        videos = np.array(sorted(self.ground_truth.videos), np.int64)
        weights = np.array([np.isin(videos, list(own)) for own in groups.values()], np.int32)
        weights = weights.reshape(len(groups), len(videos))
        scores = summaries(judged, weighted_ap(judged, videos, weights))
        rows = []
        for place, (name, own) in enumerate(groups.items()):
            tracks = int(np.count_nonzero(judged.counted & np.isin(judged.track_video, list(own))))
            row = {"range": name, "videos": len(own), "tracks": tracks}
            row |= {key: float(values[place]) for key, values in scores.items() if key in ("AP", "AP50")}
            rows.append(row | {"video_ids": sorted(own)})
        return rows

    @cached_property
    def tracking(self) -> dict[str, Any]:
        """HOTA, DetA, AssA and IDF1 of all predictions, see `tracking_scores`."""
        return tracking_scores(self.ground_truth, self.detections, self.diagnosis.frames)

    def to_dict(self, frames: str | Path | None = None) -> dict[str, Any]:
        """Everything but the confused classes, ready for JSON; docs/evaluation.md describes it.

        Args:
            frames: folder to which `file_names` of the videos are relative; without it nothing is told of the camera.
        """
        parts = {
            "size": self.by_size(),
            "length": self.by_length(),
            "occlusion": self.by_occlusion(),
            "num_objects": self.by_num_objects(),
            "camera_motion": [] if frames is None else self.by_camera_motion(frames),
        }
        return {**self.diagnosis.to_dict(), "by": parts, "tracking": self.tracking}

    def summary(self) -> str:
        """Where AP is lost, and how well identities are kept."""
        numbers = "  ".join(f"{name} {self.tracking[name]:.3f}" for name in ("HOTA", "DetA", "AssA", "IDF1"))
        return f"{self.diagnosis.summary()}\n{numbers}"

    def _rows(
        self, result: TubeApResult, ranges: Mapping[str, tuple[float, float]], values: np.ndarray, key: str
    ) -> list[dict[str, Any]]:
        """One row per range; `values` (G,) of the tracks are what the ranges are about."""
        counted = np.array([not track.is_crowd for track in self.ground_truth.tracks], bool)
        counted |= not self._ap.settings.crowd_is_ignored
        rows = []
        for name, (low, high) in ranges.items():
            inside = counted if name == "all" else counted & (low <= values) & (values <= high)
            chosen: dict[str, Any] = {key: name}
            rows.append(
                {
                    "range": name,
                    "tracks": int(np.count_nonzero(inside)),
                    "AP": to_percent(result.average("AP", **chosen)),
                    "AP50": to_percent(result.average("AP", iou=0.5, **chosen)),
                    "AR": to_percent(result.average("AR", **chosen)),
                    "video_ids": np.unique(self.diagnosis.judged.track_video[inside]).tolist(),
                }
            )
        return rows

    def confusion(self) -> dict[str, dict[str, int]]:
        """Class of a track -> class of the prediction that found it -> number of tracks.

        Predictions choose, best first, among the tracks they overlap by at least MATCH_IOU, whatever the class.
        """
        names = [self.ground_truth.category_name(each) for each in self.ground_truth.categories]
        table: dict[str, dict[str, int]] = {name: {} for name in [*names, NOTHING]}
        for case in self.confusion_cases():
            row = table[case["track_class"]]
            row[case["found_class"]] = row.get(case["found_class"], 0) + 1
        return table

    def confusion_cases(self) -> list[dict[str, Any]]:
        """What `confusion` counts, one by one.

        Each has `video_id`, `annotation` (id, None for nothing), `prediction` (place in the results file, None if the
        track was missed), `track_class` and `found_class`.
        """
        cases = []
        taken: set[int] = set()
        for detection, pairs in self._pairs_of.items():
            if self._collected["score"][detection] < self.min_score:
                continue
            free = [(iou, track) for track, iou in pairs if iou >= MATCH_IOU and track not in taken]
            crowd = any(iou >= MATCH_IOU and self.ground_truth.tracks[track].is_crowd for track, iou in pairs)
            own = -1
            if free:
                own = max(free)[1]
                taken.add(own)
                crowd = self.ground_truth.tracks[own].is_crowd
            if not crowd:
                cases.append(self._confusion_case(own, int(self._collected["order"][detection])))
        for index, track in enumerate(self.ground_truth.tracks):
            if index not in taken and not track.is_crowd:
                cases.append(self._confusion_case(index, -1))
        return cases

    def _confusion_case(self, track: int, detection: int) -> dict[str, Any]:
        """Of positions in the tracks and in the detections, -1 for none."""
        wanted = self.ground_truth.tracks[track] if track >= 0 else None
        found = self.detections[detection] if detection >= 0 else None
        name = self.ground_truth.category_name
        return {
            "video_id": wanted.video_id if wanted else found.video_id if found else None,
            "annotation": wanted.id if wanted else None,
            "prediction": found.index if found else None,
            "track_class": name(wanted.category_id) if wanted else NOTHING,
            "found_class": name(found.category_id) if found else MISSED,
        }

    def tracks(self) -> list[TrackReport]:
        """One report per track, in the order of the file."""
        best: dict[int, tuple[float, int]] = {}
        best_any: dict[int, tuple[float, int]] = {}
        for detection, pairs in self._pairs_of.items():
            for track, iou in pairs:
                if iou > best_any.get(track, (0.0, -1))[0]:
                    best_any[track] = (iou, detection)
                same = self._collected["category"][detection] == self.ground_truth.tracks[track].category_id
                if same and iou > best.get(track, (0.0, -1))[0]:
                    best[track] = (iou, detection)
        reports = []
        for index in range(len(self.ground_truth.tracks)):
            iou, detection = best.get(index, (0.0, -1))
            iou_any, other = best_any.get(index, (0.0, -1))
            reports.append(
                TrackReport(
                    track=index,
                    iou=iou,
                    score=float(self._collected["score"][detection]) if detection >= 0 else math.nan,
                    detection=int(self._collected["order"][detection]) if detection >= 0 else -1,
                    iou_any=iou_any,
                    category_any=int(self._collected["category"][other]) if other >= 0 else None,
                    detection_any=int(self._collected["order"][other]) if other >= 0 else -1,
                )
            )
        return reports


def precision_curves(result: TubeApResult, category_ids: Collection[int] | None = None) -> dict[str, np.ndarray]:
    """Name -> (R,) precision at each recall, averaged over categories, for IoU 0.5, 0.75, 0.9 and the mean over all.

    Args:
        category_ids: None takes all.
    """
    precision = result.precision
    while precision.ndim > 4:  # the first range is "all"
        precision = precision[..., 0, :]
    precision = precision[..., -1]  # (S, R, K)
    counted = (precision > -1).all(axis=(0, 1))
    if category_ids is not None:
        counted &= np.isin(list(result.categories), list(category_ids))
    curves = {}
    for name, index in _curve_rows(result.settings).items():
        rows = precision[index][..., counted]
        curves[name] = rows.mean(axis=(0, 2)) if counted.any() else np.full(precision.shape[1], np.nan)
    return curves


def _curve_rows(settings: TubeApSettings) -> dict[str, list[int]]:
    thresholds = np.array(settings.iou_thresholds)
    rows = {f"IoU {iou:.2f}": np.flatnonzero(np.isclose(thresholds, iou)).tolist() for iou in (0.5, 0.75, 0.9)}
    rows["mean over IoU"] = list(range(len(thresholds)))
    return {name: own for name, own in rows.items() if own}
