"""Folders of PNG files whose pixels are numbers of objects: DAVIS, YouTube-VOS, MOSE, VOST, SA-V's test sets.

    [Annotations/[480p/]]<video>/<frame>.png             palette or grey, pixel = object
    [Annotations_6fps/]<video>/<object>/<frame>.png      one folder per object, pixel = in it or not
    meta.json                                            YouTube-VOS: classes of the objects; without it there is one

255 beside other numbers marks pixels that nobody has decided about; 255 alone is an object. In colour images every
colour is an object, with the number that the palette of DAVIS gives it.
"""

from __future__ import annotations

import functools
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from lbvq.data.formats.base import Format, ReadOptions, TrackBook
from lbvq.data.formats.labels import Frame, Labels, Notes, Video, number_categories
from lbvq.data.formats.mots import FOLDER as MOTS_FOLDER
from lbvq.data.formats.shapes import masks_by_number, read_numbers
from lbvq.data.formats.source import Source

VOID = 255
RESOLUTIONS = ("480p", "720p", "1080p", "Full-Resolution")
FRAMES = ("JPEGImages", "JPEGImages_24fps", "images", "frames")  # folders that hold no masks
DEFAULT_CLASS = "object"
META_FILE = "meta.json"


def recognise(source: Source) -> str | None:
    """PNG files with a palette or of grey numbers, in folders that are not called like folders of frames."""
    files = _mask_files(source)
    if not files:
        return None
    try:
        numbers = read_numbers(source.path(files[0]), source.where(files[0]))
    except ValueError:
        return None
    few = len(np.unique(numbers)) <= 64
    return f"PNG files of numbers in {files[0].parent}/" if few else None


def _mask_files(source: Source) -> list[PurePosixPath]:
    images = [file for file in source.named(".png") if not set(file.parts) & {*FRAMES, MOTS_FOLDER}]
    return [file for file in images if _is_annotation(file)] or images


def _is_annotation(file: PurePosixPath) -> bool:
    return any(part.lower().startswith("annotations") for part in file.parts[:-1])


def read(source: Source, options: ReadOptions) -> Labels:
    """Read every folder of masks as one video, or every folder of folders of objects."""
    files = _mask_files(source)
    if not files:
        raise ValueError(f"{source.name} holds no PNG files of masks.")
    if len(options.classes) > 1:
        raise ValueError(
            f"PNG files do not tell classes apart: give one name with --classes, or a {META_FILE} as YouTube-VOS has, "
            '{"videos": {VIDEO: {"objects": {"1": {"category": NAME}}}}}.'
        )
    default = options.classes[0] if options.classes else DEFAULT_CLASS
    classes = _Classes(_meta(source), default)
    labels = Labels({}, [], mask_files=frozenset(source.path(file) for file in files))
    for name, members in _videos(source, files).items():
        labels.videos.append(_read_video(source, name, members, classes, labels.notes))
    labels.categories = {number: name for name, number in classes.numbers.items()}
    return labels


class _Classes:
    """Category ids, given to names as they come up."""

    def __init__(self, meta: dict[str, Any], default: str) -> None:
        self._meta, self._default = meta, default
        listed = [str(item.get("category")) for video in meta.values() for item in video.get("objects", {}).values()]
        self.numbers = number_categories(sorted(set(listed)))

    def of(self, video: str, number: int, notes: Notes) -> int:
        """Category id of an object."""
        entry = self._meta.get(video, self._meta.get(video.rpartition("/")[2], {}))
        found = entry.get("objects", {}).get(str(number), {}).get("category")
        if found is None and self._meta:
            notes.changed(
                f"objects that {META_FILE} does not list: their class is {self._default!r}", f"{video}, {number}"
            )
        return self.numbers.setdefault(str(found or self._default), len(self.numbers) + 1)


