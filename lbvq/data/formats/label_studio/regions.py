"""Regions of Label Studio: what they are called, whose they are, and their masks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from lbvq.data.annotation_files import list_of, need
from lbvq.data.formats.base import BOXES, Rle
from lbvq.data.formats.label_studio.brush import decode_brush
from lbvq.data.formats.labels import Notes
from lbvq.data.formats.shapes import ellipse_corners, polygon_mask, turned
from lbvq.masks.rle import encode

Content = dict[str, Any]

TRACKS = ("track_id", "track", "object_id", "instance_id")  # names of the control that says whose a region is
SHAPES = ("brush", "polygon", "rectangle", "ellipse")  # alone, or followed by "labels"
NO_SHAPES = ("keypoint", "vector")


@dataclass(frozen=True)
class Region:
    """One drawn region of an image.

    Attributes:
        kind: one of `SHAPES` or `NO_SHAPES`.
        label: class.
        track: what the annotator has called the object; None where nobody has.
        size: (height, width) of the image.
        value: shape, in per cent of the image.
    """

    kind: str
    label: str
    track: str | None
    size: tuple[int, int]
    value: Content
    where: str


def region_of(result: Content, results: list[Content], where: str) -> Region | None:
    """The region of a result; None for a result that is no shape."""
    kind = str(result.get("type", "")).lower().removesuffix("labels")
    value = result.get("value")
    if kind not in (*SHAPES, *NO_SHAPES) or not isinstance(value, dict):
        return None
    mine = [each for each in results if each.get("id") == result.get("id") and isinstance(each.get("value"), dict)]
    label = next((str(names[0]) for each in mine if (names := _names(each["value"]))), None)
    if label is None:
        raise ValueError(f"{where} has no label; give it one in Label Studio.")
    size = int(need(result, "original_height", where)), int(need(result, "original_width", where))
    if result.get("image_rotation"):
        raise ValueError(
            f"{where}: the image was rotated by {result['image_rotation']} degrees; turn the file instead."
        )
    return Region(kind, label, _track(mine), size, value, where)


def _names(value: Content) -> list[Any]:
    return next(
        (names for key, names in value.items() if key.endswith("labels") and isinstance(names, list) and names), []
    )


def _track(results: list[Content]) -> str | None:
    for result in results:
        if str(result.get("from_name", "")).lower() in TRACKS:
            value = result["value"]
            for found in (value.get("number"), *(value.get("text") or [])[:1], *(value.get("choices") or [])[:1]):
                if found not in (None, ""):
                    return str(found).strip()
    return None


def mask_of_region(region: Region, notes: Notes) -> Rle | None:
    """Mask of a region; None, and a note, where it encloses nothing."""
    if region.kind in NO_SHAPES:
        notes.left_out(f"{region.kind} regions, which enclose no pixels", region.where)
        return None
    value, size = region.value, region.size
    if region.kind == "brush":
        if value.get("format") != "rle":
            raise ValueError(f"{region.where}: a brush has the format 'rle', got {value.get('format')!r}.")
        return encode(decode_brush(need(value, "rle", region.where), size, region.where))
    if region.kind == "polygon":
        points = list_of(value, "points", region.where, required=True)
        corners = [(_number(x, region.where), _number(y, region.where)) for x, y in points]
        return polygon_mask([_to_pixels(*corner, size) for corner in corners], size, region.where)
    if region.kind == "rectangle":
        notes.changed(BOXES, region.where)
        return box_mask(value, size, region.where)
    x, y, rx, ry = (_number(value.get(key), region.where) for key in ("x", "y", "radiusX", "radiusY"))
    (cx, cy), (width, height) = _to_pixels(x, y, size), _to_pixels(rx, ry, size)
    corners = ellipse_corners(cx, cy, width, height, _number(value.get("rotation") or 0, region.where))
    return polygon_mask(corners, size, region.where)


def box_mask(value: Content, size: tuple[int, int], where: str) -> Rle:
    """Mask of a box, which Label Studio turns about its upper left corner."""
    x, y, width, height = (_number(value.get(key), where) for key in ("x", "y", "width", "height"))
    (left, top), (w, h) = _to_pixels(x, y, size), _to_pixels(width, height, size)
    degrees = _number(value.get("rotation") or 0, where)
    corners = [(left, top), (left + w, top), (left + w, top + h), (left, top + h)]
    return polygon_mask([turned(corner, (left, top), degrees) for corner in corners], size, where)


def visible_boxes(
    result: Content, total: int | None, size: tuple[int, int], notes: Notes, where: str
) -> Iterator[tuple[int, Rle]]:
    """Yield (frame number from 0, mask) for every frame in which a box of a video is visible."""
    keys = ("x", "y", "width", "height", "rotation")
    sequence = list_of(need(result, "value", where), "sequence", where, required=True)
    sequence = sorted(sequence, key=lambda each: need(each, "frame", where))
    shown = 0
    for before, after in zip_longest(sequence, sequence[1:]):
        first = before["frame"]
        is_last = after is None or not before.get("enabled", True)
        end = first + 1 if is_last else after["frame"]  # type: ignore[index]
        if after is None and before.get("enabled", True) and total:
            end = total + 1
        for frame in range(first, end):
            share = 0.0 if is_last else (frame - first) / (end - first)
            target = before if is_last else after
            moved = {key: _between(before, target, key, share, where) for key in keys}  # type: ignore[arg-type]
            yield frame - 1, box_mask(moved, size, f"{where}, frame {frame}")
            shown += 1
    notes.changed(BOXES, where, shown)


def _between(before: Content, after: Content, key: str, share: float, where: str) -> float:
    start, end = (_number(each.get(key) or 0, where) for each in (before, after))
    return start + share * (end - start)


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{where}: expected a number in per cent, got {value!r:.40}.")
    return float(value)


def _to_pixels(x: float, y: float, size: tuple[int, int]) -> tuple[float, float]:
    return x / 100 * size[1], y / 100 * size[0]
