"""HOTA: higher order tracking accuracy (Luiten et al., IJCV 2020) from overlaps of single frames.

DetA says how well objects are found, AssA how well their identity is kept, HOTA is the geometric mean of both, averaged
over 19 overlap thresholds. OWTA of open-world tracking replaces DetA by its recall.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

ALPHAS = np.arange(0.05, 0.99, 0.05)  # overlap thresholds
_EPS = np.finfo(np.float64).eps


class FrameOverlaps(NamedTuple):
    """One class in one frame."""

    tracks: np.ndarray  # (g,) index of the ground-truth tracks in this frame, without repetition
    predictions: np.ndarray  # (p,) index of the predicted tracks in this frame, without repetition
    iou: np.ndarray  # (g, p)


@dataclass
class HotaCounts:
    """Sums over sequences, one entry per threshold, that can be added."""

    true_positives: np.ndarray
    false_negatives: np.ndarray
    false_positives: np.ndarray
    association: np.ndarray  # sum over true positives of the association accuracy of their pair of tracks

    @classmethod
    def zero(cls) -> HotaCounts:
        """Nothing seen."""
        return cls(*(np.zeros(len(ALPHAS)) for _ in range(4)))

    def __add__(self, other: HotaCounts) -> HotaCounts:
        return HotaCounts(
            self.true_positives + other.true_positives,
            self.false_negatives + other.false_negatives,
            self.false_positives + other.false_positives,
            self.association + other.association,
        )

    def scores(self) -> dict[str, float]:
        """HOTA, DetA, AssA, DetRe, DetPr and OWTA in [0, 1], each averaged over the thresholds."""
        tp, fn, fp = self.true_positives, self.false_negatives, self.false_positives
        detection = tp / np.maximum(1, tp + fn + fp)
        recall = tp / np.maximum(1, tp + fn)
        association = self.association / np.maximum(1e-10, tp)
        curves = {
            "HOTA": np.sqrt(detection * association),
            "DetA": detection,
            "AssA": association,
            "DetRe": recall,
            "DetPr": tp / np.maximum(1, tp + fp),
            "OWTA": np.sqrt(recall * association),
        }
        return {name: float(curve.mean()) for name, curve in curves.items()}


def count_sequence(frames: Sequence[FrameOverlaps], num_tracks: int, num_predictions: int) -> HotaCounts:
    """Match one class in one sequence.

    Args:
        frames: all frames.
        num_tracks: of the ground truth, G.
        num_predictions: predicted tracks, P.
    """
    counts = HotaCounts.zero()
    track_frames = _frames_per_index((frame.tracks for frame in frames), num_tracks)[:, None]
    prediction_frames = _frames_per_index((frame.predictions for frame in frames), num_predictions)[None, :]
    alignment = _global_alignment(frames, track_frames, prediction_frames)
    matches = np.zeros((len(ALPHAS), num_tracks, num_predictions))
    for frame in frames:
        rows, columns = np.zeros(0, int), np.zeros(0, int)
        if frame.iou.size:
            weight = alignment[np.ix_(frame.tracks, frame.predictions)] * frame.iou
            rows, columns = linear_sum_assignment(-weight)
        accepted = frame.iou[rows, columns] >= ALPHAS[:, None] - _EPS  # (alphas, matches)
        num_matched = accepted.sum(1)
        counts.true_positives += num_matched
        counts.false_negatives += len(frame.tracks) - num_matched
        counts.false_positives += len(frame.predictions) - num_matched
        matches[:, frame.tracks[rows], frame.predictions[columns]] += accepted
    together = matches / np.maximum(1, track_frames + prediction_frames - matches)
    counts.association += (matches * together).sum((1, 2))
    return counts


def _frames_per_index(indices: Iterable[np.ndarray], number: int) -> np.ndarray:
    return np.bincount(np.concatenate([np.zeros(0, np.int64), *indices]), minlength=number).astype(np.float64)


def _global_alignment(
    frames: Sequence[FrameOverlaps], track_frames: np.ndarray, prediction_frames: np.ndarray
) -> np.ndarray:
    """(G, P) how much two tracks overlap over the whole sequence, for choosing matches that keep the identity."""
    overlap = np.zeros((len(track_frames), prediction_frames.shape[1]))
    for frame in frames:
        if frame.iou.size:
            union = frame.iou.sum(0, keepdims=True) + frame.iou.sum(1, keepdims=True) - frame.iou
            share = np.divide(frame.iou, union, out=np.zeros_like(frame.iou), where=union > _EPS)
            overlap[np.ix_(frame.tracks, frame.predictions)] += share
    union = track_frames + prediction_frames - overlap
    return np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)
