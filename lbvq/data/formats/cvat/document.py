"""The XML document of CVAT: parsed safely, its labels, and what it says about its tasks."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from xml.etree.ElementTree import Element

from lbvq.data.formats.cvat.shapes import AREAS, number

ROOT = "annotations"


@dataclass(frozen=True)
class Task:
    """One task, or one job of it.

    Attributes:
        id: what tracks and images of a project name; "" where there is only one.
        name: of the video file without its suffix, else of the task.
        size: (height, width) of the frames, None where the file does not tell.
        first: number of the task's first frame in the video.
        last: number of its last frame, None where the file does not tell.
        step: every `step`-th frame of the video belongs to the task.
    """

    id: str
    name: str
    size: tuple[int, int] | None
    first: int = 0
    last: int | None = None
    step: int = 1

    def numbers(self, listed: Iterable[int]) -> list[int]:
        """The task's frames from the first to the last listed one; [] when nothing is listed."""
        listed = sorted(set(listed))
        if not listed:
            return []
        start = listed[0] + (self.first - listed[0]) % self.step
        return sorted({*range(start, listed[-1] + 1, self.step), *listed})

    @property
    def num_frames(self) -> int | None:
        return None if self.last is None else len(range(self.first, self.last + 1, self.step))


def parse(path: Path, where: str) -> Element:
    """Root of an XML file; entities, which can grow without limit or read other files, are refused."""
    data = path.read_bytes()
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        raise ValueError(f"{where} declares a document type or entities, which CVAT never writes; it is not read.")
    try:
        return ElementTree.fromstring(data)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise ValueError(f"{where} is not valid XML: {error}; it may be cut off, export it again.") from error


def label_names(root: Element) -> Iterator[str]:
    """Names of the labels in the order of the task, then those that only shapes name; they may repeat."""
    for label in root.findall("meta//labels/label"):
        name = (label.findtext("name") or "").strip()
        if name and not label.findtext("parent"):  # parts of skeletons have a parent
            yield name
    for element in root.iter():
        if element.get("label") and (element.tag in AREAS or element.tag == "track"):
            yield element.get("label", "")


def tasks(root: Element, where: str) -> dict[str, Task]:
    """Id -> task of a project, or the only task or job of the file."""
    elements = root.findall("meta/project/tasks/task")
    if elements:
        return {(task.findtext("id") or "").strip(): _task(task, where) for task in elements}
    for tag in ("meta/task", "meta/job", "meta"):
        only = root.find(tag)
        if only is not None:
            return {"": _task(only, where)}
    return {"": Task("", "video", None)}


def _task(element: Element, where: str) -> Task:
    task_id = (element.findtext("id") or "").strip()
    size, step = _whole(element, "size", where), re.search(r"step\s*=\s*(\d+)", element.findtext("frame_filter") or "")
    first = _whole(element, "start_frame", where) or 0
    width = max(int(step.group(1)), 1) if step else 1
    last = _whole(element, "stop_frame", where)
    if size:  # some programs count one frame too many
        last = min(first + (size - 1) * width, first + (size - 1) * width if last is None else last)
    return Task(task_id, _name(element, task_id), _frame_size(element, where), first, last, width)


def _name(element: Element, task_id: str) -> str:
    source = (element.findtext("source") or element.findtext("../source") or "").replace("\\", "/").strip()
    name = PurePosixPath(source).stem or (element.findtext("name") or "").strip()
    return name.replace("/", "_") or f"task_{task_id or 1}"


def _frame_size(element: Element, where: str) -> tuple[int, int] | None:
    size = element.find("original_size")
    if size is None:
        return None
    height, width = (_whole(size, side, where) for side in ("height", "width"))
    return (height, width) if height and width else None


def _whole(element: Element, key: str, where: str) -> int | None:
    text = (element.findtext(key) or "").strip()
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise ValueError(f"{where}: <{key}> of <{element.tag}> is a whole number, got {text[:40]!r}.")
    return int(text)


def image_size(image: Element, where: str) -> tuple[int, int]:
    """(height, width) of an <image>."""
    return int(number(image, "height", where)), int(number(image, "width", where))
