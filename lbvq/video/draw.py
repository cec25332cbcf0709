"""Draw objects into frames: a tinted mask with an outline, and a label with identity, class and score.

Everything is arrays in, arrays out. The colour of an object depends only on its identity, so it is the same in every
frame. Line width and text size follow the frame size.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import cv2
import numpy as np

from lbvq.video.text import text_plate

_COLORS = (
    (230, 45, 60),
    (30, 130, 255),
    (40, 190, 80),
    (255, 180, 0),
    (150, 70, 230),
    (0, 205, 205),
    (255, 105, 15),
    (255, 95, 195),
    (160, 225, 30),
    (130, 80, 45),
    (75, 75, 180),
    (0, 120, 100),
    (250, 240, 110),
    (165, 10, 100),
    (160, 195, 255),
    (215, 165, 130),
)
_MAX_LABEL_WIDTH = 0.6  # of the frame; a longer label loses words at its end
_HEADING_SIZE = 16  # of the font in pixels
_Box = tuple[int, int, int, int]  # x, y, width, height in pixels


def identity_color(identity: int) -> tuple[int, int, int]:
    """RGB colour of an identity (1, 2, ...): picked by hand for the first 16, then evenly spread hues."""
    index = int(identity) - 1
    if 0 <= index < len(_COLORS):
        return _COLORS[index]
    hue = (index * 0.6180339887) % 1.0  # golden ratio: neighbours are far apart
    red, green, blue = colorsys.hsv_to_rgb(hue, (0.55, 0.9, 0.75)[index % 3], (1.0, 0.85, 0.6)[index % 3])
    return (round(red * 255), round(green * 255), round(blue * 255))


def draw_objects(
    frame: np.ndarray,
    masks: np.ndarray,
    ids: Sequence[int] | np.ndarray,
    captions: Sequence[str] | None = None,
    *,
    alpha: float = 0.45,
) -> np.ndarray:
    """Draw the objects of one frame.

    Args:
        frame: (H, W, 3) uint8 RGB; not changed.
        masks: (N, H, W) bool; objects without a pixel are left out. The first object is drawn on top.
        ids: (N,) identities, which decide the colours.
        captions: N texts; None draws no labels. A text that finds no room loses words at its end.
        alpha: how strongly a mask covers the frame, in [0, 1].

    Returns:
        A new (H, W, 3) uint8 RGB frame.
    """
    masks = np.asarray(masks)
    _check(frame, masks, ids, captions, alpha)
    canvas = np.ascontiguousarray(frame).copy()
    boxes = [_box(mask) for mask in masks]
    visible = [(n, box, identity_color(ids[n])) for n, box in enumerate(boxes) if box is not None]
    for n, box, color in reversed(visible):
        _tint(canvas, masks[n], box, color, alpha)
    taken: list[_Box] = []
    if captions is not None:
        for n, box, color in visible:
            _put_label(canvas, captions[n], box, color, taken)
    return canvas


def draw_video(frames: Iterable[np.ndarray], prediction: Any, *, alpha: float = 0.45) -> Iterator[np.ndarray]:
    """Draw a `VideoPrediction` (or anything with its `frame(t)`) into its video, frame by frame."""
    for t, frame in enumerate(frames):
        objects = prediction.frame(t)
        yield draw_objects(frame, objects.masks, objects.ids, objects.captions(), alpha=alpha)


def contact_sheet(
    frames: Sequence[np.ndarray],
    *,
    columns: int | None = None,
    width: int = 1280,
    gap: int = 6,
    titles: Sequence[str] | None = None,
    heading: str = "",
) -> np.ndarray:
    """Put pictures side by side, row by row, on white.

    Args:
        frames: (H, W, 3) uint8 RGB pictures; each is scaled to fit its cell, whose shape is that of the first.
        columns: by default about as many as rows.
        width: of the sheet in pixels.
        gap: pixels between cells.
        titles: a text for the upper left corner of each cell.
        heading: a text above all of them.

    Returns:
        (height, width, 3) uint8 RGB.
    """
    if len(frames) == 0:
        raise ValueError("a contact sheet needs at least one picture")
    columns = min(columns or math.ceil(math.sqrt(len(frames))), len(frames))
    cell_width = (width - gap * (columns - 1)) // columns
    if columns < 1 or cell_width < 8:
        raise ValueError(f"{columns} columns do not fit a width of {width} pixels")
    cell_height = max(1, round(cell_width * frames[0].shape[0] / frames[0].shape[1]))
    rows = math.ceil(len(frames) / columns)
    sheet = np.full((rows * cell_height + gap * (rows - 1), width, 3), 255, dtype=np.uint8)
    for index, frame in enumerate(frames):
        top, left = (index // columns) * (cell_height + gap), (index % columns) * (cell_width + gap)
        cell = sheet[top : top + cell_height, left : left + cell_width]
        picture = _fit(frame, cell_height, cell_width)
        y, x = (cell_height - picture.shape[0]) // 2, (cell_width - picture.shape[1]) // 2
        cell[y : y + picture.shape[0], x : x + picture.shape[1]] = picture
        if titles is not None:
            _paste(cell, text_plate(titles[index], _text_size(cell_height, cell_width), (30, 30, 30)), 0, 0)
    return np.concatenate((_heading(heading, width), sheet)) if heading else sheet


def _heading(text: str, width: int) -> np.ndarray:
    """A white strip with a text, cut off where it is longer than the strip is wide."""
    plate = text_plate(text, _HEADING_SIZE, (255, 255, 255))
    strip = np.full((len(plate), width, 3), 255, dtype=np.uint8)
    _paste(strip, plate, 0, 0)
    return strip


def _check(
    frame: np.ndarray, masks: np.ndarray, ids: Sequence[int] | np.ndarray, captions: Sequence[str] | None, alpha: float
) -> None:
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
        raise ValueError(f"frame must be uint8 RGB of shape (H, W, 3), got {frame.dtype} {frame.shape}")
    if masks.ndim != 3 or masks.shape[1:] != frame.shape[:2] or masks.dtype != bool:
        want = f"bool (N, {frame.shape[0]}, {frame.shape[1]})"
        raise ValueError(f"masks must be {want} like the frame, got {masks.dtype} {masks.shape}")
    if len(ids) != len(masks) or (captions is not None and len(captions) != len(masks)):
        raise ValueError(f"expected {len(masks)} ids and captions, one for each mask")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in [0, 1], got {alpha}")


def _box(mask: np.ndarray) -> _Box | None:
    """Tight box of a mask, None when it is empty."""
    rows = np.flatnonzero(mask.any(axis=1))
    if len(rows) == 0:
        return None
    columns = np.flatnonzero(mask[rows[0] : rows[-1] + 1].any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1] - columns[0] + 1), int(rows[-1] - rows[0] + 1)


def _tint(canvas: np.ndarray, mask: np.ndarray, box: _Box, color: tuple[int, int, int], alpha: float) -> None:
    """Blend `color` into the masked pixels and draw the outline, both only inside the mask's box."""
    x, y, width, height = box
    region = canvas[y : y + height, x : x + width]
    inside = np.ascontiguousarray(mask[y : y + height, x : x + width]).view(np.uint8)
    tinted = cv2.addWeighted(region, 1 - alpha, np.full_like(region, color), alpha, 0)
    contours, _ = cv2.findContours(inside, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    outlined = cv2.copyTo(tinted, inside, region.copy())
    cv2.drawContours(outlined, contours, -1, color, _line_width(canvas), cv2.LINE_AA)
    region[:] = outlined


def _put_label(canvas: np.ndarray, text: str, box: _Box, color: tuple[int, int, int], taken: list[_Box]) -> None:
    """Write the label near the top of its object, inside the frame; shorter where it would cover another label."""
    best: tuple[int, _Box, np.ndarray] | None = None  # shared pixels, place, label
    for label in _labels(text, color, *canvas.shape[:2]):
        for place in _label_places(box, (label.shape[0], label.shape[1]), (canvas.shape[0], canvas.shape[1])):
            overlap = sum(_overlap(place, other) for other in taken)
            if best is None or overlap < best[0]:
                best = (overlap, place, label)
        if best is not None and best[0] == 0:
            break
    assert best is not None  # there is always a label, and a place for it
    _, place, label = best
    _paste(canvas, label, place[0], place[1])
    taken.append(place)


def _labels(text: str, color: tuple[int, int, int], height: int, width: int) -> list[np.ndarray]:
    """The label and ever shorter ones without its last words, none wider than the frame allows but the last."""
    words, size = text.split() or [""], _text_size(height, width)
    labels = [text_plate(" ".join(words[:count]), size, color) for count in range(len(words), 0, -1)]
    return [label for label in labels if label.shape[1] <= _MAX_LABEL_WIDTH * width] or labels[-1:]


def _label_places(box: _Box, label_size: tuple[int, int], frame_size: tuple[int, int]) -> list[_Box]:
    """Boxes for a label of (height, width) inside the frame, the best one first: above, on and below the object."""
    (x, y, box_width, box_height), (height, width) = box, label_size
    places = [(x, y - height), (x, y), (x + (box_width - width) // 2, y + (box_height - height) // 2)]
    places += [(x, y + box_height - height), (x, y + box_height), (x + box_width, y), (x - width, y)]
    places += [(x, y + step * height) for step in range(1, max(2, frame_size[0] // height))]
    right, bottom = max(0, frame_size[1] - width), max(0, frame_size[0] - height)
    return [(min(max(left, 0), right), min(max(top, 0), bottom), width, height) for left, top in places]


def _text_size(height: int, width: int) -> int:
    """Font size in pixels: 1/36 of the frame's mean side, never too small to read."""
    return max(11, round(math.sqrt(height * width) / 36))


def _line_width(canvas: np.ndarray) -> int:
    return max(1, round(math.sqrt(canvas.shape[0] * canvas.shape[1]) / 400))


def _paste(canvas: np.ndarray, label: np.ndarray, left: int, top: int) -> None:
    region = canvas[top : top + label.shape[0], left : left + label.shape[1]]
    region[:] = label[: region.shape[0], : region.shape[1]]


def _overlap(first: _Box, second: _Box) -> int:
    """Shared pixels of two boxes."""
    width = min(first[0] + first[2], second[0] + second[2]) - max(first[0], second[0])
    height = min(first[1] + first[3], second[1] + second[3]) - max(first[1], second[1])
    return max(0, width) * max(0, height)


def _fit(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """Scale a picture to fit (height, width), keeping its shape."""
    scale = min(height / frame.shape[0], width / frame.shape[1])
    size = (max(1, round(frame.shape[1] * scale)), max(1, round(frame.shape[0] * scale)))
    size = (min(size[0], width), min(size[1], height))
    return cv2.resize(frame, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
