"""Masks as short texts that a browser draws: simplified outlines on the grid of the picture that is shown."""

from __future__ import annotations

import json

import cv2
import numpy as np

from lbvq.masks.rle import decode, to_rle

GRID = 480  # cells along the longer side of a video; two digits of the alphabet reach 4095
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
_TOLERANCE = 0.8  # cells by which an outline may be off
_BASE = len(ALPHABET)


def grid_size(size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) in cells of a video of that size in pixels."""
    scale = GRID / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def outline_text(counts: bytes, size: tuple[int, int]) -> str | None:
    """Outlines of a mask, of its parts and of its holes: filling them by the even-odd rule gives it again, nearly.

    Args:
        counts: run lengths as JSON text.
        size: (height, width) in pixels.

    Returns:
        Four digits of `ALPHABET` for each corner (x and y, high digit first), a point between outlines; None for an
        empty mask.
    """
    mask = decode(to_rle({"size": list(size), "counts": json.loads(counts)}, *size))
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    (top, bottom), (left, right) = ((int(each[0]), int(each[-1]) + 1) for each in (rows, columns))
    height, width = grid_size(size)
    # The part with the object alone is brought to cells, as most of a frame is empty.
    y0, y1 = (round(each * height / size[0]) for each in (top, bottom))
    x0, x1 = (round(each * width / size[1]) for each in (left, right))
    y1, x1 = max(y1, y0 + 1), max(x1, x0 + 1)
    part = mask[top:bottom, left:right].astype(np.uint8)
    cells = cv2.resize(255 * part, (x1 - x0, y1 - y0), interpolation=cv2.INTER_AREA) >= 128
    loops = _loops(cells) or [np.array([(0, 0), (x1 - x0, 0), (x1 - x0, y1 - y0), (0, y1 - y0)])]  # thin as a hair
    return ".".join(_digits(loop + np.array([x0, y0])) for loop in loops)


def _loops(cells: np.ndarray) -> list[np.ndarray]:
    """(N, 2) x, y of the corners of every outline; contours run through the middle of cells, so they are doubled."""
    doubled = np.repeat(np.repeat(cells.astype(np.uint8), 2, axis=0), 2, axis=1)
    contours, _ = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    simple = [cv2.approxPolyDP(contour, 2 * _TOLERANCE, True)[:, 0] for contour in contours]
    return [(loop + 1) // 2 for loop in simple if len(loop) >= 3]


def _digits(loop: np.ndarray) -> str:
    numbers = np.clip(loop, 0, _BASE**2 - 1).ravel().tolist()
    return "".join(ALPHABET[each // _BASE] + ALPHABET[each % _BASE] for each in numbers)
