"""What annotation and result files may hold: one list of rules for training, testing, scoring and checking.

Every reader asks here, so that a file which one of them takes is not refused by another one hours later. Whole numbers
may be written as 96.0; `iscrowd` may be null or missing; ids are whole numbers from 0, because results refer to them by
number; objects of videos and images that the file does not list are left out, and said; names of frames stay below
the folder of images.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from lbvq.masks.rle import MAX_PIXELS

logger = logging.getLogger(__name__)

MAX_NUMBER = 2**62  # ids and lengths beyond do not fit the arrays they are kept in
_DRIVE = re.compile(r"[A-Za-z]:")

Entry = Mapping[str, Any]


class Linked(NamedTuple):
    """One annotation whose references were checked."""

    where: str  # its name in messages: file, video or image, annotation
    id: int  # a free number where the file gives none
    parent_id: int  # of its video or image
    category_id: int
    is_crowd: bool
    entry: Entry


class Tally:
    """Counts what is left out of a file, and remembers the first of each kind."""

    def __init__(self) -> None:
        self._found: dict[str, list[Any]] = {}

    def add(self, kind: str, where: str) -> None:
        """Note one case; `kind` is a text with %d for their number, and %s for the first."""
        self._found.setdefault(kind, [0, where])[0] += 1

    def report(self, log: logging.Logger) -> None:
        """Log one warning per kind."""
        for kind, (count, first) in self._found.items():
            log.warning(kind, count, first)


# Values


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number, written with or without ".0"."""
    if isinstance(value, (bool, np.bool_)):
        return False
    return isinstance(value, (int, np.integer)) or (isinstance(value, float) and value.is_integer())


def whole(entry: Entry, key: str, where: str, *, least: int = 0, exact: bool = False) -> int:
    """The whole number `entry[key]`; an `exact` one is written without ".0"."""
    value: Any = entry.get(key)
    if not is_whole(value) or (exact and isinstance(value, float)):
        raise ValueError(f"{where}: '{key}' must be an integer, got {shown(value) if key in entry else 'nothing'}")
    if not least <= value <= MAX_NUMBER:
        raise ValueError(f"{where}: '{key}' must be an integer from {least} on, got {shown(value)}")
    return int(value)


def is_finite(value: Any) -> bool:
    """Whether a value is a number that fits a float."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.number)):
        return False
    return abs(value) <= 1e300 if isinstance(value, int) else math.isfinite(value)


def finite(entry: Entry, key: str, where: str) -> float:
    """The finite number `entry[key]`."""
    value: Any = entry.get(key)
    if not is_finite(value):
        raise ValueError(f"{where}: '{key}' must be a finite number, got {shown(value)}")
    return float(value)


def crowd_flag(entry: Entry, where: str, key: str = "iscrowd") -> bool:
    """Flag of an object that does not count; it may be missing or null."""
    value = entry.get(key)
    if value is None:
        return False
    if not isinstance(value, (int, float)) or value not in (0, 1):
        raise ValueError(f"{where}: '{key}' must be 0 or 1, got {shown(value)}")
    return bool(value)


def frame_size(size: Any, where: str, *, exact: bool = False) -> tuple[int, int]:
    """(height, width) in pixels; the `exact` ones of masks are written without ".0"."""
    is_pair = isinstance(size, (list, tuple, np.ndarray)) and len(size) == 2 and all(map(is_whole, size))
    if not is_pair or (exact and any(isinstance(side, float) for side in size)):
        raise ValueError(f"{where}: size must be two integers (height, width), got {shown(size)}")
    if min(size) < 1 or max(size) > MAX_PIXELS or int(size[0]) * int(size[1]) > MAX_PIXELS:
        raise ValueError(f"{where}: size must be positive and at most {MAX_PIXELS} pixels, got {shown(size)}")
    return int(size[0]), int(size[1])


def entry_size(entry: Entry, where: str) -> tuple[int, int] | None:
    """(height, width) of a video or image, None when the file lacks one of them."""
    sides = (entry.get("height"), entry.get("width"))
    return None if None in sides else frame_size(sides, where)


def box_xywh(box: Any, where: str) -> list[float]:
    """A box x, y, width, height of finite numbers; its sides may be wrong, since boxes come from masks."""
    if not isinstance(box, (list, tuple)) or len(box) != 4 or not all(map(is_finite, box)):
        raise ValueError(f"{where}: a box must be 4 finite numbers x, y, width, height, got {shown(box)}")
    return list(box)


def sized_box(box: Any, where: str) -> list[float]:
    """A box x, y, width, height that is measured itself, so that its sides must not be negative."""
    sides = box_xywh(box, where)
    if min(sides[2:]) < 0:
        raise ValueError(f"{where}: a box must not have a negative side, got {shown(box)}")
    return [float(side) for side in sides]


def file_name(name: Any, where: str) -> str:
    """A name relative to the folder of images, from which it must not lead away."""
    if not isinstance(name, str) or not name.strip("./") or "\0" in name:
        raise ValueError(f"{where}: the name of a file must be a text, got {shown(name)}")
    if "\\" in name or name.startswith("/") or _DRIVE.match(name) or ".." in name.split("/"):
        raise ValueError(
            f"{where}: file name {shown(name)} leads out of the folder of images or is no path everywhere; names are "
            "relative to that folder, with / between folders"
        )
    return text(name, where)


def text(value: str, where: str) -> str:
    """A text that can be printed and written."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"{where}: {shown(value)} is not valid Unicode") from None
    return value


