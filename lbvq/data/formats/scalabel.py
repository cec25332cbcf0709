"""Scalabel, the format of BDD100K: frames with a video name, labels with an id that is the object's in every frame.

Masks are run lengths or polygons (`poly2d`), whose sides may be Bezier curves; a box alone has no mask.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lbvq.data.annotation_files import list_of, need
from lbvq.data.formats.base import Format, ReadOptions, TrackBook
from lbvq.data.formats.labels import Frame, Labels, Notes, Video, number_categories
from lbvq.data.formats.shapes import polygon_mask, union
from lbvq.data.formats.source import Source, natural_key
from lbvq.masks.rle import to_rle

Content = dict[str, Any]
Rle = dict[str, Any]

BDD_CLASSES = ("pedestrian", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
CURVE_STEPS = 8  # straight pieces of one Bezier curve


def recognise(source: Source) -> str | None:
    """A JSON list of frames, or an object with such a list, that have a name and labels."""
    frames = _frames(source.first_json)
    if (
        frames
        and isinstance(frames[0], dict)
        and "name" in frames[0]
        and ("labels" in frames[0] or "videoName" in frames[0])
    ):
        return "a JSON file of frames with 'name' and 'labels'"
    return None


def _frames(content: Any) -> list[Content]:
    frames = content.get("frames") if isinstance(content, dict) else content
    return frames if isinstance(frames, list) and all(isinstance(each, dict) for each in frames) else []


def read(source: Source, options: ReadOptions) -> Labels:
    """Read every file; frames of one video may be spread over several."""
    groups: dict[str, list[tuple[str, Content]]] = {}
    config: Content = {}
    for file in source.named(".json"):
        content = source.json(file)
        config |= (content.get("config") or {}) if isinstance(content, dict) else {}
        for frame in _frames(content):
            groups.setdefault(str(frame.get("videoName") or file.stem), []).append((source.where(file), frame))
    if not groups:
        raise ValueError(f"{source.name} holds no JSON file of frames.")
    categories = number_categories([*options.classes, *_config_names(config)] or list(BDD_CLASSES))
    labels = Labels({}, [])
    for name, frames in groups.items():
        labels.videos.append(_video(name, _in_order(frames), config, categories, labels.notes, options))
    labels.categories = {number: name for name, number in categories.items()}
    return labels


def _config_names(config: Content) -> list[str]:
    return [str(each["name"]) for each in config.get("categories") or [] if isinstance(each, dict) and "name" in each]


def _in_order(frames: list[tuple[str, Content]]) -> list[tuple[str, Content]]:
    if all(isinstance(frame.get("frameIndex"), int) for _, frame in frames):
        return sorted(frames, key=lambda pair: pair[1]["frameIndex"])
    return sorted(frames, key=lambda pair: natural_key(str(pair[1].get("name"))))


def _video(
    name: str,
    frames: list[tuple[str, Content]],
    config: Content,
    categories: dict[str, int],
    notes: Notes,
    options: ReadOptions,
) -> Video:
    places = [f"{where}: {frame.get('name')}" for where, frame in frames]
    size = _size([frame for _, frame in frames], config)
    size = size or options.size(name, str(frames[0][1].get("name")), None, places[0])
    book = TrackBook(size, notes)
    for t, (where, (_, frame)) in enumerate(zip(places, frames, strict=True)):
        for label in list_of(frame, "labels", where):
            _add(book, t, label, size, categories, notes, f"{where}, label {label.get('id')}")
    listed = [Frame(f"{name}/{need(frame, 'name', where)}", frame.get("frameIndex")) for where, frame in frames]
    return Video(name, listed, book.tracks(), size)


def _size(frames: list[Content], config: Content) -> tuple[int, int] | None:
    """Size of the frames: that of one of them, of the file, or of a mask."""
    for size in (*(frame.get("size") for frame in frames), config.get("imageSize")):
        if isinstance(size, dict):
            return int(size["height"]), int(size["width"])
    for frame in frames:
        for label in frame.get("labels") or []:
            if label.get("rle"):
                height, width = label["rle"]["size"]
                return int(height), int(width)
    return None


def _add(
    book: TrackBook,
    t: int,
    label: Content,
    size: tuple[int, int],
    categories: dict[str, int],
    notes: Notes,
    where: str,
) -> None:
    mask = _mask(label, size, notes, where)
    if mask is None:
        return
    name = str(need(label, "category", where))
    category = categories.setdefault(name, len(categories) + 1)
    identity = need(label, "id", where)
    number = int(identity) if str(identity).isascii() and str(identity).isdigit() else None
    crowd = bool((label.get("attributes") or {}).get("crowd"))
    book.add(t, mask, category, str(identity), where, track_id=number, is_crowd=crowd)


def _mask(label: Content, size: tuple[int, int], notes: Notes, where: str) -> Rle | None:
    if label.get("rle"):
        return to_rle(label["rle"], *size, where=where)
    polygons = [_corners(each, where) for each in label.get("poly2d") or [] if each.get("closed", True)]
    if not polygons:
        kind = next((key for key in ("box2d", "box3d", "poly2d") if label.get(key)), "labels")
        notes.left_out(f"{kind} without a mask", where)
        return None
    return union([polygon_mask(corners, size, where) for corners in polygons], size)


def _corners(polygon: Content, where: str) -> list[tuple[float, float]]:
    """Corners of a polygon; two vertices of the type C are the control points between their neighbours."""
    vertices, types = need(polygon, "vertices", where), str(polygon.get("types") or "L" * len(polygon["vertices"]))
    if len(types) != len(vertices) or set(types) - set("LC"):
        raise ValueError(f"{where}: 'types' is one L or C for each of the {len(vertices)} vertices, got {types!r:.60}.")
    points = [np.array(each, dtype=np.float64) for each in vertices]
    corners: list[np.ndarray] = []
    index = 0
    while index < len(points):
        if types[index : index + 2] == "CC" and corners:
            end = points[(index + 2) % len(points)]
            corners += _curve(corners[-1], points[index], points[index + 1], end)
            index += 2
        else:
            corners.append(points[index])
            index += 1
    return [(float(x), float(y)) for x, y in corners]


def _curve(start: np.ndarray, first: np.ndarray, second: np.ndarray, end: np.ndarray) -> list[np.ndarray]:
    """Points of a cubic Bezier curve between its ends."""
    shares = np.arange(1, CURVE_STEPS) / CURVE_STEPS
    return [
        (1 - s) ** 3 * start + 3 * (1 - s) ** 2 * s * first + 3 * (1 - s) * s**2 * second + s**3 * end for s in shares
    ]


FORMAT = Format("scalabel", "Scalabel / BDD100K JSON", recognise, read)
