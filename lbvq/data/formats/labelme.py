"""labelme: one JSON file per frame, shapes in pixels; the group id says which object a shape belongs to.

Shapes of one class and group are one object, in all frames of a folder. A shape without a group is an object of its own
frame. The picture may be inside the file.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import os
from collections.abc import Callable
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from lbvq.data.annotation_files import list_of, need
from lbvq.data.formats.base import BOXES, Format, ReadOptions, Rle, TrackBook, WriteOptions, flat_names
from lbvq.data.formats.labels import Frame, Labels, Notes, Track, Video, number_categories
from lbvq.data.formats.mots import frame_stems
from lbvq.data.formats.shapes import cut_out, ellipse_corners, pasted_mask, polygon_mask, read_numbers
from lbvq.data.formats.source import Source

VERSION = "5.5.0"  # of the format: the first with masks is 5.2
CROWD = "crowd"  # flag of a shape

Content = dict[str, Any]


def recognise(source: Source) -> str | None:
    """A JSON object with 'shapes' and 'imagePath'."""
    content = source.first_json
    return "JSON files with 'shapes' and 'imagePath'" if _is_labelme(content) else None


def _is_labelme(content: Any) -> bool:
    return isinstance(content, dict) and isinstance(content.get("shapes"), list) and "imagePath" in content


def read(source: Source, options: ReadOptions) -> Labels:
    """Read every folder of JSON files as one video."""
    files = [file for file in source.named(".json") if _is_labelme(source.json(file))]
    if not files:
        raise ValueError(f"{source.name} holds no JSON file with 'shapes' and 'imagePath'.")
    labels = Labels({}, [])
    categories = number_categories(list(options.classes))
    for folder, members in source.folders(files).items():
        name = str(folder) if folder.parts else Path(source.name).stem
        labels.videos.append(_read_video(source, name, members, categories, labels.notes))
    labels.categories = {number: name for name, number in categories.items()}
    return labels


def _read_video(
    source: Source, name: str, files: list[PurePosixPath], categories: dict[str, int], notes: Notes
) -> Video:
    first, where = source.json(files[0]), source.where(files[0])
    size = _size(first, where)
    book = TrackBook(size, notes)
    frames = []
    for t, file in enumerate(files):
        content, where = source.json(file), source.where(file)
        if _size(content, where) != size:
            raise ValueError(f"{where} has {_size(content, where)} pixels (height, width), the first file {size}.")
        frames.append(_frame(content, source.path(file), file, where))
        for index, shape in enumerate(list_of(content, "shapes", where)):
            _add(book, t, shape, size, categories, notes, f"{where}, shape {index}")
    return Video(name, frames, book.tracks(), size)


def _size(content: Content, where: str) -> tuple[int, int]:
    sides = content.get("imageHeight"), content.get("imageWidth")
    if not all(isinstance(side, int) and side > 0 for side in sides):
        if not content.get("imageData"):
            raise ValueError(f"{where} needs 'imageHeight' and 'imageWidth', got {sides}; save it in labelme again.")
        with Image.open(BytesIO(_decode(content["imageData"], where))) as image:
            return image.height, image.width
    return int(sides[0]), int(sides[1])  # type: ignore[arg-type]


def _frame(content: Content, path: Path, file: PurePosixPath, where: str) -> Frame:
    """The image file that labelme names, relative to the JSON file; the picture inside where there is no such file."""
    named = str(content["imagePath"]).replace("\\", "/")
    name = os.path.normpath(str(file.parent / named)).replace("\\", "/")
    if name.startswith("..") or PurePosixPath(named).is_absolute():
        name = PurePosixPath(named).name
    return Frame(name, pixels=_picture(path, where) if content.get("imageData") else None)


def _picture(path: Path, where: str) -> Callable[[], bytes]:
    """Read the file again when its picture is wanted, so that not all pictures are in memory."""
    return lambda: _decode(json.loads(path.read_text(encoding="utf-8-sig"))["imageData"], where)


def _decode(text: Any, where: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError, TypeError) as error:
        raise ValueError(f"{where}: a picture that is no base64 text: {error}.") from error


def _add(
    book: TrackBook,
    t: int,
    shape: Content,
    size: tuple[int, int],
    categories: dict[str, int],
    notes: Notes,
    where: str,
) -> None:
    name = need(shape, "label", where)
    if not isinstance(name, str) or not name:
        raise ValueError(f"{where}: 'label' is a text, got {name!r}.")
    kind = shape.get("shape_type") or "polygon"
    mask = _mask(shape, kind, size, where)
    if mask is None:
        notes.left_out(f"{kind} shapes, which enclose no pixels", where)
        return
    if kind == "rectangle":
        notes.changed(BOXES, where)
    group = shape.get("group_id")
    if group is not None and not isinstance(group, int):
        raise ValueError(f"{where}: 'group_id' is a whole number or null, got {group!r}.")
    category = categories.setdefault(name, len(categories) + 1)
    identity = None if group is None else (name, group)
    crowd = bool((shape.get("flags") or {}).get(CROWD))
    book.add(t, mask, category, identity, where, track_id=group, is_crowd=crowd)


def _mask(shape: Content, kind: str, size: tuple[int, int], where: str) -> Rle | None:
    """Mask of a shape; None of a kind that encloses nothing."""
    points = _points(shape, where)
    if kind == "mask":
        bitmap = read_numbers(_decode(need(shape, "mask", where), where), where) != 0
        left, top = (round(side) for side in points[0])
        return pasted_mask(bitmap, left, top, size)
    if kind == "polygon":
        return polygon_mask(points, size, where)
    if kind == "rectangle" and len(points) == 2:
        (x0, y0), (x1, y1) = points
        return polygon_mask([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], size, where)
    if kind in ("rectangle", "oriented_rectangle") and len(points) == 4:
        return polygon_mask(points, size, where)
    if kind == "circle" and len(points) == 2:
        radius = math.dist(points[0], points[1])
        return polygon_mask(ellipse_corners(*points[0], radius, radius), size, where)
    return None


def _points(shape: Content, where: str) -> list[tuple[float, float]]:
    points = list_of(shape, "points", where, required=True)
    try:
        found = np.array(points, dtype=np.float64).reshape(-1, 2)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: 'points' are pairs of numbers, got {str(points)[:60]}.") from error
    if not len(found) or not np.isfinite(found).all():
        raise ValueError(f"{where}: 'points' are pairs of finite numbers, got {str(points)[:60]}.")
    return [(float(x), float(y)) for x, y in found]


def write(labels: Labels, folder: Path, options: WriteOptions) -> Notes:
    """Write `<video>/<frame>.json` for every frame, with masks as labelme's own kind; pictures stay where they are."""
    labels.check("the labels")
    for video, name in zip(labels.videos, flat_names(labels.videos), strict=True):
        target = folder / name
        target.mkdir()
        for t, stem in enumerate(frame_stems(video)):
            text = json.dumps(
                _content(labels, video, t, stem, target, options.image_root), ensure_ascii=False, indent=2
            )
            (target / f"{stem}.json").write_text(text, encoding="utf-8")
    return Notes()


