"""COCO with videos: images that name a video and a frame, annotations that name a track.

A crowd that has a track is an object: Datumaro, CVAT and others mark every mask of run lengths as a crowd.
The keys differ from tool to tool: a track is `track_id` or `instance_id`, of the annotation or among its `attributes`
(CVAT); the place in the video is `frame_id`, `frame_index` or the order of the file names; images without `video_id`
are one video per folder.
"""

from __future__ import annotations

import json
from collections.abc import Hashable
from pathlib import Path, PurePosixPath
from typing import Any

from lbvq.data.annotation_files import clean_segmentation, list_of, need
from lbvq.data.formats.base import NO_CROWDS, Format, ReadOptions, TrackBook, WriteOptions
from lbvq.data.formats.labels import Frame, Labels, Notes, Track, Video
from lbvq.data.formats.source import Source, natural_key
from lbvq.masks.rle import area, to_bbox, to_rle

Content = dict[str, Any]

TRACK_KEYS = ("track_id", "instance_id")
ORDER_KEYS = ("frame_id", "frame_index")


def recognise(source: Source) -> str | None:
    """A JSON object with images and annotations."""
    content = source.first_json
    if not _is_coco(content):
        return None
    tracked = any(_track_of(each) is not None for each in (content.get("annotations") or [])[:100])
    return f"a JSON file with 'images' and 'annotations'{' of tracks' if tracked else ''}"


def _is_coco(content: Any) -> bool:
    lists = [content.get(key) for key in ("images", "annotations", "categories")] if isinstance(content, dict) else []
    return len(lists) == 3 and isinstance(lists[0], list) and isinstance(lists[2], list)


def _track_of(annotation: Any) -> Any:
    """What the annotation calls its track; None when it does not."""
    if not isinstance(annotation, dict):
        return None
    places = [annotation, annotation.get("attributes") or {}]
    return next((place[key] for place in places for key in TRACK_KEYS if place.get(key) is not None), None)


def read(source: Source, options: ReadOptions) -> Labels:
    """Read every COCO file of the source; they must agree about their categories."""
    files = [file for file in source.named(".json") if _is_coco(source.json(file))]
    if not files:
        raise ValueError(f"{source.name} holds no JSON file with 'images', 'annotations' and 'categories'.")
    labels = Labels({}, [])
    for file in files:
        _read_file(source.json(file), source.where(file), labels)
    return labels


def _read_file(content: Content, where: str, labels: Labels) -> None:
    for each in content["categories"]:
        number, name = need(each, "id", f"{where}: a category"), str(need(each, "name", f"{where}: a category"))
        if labels.categories.setdefault(number, name) != name:
            raise ValueError(f"{where}: category {number} is {name!r}, in another file {labels.categories[number]!r}.")
    labels.categories = dict(sorted(labels.categories.items()))
    groups = _images_by_video(content, where)
    by_image: dict[Any, list[Content]] = {}
    for each in list_of(content, "annotations", where):
        by_image.setdefault(need(each, "image_id", f"{where}: an annotation"), []).append(each)
    for name, images in groups.items():
        labels.videos.append(_video(name, images, by_image, labels, where))
    lost = set(by_image) - {image["id"] for images in groups.values() for image in images}
    labels.notes.left_out("annotations of images that are not in the file", where, sum(len(by_image[i]) for i in lost))


def _images_by_video(content: Content, where: str) -> dict[str, list[Content]]:
    """Name of each video -> its images in order."""
    names = {}
    for video in list_of(content, "videos", where):
        video_id = need(video, "id", f"{where}: a video")
        names[video_id] = str(video.get("name") or video_id)
    groups: dict[str, list[Content]] = {}
    for image in list_of(content, "images", where, required=True):
        need(image, "id", f"{where}: an image")
        file = str(need(image, "file_name", f"{where}: image {image['id']}")).replace("\\", "/")
        video_id = image.get("video_id")
        folder = str(PurePosixPath(file).parent)
        name = (folder if folder != "." else "images") if video_id is None else names.get(video_id, str(video_id))
        groups.setdefault(name, []).append(image)
    return {name: _in_order(images) for name, images in groups.items()}


