"""Ground truth and predictions of video data sets: read, checked, and with their masks still as text.

The format is that of YouTube-VIS, shared by OVIS, HQ-YTVIS, LV-VIS and converted BURST files. Whatever a file lacks or
breaks is reported with the names of file, video and annotation.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from lbvq.evaluation.mask_file import MaskFile, read_mask_file
from lbvq.masks.rle import MAX_PIXELS

logger = logging.getLogger(__name__)

OCCLUSION_SCORES = {"no_occlusion": 0.0, "slight_occlusion": 0.25, "severe_occlusion": 0.75}
Masks = list["bytes | None"]  # one per frame: counts as JSON text, None where the object is not visible


@dataclass
class Video:
    """One video of the ground truth; what the file does not tell is taken from the first mask."""

    id: int
    size: tuple[int, int] | None  # height, width
    length: int | None  # T
    file_names: Sequence[str] = ()
    negative_categories: frozenset[int] = frozenset()  # known to be absent
    partly_annotated_categories: frozenset[int] = frozenset()  # some objects have no annotation

    @property
    def name(self) -> str:
        """Folder of the video's frames, or its id."""
        return str(Path(self.file_names[0]).parent) if self.file_names else str(self.id)


@dataclass
class Track:
    """One object of the ground truth."""

    id: int
    video_id: int
    category_id: int
    masks: Masks
    is_crowd: bool = False
    area: float | None = None  # mean area in pixels over the frames in which it is visible; None: to be measured
    occlusion: float | None = None  # in [0, 1]
    boundary_masks: Masks | None = None  # where the boundary comes from, if not from `masks` (HQ-YTVIS as published)


@dataclass
class Detection:
    """One predicted object."""

    index: int  # in the file
    video_id: int
    category_id: int
    score: float
    masks: Masks


class GroundTruth:
    """Videos, categories and objects of an annotation file.

    Attributes:
        name: for messages.
        videos: id -> `Video`, ascending.
        categories: id -> entry of the file, ascending.
        tracks: objects in the order of the file.
        has_annotations: False when the file has no annotations at all, as the public files of validation sets.
    """

    def __init__(
        self,
        source: str | Path | Mapping[str, Any] | MaskFile,
        *,
        segmentations_key: str = "segmentations",
        boundary_key: str | None = None,
    ) -> None:
        """Read an annotation file, or take its content.

        Args:
            source: path of a .json, .json.gz or .zip file, its content after `read_mask_file`, or a dict {"videos",
                "categories", "annotations"}.
            segmentations_key: where masks are, in preference to "segmentations".
            boundary_key: where the masks are whose boundary counts, if not the same and if present.
        """
        file = _as_file(source, "ground truth")
        self.name = file.name
        self._keys = (segmentations_key, boundary_key)
        content = file.document
        if not isinstance(content, Mapping):
            raise ValueError(f"{self.name}: ground truth must be a JSON object, got {type(content).__name__}")
        self.videos = self._read_videos(_entries(content, "videos", self.name))
        self.categories = {
            category_id: entry
            for category_id, entry in sorted(_by_id(_entries(content, "categories", self.name), "category", self.name))
        }
        annotations = content.get("annotations")
        self.has_annotations = annotations is not None
        if annotations is not None and not isinstance(annotations, list):
            raise ValueError(f"{self.name}: 'annotations' must be a list or null, got {type(annotations).__name__}")
        self.tracks = [self._read_track(index, entry, file) for index, entry in enumerate(annotations or [])]

    def _read_videos(self, entries: list[Any]) -> dict[int, Video]:
        videos = {}
        for video_id, entry in sorted(_by_id(entries, "video", self.name), key=lambda pair: pair[0]):
            where = f"{self.name}: video {video_id}"
            sides = [entry.get(key) for key in ("height", "width")]
            size = None if None in sides else check_size(sides, where)
            names = entry.get("file_names") or ()
            length = entry.get("length", len(names) or None)
            if length is not None and (not _is_integer(length) or length < 1):
                raise ValueError(f"{where}: 'length' must be a positive number of frames, got {length!r}")
            lists = [frozenset(entry.get(key) or ()) for key in ("neg_category_ids", "not_exhaustive_category_ids")]
            videos[video_id] = Video(video_id, size, length, names, *lists)
        return videos

    def _read_track(self, index: int, entry: Any, file: MaskFile) -> Track:
        where = f"{self.name}: annotation at position {index}"
        if not isinstance(entry, Mapping):
            raise ValueError(f"{where} must be a JSON object, got {entry!r:.60}")
        track_id = entry.get("id", index + 1)
        where = f"{self.name}: video {entry.get('video_id')}, annotation {track_id}"
        video = self.videos.get(_integer(entry, "video_id", where))
        if video is None:
            raise ValueError(f"{where}: there is no video with this id in the file")
        category_id = _integer(entry, "category_id", where)
        if category_id not in self.categories:
            raise ValueError(f"{where}: category_id {category_id} is not among the file's {_few(self.categories)}")
        key, boundary_key = self._keys
        masks = read_masks(entry.get(key if entry.get(key) is not None else "segmentations"), file, video, where)
        other = entry.get(boundary_key) if boundary_key else None
        crowd = entry.get("iscrowd", 0)
        if crowd not in (0, 1):
            raise ValueError(f"{where}: 'iscrowd' must be 0 or 1, got {crowd!r}")
        return Track(
            id=track_id,
            video_id=video.id,
            category_id=category_id,
            masks=masks,
            is_crowd=bool(crowd),
            area=_mean_area(entry.get("areas"), where),
            occlusion=_occlusion(entry.get("occlusion"), where),
            boundary_masks=None if other is None else read_masks(other, file, video, where),
        )

    def category_name(self, category_id: int) -> str:
        """Name of a category, its id when the file gives none."""
        return str(self.categories[category_id].get("name", category_id))