def _content(labels: Labels, video: Video, t: int, stem: str, target: Path, image_root: Path | None) -> Content:
    name = video.frames[t].name
    image = (
        os.path.relpath(image_root / name, target) if image_root and name else PurePosixPath(name or f"{stem}.png").name
    )
    shapes = []
    for track in video.tracks:
        if t in track.masks:
            shapes.append(_shape(labels.categories[track.category_id], track, track.masks[t]))
    return {
        "version": VERSION,
        "flags": {},
        "shapes": shapes,
        "imagePath": image.replace(os.sep, "/"),
        "imageData": None,
        "imageHeight": video.known_size[0],
        "imageWidth": video.known_size[1],
    }


def _shape(name: str, track: Track, mask: Rle) -> Content:
    bitmap, left, top = cut_out(mask)
    height, width = bitmap.shape
    buffer = BytesIO()
    Image.fromarray(bitmap.astype(np.uint8) * 255).save(buffer, "PNG")
    return {
        "label": name,
        "points": [[float(left), float(top)], [float(left + width - 1), float(top + height - 1)]],
        "group_id": track.id,
        "description": "" if track.score is None else f"score {track.score:.3f}",
        "shape_type": "mask",
        "flags": {CROWD: True} if track.is_crowd else {},
        "mask": base64.b64encode(buffer.getvalue()).decode("ascii"),
    }


FORMAT = Format("labelme", "labelme JSON", recognise, read, write)
