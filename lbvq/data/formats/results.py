"""Predictions as labels, to be corrected in a labelling tool: results files in the published form of YouTube-VIS.

`lbvq predict` writes the name of the video and of the class into every entry; other files need the annotation file that
their ids refer to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from lbvq.data.formats.base import add_mask
from lbvq.data.formats.labels import Frame, Labels, Notes, Track, Video
from lbvq.files import rules
from lbvq.files.json_files import read_json
from lbvq.masks.rle import to_rle

Entry = dict[str, Any]


def read_results(path: Path, known: Labels | None, threshold: float) -> Labels:
    """Read a results file.

    Args:
        path: list of entries with video_id, category_id, score and segmentations.
        known: labels of the data set; None where every entry names its video and its class.
        threshold: entries with a lower score are left out, and counted.
    """
    entries = read_json(path)
    if not isinstance(entries, list):
        raise ValueError(f"{path}: results must be a list of objects, got {type(entries).__name__}.")
    notes = Notes()
    by_video: dict[int, list[tuple[str, Entry]]] = {}
    for index, entry in enumerate(entries):
        where = f"{path}: entry {index}"
        if not isinstance(entry, dict):
            raise ValueError(f"{where} must be an object, got {type(entry).__name__}.")
        if rules.finite(entry, "score", where) < threshold:
            notes.left_out(f"objects with a score below {threshold:g}", where)
        else:
            by_video.setdefault(rules.whole(entry, "video_id", where), []).append((where, entry))
    categories = dict(known.categories) if known is not None else _named_categories(by_video)
    labels = Labels(categories, [], notes)
    names = {video_id: _video_name(found[0][1], video_id) for video_id, found in by_video.items()}
    for video_id, found in sorted(by_video.items()):
        video = _video_of(video_id, known, found)
        if video is None:
            name = names[video_id]
            video = Video(name if list(names.values()).count(name) == 1 else f"{name}_{video_id}", [])
        labels.videos.append(_filled(video, found, categories, notes))
    return labels


def _named_categories(by_video: dict[int, list[tuple[str, Entry]]]) -> dict[int, str]:
    categories: dict[int, str] = {}
    for found in by_video.values():
        for where, entry in found:
            number = rules.whole(entry, "category_id", where)
            categories[number] = str(entry.get("category_name") or categories.get(number) or f"class {number}")
    return dict(sorted(categories.items()))


def _video_name(entry: Entry, video_id: int) -> str:
    """Name of the video file that `lbvq predict` notes, else the id."""
    path = PurePosixPath(str(entry.get("file_name") or f"video_{video_id}").replace("\\", "/"))
    return path.stem or f"video_{video_id}"


def _video_of(video_id: int, known: Labels | None, found: Sequence[tuple[str, Entry]]) -> Video | None:
    if known is None:
        return None
    for video in known.videos:
        if video.id == video_id:
            return replace(video, tracks=[])
    raise ValueError(f"{found[0][0]}: there is no video {video_id} in the annotation file.")


def _filled(video: Video, found: Sequence[tuple[str, Entry]], categories: dict[int, str], notes: Notes) -> Video:
    """The video with its predictions; of several that have the same masks only the best one."""
    seen: set[tuple[Any, ...]] = set()
    for where, entry in sorted(found, key=lambda pair: -pair[1]["score"]):
        masks = entry.get("segmentations")
        if not isinstance(masks, list):
            raise ValueError(f"{where}: 'segmentations' must be a list with one entry per frame.")
        if not video.frames:
            video.frames = [Frame("", t) for t in range(len(masks))]
        if len(masks) != len(video.frames):
            raise ValueError(f"{where}: {len(masks)} segmentations for the {len(video.frames)} frames of {video.name}.")
        category = rules.whole(entry, "category_id", where)
        if category not in categories:
            raise ValueError(f"{where}: there is no category {category} in the annotation file.")
        track = Track(_free_id(entry, video), category, score=float(entry["score"]))
        for t, mask in enumerate(masks):
            if mask:
                video.size = video.size or rules.frame_size(mask.get("size"), where)
                spot = f"{where}, frame {t}"
                add_mask(track, t, to_rle(mask, *video.size, where=spot), Notes(), spot)
        key = tuple(sorted((t, mask["counts"]) for t, mask in track.masks.items()))
        if not track.masks:
            notes.left_out("objects without a pixel", where)
        elif key in seen:
            notes.left_out("objects with the masks of a better one, under another class", where)
        else:
            seen.add(key)
            video.tracks.append(track)
    return video


def _free_id(entry: Entry, video: Video) -> int:
    """Number that `lbvq predict` has drawn, else the next one."""
    taken = {track.id for track in video.tracks}
    number = entry.get("object_id")
    if isinstance(number, int) and number not in taken:
        return number
    return max(taken, default=0) + 1
