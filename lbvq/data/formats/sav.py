"""SA-V: one JSON file per video, `masklet` lists for each annotated frame the mask of every object.

Annotations have 6 frames per second, videos 24, so annotated frame k is frame 4 k of the video. Objects have no class.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from lbvq.data.annotation_files import list_of, need
from lbvq.data.formats.base import Format, ReadOptions, TrackBook
from lbvq.data.formats.labels import Frame, Labels, Notes, Video
from lbvq.data.formats.palette import DEFAULT_CLASS
from lbvq.data.formats.source import Source
from lbvq.masks.rle import to_rle

STEP = 4  # video frames per annotated frame


def recognise(source: Source) -> str | None:
    """A JSON object with a list 'masklet'."""
    content = source.first_json
    return "a JSON file with 'masklet'" if isinstance(content, dict) and "masklet" in content else None


def read(source: Source, options: ReadOptions) -> Labels:
    """Read every file; the manual and the automatic file of one video become one."""
    if len(options.classes) > 1:
        raise ValueError("SA-V does not tell classes apart: give one name with --classes.")
    labels = Labels({1: options.classes[0] if options.classes else DEFAULT_CLASS}, [])
    contents: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for file in source.named(".json"):
        content, where = source.json(file), source.where(file)
        if isinstance(content, dict) and "masklet" in content:
            contents.setdefault(str(content.get("video_id") or _stem(file)), []).append((where, content))
    if not contents:
        raise ValueError(f"{source.name} holds no JSON file with 'masklet'.")
    labels.videos = [_video(name, found, labels.notes) for name, found in contents.items()]
    return labels


def _stem(file: PurePosixPath) -> str:
    return file.stem.removesuffix("_manual").removesuffix("_auto")


def _video(name: str, contents: list[tuple[str, dict[str, Any]]], notes: Notes) -> Video:
    where, first = contents[0]
    size = (int(need(first, "video_height", where)), int(need(first, "video_width", where)))
    length = max(len(list_of(content, "masklet", place, required=True)) for place, content in contents)
    book = TrackBook(size, notes)
    for source, (place, content) in enumerate(contents):
        ids = content.get("masklet_id")
        for t, masks in enumerate(content["masklet"]):
            for index, mask in enumerate(masks):
                spot = f"{place}: frame {t}, object {index}"
                number = ids[index] if ids and index < len(ids) else index
                if mask:
                    found = to_rle(mask, *size, where=spot)
                    book.add(t, found, 1, (source, number), spot, track_id=number)
    frames = [Frame("", STEP * t) for t in range(length)]
    total = first.get("video_frame_count")
    return Video(name, frames, book.tracks(), size, int(total) if total else None)


FORMAT = Format("sav", "SA-V JSON", recognise, read)
