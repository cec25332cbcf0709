"""Curves, bars and matrices drawn with OpenCV, so that a report needs no plotting library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from lbvq.files.writing import atomic_path
from lbvq.video.text import draw_text

COLORS = ((180, 119, 31), (14, 127, 255), (44, 160, 44), (40, 39, 214), (189, 103, 148), (75, 86, 140))  # BGR
_MARGIN = 70
_INK, _GRID = (60, 60, 60), (225, 225, 225)


def save_image(path: Path, image: np.ndarray) -> None:
    """Write (H, W, 3) BGR; the extension chooses the format."""
    ok, data = cv2.imencode(path.suffix, image)
    if not ok:
        raise ValueError(f"{path}: OpenCV cannot write images of this kind")
    with atomic_path(path) as part:
        part.write_bytes(data.tobytes())


def put_text(image: np.ndarray, text: str, xy: tuple[int, int], size: float = 0.45, color: tuple = _INK) -> None:
    """Write text with its baseline beginning at x, y; a size of 1 is 29 pixels."""
    draw_text(image, text, xy, round(29 * size), color)


def _canvas(width: int, height: int, title: str) -> np.ndarray:
    image = np.full((height, width, 3), 255, np.uint8)
    put_text(image, title, (_MARGIN, 30), 0.6)
    return image


def draw_curves(curves: Mapping[str, np.ndarray], title: str, x_name: str, y_name: str) -> np.ndarray:
    """Curves over [0, 1] with values in [0, 1] -> image; gaps (nan) stay empty."""
    width, height = 760, 560
    image = _canvas(width, height, title)
    left, right, top, bottom = _MARGIN, width - 30, 50, height - 60
    for step in range(11):
        x, y = left + (right - left) * step // 10, bottom - (bottom - top) * step // 10
        cv2.line(image, (x, top), (x, bottom), _GRID, 1)
        cv2.line(image, (left, y), (right, y), _GRID, 1)
        put_text(image, f"{step / 10:.1f}", (x - 12, bottom + 20))
        put_text(image, f"{step / 10:.1f}", (left - 35, y + 5))
    put_text(image, x_name, ((left + right) // 2 - 30, height - 15), 0.5)
    put_text(image, y_name, (8, top - 12), 0.5)
    for place, (name, values) in enumerate(curves.items()):
        color = COLORS[place % len(COLORS)]
        across = np.linspace(left, right, len(values))
        points = np.stack((across, bottom - (bottom - top) * values), axis=1)
        points = points[np.isfinite(points).all(1)].round().astype(np.int32)
        cv2.polylines(image, [points], False, color, 2, cv2.LINE_AA)
        put_text(image, name, (right - 190, top + 22 + 20 * place), 0.5, color)
    return image


def draw_bars(values: Mapping[str, float], title: str) -> np.ndarray:
    """Percent per name -> image with one horizontal bar each; nan is written as a dash."""
    height = 60 + 26 * max(1, len(values))
    image = _canvas(760, height, title)
    left, right = 230, 680
    for place, (name, value) in enumerate(values.items()):
        y = 52 + 26 * place
        put_text(image, name[:28], (12, y + 15))
        if np.isfinite(value):
            cv2.rectangle(image, (left, y), (left + round((right - left) * value / 100), y + 18), COLORS[0], -1)
        put_text(image, f"{value:.1f}" if np.isfinite(value) else "-", (right + 10, y + 15))
    return image


def draw_matrix(rows: Sequence[str], columns: Sequence[str], counts: np.ndarray, title: str) -> np.ndarray:
    """(R, C) counts -> image whose shades give the share of each row."""
    cell = 34 if max(counts.shape) <= 30 else 18
    left, top = 190, 200
    image = _canvas(max(640, left + cell * len(columns) + 30), top + cell * len(rows) + 30, title)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    for r, name in enumerate(rows):
        put_text(image, name[:24], (8, top + cell * r + cell - 10), 0.4)
        for c in range(len(columns)):
            x, y = left + cell * c, top + cell * r
            shade = 255 - int(200 * share[r, c])
            cv2.rectangle(image, (x, y), (x + cell - 1, y + cell - 1), (255, shade, shade), -1)
            if counts[r, c] and cell > 20:
                put_text(image, str(int(counts[r, c])), (x + 3, y + cell // 2 + 5), 0.35)
    for c, name in enumerate(columns):
        label = np.full((cell, top - 50, 3), 255, np.uint8)
        put_text(label, name[:20], (2, cell - 10), 0.4)
        label = cv2.rotate(label, cv2.ROTATE_90_COUNTERCLOCKWISE)
        x = left + cell * c
        image[top - label.shape[0] - 4 : top - 4, x : x + label.shape[1]] = label
    return image