def shown(value: Any) -> str:
    """A value in a message, shortened."""
    if isinstance(value, int) and abs(value) > 10**40:
        return f"a number of {int(math.log10(abs(value))) + 1} digits"
    shortened = repr(value)
    return shortened if len(shortened) <= 60 else f"{shortened[:57]}..."


def is_nothing(value: Any) -> bool:
    """Whether a mask or a box stands for none: null or an empty list or object."""
    return value is None or (isinstance(value, (list, tuple, dict)) and not value)


# Lists


def entries(content: Entry, key: str, name: str) -> list[Any]:
    """The list `content[key]`."""
    value = content.get(key)
    if not isinstance(value, list):
        raise ValueError(f"{name} must have a list '{key}', got {'nothing' if value is None else type(value).__name__}")
    return value


def by_id(content: Entry, key: str, noun: str, name: str) -> dict[int, Entry]:
    """Id -> entry of `content[key]`, ascending; no id occurs twice."""
    found: dict[int, Entry] = {}
    for index, entry in enumerate(entries(content, key, name)):
        where = f"{name}: {noun} at position {index}"
        if not isinstance(entry, Mapping):
            raise ValueError(f"{where} must be a JSON object, got {shown(entry)}")
        number = whole(entry, "id", where)
        if number in found:
            raise ValueError(f"{name}: two entries have the {noun} id {number}")
        found[number] = entry
    return dict(sorted(found.items()))


def frame_names(video: Entry, where: str, *, windows: bool = False) -> list[str]:
    """`file_names` of a video; none where the file has none.

    Args:
        video: its entry.
        where: its name in messages.
        windows: accept paths of Windows, of which folder and file are kept, as some files of LV-VIS have them.
    """
    names = video.get("file_names")
    if names is None or names == ():
        return []
    if not isinstance(names, list):
        raise ValueError(f"{where}: 'file_names' must be a list, got {shown(names)}")
    if windows:
        names = ["/".join(each.split("\\")[-2:]) if isinstance(each, str) and "\\" in each else each for each in names]
    return [file_name(each, where) for each in names]


def num_frames(video: Entry, num_names: int, where: str) -> int | None:
    """Length of a video: `length`, else the number of its file names; as published more names than that are left."""
    if video.get("length") is None:
        return num_names or None
    if not is_whole(video["length"]) or not 1 <= video["length"] <= MAX_NUMBER:
        got = shown(video["length"])
        raise ValueError(f"{where}: 'length' must be a positive number of frames, got {got}")
    length = int(video["length"])
    if num_names and length > num_names:
        raise ValueError(f"{where} has length {length} but {num_names} file_names")
    return length


def categories(content: Entry, name: str) -> dict[int, Entry]:
    """Id -> category, ascending."""
    found = by_id(content, "categories", "category", name)
    for number, entry in found.items():
        if isinstance(entry.get("name"), str):
            text(entry["name"], f"{name}: category {number}")
    return found


