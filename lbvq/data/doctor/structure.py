"""What an annotation file says before anyone looks at a frame or a mask: ids, names, references, lengths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lbvq.data.doctor.findings import Report
from lbvq.files import rules
from lbvq.files.json_files import read_json

Entry = Mapping[str, Any]


@dataclass
class VideoEntry:
    """A video of the file and its objects, ready to be examined by itself.

    Attributes:
        id: of the file.
        name: as people call it.
        size: (height, width) that frames and masks must have.
        files: of the frames.
        objects: entries that refer to the video.
    """

    id: int
    name: str
    size: tuple[int, int]
    files: list[Path]
    objects: list[Entry] = field(default_factory=list)


def read_structure(file: Path, frames: Path, report: Report) -> list[VideoEntry]:
    """Read an annotation file; whatever is wrong goes into the report, the rest is returned.

    ValueError or OSError when it cannot be read at all, or is no annotation file of videos.
    """
    content = read_json(file)
    if not isinstance(content, dict) or not isinstance(content.get("videos"), list):
        raise ValueError(f"{file} has no list 'videos': it is no annotation file of videos; see lbvq convert.")
    categories = _categories(content, report)
    videos = {entry.id: entry for entry in _videos(content["videos"], frames, report)}
    _objects(content.get("annotations") or [], videos, categories, report)
    _find_repeated_files(list(videos.values()), report)
    return list(videos.values())


def _categories(content: Entry, report: Report) -> dict[int, str]:
    """Id -> name."""
    found: dict[int, str] = {}
    listed = content.get("categories")
    for index, entry in enumerate(listed if isinstance(listed, list) else []):
        where = f"category at position {index}"
        try:
            number, name = rules.whole(entry, "id", where), str(entry["name"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            report.add("entry", where, f"it needs an id and a name: {error}")
            continue
        if number in found:
            report.add("id_twice", where, f"category {number}")
        elif name in found.values():
            report.add("name_twice", where, f"{name!r} is category {number}, too")
        found[number] = name
    if not found:
        report.add("entry", "categories", "the file has none")
    report.classes = dict.fromkeys(found.values(), 0)
    if found and sorted(found) != list(range(1, len(found) + 1)):
        report.add("id_gaps", "categories", f"{sorted(found)[:10]}")
    return found


def _videos(entries: Sequence[Any], frames: Path, report: Report) -> list[VideoEntry]:
    found: dict[int, VideoEntry] = {}
    for index, entry in enumerate(entries):
        where = f"video at position {index}"
        try:
            video = _video(entry, frames, where)
        except (ValueError, TypeError, AttributeError) as error:
            report.add("entry", where, str(error).removeprefix(f"{where}: "))
            continue
        if video.id in found:
            report.add("id_twice", where, f"video {video.id}", video.id)
        found.setdefault(video.id, video)
    if not found:
        report.add("entry", "videos", "the file has none that can be read")
    return list(found.values())


def _video(entry: Entry, frames: Path, where: str) -> VideoEntry:
    number = rules.whole(entry, "id", where)
    names = rules.frame_names(entry, where, windows=True)
    length = rules.num_frames(entry, len(names), where)
    if not names or length is None or length > len(names):
        raise ValueError(f"{where}: length {length} for {len(names)} file_names")
    size = rules.entry_size(entry, where)
    if size is None:
        raise ValueError(f"{where}: it needs a height and a width")
    name = str(entry.get("name") or names[0].rpartition("/")[0] or number)
    return VideoEntry(number, name, size, [frames / each for each in names[:length]])


def _objects(entries: Sequence[Any], videos: dict[int, VideoEntry], categories: dict[int, str], report: Report) -> None:
    """Hand every object to its video, and count classes."""
    seen: set[tuple[int, int]] = set()
    videos_of: dict[str, set[int]] = {}
    for index, entry in enumerate(entries):
        where = f"object at position {index}"
        try:
            number, video, category = (rules.whole(entry, key, where) for key in ("id", "video_id", "category_id"))
        except (ValueError, AttributeError) as error:
            report.add("entry", where, str(error).removeprefix(f"{where}: "))
            continue
        if video not in videos or category not in categories:
            missing = f"video {video}" if video not in videos else f"category {category}"
            report.add("no_parent", f"object {number}", f"there is no {missing}")
            continue
        if (video, number) in seen:
            report.add("id_twice", f"video {videos[video].name}, object {number}", "two objects", video)
        seen.add((video, number))
        videos[video].objects.append(entry)
        report.classes[categories[category]] += 1
        videos_of.setdefault(categories[category], set()).add(video)
    _judge_classes(videos_of, report)
    for video_entry in videos.values():
        if not video_entry.objects:
            report.add("video_empty", f"video {video_entry.name}", "", video_entry.id)


def _judge_classes(videos_of: dict[str, set[int]], report: Report) -> None:
    if not videos_of:
        report.add("no_objects", report.name)
        return
    for name, count in report.classes.items():
        if not count:
            report.add("class_unused", f"class {name}")
        elif len(videos_of[name]) == 1:
            report.add("class_rare", f"class {name}")


def _find_repeated_files(videos: Sequence[VideoEntry], report: Report) -> None:
    count = Counter(file for video in videos for file in video.files)
    for video in videos:
        twice = [file for file in video.files if count[file] > 1]
        if twice:
            report.add("file_twice", str(twice[0]), f"{len(twice)} frames of video {video.name}", video.id)
