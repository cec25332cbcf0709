"""Shapes in CVAT's XML: read, moved between two keyframes, and turned into masks."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np

from lbvq.data.formats.shapes import box_corners, ellipse_corners, pasted_mask, polygon_mask

AREAS = ("box", "polygon", "ellipse", "mask")  # the others (points, polylines, cuboids, skeletons) enclose no pixels
_SIDES = {"box": ("xtl", "ytl", "xbr", "ybr"), "ellipse": ("cx", "cy", "rx", "ry")}
_WINDOW = ("left", "top", "width", "height")  # of a mask


@dataclass(frozen=True)
class Shape:
    """One shape in one frame.

    Attributes:
        tag: one of `AREAS`.
        frame: number in the video; 0 for shapes of an image.
        outside: the object is not visible from here on.
        keyframe: made by hand, not interpolated by CVAT.
        numbers: box x0, y0, x1, y1 and degrees; ellipse cx, cy, rx, ry and degrees; mask left, top, width, height.
        points: (N, 2) corners of a polygon.
        runs: lengths of a mask's runs, row by row inside its window, background first.
    """

    tag: str
    frame: int
    outside: bool
    keyframe: bool
    numbers: tuple[float, ...] = ()
    points: Any = None
    runs: tuple[int, ...] = ()


def read_shape(element: Element, where: str) -> Shape:
    """Read an element whose tag is one of `AREAS`."""
    frame = int(number(element, "frame", where)) if "frame" in element.keys() else 0
    outside, keyframe = element.get("outside") == "1", element.get("keyframe", "1") == "1"
    if element.tag == "polygon":
        return Shape("polygon", frame, outside, keyframe, points=_points(element, where))
    if element.tag == "mask":
        window = tuple(number(element, key, where) for key in _WINDOW)
        return Shape("mask", frame, outside, keyframe, numbers=window, runs=_runs(element, where))
    sides = [number(element, key, where) for key in _SIDES[element.tag]]
    degrees = number(element, "rotation", where) if element.get("rotation") else 0.0
    return Shape(element.tag, frame, outside, keyframe, numbers=(*sides, degrees))


def number(element: Element, key: str, where: str) -> float:
    """A finite number of an attribute."""
    text = element.get(key)
    try:
        value = float(text) if text is not None else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{where}: <{element.tag}> needs a number {key!r}, got {text!r}.")
    return value


def _points(element: Element, where: str) -> np.ndarray:
    text = element.get("points", "")
    try:
        points = np.array([[float(side) for side in pair.split(",")] for pair in text.split(";") if pair.strip()])
    except ValueError:
        points = np.empty(0)
    if points.ndim != 2 or points.shape[1:] != (2,) or len(points) < 3 or not np.isfinite(points).all():
        raise ValueError(f"{where}: a polygon needs at least three points 'x,y;x,y;...', got {text[:60]!r}.")
    return points


def _runs(element: Element, where: str) -> tuple[int, ...]:
    text = element.get("rle", "")
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{where}: the 'rle' of a mask is a list of whole numbers, got {text[:60]!r}.") from None


def mask_of(shape: Shape, size_hw: tuple[int, int], where: str) -> dict[str, Any]:
    """Mask of a shape in an image of this size; what lies outside is cut off."""
    if shape.tag == "mask":
        return _window_mask(shape, size_hw, where)
    if shape.tag == "polygon":
        return polygon_mask(shape.points, size_hw, where)
    corners = box_corners if shape.tag == "box" else ellipse_corners
    return polygon_mask(corners(*shape.numbers), size_hw, where)


def _window_mask(shape: Shape, size_hw: tuple[int, int], where: str) -> dict[str, Any]:
    left, top, width, height = (int(side) for side in shape.numbers)
    runs = np.array(shape.runs, dtype=np.int64)
    if width <= 0 or height <= 0 or runs.min() < 0 or int(runs.sum()) != width * height:
        raise ValueError(
            f"{where}: the runs of a mask must add up to its window of {height} x {width} pixels (height x width), "
            f"they add up to {int(runs.sum())}."
        )
    bitmap = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)
    return pasted_mask(bitmap, left, top, size_hw)


def interpolate(before: Shape, after: Shape, frame: int) -> Shape:
    """The shape in a frame between two keyframes."""
    share = (frame - before.frame) / (after.frame - before.frame)
    between = replace(before, frame=frame, keyframe=False)
    if before.tag != after.tag or before.tag == "mask":
        return between
    if before.tag == "polygon":
        return replace(between, points=_polygon_between(before.points, after.points, share))
    moves = np.subtract(after.numbers, before.numbers)
    moves[4] = (moves[4] + 180) % 360 - 180  # turn the shorter way
    return replace(between, numbers=tuple(np.add(before.numbers, share * moves)))


def _polygon_between(start: np.ndarray, end: np.ndarray, share: float) -> np.ndarray:
    """Move every corner linearly; outlines with other numbers of corners are matched by their length."""
    if len(start) != len(end):
        if _signed_area(start) * _signed_area(end) < 0:
            end = end[::-1]
        nearest = int(np.linalg.norm(end - start[0], axis=1).argmin())
        end = np.roll(end, -nearest, axis=0)
        places = np.union1d(_places(start), _places(end))
        start, end = _points_at(start, places), _points_at(end, places)
    return start + share * (end - start)


def _signed_area(points: np.ndarray) -> float:
    x, y = points.T
    return float(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)) / 2)


def _places(points: np.ndarray) -> np.ndarray:
    """(N,) position of every corner on the outline, as a share of its length from the first."""
    sides = np.linalg.norm(np.roll(points, -1, axis=0) - points, axis=1)
    total = sides.sum()
    return np.concatenate(([0.0], np.cumsum(sides)[:-1])) / (total or 1.0)


def _points_at(points: np.ndarray, places: np.ndarray) -> np.ndarray:
    closed, known = np.vstack((points, points[:1])), np.append(_places(points), 1.0)
    return np.stack([np.interp(places, known, closed[:, axis]) for axis in (0, 1)], axis=1)
