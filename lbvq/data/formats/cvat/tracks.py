"""Tracks of CVAT's XML: keyframes, what lies between them, and what is hidden."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from itertools import zip_longest
from xml.etree.ElementTree import Element

from lbvq.data.formats.base import BOXES, LONELY, ReadOptions, TrackBook
from lbvq.data.formats.cvat.document import Task
from lbvq.data.formats.cvat.shapes import AREAS, Shape, interpolate, mask_of, read_shape
from lbvq.data.formats.labels import Frame, Notes, Video


def read_task(
    task: Task, elements: list[Element], categories: dict[str, int], notes: Notes, options: ReadOptions, where: str
) -> Video:
    """Make the video of one task from its <track> elements.

    Frames before the first and after the last shape of all tracks are no part of it: nobody has said what they show.
    """
    where = f"{where}: {task.name}"
    tracks = [(element, _shapes(element, task, notes, f"{where}, track {element.get('id')}")) for element in elements]
    numbers = task.numbers(shape.frame for _, shapes in tracks for shape in shapes)
    size = task.size or options.size(task.name, "", numbers[0] if numbers else 0, where)
    book = TrackBook(size, notes)
    place = {number: t for t, number in enumerate(numbers)}
    for index, (element, shapes) in enumerate(tracks):
        category, number = _category_and_number(element, index, categories, where)
        visible = [shape for shape in shapes if not shape.outside]
        name = f"{where}, track {number}"
        if not visible:
            notes.left_out("tracks without a visible shape", name)
        elif len(visible) == 1 and visible[0].tag == "mask" and not _group(element):
            notes.changed(LONELY, name)
        for shape in visible:
            spot = f"{name}, frame {shape.frame}"
            mask = mask_of(shape, size, spot)
            book.add(place[shape.frame], mask, category, _identity(element, number), spot, track_id=number)
            if shape.tag == "box":
                notes.changed(BOXES, spot)
    frames = [Frame("", number) for number in numbers]
    return Video(task.name, frames, book.tracks(), size, task.num_frames)


def _category_and_number(element: Element, index: int, categories: dict[str, int], where: str) -> tuple[int, int]:
    name, number = element.get("label"), element.get("id", str(index))
    if not name:
        raise ValueError(f"{where}: track {number} has no label.")
    if not number.isascii() or not number.isdigit():
        raise ValueError(f"{where}: the id of a track is a whole number, got {number[:40]!r}.")
    return categories[name], int(number)


def _group(element: Element) -> str:
    group = element.get("group_id", "")
    return "" if group == "0" else group


def _identity(element: Element, number: int) -> Hashable:
    """Tracks of one group are one object: CVAT writes every mask as a track of its own."""
    group = _group(element)
    return ("group", element.get("label"), group) if group else ("track", number)


def _shapes(element: Element, task: Task, notes: Notes, where: str) -> list[Shape]:
    """Shapes of a track by frame, with those that a file of keyframes leaves out."""
    found: dict[int, Shape] = {}
    for child in element:
        place = f"{where}, frame {child.get('frame')}"
        if child.tag in AREAS:
            shape = read_shape(child, place)
            found[shape.frame] = shape
        elif child.tag != "attribute":
            notes.left_out(f"<{child.tag}> shapes, which enclose no pixels", place)
    shapes = [found[frame] for frame in sorted(found)]
    if not all(shape.keyframe for shape in shapes):
        return shapes  # CVAT has interpolated already
    filled = list(_with_gaps_filled(shapes, task.step))
    held = list(_held_to_the_end(shapes, task))
    notes.changed("masks between keyframes, interpolated", where, len(filled) - len(shapes))
    notes.changed("masks after the last keyframe, which stays to the end of the task", where, len(held))
    return filled + held


def _with_gaps_filled(shapes: list[Shape], step: int) -> Iterator[Shape]:
    for before, after in zip_longest(shapes, shapes[1:]):
        yield before
        if after is not None and not before.outside:
            for frame in range(before.frame + step, after.frame, step):
                yield interpolate(before, after, frame)


def _held_to_the_end(shapes: list[Shape], task: Task) -> Iterator[Shape]:
    """Repeat the last keyframe to the end of the task, unless the object is hidden there.

    Not a mask, which CVAT knows in single frames only, and not a single shape just before the end: CVAT writes shapes
    that belong to no track as tracks of one frame and one that hides them, but forgets the latter there.
    """
    if not shapes or shapes[-1].outside or shapes[-1].tag == "mask" or task.last is None:
        return
    last = shapes[-1]
    frames = range(last.frame + task.step, task.last + 1, task.step)
    if len(shapes) > 1 or len(frames) > 1:
        for frame in frames:
            yield Shape(last.tag, frame, outside=False, keyframe=False, numbers=last.numbers, points=last.points)
