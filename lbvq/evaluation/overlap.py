"""Overlap of mask tubes, computed on runs.

A tube is the masks of one object in all frames of a video, laid behind each other. The tube IoU pools pixels over the
whole video: sum of the intersections over sum of the unions, not a mean over frames.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import chain, pairwise
from typing import Any, NamedTuple

import numpy as np

from lbvq.evaluation.mask_texts import Masks
from lbvq.masks.compiled import load_compiled
from lbvq.masks.runs import FrameRuns, check_masks, decode_masks

_TUBES_AT_ONCE = 16  # that are compared with one; more would leave the processor's cache
_MAX_TABLES = 4  # of runs per column; masks with more runs in a column are rare


class ColumnRuns(NamedTuple):
    """Foreground runs of N tubes, of which none spans columns; runs of length zero may occur."""

    start: np.ndarray  # (R,) first pixel of every run, counted from the start of its tube
    end: np.ndarray  # (R,) pixel behind its last one
    column: np.ndarray  # (R,) its column, counted from the start of the tube: frame * width + x
    first: np.ndarray  # (N + 1,) row at which each tube begins

    def rows(self, index: int) -> slice:
        """Rows of one tube."""
        return slice(int(self.first[index]), int(self.first[index + 1]))


class TubeRuns:
    """N decoded tubes whose frames all have one size.

    Attributes:
        size_hw: height and width of the frames.
        lengths: (N,) frames of each tube.
        areas: (N, T) foreground pixels in each frame; T is the longest tube's.
        whole_runs: the foreground runs as they are in the file, which may go on in the next column.
    """

    def __init__(self, tubes: Sequence[Masks], size_hw: tuple[int, int], where: Callable[[int, int], str]) -> None:
        """Decode and check.

        Args:
            tubes: N lists with the text of one mask, or None, per frame.
            size_hw: of every frame.
            where: place of (tube, frame) for the message about a broken mask.
        """
        self.size_hw = size_hw
        self.lengths = np.fromiter(map(len, tubes), np.int64, len(tubes))
        flat = list(chain.from_iterable(tubes))
        texts = list(filter(None, flat))
        tube = np.repeat(np.arange(len(tubes)), self.lengths)
        frame = ranges(self.lengths)
        if len(texts) < len(flat):
            shown = np.fromiter((mask is not None for mask in flat), bool, len(flat))
            tube, frame = tube[shown], frame[shown]
        sizes = np.broadcast_to(np.array(size_hw, np.int64), (len(texts), 2))
        offsets = frame * (size_hw[0] * size_hw[1])
        runs = decode_masks(texts, sizes, offsets, lambda index: where(int(tube[index]), int(frame[index])))
        self.areas = np.zeros((len(tubes), int(self.lengths.max(initial=0))), np.int64)
        self.areas[tube, frame] = runs.areas
        first = runs.first[np.searchsorted(tube, np.arange(len(tubes) + 1))]
        self.whole_runs = FrameRuns(runs.start, runs.end, first, self.areas)

    def __len__(self) -> int:
        return len(self.lengths)

    @cached_property
    def by_column(self) -> ColumnRuns:
        """The runs, cut where they go on in the next column."""
        start, end, first, _ = self.whole_runs
        return ColumnRuns(*_cut_at_columns(start, end, first, self.size_hw[0]))

    def mean_areas(self) -> np.ndarray:
        """(N,) mean area over the frames in which the tube is not empty, 0 for a tube without any."""
        num_frames = np.count_nonzero(self.areas, axis=1)
        return self.areas.sum(1) / np.maximum(num_frames, 1)

    def boxes(self) -> np.ndarray:
        """(N, 4) smallest box x0, y0, x1, y1 around each tube, over all its frames; zeros for an empty tube."""
        height, width = self.size_hw
        runs = self.by_column
        boxes = np.zeros((len(self), 4), np.int64)
        for index in range(len(self)):
            rows = runs.rows(index)
            shown = np.flatnonzero(runs.end[rows] > runs.start[rows]) + rows.start
            if len(shown):
                x, top = runs.column[shown] % width, runs.column[shown] * height
                y0, y1 = runs.start[shown] - top, runs.end[shown] - top
                boxes[index] = x.min(), y0.min(), x.max() + 1, y1.max()
        return boxes


def _cut_at_columns(
    start: np.ndarray, end: np.ndarray, first: np.ndarray, height: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Cut runs that go on in the next column; returns start, end, column and first, see `ColumnRuns`."""
    compiled = load_compiled()
    if compiled is not None and start.dtype == np.int32:
        return compiled.cut_at_columns(start, end, first, height)
    column = (start // height).astype(np.intp)  # it is used as an index only
    top = (column * height).astype(start.dtype)
    long = np.flatnonzero(end - top > height)
    if len(long) == 0:
        return start, end, column, first
    num_columns = np.ones(len(start), np.int64)
    num_columns[long] = (end[long] - 1) // height - column[long] + 1
    row = np.repeat(np.arange(len(start)), num_columns)
    column = column[row] + ranges(num_columns)
    top = (column * height).astype(start.dtype)
    start, end = np.maximum(start[row], top), np.minimum(end[row], top + height)
    return start, end, column, np.concatenate(([0], np.cumsum(num_columns)))[first]


def check_tubes(tubes: Sequence[Masks], size_hw: tuple[int, int], where: Callable[[int, int], str]) -> None:
    """Check the masks of N tubes as `TubeRuns` does, which takes longer."""

    def name(index: int) -> str:
        places = [
            (tube, frame) for tube, masks in enumerate(tubes) for frame, mask in enumerate(masks) if mask is not None
        ]
        return where(*places[index])

    check_masks([mask for masks in tubes for mask in masks if mask is not None], size_hw, name)


def ranges(lengths: np.ndarray) -> np.ndarray:
    """Lengths [2, 0, 3] -> [0, 1, 0, 1, 2]."""
    return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)


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
    # What is below that stays so when these are rounded, which changes them by far less than a pixel.
    needed = (total[kept] * (at_least / (1 + at_least))).astype(np.int64) - 1
    intersection = intersect(detections, tracks, pairs[kept], needed)
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