def _meta(source: Source) -> dict[str, Any]:
    """Video -> {"objects": {number: {"category"}}} of YouTube-VOS."""
    for file in source.named(".json"):
        if file.name == META_FILE:
            content = source.json(file)
            videos = content.get("videos") if isinstance(content, dict) else None
            if not isinstance(videos, dict):
                raise ValueError(f"{source.where(file)} must hold an object 'videos'.")
            return videos
    return {}


def _videos(source: Source, files: list[PurePosixPath]) -> dict[str, dict[int | None, list[PurePosixPath]]]:
    """Video -> object -> files; the object is None where the pixels say which one it is."""
    folders = source.folders(files)
    found: dict[str, dict[int | None, list[PurePosixPath]]] = {}
    for folder, members in folders.items():
        parts = _name_parts(folder)
        siblings = [each for each in folders if each.parent == folder.parent]
        if len(parts) > 1 and all(each.name.isascii() and each.name.isdigit() for each in siblings):
            found.setdefault("/".join(parts[:-1]), {})[int(folder.name)] = members
        else:
            found["/".join(parts) or Path(source.name).stem] = {None: members}
    return found


def _name_parts(folder: PurePosixPath) -> tuple[str, ...]:
    """Part of a path below the folder of annotations."""
    parts = folder.parts
    for index, part in enumerate(parts):
        if part.lower().startswith("annotations"):
            parts = parts[index + 1 :]
            break
    return parts[1:] if parts and parts[0] in RESOLUTIONS else parts


def _read_video(
    source: Source, name: str, objects: dict[int | None, list[PurePosixPath]], classes: _Classes, notes: Notes
) -> Video:
    stems = list(dict.fromkeys(file.stem for members in objects.values() for file in members))
    stems.sort(key=lambda stem: (len(stem), stem) if stem.isdigit() else (0, stem))
    place = {stem: t for t, stem in enumerate(stems)}
    found, size = [], None
    for number, members in objects.items():
        for file in members:
            where = source.where(file)
            pixels = read_numbers(source.path(file), where)
            size = size or (pixels.shape[0], pixels.shape[1])
            if pixels.shape != size:
                raise ValueError(f"{where} has {pixels.shape} pixels (height, width), the first of its video {size}.")
            found.append((place[file.stem], number, where, masks_by_number(pixels)))
    video = Video(name, [Frame(f"{name}/{stem}") for stem in stems], size=size)
    book = TrackBook(size or (1, 1), notes)
    translate = _translation({value for *_, masks in found for value in masks}, notes, name)
    for t, number, where, masks in found:
        for value, mask in masks.items():
            track_id = translate.get(value, value) if number is None else number
            if number is None and value == VOID == track_id:
                notes.left_out(f"undecided regions (value {VOID})", where)
            else:
                book.add(t, mask, classes.of(name, track_id, notes), track_id, where, track_id=track_id)
    video.tracks = book.tracks()
    return video


def _translation(values: set[int], notes: Notes, where: str) -> dict[int, int]:
    """Value of pixels -> number of the object, where they are not the same."""
    if values == {VOID}:
        notes.changed(f"videos whose only value is {VOID}: it is object 1", where)
        return {VOID: 1}
    if values and max(values) > 0xFFFF:
        if values <= set(_davis_colours()):
            return _davis_colours()
        notes.changed("videos in colours: every colour is an object, numbered by its value", where)
        return {value: index for index, value in enumerate(sorted(values), start=1)}
    return {}


@functools.cache
def _davis_colours() -> dict[int, int]:
    """Colour -> number, as the palette of VOC and DAVIS paints them: bits 0, 1, 2 of a number are red, green, blue."""
    colours = {}
    for number in range(1, VOID):
        sides = [sum((number >> (3 * k + side) & 1) << (7 - k) for k in range(3)) for side in range(3)]
        colours[(sides[0] << 16) | (sides[1] << 8) | sides[2]] = number
    return colours


FORMAT = Format("davis", "folders of PNG masks (DAVIS, YouTube-VOS, MOSE, SA-V test)", recognise, read)