def read_predictions(
    source: str | Path | Iterable[Mapping[str, Any]] | MaskFile, ground_truth: GroundTruth, name: str = "predictions"
) -> list[Detection]:
    """Read results in the published form [{"video_id", "category_id", "score", "segmentations"}], check and link them.

    Detections of a category that the ground truth does not list cannot be scored and are left out with a warning, as
    published. An unknown video, a missing field or a mask of the wrong size raises ValueError.

    Args:
        source: path of a .json, .json.gz or .zip file, or the list itself.
        ground_truth: what the ids refer to.
        name: of a list, for messages.
    """
    file = _as_file(source, name)
    if not isinstance(file.document, list):
        raise ValueError(f"{file.name}: results must be a list of objects, got {type(file.document).__name__}")
    detections, unknown = [], {}
    for index, entry in enumerate(file.document):
        where = f"{file.name}: detection {index}"
        if not isinstance(entry, Mapping):
            raise ValueError(f"{where} must be a JSON object, got {entry!r:.60}")
        video_id = _integer(entry, "video_id", where)
        where = f"{where} (video {video_id})"
        video = ground_truth.videos.get(video_id)
        if video is None:
            raise ValueError(f"{where}: {ground_truth.name} has no video with this id")
        category_id = _integer(entry, "category_id", where)
        score = entry.get("score")
        if not isinstance(score, (int, float, np.number)) or isinstance(score, bool) or not math.isfinite(score):
            raise ValueError(f"{where}: 'score' must be a finite number, got {score!r}")
        masks = read_masks(entry.get("segmentations"), file, video, where)
        if category_id in ground_truth.categories:
            detections.append(Detection(index, video_id, category_id, float(score), masks))
        else:
            unknown.setdefault(category_id, index)
    if unknown:
        first = ", ".join(f"{category} (detection {index})" for category, index in sorted(unknown.items())[:5])
        logger.warning("%s: category ids that %s does not list were ignored: %s", file.name, ground_truth.name, first)
    return detections


def read_masks(entry: Any, file: MaskFile, video: Video, where: str) -> Masks:
    """Turn "segmentations" of a track into one text (or None) per frame; the masks themselves are checked later."""
    if not isinstance(entry, (list, tuple)):
        got = "nothing" if entry is None else type(entry).__name__
        raise ValueError(f"{where}: 'segmentations' must be a list with one entry per frame, got {got}")
    masks: Masks = []
    for item in entry:
        if type(item) is range:
            _check_sizes(set(file.sizes[item.start : item.stop]), video, f"{where}, frames from {len(masks)} on")
            masks += file.texts[item.start : item.stop]
        elif not item:  # as published: null and empty entries mean that the object is not visible
            masks.append(None)
        else:
            masks.append(_as_text(item, video, f"{where}, frame {len(masks)}"))
    return masks


def _check_sizes(sizes: set[bytes], video: Video, where: str) -> None:
    for text in sizes:
        _check_video_size(_parse_size(text), video, where)


@lru_cache
def _parse_size(text: bytes) -> Any:
    try:
        size = json.loads(text)
    except ValueError:
        return text.decode(errors="replace")
    return tuple(size)


