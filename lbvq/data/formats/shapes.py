"""Shapes of labelling tools as masks: polygons, boxes, ellipses, cut-out bitmaps, and images of numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as coco_mask
from PIL import Image

from lbvq.masks.rle import area, decode, encode, encode_many, to_rle

Rle = dict[str, Any]
Point = tuple[float, float]

ELLIPSE_POINTS = 72  # corners of the polygon that stands for an ellipse


def polygon_mask(points: Sequence[Point], size_hw: tuple[int, int], where: str) -> Rle:
    """Mask of a closed polygon [(x, y), ...] in pixels; what lies outside the image is cut off."""
    corners = np.asarray(points, dtype=np.float64).reshape(-1)
    return to_rle([corners.tolist()], *size_hw, where=where)


def box_corners(x0: float, y0: float, x1: float, y1: float, degrees: float = 0.0) -> list[Point]:
    """Corners of a box, turned clockwise about its centre."""
    centre = ((x0 + x1) / 2, (y0 + y1) / 2)
    return [turned(corner, centre, degrees) for corner in ((x0, y0), (x1, y0), (x1, y1), (x0, y1))]


def ellipse_corners(cx: float, cy: float, rx: float, ry: float, degrees: float = 0.0) -> list[Point]:
    """Polygon for an ellipse, turned clockwise about its centre."""
    angles = [2 * math.pi * step / ELLIPSE_POINTS for step in range(ELLIPSE_POINTS)]
    return [turned((cx + rx * math.cos(a), cy + ry * math.sin(a)), (cx, cy), degrees) for a in angles]


def turned(point: Point, centre: Point, degrees: float) -> Point:
    """A point turned clockwise about a centre (y points down)."""
    if not degrees:
        return point
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    dx, dy = point[0] - centre[0], point[1] - centre[1]
    return centre[0] + dx * cos - dy * sin, centre[1] + dx * sin + dy * cos


def pasted_mask(bitmap: np.ndarray, left: int, top: int, size_hw: tuple[int, int]) -> Rle:
    """Mask of a (h, w) bool bitmap whose upper left pixel is at (left, top); what lies outside the image is cut off."""
    mask = np.zeros(size_hw, dtype=bool)
    inside = bitmap[max(0, -top) :, max(0, -left) :]
    window = mask[max(0, top) :, max(0, left) :]
    height, width = (min(sides) for sides in zip(inside.shape, window.shape, strict=True))
    window[:height, :width] = inside[:height, :width]
    return encode(mask)


def cut_out(mask: Rle) -> tuple[np.ndarray, int, int]:
    """(h, w) bool bitmap of a mask inside its tight box, and the box's left and top."""
    dense = decode(mask)
    rows, columns = np.flatnonzero(dense.any(axis=1)), np.flatnonzero(dense.any(axis=0))
    if not len(rows):
        return np.zeros((0, 0), dtype=bool), 0, 0
    top, left = int(rows[0]), int(columns[0])
    return dense[top : rows[-1] + 1, left : columns[-1] + 1], left, top


def union(masks: Sequence[Rle], size_hw: tuple[int, int]) -> Rle:
    """Pixels of any of the masks, which must be canonical and of this size."""
    if len(masks) == 1:
        return masks[0]
    return to_rle(coco_mask.merge([{**mask, "size": list(size_hw)} for mask in masks]), *size_hw)


def is_empty(mask: Rle) -> bool:
    return area(mask) == 0


def read_numbers(source: Path | bytes, where: str) -> np.ndarray:
    """Read a PNG whose pixels are numbers of objects.

    Returns:
        (H, W) int64: palette index or grey value of 1, 8 or 16 bits; of a colour image red * 65536 + green * 256 + blue
        (0 where it is transparent).
    """
    try:
        with Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=["PNG"]) as image:
            image.load()
            if "A" in image.mode and len(np.setdiff1d(np.asarray(image.getchannel("A")), (0, 255))):
                raise ValueError("its transparency holds numbers, as in bitmasks of BDD100K; convert the JSON labels")
            if image.mode in ("RGB", "RGBA", "LA"):
                return _colours(np.asarray(image.convert("RGBA"), dtype=np.int64))
            if image.mode not in ("1", "L", "P", "I", "I;16", "I;16B"):
                raise ValueError(f"pixels of the kind {image.mode} hold no numbers of objects")
            return np.asarray(image).astype(np.int64)
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{where} cannot be read as a PNG of masks: {error}") from error


def _colours(pixels: np.ndarray) -> np.ndarray:
    numbers = (pixels[..., 0] << 16) | (pixels[..., 1] << 8) | pixels[..., 2]
    return np.where(pixels[..., 3] > 0, numbers, 0)


def masks_by_number(numbers: np.ndarray) -> dict[int, Rle]:
    """(H, W) integers -> number -> mask of the pixels that hold it, for every number but 0."""
    counts = np.bincount(numbers.ravel()) if numbers.max(initial=0) < 2**17 else None
    present = np.unique(numbers) if counts is None else np.flatnonzero(counts)
    values = [int(value) for value in present if value]
    if not values:
        return {}
    return dict(zip(values, encode_many(np.stack([numbers == value for value in values])), strict=True))


def paint_numbers(masks: Sequence[tuple[int, Rle]], size_hw: tuple[int, int]) -> tuple[np.ndarray, int]:
    """Paint masks in order into one image of numbers; later ones cover earlier ones.

    Returns:
        (H, W) int64, 0 where nothing is, and how many pixels were covered.
    """
    numbers = np.zeros(size_hw, dtype=np.int64)
    covered = 0
    for value, mask in masks:
        inside = decode(mask, size_hw)
        covered += int(((numbers != 0) & inside).sum())
        numbers[inside] = value
    return numbers, covered
