"""CVAT: "CVAT for video 1.1" and "CVAT for images 1.1", one XML file per task, job or project.

A file for video lists tracks. CVAT writes every frame of a track, also those it has interpolated (keyframe="0"); a file
that lists only keyframes means the same, so what lies between them is interpolated here: boxes, ellipses and polygons
move linearly, masks wait for the next keyframe. A shape stays until the next one, outside="1" hides the object, and the
last shape stays to the end of the task. Frame numbers are those of the video.
"""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree.ElementTree import Element

from lbvq.data.formats.base import Format, ReadOptions
from lbvq.data.formats.cvat.document import ROOT, label_names, parse, tasks
from lbvq.data.formats.cvat.images import read_images
from lbvq.data.formats.cvat.tracks import read_task
from lbvq.data.formats.cvat.writer import write
from lbvq.data.formats.labels import Labels, Notes, Video, number_categories
from lbvq.data.formats.source import Source

__all__ = ["FORMAT"]


def recognise(source: Source) -> str | None:
    """An XML file whose root is <annotations> and that holds tracks or images."""
    for file in source.named(".xml")[:5]:
        try:
            root = parse(source.path(file), source.where(file))
        except ValueError:
            continue
        tags = [tag for tag in ("track", "image") if root.find(tag) is not None]
        if root.tag == ROOT and (tags or root.find("meta") is not None):
            return f"{file.name}, whose root <{ROOT}> holds {f'<{tags[0]}> elements' if tags else '<meta>'}"
    return None


def read(source: Source, options: ReadOptions) -> Labels:
    """Read every XML file of the source."""
    roots = {source.where(file): parse(source.path(file), source.where(file)) for file in source.named(".xml")}
    roots = {where: root for where, root in roots.items() if root.tag == ROOT}
    if not roots:
        raise ValueError(f"{source.name} holds no XML file with the root <{ROOT}>.")
    names = [name for root in roots.values() for name in label_names(root)]
    categories = number_categories([*options.classes, *names])
    labels = Labels({index: name for name, index in categories.items()}, [])
    for where, root in roots.items():
        for video in _videos(root, categories, labels.notes, options, where):
            video.source = video.name
            video.name = _free_name(video.name, {each.name for each in labels.videos})
            labels.videos.append(video)
    return labels


def _videos(
    root: Element, categories: dict[str, int], notes: Notes, options: ReadOptions, where: str
) -> Iterator[Video]:
    known = tasks(root, where)
    elements: dict[str, list[Element]] = {}
    for element in root.findall("track"):
        task_id = element.get("task_id", "") if len(known) > 1 else next(iter(known))
        if task_id not in known:
            raise ValueError(f"{where}: track {element.get('id')} names task {task_id!r}, there are {sorted(known)}.")
        elements.setdefault(task_id, []).append(element)
    for task_id, found in elements.items():
        yield read_task(known[task_id], found, categories, notes, options, where)
    yield from read_images(root.findall("image"), known, categories, notes, where)


def _free_name(name: str, taken: set[str]) -> str:
    """The name, with a number where several tasks are of one video file."""
    number, free = 1, name
    while free in taken:
        number, free = number + 1, f"{name}_{number + 1}"
    return free


FORMAT = Format("cvat", "CVAT XML 1.1", recognise, read, write)
