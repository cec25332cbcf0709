"""HOTA and IDF1 on any data set of videos: how well identities are kept, judged frame by frame.

HOTA is that of `hota`; IDF1 (Ristani et al., ECCV workshops 2016) pairs whole tracks one to one so that as many frames
as possible agree, at an IoU of 0.5. Both count every predicted track, whatever its score: predictions that nobody
would show should be left out first. Frames with an empty mask hold no object. Tracks marked as crowd do not count, and
neither do masks that belong to them, in a frame, rather than to others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from lbvq.evaluation.annotations import Detection, GroundTruth
from lbvq.evaluation.diagnosis.frames import FramePixels
from lbvq.evaluation.hota import FrameOverlaps, HotaCounts, count_sequence
from lbvq.evaluation.tube_ap_result import unique_names

SCORES = ("HOTA", "DetA", "AssA", "IDF1", "IDP", "IDR")
_MATCH_IOU = 0.5


@dataclass
class TrackingCounts:
    """Sums over sequences of one class, that can be added."""

    hota: HotaCounts = field(default_factory=HotaCounts.zero)
    id_true: int = 0
    id_missed: int = 0
    id_false: int = 0

    def __add__(self, other: TrackingCounts) -> TrackingCounts:
        return TrackingCounts(
            self.hota + other.hota,
            self.id_true + other.id_true,
            self.id_missed + other.id_missed,
            self.id_false + other.id_false,
        )

    def scores(self) -> dict[str, float]:
        """SCORES in percent."""
        hota = self.hota.scores()
        precision = self.id_true / max(1, self.id_true + self.id_false)
        recall = self.id_true / max(1, self.id_true + self.id_missed)
        f1 = self.id_true / max(1.0, self.id_true + 0.5 * (self.id_false + self.id_missed))
        values = [hota["HOTA"], hota["DetA"], hota["AssA"], f1, precision, recall]
        return {name: 100 * float(value) for name, value in zip(SCORES, values, strict=True)}


def tracking_scores(
    ground_truth: GroundTruth, detections: Sequence[Detection], frames: Iterable[FramePixels], min_score: float = 0.0
) -> dict[str, Any]:
    """Score the tracks of every class.

    Args:
        ground_truth: with annotations.
        detections: what `read_predictions` returns.
        frames: what `frame_pixels` returns of them.
        min_score: predictions below it are left out.

    Returns:
        SCORES in percent, means over the classes with a track; "all_classes": the same from the sums of all classes;
        "min_score"; "per_class" and "per_video": lists of rows. nan where there is no track.
    """
    names = list(unique_names({each: ground_truth.category_name(each) for each in ground_truth.categories}).values())
    by_class: dict[int, TrackingCounts] = {}
    by_video: dict[int, TrackingCounts] = {}
    annotated: set[int] = set()
    for part in frames:
        kept = [detections[each].score >= min_score for each in part.detections.tolist()]
        counts = _count(ground_truth, part, np.flatnonzero(kept))
        annotated |= {part.place} if len(_counted(ground_truth, part)) else set()
        by_video[part.video] = by_video.get(part.video, TrackingCounts()) + counts
        by_class[part.place] = by_class.get(part.place, TrackingCounts()) + counts
    rows = [{"class": names[place], **by_class[place].scores()} for place in sorted(annotated)]
    total = sum((by_class[place] for place in sorted(annotated)), TrackingCounts())
    nothing = dict.fromkeys(SCORES, np.nan)
    return {
        **({name: float(np.mean([row[name] for row in rows])) for name in SCORES} if rows else nothing),
        "all_classes": total.scores() if rows else nothing,
        "min_score": min_score,
        "per_class": rows,
        "per_video": [{"video_id": video, **counts.scores()} for video, counts in sorted(by_video.items())],
    }


def _counted(truth: GroundTruth, part: FramePixels) -> np.ndarray:
    """Positions in `part` of the tracks that are not crowd."""
    return np.flatnonzero([not truth.tracks[each].is_crowd for each in part.tracks.tolist()])


def _count(truth: GroundTruth, part: FramePixels, predictions: np.ndarray) -> TrackingCounts:
    """Compare some predictions of one video and class with its tracks."""
    iou = part.iou()[predictions].transpose(1, 0, 2)  # (g, p, T)
    wanted, found = part.wanted > 0, part.found[predictions] > 0
    own = _counted(truth, part)
    if len(own) < len(wanted):
        found = found & ~_on_crowds(iou, wanted, found, own)
    frames = []
    for t in range(wanted.shape[1]):
        rows, columns = np.flatnonzero(wanted[own, t]), np.flatnonzero(found[:, t])
        frames.append(FrameOverlaps(rows, columns, iou[np.ix_(own[rows], columns)][..., t]))
    hota = count_sequence(frames, len(own), len(predictions))
    together = (iou[own] >= _MATCH_IOU) & wanted[own][:, None] & found[None]
    return _identities(together.sum(2), wanted[own].sum(1), found.sum(1), hota)


def _on_crowds(iou: np.ndarray, wanted: np.ndarray, found: np.ndarray, own: np.ndarray) -> np.ndarray:
    """(p, T) masks that the best assignment of a frame, at an IoU of 0.5, gives to a crowd."""
    is_crowd = np.ones(len(wanted), bool)
    is_crowd[own] = False
    on_crowd = np.zeros(found.shape, bool)
    for t in range(wanted.shape[1]):
        good = np.where((iou[..., t] >= _MATCH_IOU) & wanted[:, t, None] & found[None, :, t], iou[..., t], 0)
        rows, columns = linear_sum_assignment(-good)
        matched = (good[rows, columns] > 0) & is_crowd[rows]
        on_crowd[columns[matched], t] = True
    return on_crowd


def _identities(together: np.ndarray, wanted: np.ndarray, found: np.ndarray, hota: HotaCounts) -> TrackingCounts:
    """Pair tracks one to one, or with nothing, so that the fewest frames are missed or false.

    Args:
        together: (g, p) frames in which two tracks match.
        wanted, found: (g,) and (p,) frames of each track.
    """
    rows, columns = linear_sum_assignment(-together)  # each matched frame is one less that is missed and false
    true = int(together[rows, columns].sum())
    return TrackingCounts(hota, true, int(wanted.sum()) - true, int(found.sum()) - true)