def intersect(
    detections: TubeRuns, tracks: TubeRuns, pairs: np.ndarray, needed: np.ndarray | None = None
) -> np.ndarray:
    """(P, 2) index of detection and track -> (P,) int64 pixels that lie in both.

    Args:
        detections: N tubes.
        tracks: G tubes of the same frame size.
        pairs: (P, 2) index of detection and track.
        needed: (P,) pixels; 0 may stand for less than that.
    """
    compiled = load_compiled()
    sides = detections.whole_runs, tracks.whole_runs
    if compiled is not None and all(side.start.dtype == np.int32 for side in sides):
        height, width = detections.size_hw
        needed = np.zeros(len(pairs), np.int64) if needed is None else needed
        return compiled.count_shared(*sides, height * width, pairs, needed)
    result = np.zeros(len(pairs), np.int64)
    order = np.argsort(pairs[:, 1], kind="stable")
    cuts = np.flatnonzero(np.diff(pairs[order, 1], prepend=-1, append=-1))
    for begin, stop in pairwise(cuts.tolist()):
        members = order[begin:stop]
        lookup = _ColumnLookup(tracks, int(pairs[members[0], 1]), detections.areas.shape[1])
        for part in range(0, len(members), _TUBES_AT_ONCE):
            some = members[part : part + _TUBES_AT_ONCE]
            result[some] = lookup.count(detections, pairs[some, 0])
    return result


class _ColumnLookup:
    """Counts the pixels that one tube shares with others.

    Most columns of most masks have a single run, so a table from column to run finds what a run of another tube may
    overlap. Further runs of a column go to further tables, and if there are many, to interpolation.
    """

    def __init__(self, tubes: TubeRuns, index: int, num_frames: int) -> None:
        """Prepare for tube `index` and others of at most `num_frames` frames."""
        runs = tubes.by_column
        rows = runs.rows(index)
        start, end, column = runs.start[rows], runs.end[rows], runs.column[rows]
        shown = np.flatnonzero(end > start)
        if len(shown) < len(end):
            start, end, column = start.take(shown), end.take(shown), column.take(shown)
        num_columns = max(num_frames, tubes.areas.shape[1]) * tubes.size_hw[1] + 1  # runs of length 0 may lie behind
        self._tables: list[tuple[np.ndarray, np.ndarray]] = []
        while len(start) and len(self._tables) < _MAX_TABLES:
            table_start, table_end = np.zeros(num_columns, start.dtype), np.zeros(num_columns, start.dtype)
            table_start[column], table_end[column] = start, end  # of several runs the last one stays
            self._tables.append((table_start, table_end))
            hidden = np.flatnonzero(table_end.take(column) != end)
            start, end, column = start.take(hidden), end.take(hidden), column.take(hidden)
        self._curve = _growth_curve(start, end) if len(start) else None

    def count(self, tubes: TubeRuns, index: np.ndarray) -> np.ndarray:
        """(n,) numbers of pixels that the tubes at (n,) `index` share with ours."""
        runs = tubes.by_column
        rows = [runs.rows(each) for each in index.tolist()]
        start, end, column = (np.concatenate([numbers[each] for each in rows]) for numbers in runs[:3])
        shared = self._shared(start, end, column)
        num_rows = np.array([each.stop - each.start for each in rows])
        counts = np.zeros(len(index), np.int64)
        filled = np.flatnonzero(num_rows)
        if len(filled):  # a tube's pixels are numbered in the type of `shared`, so their number fits it
            counts[filled] = np.add.reduceat(shared, (np.cumsum(num_rows) - num_rows)[filled])
        return counts

    def _shared(self, start: np.ndarray, end: np.ndarray, column: np.ndarray) -> np.ndarray:
        """Number of pixels that every run shares with ours."""
        total = np.zeros(len(start), start.dtype)
        if self._curve is not None:
            total += np.rint(np.interp(end, *self._curve) - np.interp(start, *self._curve)).astype(start.dtype)
        some: Any = slice(None)
        for place, (table_start, table_end) in enumerate(self._tables):
            shared = table_end.take(column)
            if place > 0:  # few columns have a second run
                several = np.flatnonzero(shared > 0)
                start, end, column, shared = (each.take(several) for each in (start, end, column, shared))
                some = several if place == 1 else some[several]
            np.minimum(shared, end, out=shared)
            shared -= np.maximum(start, table_start.take(column))
            total[some] += np.maximum(shared, 0, out=shared)
        return total


def _growth_curve(start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Corners (x, y) of the function that tells how many pixels of these runs lie before pixel x.

    It is piecewise linear, so interpolation gives it everywhere; float64 holds all these integers exactly.
    """
    before = np.zeros((len(start), 2))
    np.cumsum(end - start, out=before[:, 1])
    before[1:, 0] = before[:-1, 1]
    return np.stack((start, end), axis=1).ravel().astype(np.float64), before.ravel()