def id_list(entry: Entry, key: str, where: str) -> list[int]:
    """The ids in `entry[key]`, which may be missing or null."""
    value = entry.get(key)
    if value is None:
        return []
    if not isinstance(value, (list, tuple, frozenset)) or not all(map(is_whole, value)):
        raise ValueError(f"{where}: '{key}' must be a list of ids, got {shown(value)}")
    return [int(each) for each in value]


def per_frame(entry: Entry, key: str, length: int | None, where: str) -> list[Any]:
    """The list `entry[key]` with one item for each frame."""
    value = entry.get(key)
    if not isinstance(value, (list, tuple)):
        got = "nothing" if value is None else type(value).__name__
        raise ValueError(f"{where}: '{key}' must be a list with one entry per frame, got {got}")
    if length is not None and len(value) != length:
        raise ValueError(f"{where}: expected {length} {key}, one per frame of the video, got {len(value)}")
    return list(value)


def linked(
    annotations: Iterable[Any],
    parents: Mapping[int, Any],
    categories: Mapping[int, Any],
    noun: str,
    name: str,
    *,
    crowd_key: str = "iscrowd",
) -> Iterator[Linked]:
    """Check the ids of annotations and yield them in the order of the file.

    Those of videos or images that the file does not list are left out, with a warning that names the first.

    Args:
        annotations: of the file.
        parents: id -> anything, of its videos or images.
        categories: id -> anything.
        noun: "video" or "image".
        name: of the file.
        crowd_key: see `crowd_flag`.
    """
    annotations = list(annotations)
    free = 1 + max((int(a["id"]) for a in annotations if isinstance(a, Mapping) and is_whole(a.get("id"))), default=0)
    seen: set[tuple[int, int]] = set()
    num_lost, first_lost = 0, ""
    for index, entry in enumerate(annotations):
        where = f"{name}: annotation at position {index}"
        if not isinstance(entry, Mapping):
            raise ValueError(f"{where} must be a JSON object, got {shown(entry)}")
        number = free + index if entry.get("id") is None else whole(entry, "id", where)
        parent_id = whole(entry, f"{noun}_id", f"{name}: annotation {number}")
        where = f"{name}: {noun} {parent_id}, annotation {number}"
        if parent_id not in parents:
            num_lost += 1
            first_lost = first_lost or where
            continue
        if (parent_id, number) in seen:
            raise ValueError(f"{name}: {noun} {parent_id} has two annotations with the id {number}")
        seen.add((parent_id, number))
        category_id = whole(entry, "category_id", where)
        if category_id not in categories:
            raise ValueError(f"{where}: category_id {category_id} is not among the file's {few(categories)}")
        yield Linked(where, number, parent_id, category_id, crowd_flag(entry, where, crowd_key), entry)
    if num_lost:
        logger.warning(
            "%s contains %d annotations, but only %d of them match to images in the file. The first that does not: %s.",
            *(name, len(annotations), len(annotations) - num_lost, first_lost),
        )


class Head(NamedTuple):
    """What every result says besides its masks."""

    parent_id: int  # of its video or image
    category_id: int
    score: float


def result_head(entry: Any, parents: Mapping[int, Any], noun: str, where: str, truth: str) -> Head:
    """Check ids and score of one result; its category need not exist.

    Args:
        entry: of a results file.
        parents: id -> anything, of the videos or images of the ground truth.
        noun: "video" or "image".
        where: name of the result in messages.
        truth: name of the ground truth.
    """
    if not isinstance(entry, Mapping):
        raise ValueError(f"{where} must be a JSON object, got {shown(entry)}")
    parent_id = whole(entry, f"{noun}_id", where, exact=True)
    where = f"{where} ({noun} {parent_id})"
    if parent_id not in parents:
        raise ValueError(f"{where}: {truth} has no {noun} with this id")
    return Head(parent_id, whole(entry, "category_id", where, exact=True), finite(entry, "score", where))


def few(values: Iterable[Any]) -> str:
    """The first of many values, for a message."""
    values = list(values)
    return ", ".join(map(str, values[:10])) + (f", ... ({len(values)} in all)" if len(values) > 10 else "")
