"""YouTube-VIS: one JSON file with a list of masks per object. OVIS, LV-VIS and our own data folders have it, too."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lbvq.data.annotation_files import clean_segmentation, list_of, need
from lbvq.data.formats.base import NO_CROWDS, Format, ReadOptions, WriteOptions, add_mask
from lbvq.data.formats.labels import Frame, Labels, Notes, Track, Video
from lbvq.data.formats.source import Source
from lbvq.masks.rle import area, to_bbox, to_rle

Content = dict[str, Any]

ANNOTATION_FILE = "annotations.json"


def recognise(source: Source) -> str | None:
    """A JSON object with videos that list file names."""
    content = source.first_json
    videos = content.get("videos") if isinstance(content, dict) else None
    if isinstance(videos, list) and videos and isinstance(videos[0], dict) and "file_names" in videos[0]:
        return None if _has_partitions(content) else "a JSON file with 'videos' that list 'file_names'"
    return None


def recognise_lvvis(source: Source) -> str | None:
    """As `recognise`, with categories that name a partition."""
    content = source.first_json
    is_lvvis = isinstance(content, dict) and "videos" in content and _has_partitions(content)
    return "a JSON file with 'videos', and categories with 'partition'" if is_lvvis else None


def _has_partitions(content: Content) -> bool:
    categories = content.get("categories")
    return isinstance(categories, list) and any(isinstance(each, dict) and "partition" in each for each in categories)


def read(source: Source, options: ReadOptions) -> Labels:
    """Read every video; sizes of masks must be those of their videos."""
    return _read(source, options, repair_size=False)


def read_lvvis(source: Source, options: ReadOptions) -> Labels:
    """Read LV-VIS, whose sizes are not right everywhere: that of an image file wins."""
    return _read(source, options, repair_size=True)


def _read(source: Source, options: ReadOptions, repair_size: bool) -> Labels:
    files = [file for file in source.named(".json") if _is_content(source, file)]
    if len(files) != 1:
        raise ValueError(
            f"{source.name}: expected one annotation file, found {[str(file) for file in files] or 'none'}."
        )
    content, where = source.json(files[0]), source.where(files[0])
    listed = list_of(content, "categories", where, required=True)
    categories = {need(each, "id", f"{where}: a category"): str(need(each, "name", where)) for each in listed}
    labels = Labels(dict(sorted(categories.items())), [])
    entries = {need(each, "id", f"{where}: a video"): each for each in list_of(content, "videos", where, required=True)}
    names = _video_names(list(entries.values()))
    videos: dict[Any, Video] = {}
    for (video_id, entry), name in zip(entries.items(), names, strict=True):
        videos[video_id] = _video(entry, name, f"{where}: video {video_id}")
        if repair_size:
            first = videos[video_id].frames[0]
            videos[video_id].size = options.size(name, first.name, None, where)
    annotations = list_of(content, "annotations", where)
    all_crowds = bool(annotations) and all(isinstance(each, dict) and each.get("iscrowd") for each in annotations)
    labels.notes.changed(NO_CROWDS, where, len(annotations) if all_crowds else 0)
    for annotation in annotations:
        place = f"{where}: video {annotation.get('video_id')}, annotation {annotation.get('id')}"
        video = videos.get(need(annotation, "video_id", place))
        if video is None:
            labels.notes.left_out("objects of a video that is not in the file", place)
        else:
            _add_track(video, annotation, repair_size, labels.notes, place, all_crowds)
    labels.videos = list(videos.values())
    return labels


def _is_content(source: Source, file: Any) -> bool:
    content = source.json(file)
    return isinstance(content, dict) and "videos" in content and "categories" in content


def _video(entry: Content, name: str, where: str) -> Video:
    files = [str(each).replace("\\", "/") for each in list_of(entry, "file_names", where, required=True)]
    length = entry.get("length", len(files))
    if not isinstance(length, int) or not 0 < length <= len(files):
        raise ValueError(f"{where} has length {length!r} but {len(files)} file_names.")
    numbers = entry.get("frame_numbers") or [None] * length
    size = (need(entry, "height", where), need(entry, "width", where))
    frames = [Frame(file, number) for file, number in zip(files[:length], numbers, strict=True)]
    return Video(name, frames, size=size, num_source_frames=entry.get("num_source_frames"), id=entry["id"])


def _video_names(entries: Sequence[Content]) -> list[str]:
    """Own name of each video, else the folder of its frames, else its id; names that repeat get the id added."""
    names = []
    for entry in entries:
        files = [str(each).replace("\\", "/") for each in entry.get("file_names") or []]
        folder = files[0].rpartition("/")[0] if files else ""
        names.append(str(entry.get("name") or folder or entry["id"]))
    return [name if names.count(name) == 1 else f"{name}_{entry['id']}" for name, entry in zip(names, entries)]  # noqa: B905


def _add_track(video: Video, annotation: Content, repair_size: bool, notes: Notes, where: str, no_crowds: bool) -> None:
    segmentations = list_of(annotation, "segmentations", where, required=True)
    if len(segmentations) < len(video.frames):
        raise ValueError(f"{where} has {len(segmentations)} segmentations for {len(video.frames)} frames.")
    track_id = annotation.get("track_id", need(annotation, "id", where))
    track = Track(
        track_id, need(annotation, "category_id", where), is_crowd=bool(annotation.get("iscrowd")) and not no_crowds
    )
    size = video.known_size
    for t in range(len(video.frames)):
        if not segmentations[t]:
            continue
        place = f"{where}, {video.frames[t]}"
        found = clean_segmentation(_right_size(segmentations[t], size, repair_size), size, place)
        if found is None:
            notes.left_out("polygons with fewer than three points", place)
        else:
            add_mask(track, t, to_rle(found, *size, where=place), notes, place)
    if track.masks:
        video.tracks.append(track)
    else:
        notes.left_out("objects without a mask", where)


def _right_size(segmentation: Any, size_hw: Any, repair: bool) -> Any:
    """Give a mask the size of its image when only the two numbers are wrong, not the number of pixels."""
    if not repair or not isinstance(segmentation, dict) or list(segmentation.get("size", [])) == list(size_hw):
        return segmentation
    height, width = segmentation["size"]
    if height * width != size_hw[0] * size_hw[1]:
        return segmentation  # refused where it is decoded
    return {**segmentation, "size": list(size_hw)}


def write(labels: Labels, folder: Path, options: WriteOptions) -> Notes:
    """Write annotations.json."""
    text = json.dumps(to_content(labels), ensure_ascii=False)
    (folder / ANNOTATION_FILE).write_text(text, encoding="utf-8")
    return Notes()


def to_content(labels: Labels) -> Content:
    """Labels as the content of an annotation file.

    Videos and objects are numbered from 1 over the whole file. What the format has no place for is kept under keys of
    its own, which other programs ignore: the name and the frame numbers of a video, and the track id of the tool.
    """
    labels.check("the labels")
    videos: list[Content] = []
    annotations: list[Content] = []
    for video_id, video in enumerate(labels.videos, start=1):
        videos.append(_video_entry(video_id, video))
        for track in video.tracks:
            number = len(annotations) + 1
            annotations.append(_annotation(number, video_id, track, video))
    categories = [{"id": each, "name": name} for each, name in sorted(labels.categories.items())]
    return {"videos": videos, "categories": categories, "annotations": annotations}


def _video_entry(video_id: int, video: Video) -> Content:
    entry: Content = {
        "id": video_id,
        "name": video.name,
        "height": video.known_size[0],
        "width": video.known_size[1],
        "length": len(video.frames),
        "file_names": [frame.name for frame in video.frames],
    }
    if all(frame.number is not None for frame in video.frames):
        entry["frame_numbers"] = [frame.number for frame in video.frames]
    if video.num_source_frames is not None:
        entry["num_source_frames"] = video.num_source_frames
    return entry


def _annotation(number: int, video_id: int, track: Track, video: Video) -> Content:
    masks = [track.masks.get(t) for t in range(len(video.frames))]
    entry = {
        "id": number,
        "track_id": track.id,
        "video_id": video_id,
        "category_id": track.category_id,
        "iscrowd": int(track.is_crowd),
        "segmentations": masks,
        "bboxes": [None if mask is None else to_bbox(mask) for mask in masks],
        "areas": [None if mask is None else area(mask) for mask in masks],
    }
    return entry if track.score is None else {**entry, "score": track.score}


FORMAT = Format("ytvis", "YouTube-VIS JSON", recognise, read, write)
LVVIS = Format("lvvis", "LV-VIS JSON", recognise_lvvis, read_lvvis)
