"""Label Studio's JSON export: tasks with an image each, or with a video each.

Images: brushes, polygons, boxes and ellipses, in per cent of the picture. What belongs to one object over several
images is told by a number, text or choice of the region that is called track_id, object_id or instance_id. Videos:
boxes at keyframes; in between they move linearly, a keyframe that is not enabled is the last frame of a stretch, and an
enabled last one stays to the end. Of several annotations of a task the first that was not cancelled is read.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from lbvq.data.annotation_files import list_of, need
from lbvq.data.formats.base import Format, ReadOptions, TrackBook
from lbvq.data.formats.label_studio.regions import Region, mask_of_region, region_of, visible_boxes
from lbvq.data.formats.labels import Frame, Labels, Notes, Video, number_categories
from lbvq.data.formats.source import VIDEO_SUFFIXES, Source, natural_key
from lbvq.files.images import IMAGE_SUFFIXES

__all__ = ["FORMAT"]

Task = dict[str, Any]

VIDEO_KEYS = ("video_id", "video_name", "sequence")  # of a task's data: the video that its image belongs to
BOX = "videorectangle"


def recognise(source: Source) -> str | None:
    """A JSON list of tasks with 'data' and 'annotations'."""
    content = source.first_json
    first = content[0] if isinstance(content, list) and content else None
    return "a JSON list of tasks with 'data' and 'annotations'" if _is_task(first) else None


def _is_task(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("data"), dict)
        and ("annotations" in entry or "completions" in entry)
    )


def read(source: Source, options: ReadOptions) -> Labels:
    """Read the tasks of every file; images of one folder are one video."""
    labels = Labels({}, [])
    categories = number_categories(list(options.classes))
    images: dict[str, list[tuple[str, str, list[Task]]]] = {}
    for file in source.named(".json"):
        content = source.json(file)
        for task in content if isinstance(content, list) else []:
            if not _is_task(task):
                continue
            where = f"{source.where(file)}: task {task.get('id')}"
            results = _results(task, labels.notes, where)
            path = _path(task["data"], where)
            if PurePosixPath(path).suffix.lower() in VIDEO_SUFFIXES or any(r.get("type") == BOX for r in results):
                labels.videos.append(_read_video(path, results, categories, labels.notes, options, where))
            else:
                video = next((str(task["data"][key]) for key in VIDEO_KEYS if task["data"].get(key)), None)
                name = video or str(PurePosixPath(path).parent).strip("./") or Path(source.name).stem
                images.setdefault(name, []).append((path, where, results))
    for name, found in images.items():
        found.sort(key=lambda entry: natural_key(entry[0]))
        labels.videos.append(_read_images(name, found, categories, labels.notes, options))
    if not labels.videos:
        raise ValueError(f"{source.name} holds no task with 'data' and 'annotations'.")
    labels.categories = {number: name for name, number in categories.items()}
    return labels


def _results(task: Task, notes: Notes, where: str) -> list[Task]:
    """Results of the annotation that counts."""
    found = [each for each in task.get("annotations") or task.get("completions") or [] if isinstance(each, dict)]
    valid = [each for each in found if not each.get("was_cancelled")]
    valid.sort(key=lambda each: not each.get("ground_truth"))  # the one that is marked as the truth first
    notes.left_out("annotations that were cancelled or are second opinions", where, len(found) - len(valid[:1]))
    return list_of(valid[0], "result", where) if valid else []


def _path(data: Task, where: str) -> str:
    """Path of the image or video, without server and without the eight digits that an upload adds."""
    for value in data.values():
        if not isinstance(value, str):
            continue
        parts = urlsplit(value)
        path = (parse_qs(parts.query).get("d") or [unquote(parts.path)])[0].replace("\\", "/").lstrip("/")
        if PurePosixPath(path).suffix.lower() in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES):
            file = PurePosixPath(path)
            if "upload" in file.parts[:-1]:
                return re.sub(r"^[0-9a-f]{8}-", "", file.name)
            return path
    raise ValueError(f"{where}: no text in 'data' names an image or a video, got {list(data)}.")


def _read_images(
    name: str,
    found: list[tuple[str, str, list[Task]]],
    categories: dict[str, int],
    notes: Notes,
    options: ReadOptions,
) -> Video:
    size = next((region.size for _, where, results in found for region in _regions(results, where)), None)
    size = size or options.size(name, found[0][0], None, found[0][1])
    book = TrackBook(size, notes)
    for t, (path, where, results) in enumerate(found):
        for region in _regions(results, where):
            if region.size != size:
                raise ValueError(
                    f"{where}: {path} has {region.size} pixels (height, width), the first of its video {size}."
                )
            mask = mask_of_region(region, notes)
            if mask is not None:
                category = categories.setdefault(region.label, len(categories) + 1)
                number = int(region.track) if region.track and region.track.isdigit() else None
                identity: Hashable = region.track
                book.add(t, mask, category, identity, region.where, track_id=number)
    return Video(name, [Frame(path) for path, _, _ in found], book.tracks(), size)


def _regions(results: list[Task], where: str) -> list[Region]:
    regions = (region_of(result, results, f"{where}, region {result.get('id')}") for result in results)
    return [region for region in regions if region is not None]


def _read_video(
    path: str, results: list[Task], categories: dict[str, int], notes: Notes, options: ReadOptions, where: str
) -> Video:
    name = str(PurePosixPath(path).with_suffix(""))
    boxes = [result for result in results if result.get("type") == BOX]
    notes.left_out("results of a video that are no boxes", where, len(results) - len(boxes))
    counts = [each["value"].get("framesCount") for each in boxes if isinstance(each.get("value"), dict)]
    total = max((int(count) for count in counts if count), default=None)
    size = options.size(name, "", 0, where)
    book = TrackBook(size, notes)
    found = [list(visible_boxes(box, total, size, notes, f"{where}, region {box.get('id')}")) for box in boxes]
    numbers = [number for box in found for number, _ in box]
    first = min(numbers, default=0)
    for index, (box, masks) in enumerate(zip(boxes, found, strict=True), start=1):
        place = f"{where}, region {box.get('id')}"
        labels = need(box, "value", place).get("labels") or ["object"]
        category = categories.setdefault(str(labels[0]), len(categories) + 1)
        for number, mask in masks:
            book.add(number - first, mask, category, index, f"{place}, frame {number}", track_id=index)
    frames = [Frame("", number) for number in range(first, max(numbers, default=-1) + 1)]
    return Video(name, frames, book.tracks(), size, total, scale_numbers=True)


FORMAT = Format("label_studio", "Label Studio JSON", recognise, read)
