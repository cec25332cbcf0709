"""Kinds of errors of mask tubes.

The kinds are those of TIDE (Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection Errors", ECCV
2020), with the overlap of boxes replaced by that of tubes, and two more that only videos have. A false detection at the
IoU threshold t is, in this order, a

- duplicate: it overlaps a track of its class by t, which a better one has taken;
- class error: it overlaps a track of another class by t;
- fragment: in the frames that it covers it overlaps a track of its class by t, but it lacks others;
- switch: it would, were it allowed to follow in every frame the track of its class that it overlaps most, and these are
  several;
- localisation error: it overlaps a track of its class by 0.1;
- both: it overlaps a track of another class by 0.1;
- background: none of these.

A track is missed if it is not found, and is not what an error of class, fragment, switch or localisation was meant to
be. A detection may be of several kinds, at several thresholds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from lbvq.evaluation.diagnosis.frames import FramePixels
from lbvq.evaluation.diagnosis.outcomes import Outcomes

KINDS = ("class", "localisation", "both", "duplicate", "background", "missed", "switch", "fragment")
CLASS, LOCALISATION, BOTH, DUPLICATE, BACKGROUND, MISSED, SWITCH, FRAGMENT = range(len(KINDS))
MEANT = (CLASS, LOCALISATION, SWITCH, FRAGMENT)  # errors that would find a track if they were none
LEAST_OVERLAP = 0.1  # as in TIDE: less is background
_FOLLOWS = 0.5  # IoU in a single frame


@dataclass(frozen=True)
class Errors:
    """Kinds of D detections at S thresholds, and G tracks.

    Attributes:
        kind: (D, S) position in KINDS, -1 where a detection is no error.
        target: (D, S) position of the track that an error is about, -1 for none.
        iou: (D, S) overlap with it.
        missed: (G, S) bool.
    """

    kind: np.ndarray
    target: np.ndarray
    iou: np.ndarray
    missed: np.ndarray


@dataclass(frozen=True)
class _Best:
    """The track of some sort that each of D detections overlaps most."""

    iou: np.ndarray  # (D,) 0 without any
    track: np.ndarray  # (D,) -1 without any

    @classmethod
    def of(cls, size: int, detection: np.ndarray, track: np.ndarray, iou: np.ndarray) -> _Best:
        """From P pairs; of equal overlaps the first track."""
        best = cls(np.zeros(size), np.full(size, -1))
        order = np.lexsort((-track, iou))  # of repeated indices the last one stays
        best.iou[detection[order]] = iou[order]
        best.track[detection[order]] = track[order]
        return best


def find_errors(judged: Outcomes, collected: Mapping[str, np.ndarray], frames: Iterable[FramePixels]) -> Errors:
    """Tell the kinds of all errors.

    Args:
        judged: outcomes.
        collected: what `compare_all` returns.
        frames: what `frame_pixels` returns of the same detections.
    """
    size = len(judged.source)
    row_of = np.full(len(collected["order"]), -1)
    row_of[judged.source] = np.arange(size)
    row, track = row_of[collected["pair_detection"]], collected["pair_track"]
    known = (row >= 0) & judged.counted[track]
    row, track, iou = row[known], track[known], collected["pair_iou"][known]
    is_same = judged.place[row] == judged.track_place[track]
    same, other = (_Best.of(size, row[own], track[own], iou[own]) for own in (is_same, ~is_same))
    fragment, switch = _follow(judged, frames)
    limit = judged.thresholds
    rules = [  # the first that fits decides
        (DUPLICATE, same, _reaches(same, limit)),
        (CLASS, other, _reaches(other, limit)),
        (FRAGMENT, fragment, _reaches(fragment, limit)),
        (SWITCH, switch, _reaches(switch, limit)),
        (LOCALISATION, same, np.broadcast_to(same.iou[:, None] >= LEAST_OVERLAP, judged.false.shape)),
        (BOTH, other, np.broadcast_to(other.iou[:, None] >= LEAST_OVERLAP, judged.false.shape)),
        (BACKGROUND, _Best(np.maximum(same.iou, other.iou), np.full(size, -1)), np.ones(judged.false.shape, bool)),
    ]
    kind, target = np.full(judged.false.shape, -1), np.full(judged.false.shape, -1)
    overlap = np.zeros(judged.false.shape)
    for number, best, fits in rules:
        chosen = judged.false & fits & (kind < 0)
        kind[chosen] = number
        for table, values in ((target, best.track), (overlap, best.iou)):
            table[chosen] = np.broadcast_to(values[:, None], chosen.shape)[chosen]
    return Errors(kind, target, overlap, _missed(judged, kind, target))


def _reaches(best: _Best, thresholds: np.ndarray) -> np.ndarray:
    """(D, S) whether a track is overlapped enough."""
    return (best.track[:, None] >= 0) & (best.iou[:, None] >= np.minimum(thresholds, 1 - 1e-10))


def _missed(judged: Outcomes, kind: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(G, S) tracks that count, were not found, and that no error was meant to find."""
    missed = judged.counted[:, None] & ~judged.found()
    rows, columns = np.nonzero(np.isin(kind, MEANT))
    missed[target[rows, columns], columns] = False
    return missed


def _follow(judged: Outcomes, frames: Iterable[FramePixels]) -> tuple[_Best, _Best]:
    """How well detections follow one track, or several, in the frames that they cover."""
    size = len(judged.order)
    row_of = {order: row for row, order in enumerate(judged.order.tolist())}
    fragment, switch = (_Best(np.zeros(size), np.full(size, -1)) for _ in range(2))
    for part in frames:
        g = np.flatnonzero(judged.counted[part.tracks])
        rows = np.array([row_of.get(each, -1) for each in part.detections.tolist()], np.int64)
        if not len(g) or not len(rows):
            continue
        shared, tracks = part.shared[:, g], part.tracks[g]
        covered = part.found > 0
        union = (part.found[:, None] + part.wanted[g] - shared) * covered[:, None]  # (n, g, T)
        whole = shared.sum(2) / np.maximum(union.sum(2), 1)
        several = _follow_several(part.found, shared, union)
        for own, values, most in ((fragment, whole, whole), (switch, several[:, None], shared.sum(2))):
            known = np.flatnonzero(rows >= 0)
            own.iou[rows[known]] = values.max(1)[known]
            own.track[rows[known]] = tracks[most.argmax(1)][known]
    return fragment, switch


def _follow_several(found: np.ndarray, shared: np.ndarray, union: np.ndarray) -> np.ndarray:
    """(n,) overlap with the best track of each frame, 0 unless at least two are followed.

    Args:
        found: (n, T) pixels of the predictions.
        shared, union: (n, g, T) pixels with every track, in the frames that a prediction covers.
    """
    iou = shared / np.maximum(union, 1)
    best = iou.argmax(1)[:, None]  # (n, 1, T)
    own_iou, own_shared, own_union = (np.take_along_axis(each, best, 1)[:, 0] for each in (iou, shared, union))
    followed = (own_iou >= _FOLLOWS)[:, None] & (best == np.arange(shared.shape[1])[:, None])  # (n, g, T)
    together = own_shared.sum(1) / np.maximum(np.where(own_shared > 0, own_union, found).sum(1), 1)
    return np.where(followed.any(2).sum(1) >= 2, together, 0.0)
