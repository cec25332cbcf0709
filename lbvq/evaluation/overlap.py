"""Overlap of mask tubes, computed on runs.

A tube is the masks of one object in all frames of a video, laid behind each other. The tube IoU pools pixels over the
whole video: sum of the intersections over sum of the unions, not a mean over frames.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from lbvq.evaluation.annotations import Masks
from lbvq.evaluation.runs import decode_masks


class TubeRuns:
    """N decoded tubes whose frames all have one size.

    Attributes:
        bounds: (R, 2) start and end of every foreground run, in pixels from the start of its tube.
        first: (N + 1,) row of `bounds` at which each tube begins.
        areas: (N, T) foreground pixels in each frame; T is the longest tube's.
        lengths: (N,) frames of each tube.
    """

    def __init__(self, tubes: Sequence[Masks], size_hw: tuple[int, int], where: Callable[[int, int], str]) -> None:
        """Decode and check.

        Args:
            tubes: N lists with the text of one mask, or None, per frame.
            size_hw: of every frame.
            where: place of (tube, frame) for the message about a broken mask.
        """
        self.lengths = np.fromiter(map(len, tubes), np.int64, len(tubes))
        flat = [mask for masks in tubes for mask in masks]
        texts = list(filter(None, flat))
        tube = np.repeat(np.arange(len(tubes)), self.lengths)
        frame = np.arange(len(flat)) - np.repeat(np.cumsum(self.lengths) - self.lengths, self.lengths)
        if len(texts) < len(flat):
            shown = np.fromiter((mask is not None for mask in flat), bool, len(flat))
            tube, frame = tube[shown], frame[shown]
        sizes = np.broadcast_to(np.array(size_hw, np.int64), (len(texts), 2))
        offsets = frame * (size_hw[0] * size_hw[1])
        runs = decode_masks(texts, sizes, offsets, lambda index: where(int(tube[index]), int(frame[index])))
        self.size_hw = size_hw
        self.bounds = runs.bounds
        self.first = runs.first[np.searchsorted(tube, np.arange(len(tubes) + 1))]
        self.areas = np.zeros((len(tubes), int(self.lengths.max(initial=0))), np.int64)
        self.areas[tube, frame] = runs.areas

    def __len__(self) -> int:
        return len(self.lengths)

    def mean_areas(self) -> np.ndarray:
        """(N,) mean area over the frames in which the tube is not empty, 0 for a tube without any."""
        num_frames = np.count_nonzero(self.areas, axis=1)
        return self.areas.sum(1) / np.maximum(num_frames, 1)


def tube_iou(
    detections: TubeRuns, tracks: TubeRuns, pairs: np.ndarray, *, at_least: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """IoU of pairs of tubes.

    Where two tubes differ in length only the frames that both have count, as published.

    Args:
        detections: N tubes.
        tracks: G tubes of the same frame size.
        pairs: (P, 2) index of detection and track.
        at_least: pairs below it may be left out; many need not be intersected for that, as their areas differ too much.

    Returns:
        (P',) positions in `pairs` of those with at least that IoU, ascending, and (P',) their IoU; 0 for empty unions.
    """
    areas_d, areas_g = _areas_of_common_frames(detections, tracks, pairs)
    largest = np.minimum(areas_d, areas_g).sum(1)  # an upper bound of the intersection
    total = areas_d.sum(1) + areas_g.sum(1)
    kept = np.flatnonzero(divide(largest, total - largest) >= at_least)
    intersection = intersect(detections, tracks, pairs[kept])
    iou = divide(intersection, total[kept] - intersection)
    enough = iou >= at_least
    return kept[enough], iou[enough]


def _areas_of_common_frames(detections: TubeRuns, tracks: TubeRuns, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(P, T) areas of both tubes of every pair, zero in frames that one of them does not have."""
    num_frames = min(detections.areas.shape[1], tracks.areas.shape[1])
    areas_d = detections.areas[pairs[:, 0], :num_frames]
    areas_g = tracks.areas[pairs[:, 1], :num_frames]
    lengths = np.minimum(detections.lengths[pairs[:, 0]], tracks.lengths[pairs[:, 1]])
    if (lengths < num_frames).any():
        outside = np.arange(num_frames) >= lengths[:, None]
        areas_d, areas_g = np.where(outside, 0, areas_d), np.where(outside, 0, areas_g)
    return areas_d, areas_g


def divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Elementwise quotient, 0 where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.zeros(len(numerator)), where=denominator > 0)


def intersect(detections: TubeRuns, tracks: TubeRuns, pairs: np.ndarray) -> np.ndarray:
    """(P, 2) index of detection and track -> (P,) int64 pixels that lie in both.

    The number of foreground pixels of a track before position x is a piecewise linear function of x with corners at its
    runs; summing its growth over the runs of a detection gives the intersection. Both are sorted, so interpolation
    walks along. float64 holds all these integers exactly.
    """
    result = np.zeros(len(pairs), np.int64)
    order = np.argsort(pairs[:, 1], kind="stable")
    cuts = np.flatnonzero(np.diff(pairs[order, 1], prepend=-1, append=-1))
    for start, stop in pairwise(cuts.tolist()):
        members = order[start:stop]
        track = pairs[members[0], 1]
        corners = tracks.bounds[tracks.first[track] : tracks.first[track + 1]]
        if len(corners) == 0:
            continue
        before = np.zeros(corners.shape)
        np.cumsum(corners[:, 1] - corners[:, 0], out=before[:, 1])
        before[1:, 0] = before[:-1, 1]
        corners, before = corners.ravel().astype(np.float64), before.ravel()
        for member in members:
            detection = pairs[member, 0]
            bounds = detections.bounds[detections.first[detection] : detections.first[detection + 1]]
            covered = np.interp(bounds.ravel(), corners, before)
            result[member] = covered[1::2].sum() - covered[::2].sum()
    return result
