"""Ground truth and predictions of video data sets: read, checked, and with their masks still as text.

The format is that of YouTube-VIS, shared by OVIS, HQ-YTVIS, LV-VIS and converted BURST files. Whatever a file lacks or
breaks is reported with the names of file, video and annotation, by the rules that the readers of training data share
(`lbvq.files.rules`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lbvq.evaluation.mask_texts import Masks, read_masks
from lbvq.files import rules
from lbvq.files.json_files import collector_paused
from lbvq.files.mask_file import MaskFile, read_mask_file

logger = logging.getLogger(__name__)

OCCLUSION_SCORES = {"no_occlusion": 0.0, "slight_occlusion": 0.25, "severe_occlusion": 0.75}


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

    @collector_paused()
    def __init__(
        self,
        source: str | Path | Mapping[str, Any] | MaskFile,
        *,
        segmentations_key: str = "segmentations",
        boundary_key: str | None = None,
        whole_areas: bool = False,
        noun: str = "video",
        crowd_key: str = "iscrowd",
    ) -> None:
        """Read an annotation file, or take its content.

        Args:
            source: path of a .json, .json.gz or .zip file, its content after `read_mask_file`, or a dict {"videos",
                "categories", "annotations"}.
            segmentations_key: where masks are, in preference to "segmentations".
            boundary_key: where the masks are whose boundary counts, if not the same and if present.
            whole_areas: drop the fractions of "areas", as published for LV-VIS.
            noun: "image" reads a file in COCO form, whose images become videos of one frame; results then are in COCO
                form, too.
            crowd_key: flag of annotations that do not count.
        """
        file = _as_file(source, "ground truth")
        self.name = file.name
        self.noun = noun
        self._keys = (segmentations_key, boundary_key)
        self._whole_areas = whole_areas
        content = file.document
        if not isinstance(content, Mapping):
            raise ValueError(f"{self.name}: ground truth must be a JSON object, got {type(content).__name__}")
        videos = rules.by_id(content, f"{noun}s", noun, self.name)
        self.videos = {number: _read_video(number, entry, noun, self.name) for number, entry in videos.items()}
        self.categories = rules.categories(content, self.name)
        annotations = content.get("annotations")
        self.has_annotations = annotations is not None
        if annotations is not None and not isinstance(annotations, list):
            raise ValueError(f"{self.name}: 'annotations' must be a list or null, got {type(annotations).__name__}")
        ids = (self.videos, self.categories)
        found = rules.linked(annotations or [], *ids, noun, self.name, crowd_key=crowd_key)
        self.tracks = [self._read_track(each, file) for each in found]

    def add(self, other: GroundTruth) -> None:
        """Take over the videos of another data set, whose ids are not known here, and its categories."""
        self.videos = dict(sorted({**self.videos, **other.videos}.items()))
        self.categories = dict(sorted({**self.categories, **other.categories}.items()))
        self.tracks += other.tracks

    def _read_track(self, linked: rules.Linked, file: MaskFile) -> Track:
        entry, where = linked.entry, linked.where
        video = self.videos[linked.parent_id]
        if self.noun == "image":
            entry = {"segmentations": [entry.get("segmentation")], "areas": _list_of_one(entry.get("area"))}
        key, boundary_key = self._keys
        masks = read_masks(entry.get(key if entry.get(key) is not None else "segmentations"), file, video, where)
        other = entry.get(boundary_key) if boundary_key else None
        return Track(
            id=linked.id,
            video_id=video.id,
            category_id=linked.category_id,
            masks=masks,
            is_crowd=linked.is_crowd,
            area=_mean_area(entry.get("areas"), where, self._whole_areas),
            occlusion=_occlusion(entry.get("occlusion"), where),
            boundary_masks=None if other is None else read_masks(other, file, video, where),
        )

    def category_name(self, category_id: int) -> str:
        """Name of a category, its id when the file gives none."""
        return str(self.categories[category_id].get("name", category_id))


def _read_video(number: int, entry: Mapping[str, Any], noun: str, name: str) -> Video:
    where = f"{name}: {noun} {number}"
    names = rules.frame_names(entry, where, windows=True) if noun == "video" else []
    length = rules.num_frames(entry, len(names), where) if noun == "video" else 1
    lists = [frozenset(rules.id_list(entry, f"{kind}_category_ids", where)) for kind in ("neg", "not_exhaustive")]
    return Video(number, rules.entry_size(entry, where), length, names, *lists)


def _list_of_one(value: Any) -> list[Any] | None:
    return None if value is None else [value]


@collector_paused()
def read_predictions(
    source: str | Path | Iterable[Mapping[str, Any]] | MaskFile,
    ground_truth: GroundTruth,
    name: str = "predictions",
    *,
    max_per_video: int | None = None,
) -> list[Detection]:
    """Read results in the published form [{"video_id", "category_id", "score", "segmentations"}], check and link them.

    On images the form is [{"image_id", "category_id", "score", "segmentation"}].

    Detections of a category that the ground truth does not list cannot be scored and are left out with a warning, as
    published. An unknown video, a missing field or a mask of the wrong size raises ValueError.

    Args:
        source: path of a .json, .json.gz or .zip file, or the list itself.
        ground_truth: what the ids refer to.
        name: of a list, for messages.
        max_per_video: keep the best of each video, counted before anything is left out; None keeps all.
    """
    file = _as_file(source, name)
    if not isinstance(file.document, list):
        raise ValueError(f"{file.name}: results must be a list of objects, got {type(file.document).__name__}")
    detections = [read_detection(entry, index, file, ground_truth) for index, entry in enumerate(file.document)]
    if max_per_video is not None:
        detections = _best_of_each_video(detections, max_per_video)
    unknown: dict[int, int] = {}
    for detection in detections:
        if detection.category_id not in ground_truth.categories:
            unknown.setdefault(detection.category_id, detection.index)
    if unknown:
        first = ", ".join(f"{category} (detection {index})" for category, index in sorted(unknown.items())[:5])
        logger.warning("%s: category ids that %s does not list were ignored: %s", file.name, ground_truth.name, first)
    return [each for each in detections if each.category_id in ground_truth.categories]


def read_detection(entry: Any, index: int, file: MaskFile, ground_truth: GroundTruth) -> Detection:
    """Check one entry of a results file; its category need not exist, and its masks are not decoded."""
    where, noun = f"{file.name}: detection {index}", ground_truth.noun
    head = rules.result_head(entry, ground_truth.videos, noun, where, ground_truth.name)
    where = f"{where} ({noun} {head.parent_id})"
    segmentations = entry.get("segmentations")
    if noun == "image":
        segmentations = [entry.get("segmentation")]
        if not segmentations[0]:
            raise ValueError(f"{where}: has no 'segmentation'")
        if entry.get("bbox") is not None:  # scored where all have one
            rules.sized_box(entry["bbox"], where)
    masks = read_masks(segmentations, file, ground_truth.videos[head.parent_id], where, polygons=False)
    return Detection(index, head.parent_id, head.category_id, head.score, masks)


def _best_of_each_video(detections: Sequence[Detection], limit: int) -> list[Detection]:
    """The best detections of every video, in the order of the file; of equal ones the first."""
    ranked = sorted(detections, key=lambda each: -each.score)
    places: dict[int, int] = {}
    kept = set()
    for detection in ranked:
        places[detection.video_id] = place = places.get(detection.video_id, 0) + 1
        if place <= limit:
            kept.add(detection.index)
    return [each for each in detections if each.index in kept]


def _mean_area(areas: Any, where: str, drop_fractions: bool) -> float | None:
    """As published: mean of the areas in the file over the frames in which they are neither null nor zero."""
    if areas is None:
        return None
    is_list = isinstance(areas, (list, tuple))
    if not is_list or not all(area is None or (rules.is_finite(area) and area >= 0) for area in areas):
        raise ValueError(f"{where}: 'areas' must be a list of numbers or nulls, one per frame")
    areas = [int(area) if drop_fractions else area for area in areas if area]
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
    return MaskFile.of(source if isinstance(source, Mapping) else list(source), name)
