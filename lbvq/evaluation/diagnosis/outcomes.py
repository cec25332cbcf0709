"""What became of every detection at every IoU threshold, and the AP that follows, as it is or with mended outcomes.

Letters: D detections, G tracks, S IoU thresholds, R recall thresholds, K categories. Detections are in the order in
which a category counts them, best first. Everything is about objects of all sizes, under the largest detection limit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from lbvq.evaluation.accumulate import judge
from lbvq.evaluation.annotations import GroundTruth
from lbvq.evaluation.matching import precision_and_recall
from lbvq.evaluation.tube_ap import TubeAP
from lbvq.evaluation.tube_ap_result import unique_names
from lbvq.evaluation.tube_ap_settings import TubeApSettings
from lbvq.files.mask_file import MaskFile

LEAST_IOU = 0.01  # smaller overlaps are reported as none


@dataclass(frozen=True)
class Outcomes:
    """Judged detections of one data set.

    Attributes:
        thresholds: (S,) of the IoU.
        recalls: (R,) at which precision is read.
        names: K categories; one if they do not matter.
        source: (D,) position in what `compare_all` returns.
        order: (D,) place in the results file.
        video: (D,) id.
        place: (D,) position of the category.
        score: (D,) descending.
        true: (D, S) found a track that counts.
        false: (D, S); a detection that is neither is ignored.
        track: (D, S) position of the track it took, -1 for none.
        counted: (G,) tracks that count.
        track_place: (G,) positions of their categories.
        track_video: (G,) ids.
    """

    thresholds: np.ndarray
    recalls: np.ndarray
    names: tuple[str, ...]
    source: np.ndarray
    order: np.ndarray
    video: np.ndarray
    place: np.ndarray
    score: np.ndarray
    true: np.ndarray
    false: np.ndarray
    track: np.ndarray
    counted: np.ndarray
    track_place: np.ndarray
    track_video: np.ndarray

    @property
    def num_tracks(self) -> np.ndarray:
        """(K,) tracks that count."""
        return np.bincount(self.track_place[self.counted], minlength=len(self.names))

    def found(self) -> np.ndarray:
        """(G, S) whether each track was found."""
        found = np.zeros((len(self.counted), len(self.thresholds)), bool)
        rows, columns = np.nonzero(self.true)
        found[self.track[rows, columns], columns] = True
        return found

    def precision(self) -> np.ndarray:
        """(S, R, K) interpolated precision as it is; -1 for categories without a track that counts."""
        precision = np.full((len(self.thresholds), len(self.recalls), len(self.names)), -1.0)
        for k in np.flatnonzero(self.num_tracks).tolist():
            rows = np.flatnonzero(self.place == k)
            counts = np.full(len(self.thresholds), self.num_tracks[k])
            precision[..., k] = self.precision_of(rows, self.true[rows], self.false[rows], counts)
        return precision

    def precision_of(self, rows: np.ndarray, true: np.ndarray, false: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """(S, R) precision of one category.

        Args:
            rows: (n,) ascending positions of its detections.
            true, false: (n, S) their outcomes.
            counts: (S,) tracks to be found; 0 gives -1.
        """
        axes = true[:, :, None], false[:, :, None]
        return precision_and_recall(self.score[rows], *axes, counts, self.recalls)[0][:, 0]


def mean_precision(precision: np.ndarray) -> float:
    """AP in [0, 1] from (S, R, K) precision, as `TubeApResult.average` computes it; -1 without any track."""
    values = precision[precision > -1]
    return float(values.mean()) if values.size else -1.0


def all_overlaps(settings: TubeApSettings) -> TubeApSettings:
    """The settings of a metric, changed so that overlaps of all sizes between all categories are collected."""
    return replace(
        settings,
        iou_thresholds=(min(LEAST_IOU, settings.iou_thresholds[0]),),
        use_categories=False,
        occlusion_ranges=None,
        boundary_ratio=None,
        areas="none",
    )


def compare_all(ground_truth: GroundTruth, predictions: MaskFile, settings: TubeApSettings) -> dict[str, np.ndarray]:
    """Overlap every prediction with every track of its video; what `TubeAP.collected` returns."""
    return TubeAP(ground_truth, all_overlaps(settings)).update(predictions, name=predictions.name).collected()


def outcomes(ground_truth: GroundTruth, settings: TubeApSettings, collected: Mapping[str, np.ndarray]) -> Outcomes:
    """Judge detections by the rules of a metric.

    Args:
        ground_truth: with annotations.
        settings: of the metric; boundaries do not count here.
        collected: what `compare_all` returns.
    """
    categories = list(ground_truth.categories)
    own = np.array([track.category_id for track in ground_truth.tracks], np.int64)
    pairs = collected["pair_iou"] >= min(settings.iou_thresholds[0], 1 - 1e-10)
    if settings.use_categories:
        pairs &= collected["category"][collected["pair_detection"]] == own[collected["pair_track"]]
    columns = {key: value[pairs] if key.startswith("pair_") else value for key, value in collected.items()}
    verdicts = judge(ground_truth, settings, columns)
    names = unique_names({each: ground_truth.category_name(each) for each in categories})
    return Outcomes(
        thresholds=np.array(settings.iou_thresholds, np.float64),
        recalls=np.array(settings.recall_thresholds, np.float64),
        names=tuple(names.values()) if settings.use_categories else ("all categories",),
        source=verdicts.source,
        order=collected["order"][verdicts.source],
        video=collected["video"][verdicts.source],
        place=verdicts.place,
        score=collected["score"][verdicts.source],
        true=verdicts.true,
        false=verdicts.false,
        track=verdicts.track,
        counted=~verdicts.ignored,
        track_place=np.searchsorted(categories, own) if settings.use_categories else np.zeros_like(own),
        track_video=np.array([track.video_id for track in ground_truth.tracks], np.int64),
    )
