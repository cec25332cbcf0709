"""Images of CVAT's XML: every shape by itself, objects by an attribute or a group."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from pathlib import PurePosixPath
from xml.etree.ElementTree import Element

from lbvq.data.formats.base import BOXES, TrackBook
from lbvq.data.formats.cvat.document import Task, image_size
from lbvq.data.formats.cvat.shapes import AREAS, mask_of, read_shape
from lbvq.data.formats.labels import Frame, Notes, Video
from lbvq.files.images import IMAGE_SUFFIXES

IDENTITIES = ("track_id", "instance_id", "object_id")  # attributes that say which object a shape belongs to


def read_images(
    images: list[Element], tasks: dict[str, Task], categories: dict[str, int], notes: Notes, where: str
) -> Iterator[Video]:
    """Make one video of the images of each task and folder, in the order of the file."""
    groups: dict[str, list[Element]] = {}
    for image in images:
        groups.setdefault(_group(image, tasks), []).append(image)
    for name, members in groups.items():
        yield _video(name, members, categories, notes, where)


def _group(image: Element, tasks: dict[str, Task]) -> str:
    folder = str(PurePosixPath(image.get("name", "").replace("\\", "/")).parent)
    task = tasks.get(image.get("task_id", ""), next(iter(tasks.values())))
    return folder if folder != "." else task.name


def _video(name: str, images: list[Element], categories: dict[str, int], notes: Notes, where: str) -> Video:
    size = image_size(images[0], f"{where}: image {images[0].get('name')}")
    book = TrackBook(size, notes)
    for t, image in enumerate(images):
        place = f"{where}: image {image.get('name')}"
        own = image_size(image, place)
        if own != size:
            raise ValueError(f"{place} has {own[0]} x {own[1]} pixels, but the first of {name} {size[0]} x {size[1]}.")
        for shape in image:
            _add(book, t, shape, size, categories, notes, place)
    return Video(name, [_frame(image) for image in images], book.tracks(), size)


def _frame(image: Element) -> Frame:
    """A name that is no file, such as frame_000007, is a number in a video."""
    name = image.get("name", "").replace("\\", "/")
    digits = PurePosixPath(name).stem.rpartition("_")[2]
    if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES or not (digits.isascii() and digits.isdigit()):
        return Frame(name)
    return Frame("", int(digits))


def _add(
    book: TrackBook,
    t: int,
    element: Element,
    size: tuple[int, int],
    categories: dict[str, int],
    notes: Notes,
    where: str,
) -> None:
    if element.tag not in AREAS:
        notes.left_out(f"<{element.tag}>, which encloses no pixels", where)
        return
    if not element.get("label"):
        raise ValueError(f"{where}: a <{element.tag}> has no label.")
    if element.tag == "box":
        notes.changed(BOXES, where)
    identity, number = _identity(element)
    mask = mask_of(read_shape(element, where), size, where)
    book.add(t, mask, categories[element.get("label", "")], identity, where, track_id=number)


def _identity(element: Element) -> tuple[Hashable, int | None]:
    """What tells objects apart, and the number to give to this one; (None, None) when the file does not say."""
    for attribute in element.findall("attribute"):
        if attribute.get("name") in IDENTITIES and (attribute.text or "").strip():
            text = (attribute.text or "").strip()
            return ("attribute", text), int(text) if text.isascii() and text.isdigit() else None
    group = element.get("group_id", "0")
    if group not in ("", "0"):
        return ("group", element.get("label"), group), int(group) if group.isascii() and group.isdigit() else None
    return None, None