def _check_video_size(size: Any, video: Video, where: str) -> None:
    """Masks must have the size of their video; the first mask decides when the ground truth does not tell."""
    size = check_size(size, where)
    if video.size is None:
        video.size = size
    elif size != video.size:
        raise ValueError(f"{where}: mask size {size} (height, width) differs from the video's {video.size}")


def _as_text(item: Any, video: Video, where: str) -> bytes:
    """Turn a mask that is a Python object into JSON text of its counts."""
    if isinstance(item, Mapping):
        if "size" not in item or "counts" not in item:
            raise ValueError(f"{where}: a mask needs 'size' and 'counts', got the keys {sorted(map(str, item))}")
        _check_video_size(item["size"], video, where)
        counts = item["counts"]
        if isinstance(counts, bytes):
            counts = counts.decode("latin-1")
        if isinstance(counts, np.ndarray):
            counts = counts.tolist()
        if isinstance(counts, (str, list, tuple)):
            return json.dumps(counts, default=repr).encode()
        raise ValueError(f"{where}: 'counts' must be a string or a list, got {type(counts).__name__}")
    if video.size is None:
        raise ValueError(f"{where}: a polygon needs 'height' and 'width' of the video, which the file does not give")
    from lbvq.masks.rle import to_rle  # imports torch, which takes seconds and is needed for polygons only

    return json.dumps(to_rle(item, *video.size, where)["counts"]).encode()


def _mean_area(areas: Any, where: str) -> float | None:
    """As published: mean of the areas in the file over the frames in which they are neither null nor zero."""
    if areas is None:
        return None
    if not isinstance(areas, (list, tuple)) or not all(
        area is None or isinstance(area, (int, float)) for area in areas
    ):
        raise ValueError(f"{where}: 'areas' must be a list of numbers or nulls, one per frame")
    areas = [area for area in areas if area]
    if not areas:
        return 0.0
    # The sum of integers is exact in any order; floats are added in the published order of numpy.
    return sum(areas) / len(areas) if all(type(area) is int for area in areas) else float(np.mean(areas))


def _occlusion(levels: Any, where: str) -> float | None:
    """Mean of the larger half of the occlusion scores of all frames in which the object is visible, 0 without any."""
    if levels is None:
        return None
    try:
        scores = sorted(OCCLUSION_SCORES[level] for level in levels if level is not None)
    except (KeyError, TypeError):
        raise ValueError(f"{where}: 'occlusion' must list {list(OCCLUSION_SCORES)} or null, one per frame") from None
    largest = scores[-math.ceil(len(scores) / 2) :]
    return sum(largest) / len(largest) if largest else 0.0


def _as_file(source: Any, name: str) -> MaskFile:
    if isinstance(source, MaskFile):
        return source
    if isinstance(source, (str, Path)):
        return read_mask_file(source)
    document = source if isinstance(source, Mapping) else list(source)
    return MaskFile(name, document, [], [])


def _entries(content: Mapping[str, Any], key: str, name: str) -> list[Any]:
    entries = content.get(key)
    if not isinstance(entries, list):
        got = "nothing" if entries is None else type(entries).__name__
        raise ValueError(f"{name}: ground truth needs a list '{key}', got {got}")
    return entries


def _by_id(entries: list[Any], what: str, name: str) -> list[tuple[int, Any]]:
    pairs = []
    seen = set()
    for index, entry in enumerate(entries):
        where = f"{name}: {what} at position {index}"
        if not isinstance(entry, Mapping):
            raise ValueError(f"{where} must be a JSON object, got {entry!r:.60}")
        entry_id = _integer(entry, "id", where)
        if entry_id in seen:
            raise ValueError(f"{name}: two entries have the {what} id {entry_id}")
        seen.add(entry_id)
        pairs.append((entry_id, entry))
    return pairs


def _integer(entry: Mapping[str, Any], key: str, where: str) -> int:
    value = entry.get(key)
    if not _is_integer(value):
        got = f"{value!r}" if key in entry else "nothing"
        raise ValueError(f"{where}: '{key}' must be an integer, got {got}")
    return int(value)


def _is_integer(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def check_size(size: Any, where: str) -> tuple[int, int]:
    if not isinstance(size, (list, tuple, np.ndarray)) or len(size) != 2 or not all(map(_is_integer, size)):
        raise ValueError(f"{where}: size must be two integers (height, width), got {size!r:.60}")
    height, width = int(size[0]), int(size[1])
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise ValueError(f"{where}: size must be positive and at most {MAX_PIXELS} pixels, got {(height, width)}")
    return height, width


def _few(values: Iterable[Any]) -> str:
    values = list(values)
    return ", ".join(map(str, values[:10])) + (f", ... ({len(values)} in all)" if len(values) > 10 else "")
