"""Overlap of the boundaries of mask tubes (Tube-Boundary AP of HQ-YTVIS; Ke et al., ECCV 2022).

The boundary of a mask is what an erosion by d pixels in the chessboard metric removes; outside the image counts as
background. It is computed on columns of 64-bit words: shrinking runs erodes down the columns, and a few bitwise ANDs of
shifted columns erode across them, whatever d is. Where it is compiled, `boundary.c` does the same frame by frame.
"""

from __future__ import annotations

import ctypes
import math
from pathlib import Path

import numpy as np

from lbvq.evaluation.overlap import TubeRuns, divide, ranges
from mask2former.compiled import CSource, call

LOOPS = CSource("loops of boundaries", Path(__file__).with_suffix(".c"), worth=1 << 10)  # masks
DILATION_RATIO = 0.02
_MAX_GATHERED_WORDS = 1 << 18  # of both masks of the pairs that are compared at once


def boundary_width(size_hw: tuple[int, int], dilation_ratio: float = DILATION_RATIO) -> int:
    """Width d of the boundary in pixels, at least 1: a share of the image's diagonal."""
    height, width = size_hw
    return max(1, round(dilation_ratio * math.sqrt(height * height + width * width)))


class BoundaryTubes:
    """Boundaries of N tubes as bits: every frame keeps the columns between its object's leftmost and rightmost pixel.

    Attributes:
        words: (columns of all frames, words per column) uint64; bit r of a column is pixel row r.
        first: (N, T) row of `words` with the first column of each frame.
        left: (N, T) its position in the image.
        width: (N, T) number of columns, 0 for frames without the object.
        areas: (N, T) boundary pixels.
    """

    words: np.ndarray
    first: np.ndarray
    left: np.ndarray
    width: np.ndarray
    areas: np.ndarray

    def __init__(self, tubes: TubeRuns, index: np.ndarray, dilation_ratio: float = DILATION_RATIO) -> None:
        """Find the boundaries of the tubes at (N,) `index`."""
        radius = boundary_width(tubes.size_hw, dilation_ratio)
        library = LOOPS.load(int(np.count_nonzero(tubes.areas[index])))
        if library is not None and tubes.whole_runs.start.dtype == np.int32:
            self._draw_compiled(library, tubes, index, radius)
        else:
            self._draw(tubes, index, radius)

    def _draw_compiled(self, library: ctypes.CDLL, tubes: TubeRuns, index: np.ndarray, radius: int) -> None:
        start, end, first, _ = tubes.whole_runs
        height, image_width = tubes.size_hw
        shape = len(index), tubes.areas.shape[1]
        index = np.ascontiguousarray(index, np.int64)
        first_run = np.empty((shape[0], shape[1] + 1), np.int64)
        self.left, self.width, self.areas = np.empty((3, *shape), np.int64)
        call(
            library.find_columns,
            *(start, end, first, shape[1], height, height * image_width, shape[0], index),
            *(first_run, self.left, self.width),
        )
        stops = np.cumsum(self.width)
        self.first = np.ascontiguousarray(stops.reshape(shape) - self.width)
        num_words = height // 64 + 1
        self.words = np.zeros((int(self.width.sum()), num_words), np.uint64)
        inner = np.empty((int(self.width.max(initial=0)), num_words), np.uint64)
        call(
            library.draw_boundaries,
            *(start, end, *shape, first_run, self.left, self.width, self.first),
            *(height, height * image_width, radius, self.words, inner, self.areas),
        )

    def _draw(self, tubes: TubeRuns, index: np.ndarray, radius: int) -> None:
        height, image_width = tubes.size_hw
        num_frames = tubes.areas.shape[1]
        start, end, column, tube = _column_runs(tubes, index)
        frame, x = np.divmod(column, image_width)
        block = tube * num_frames + frame
        opening = np.flatnonzero(np.diff(block, prepend=-1))
        closing = np.flatnonzero(np.diff(block, append=-1))
        self.left = np.zeros(len(index) * num_frames, np.int64)
        self.width = np.zeros(len(index) * num_frames, np.int64)
        self.left[block[opening]] = x[opening]
        self.width[block[opening]] = x[closing] - x[opening] + 1
        # An empty column after each frame keeps the frames apart, `2 * radius` at the end give the last one room.
        stops = np.cumsum(self.width + (self.width > 0))
        self.first = stops - self.width - (self.width > 0)
        slot = self.first[block] + x - self.left[block]
        shape = (int(stops[-1]) + 2 * radius if len(stops) else 0, height // 64 + 1)
        mask = _paint(slot, start, end, shape)
        kept = end - start > 2 * radius
        inner = _paint(slot[kept], start[kept] + radius, end[kept] - radius, shape)
        self.words = mask ^ _erode_across(inner, radius)
        self._count(stops, (len(index), num_frames))

    def _count(self, stops: np.ndarray, shape: tuple[int, int]) -> None:
        self.areas = _sum_bits(self.words, stops - self.first).reshape(shape)
        self.first, self.left, self.width = (each.reshape(shape) for each in (self.first, self.left, self.width))


def boundary_iou(
    detections: BoundaryTubes, tracks: BoundaryTubes, pairs: np.ndarray, common_frames: np.ndarray
) -> np.ndarray:
    """IoU of the boundaries of pairs of tubes, pooled over all frames.

    Args:
        pairs: (P, 2) index of detection and track.
        common_frames: (P,) number of frames that both have; later frames do not count.

    Returns:
        (P,) IoU, 0 for empty unions.
    """
    num_frames = min(detections.areas.shape[1], tracks.areas.shape[1])
    counted = np.arange(num_frames) < common_frames[:, None]
    area = detections.areas[pairs[:, 0], :num_frames] + tracks.areas[pairs[:, 1], :num_frames]
    total = np.where(counted, area, 0).sum(1)
    intersection = np.zeros(len(pairs), np.int64)
    per_step = max(1, _MAX_GATHERED_WORDS // max(1, int(tracks.width.sum(1).max(initial=1)) * tracks.words.shape[1]))
    for step in range(0, len(pairs), per_step):
        part = slice(step, step + per_step)
        intersection[part] = _intersect(detections, tracks, pairs[part], counted[part])
    return divide(intersection, total - intersection)


def _intersect(detections: BoundaryTubes, tracks: BoundaryTubes, pairs: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """(P,) pixels in both boundaries, from the columns that both masks of a frame keep."""
    num_frames = counted.shape[1]
    d, g = ((side, pairs[:, i], slice(num_frames)) for i, side in enumerate((detections, tracks)))
    left_d, left_g = (side.left[rows, frames] for side, rows, frames in (d, g))
    right = np.minimum(*((side.left + side.width)[rows, frames] for side, rows, frames in (d, g)))
    left = np.maximum(left_d, left_g)
    num_columns = np.where(counted, np.maximum(right - left, 0), 0)
    begin_d, begin_g = (
        side.first[rows, frames] + left - own_left
        for (side, rows, frames), own_left in zip((d, g), (left_d, left_g), strict=True)
    )
    library = LOOPS.load(0)
    if library is not None:
        counts = np.empty(num_columns.shape, np.int64)
        sizes = detections.words.shape[1], num_columns.size
        call(library.count_common, detections.words, tracks.words, *sizes, begin_d, begin_g, num_columns, counts)
        return counts.sum(1)
    inside = ranges(num_columns.ravel())
    columns = [
        side.words[np.repeat(begin.ravel(), num_columns.ravel()) + inside]
        for side, begin in ((detections, begin_d), (tracks, begin_g))
    ]
    return _sum_bits(columns[0] & columns[1], num_columns.sum(1))


def _column_runs(tubes: TubeRuns, index: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Runs of the tubes at `index`: first row of pixels, row behind the last, column in the tube, and which tube."""
    runs = tubes.by_column
    num_rows = runs.first[index + 1] - runs.first[index]
    rows = np.repeat(runs.first[index], num_rows) + ranges(num_rows)
    tube = np.repeat(np.arange(len(index)), num_rows)
    shown = runs.end[rows] > runs.start[rows]
    rows, tube = rows[shown], tube[shown]
    start, end, column = runs.start[rows], runs.end[rows], runs.column[rows]
    # Runs that touch inside a column are one run; a file may cut them anywhere.
    goes_on = (start[1:] == end[:-1]) & (column[1:] == column[:-1]) & (tube[1:] == tube[:-1])
    if goes_on.any():
        opening = np.concatenate(([True], ~goes_on))
        start, end, column, tube = start[opening], end[np.append(~goes_on, True)], column[opening], tube[opening]
    top = column * tubes.size_hw[0]
    return start - top, end - top, column, tube


def _paint(slot: np.ndarray, start: np.ndarray, end: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Set bits start..end - 1 of column `slot` for every run; runs of a column neither touch nor overlap."""
    words = np.zeros(shape, np.uint64)
    one = np.uint64(1)
    for edge in (start, end):  # at first only where the bits change
        np.add.at(words.reshape(-1), slot * shape[1] + (edge >> 6), one << (edge & 63).astype(np.uint64))
    for step in (1, 2, 4, 8, 16, 32):  # bit r becomes the parity of the changes up to r
        words ^= words << np.uint64(step)
    for word in range(1, shape[1]):
        words[:, word] ^= np.uint64(0) - (words[:, word - 1] >> np.uint64(63))
    return words


def _erode_across(words: np.ndarray, radius: int) -> np.ndarray:
    """AND of every column with its `radius` neighbours on both sides, in a logarithmic number of steps."""
    window, covered = 2 * radius + 1, 1
    while covered < window:
        step = min(covered, window - covered)
        words[: len(words) - step] &= words[step:].copy()
        words[len(words) - step :] = 0
        covered += step
    eroded = np.zeros_like(words)  # so far a column holds the AND of itself and those to its right
    eroded[radius:] = words[: len(words) - radius]
    return eroded


def _sum_bits(words: np.ndarray, num_columns: np.ndarray) -> np.ndarray:
    """Number of set bits in each of n groups of consecutive columns; columns behind the last group do not count."""
    sums = np.zeros(len(num_columns), np.int64)
    filled = np.flatnonzero(num_columns)
    if len(filled):
        first = (np.cumsum(num_columns) - num_columns)[filled] * words.shape[1]
        bits = count_bits(words[: num_columns.sum()]).reshape(-1)
        sums[filled] = np.add.reduceat(bits, first, dtype=np.int64)
    return sums


def count_bits(words: np.ndarray) -> np.ndarray:
    """Number of set bits of every uint64."""
    if hasattr(np, "bitwise_count"):
        return np.bitwise_count(words)
    return _BITS_OF_BYTE[words[..., None].view(np.uint8)].sum(-1, dtype=np.uint8)  # numpy 1


_BITS_OF_BYTE = np.array([value.bit_count() for value in range(256)], np.uint8)
