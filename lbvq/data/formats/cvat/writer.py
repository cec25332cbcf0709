"""Writer of "CVAT for video 1.1": one XML file per video, one polygon per object and frame.

CVAT has tracks of polygons but none of masks (it keeps only the first mask of a track it reads), so a mask is written
as the one polygon that fills to exactly its pixels, see `outline`.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement

import numpy as np

from lbvq.data.formats.base import CROWDS, WriteOptions, flat_names
from lbvq.data.formats.labels import Labels, Notes, Track, Video
from lbvq.data.formats.outline import outline
from lbvq.masks.rle import decode


def write(labels: Labels, folder: Path, options: WriteOptions) -> Notes:
    """Write `<video>.xml` for every video that has an object, to be uploaded to its task as "CVAT 1.1"."""
    labels.check("the labels")
    notes = Notes()
    names = [labels.categories[each] for each in sorted(labels.categories)]
    for video, file_name in zip(labels.videos, flat_names(labels.videos), strict=True):
        if not video.tracks:
            notes.left_out("videos without an object", video.name)
            continue
        numbers = _numbers(video, notes)
        root = _document(video, names, numbers)
        for track in video.tracks:
            root.append(_track(track, labels.categories[track.category_id], numbers, options.tolerance))
            if track.is_crowd:
                notes.changed(CROWDS, f"{video.name}, track {track.id}")
        ElementTree.indent(root)
        ElementTree.ElementTree(root).write(folder / f"{file_name}.xml", encoding="utf-8", xml_declaration=True)
    return notes


def _numbers(video: Video, notes: Notes) -> range:
    """Frame numbers of the task: those of the video where they are regular, else the positions of the frames."""
    numbers = [frame.number for frame in video.frames]
    if None not in numbers and numbers:
        step = numbers[1] - numbers[0] if len(numbers) > 1 else 1  # type: ignore[operator]
        regular = range(numbers[0], numbers[-1] + 1, step) if step > 0 else range(0)  # type: ignore[operator, arg-type]
        if list(regular) == numbers:
            return regular
        notes.changed("frame numbers, which are not regular: the task must be made of the annotated frames", video.name)
    return range(len(numbers))


def _document(video: Video, names: list[str], numbers: range) -> Element:
    root = Element("annotations")
    SubElement(root, "version").text = "1.1"
    task = SubElement(SubElement(root, "meta"), "task")
    first = numbers[0] % numbers.step
    last = max(numbers[-1], (video.num_source_frames or 0) - 1 if numbers.step == 1 else 0)
    facts = {"name": video.name, "size": len(range(first, last + 1, numbers.step)), "mode": "interpolation"}
    facts |= {"start_frame": first, "stop_frame": last, "frame_filter": f"step={numbers.step}"}
    for key, value in facts.items():
        SubElement(task, key).text = str(value)
    labels = SubElement(task, "labels")
    for name in names:
        label = SubElement(labels, "label")
        SubElement(label, "name").text = name
        SubElement(label, "attributes")
    height, width = video.known_size
    size = SubElement(task, "original_size")
    SubElement(size, "width").text, SubElement(size, "height").text = str(width), str(height)
    return root


def _track(track: Track, name: str, numbers: range, tolerance: float) -> Element:
    """Every visible frame as a keyframe; hidden at the first and the last frame, and where it vanishes."""
    source = "manual" if track.score is None else "auto"
    element = Element("track", id=str(track.id), label=name, source=source)
    points = ""
    nearest = track.masks[min(track.masks)]  # where it is hidden before it first appears
    for t, number in enumerate(numbers):
        mask = track.masks.get(t)
        if mask is not None:
            points = _points(outline(decode(mask), tolerance))
            element.append(_polygon(number, points, outside=False))
        elif t in (0, len(numbers) - 1) or t - 1 in track.masks:
            points = points or _points(outline(decode(nearest), tolerance))
            element.append(_polygon(number, points, outside=True))
    return element


def _polygon(number: int, points: str, outside: bool) -> Element:
    flags = {"keyframe": "1", "outside": str(int(outside)), "occluded": "0"}
    return Element("polygon", {"frame": str(number), **flags, "points": points, "z_order": "0"})


def _points(corners: np.ndarray) -> str:
    return ";".join(f"{x:.2f},{y:.2f}" for x, y in corners.tolist())
