"""One polygon for one mask, exact to the pixel, for tools whose objects have one polygon per frame.

The outlines of parts and holes follow the edges of the pixels. They are joined by bridges that are walked forth and
back, so they enclose nothing: filling the polygon (even-odd, as pycocotools and CVAT do) gives the mask again.
"""

from __future__ import annotations

import cv2
import numpy as np

Corners = np.ndarray  # (N, 2) x, y


def outline(mask: np.ndarray, tolerance: float = 0.0) -> Corners:
    """Polygon of a (H, W) bool mask with at least one pixel.

    Args:
        tolerance: pixels by which the outline may be off; more than 0 gives far fewer corners, and a mask that is not
            exactly the same.

    Returns:
        (N, 2) float64 corners x, y in pixels.
    """
    loops = pixel_loops(mask)
    if tolerance > 0:
        loops = [_simplified(loop, tolerance) for loop in loops]
        loops = [loop for loop in loops if len(loop) >= 3] or pixel_loops(mask)
    loops.sort(key=len, reverse=True)
    anchor = loops[0][:1]
    pieces = [loops[0]] + [np.vstack((anchor, loop, loop[:1])) for loop in loops[1:]]
    return np.vstack(pieces).astype(np.float64)


def pixel_loops(mask: np.ndarray) -> list[Corners]:
    """Closed outlines along the edges of pixels: those of parts, and those of holes in the other direction."""
    steps = _edges(mask)
    loops = []
    while steps:
        start = next(iter(steps))
        loop, here, direction = [start], start, None
        while True:
            ends = steps[here]
            step = _turn(ends, direction)
            ends.remove(step)
            if not ends:
                del steps[here]
            here, direction = (here[0] + step[0], here[1] + step[1]), step
            if here == start:
                break
            loop.append(here)
        loops.append(_without_straight(np.array(loop)))
    return loops


def _edges(mask: np.ndarray) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """Corner (x, y) -> directions of the pixel edges that leave it, with the mask on the right hand."""
    padded = np.pad(mask.astype(bool), 1)
    inside = padded[1:-1, 1:-1]
    sides = (  # of a pixel: neighbour that is outside, corner where the edge starts, direction
        (padded[:-2, 1:-1], (0, 0), (1, 0)),
        (padded[1:-1, 2:], (1, 0), (0, 1)),
        (padded[2:, 1:-1], (1, 1), (-1, 0)),
        (padded[1:-1, :-2], (0, 1), (0, -1)),
    )
    steps: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for neighbour, (dx, dy), direction in sides:
        rows, columns = np.nonzero(inside & ~neighbour)
        for x, y in zip((columns + dx).tolist(), (rows + dy).tolist(), strict=True):
            steps.setdefault((x, y), []).append(direction)
    return steps


def _turn(ends: list[tuple[int, int]], direction: tuple[int, int] | None) -> tuple[int, int]:
    """Where two pixels meet at a corner, stay with the one we came along."""
    if len(ends) == 1 or direction is None:
        return ends[0]
    right = (-direction[1], direction[0])
    return right if right in ends else ends[0]


def _without_straight(loop: Corners) -> Corners:
    """Drop corners on a straight line."""
    before, after = loop - np.roll(loop, 1, axis=0), np.roll(loop, -1, axis=0) - loop
    return loop[(before != after).any(axis=1)]


def _simplified(loop: Corners, tolerance: float) -> Corners:
    return cv2.approxPolyDP(loop.astype(np.int32)[:, None], tolerance, True)[:, 0]
