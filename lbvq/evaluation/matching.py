"""From overlaps to precision and recall: greedy matching and interpolated precision, as in COCO, on whole arrays.

Letters: D detections, G ground-truth tracks, P candidate pairs, A ranges (of area and the like), S IoU thresholds,
R recall thresholds, K categories, M detection limits.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

_EPS = np.spacing(1)  # as published, in the denominator of the precision


@dataclass
class Candidates:
    """Pairs of detections and tracks that may be matched, and how much they overlap.

    Attributes:
        detection: (P,) index of the detection.
        track: (P,) index of the track; of two equal overlaps the later track wins, as published.
        iou: (P,) in [0, 1].
    """

    detection: np.ndarray
    track: np.ndarray
    iou: np.ndarray


def match_greedily(
    candidates: Candidates,
    rank: np.ndarray,
    thresholds: np.ndarray,
    ignored: np.ndarray,
    reusable: np.ndarray,
) -> np.ndarray:
    """Let detections choose tracks, best score first, separately for every range and threshold.

    A detection takes the track with the largest IoU of at least the threshold that is neither taken nor ignored, else
    such an ignored track. Detections of equal rank never compete, so all of them choose at the same time.

    Args:
        candidates: pairs whose detections and tracks are of one video and, as a rule, one category.
        rank: (D,) place of a detection among those of its video and category, 0 for the best score.
        thresholds: (S,) of the IoU.
        ignored: (G, A) tracks that do not count in a range.
        reusable: (G,) tracks that any number of detections may take.

    Returns:
        (D, A, S) track that each detection takes, -1 for none.
    """
    shape = (ignored.shape[1], len(thresholds))
    choice = np.full((len(rank), *shape), -1, np.int32)
    taken = np.zeros((len(ignored), *shape), bool)
    thresholds = np.minimum(thresholds, 1 - 1e-10)
    order = np.lexsort((-candidates.track, -candidates.iou, candidates.detection, rank[candidates.detection]))
    detection, track, iou = candidates.detection[order], candidates.track[order], candidates.iou[order]
    opening = np.flatnonzero(np.diff(detection, prepend=-1))  # first pair of each detection
    num_pairs = np.diff(opening, append=len(detection))
    opening_rank = rank[detection[opening]]
    turns = np.flatnonzero(np.diff(opening_rank, prepend=-1, append=-1))
    for start, stop in pairwise(turns.tolist()):
        pairs, valid = _pad(opening[start:stop], num_pairs[start:stop])
        tracks = track[pairs]  # (n, C), best first
        open_to = ~taken[tracks] | reusable[tracks][..., None, None]  # (n, C, A, S)
        fits = valid[..., None] & (iou[pairs][..., None] >= thresholds)  # (n, C, S)
        eligible = fits[:, :, None] & open_to
        counted = eligible & ~ignored[tracks][..., None]
        eligible = np.where(counted.any(1, keepdims=True), counted, eligible)
        found = eligible.any(1)  # (n, A, S)
        chosen = np.take_along_axis(tracks, eligible.argmax(1).reshape(len(tracks), -1), axis=1).reshape(found.shape)
        choice[detection[opening[start:stop]]] = np.where(found, chosen, -1)
        _, area_range, threshold = np.nonzero(found)
        taken[chosen[found], area_range, threshold] = True
    return choice


def _pad(opening: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index (n, longest) of the members of n groups that begin at `opening`, and which of them exist."""
    place = np.arange(lengths.max())
    valid = place < lengths[:, None]
    return np.where(valid, opening[:, None] + place, opening[:, None]), valid


def precision_and_recall(
    score: np.ndarray, true: np.ndarray, false: np.ndarray, num_tracks: np.ndarray, recall_thresholds: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Interpolated precision of one category, from detections in descending order of their score.

    Args:
        score: (D,) scores.
        true: (D, A, S) true positives.
        false: (D, A, S) false positives; a detection that is neither is ignored.
        num_tracks: (A,) tracks that count.
        recall_thresholds: (R,) ascending.

    Returns:
        precision (A, S, R), recall (A, S) and score (A, S, R) at each recall; -1 in ranges without a track.
    """
    num_ranges, num_thresholds = true.shape[1:]
    shape = (num_ranges, num_thresholds, len(recall_thresholds))
    precision, scores, recall = np.zeros(shape), np.zeros(shape), np.zeros(shape[:2])
    num_true = np.cumsum(true, axis=0, dtype=np.int32)
    num_false = np.cumsum(false, axis=0, dtype=np.int32)
    # The running maximum of the precision only changes at true positives: keep one column for each of them.
    detection, area_range, threshold = np.nonzero(true)
    place = num_true[detection, area_range, threshold]
    width = max(1, int(place.max(initial=0)))
    best = np.zeros((num_ranges, num_thresholds, width))
    best[area_range, threshold, place - 1] = place / (place + num_false[detection, area_range, threshold] + _EPS)
    best = np.maximum.accumulate(best[..., ::-1], axis=-1)[..., ::-1]
    score_at = np.zeros_like(best)
    score_at[area_range, threshold, place - 1] = score[detection]
    total = num_true[-1] if len(score) else np.zeros(shape[:2], np.int32)
    for a, count in enumerate(num_tracks):
        if count == 0:
            precision[a], scores[a], recall[a] = -1, -1, -1
            continue
        recall[a] = total[a] / count
        # true positives that are needed for each recall: it is first reached at that one
        needed = np.searchsorted(np.arange(count + 1) / count, recall_thresholds, side="left")
        column = np.clip(needed - 1, 0, width - 1)
        reached = (needed <= total[a][:, None]) & (needed <= width)
        precision[a] = np.where(reached, best[a][:, column], 0)
        scores[a] = np.where(reached, score_at[a][:, column], 0)
        if len(score):  # recall 0 is reached at the first detection, whatever it is
            scores[a][:, needed == 0] = score[0]
    return precision, recall, scores