def _in_order(images: list[Content]) -> list[Content]:
    for key in ORDER_KEYS:
        if all(isinstance(image.get(key), int) for image in images):
            return sorted(images, key=lambda image: image[key])
    return sorted(images, key=lambda image: natural_key(str(image["file_name"])))


def _video(name: str, images: list[Content], by_image: dict[Any, list[Content]], labels: Labels, where: str) -> Video:
    size = (need(images[0], "height", where), need(images[0], "width", where))
    book = TrackBook(size, labels.notes)
    for t, image in enumerate(images):
        place = f"{where}: {image['file_name']}"
        if (image.get("height"), image.get("width")) != size:
            raise ValueError(f"{place} has another size than the first image of video {name}, {size} (height, width).")
        for annotation in by_image.get(image["id"], []):
            _add(book, t, annotation, size, labels, f"{place}, annotation {annotation.get('id')}")
    frames = [Frame(str(image["file_name"]).replace("\\", "/"), _number(image)) for image in images]
    return Video(name, frames, book.tracks(), size)


def _number(image: Content) -> int | None:
    return next((image[key] for key in ORDER_KEYS if isinstance(image.get(key), int)), None)


def _add(book: TrackBook, t: int, annotation: Content, size: tuple[int, int], labels: Labels, where: str) -> None:
    category = need(annotation, "category_id", where)
    if category not in labels.categories:
        raise ValueError(f"{where}: there is no category {category!r}; there are {list(labels.categories)[:10]}.")
    segmentation = annotation.get("segmentation")
    if not segmentation:
        labels.notes.left_out("annotations with a box but no mask", where)
        return
    found = clean_segmentation(segmentation, size, where)
    if found is None:
        labels.notes.left_out("polygons with fewer than three points", where)
        return
    track: Hashable = _track_of(annotation)
    number = track if isinstance(track, int) and not isinstance(track, bool) else None
    if track is not None and not isinstance(track, (int, str)):
        raise ValueError(f"{where}: a track is a number or a text, got {track!r}.")
    crowd = bool(annotation.get("iscrowd"))
    if crowd and track is not None:  # tools mark every run-length mask so; nobody tracks a crowd
        labels.notes.changed(NO_CROWDS, where)
        crowd = False
    book.add(t, to_rle(found, *size, where=where), category, track, where, track_id=number, is_crowd=crowd)


def write(labels: Labels, folder: Path, options: WriteOptions) -> Notes:
    """Write instances.json: COCO with `video_id`, `frame_id` and `track_id`."""
    labels.check("the labels")
    videos: list[Content] = []
    images: list[Content] = []
    annotations: list[Content] = []
    for video_id, video in enumerate(labels.videos, start=1):
        sides = dict(zip(("height", "width"), video.known_size, strict=True))
        videos.append({"id": video_id, "name": video.name, **sides})
        for t, frame in enumerate(video.frames):
            number = t if frame.number is None else frame.number
            image_id = len(images) + 1
            file_name = frame.name or f"{video.name}/{number:06d}.jpg"
            images.append({"id": image_id, "file_name": file_name, **sides, "video_id": video_id, "frame_id": number})
            for track in video.tracks:
                if t in track.masks:
                    annotations.append(_annotation(len(annotations) + 1, image_id, video_id, track, t))
    categories = [{"id": each, "name": name} for each, name in sorted(labels.categories.items())]
    content = {"videos": videos, "images": images, "annotations": annotations, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return Notes()


def _annotation(number: int, image_id: int, video_id: int, track: Track, t: int) -> Content:
    mask = track.masks[t]
    entry = {
        "id": number,
        "image_id": image_id,
        "video_id": video_id,
        "track_id": track.id,
        "category_id": track.category_id,
        "segmentation": mask,
        "area": area(mask),
        "bbox": to_bbox(mask),
        "iscrowd": int(track.is_crowd),
    }
    return entry if track.score is None else {**entry, "score": track.score}


FORMAT = Format("coco", "COCO with videos and tracks", recognise, read, write)
