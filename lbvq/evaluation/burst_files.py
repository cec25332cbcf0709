"""Read BURST's own file format: one list of sequences with tracks, for ground truth and for predictions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lbvq.evaluation.annotations import GroundTruth, read_predictions
from lbvq.evaluation.mask_texts import Masks
from lbvq.evaluation.overlap import TubeRuns, check_tubes
from lbvq.files import rules
from lbvq.files.mask_file import MaskFile, read_mask_file

MAX_PER_IMAGE = 300  # predictions; the best by score are kept
Key = tuple[str, str]  # data set and name of a sequence


@dataclass
class BurstTrack:
    """One object; all lists have one entry per annotated frame of the ground truth."""

    id: str
    category: int  # of the first mask in the file, which stands for the whole track
    categories: list[int | None]  # None where the track has no mask
    masks: Masks
    scores: list[float]

    @property
    def score(self) -> float:
        """Mean over the frames that have a mask."""
        own = [score for score, mask in zip(self.scores, self.masks, strict=True) if mask is not None]
        return float(np.mean(own))  # as published: another order of summing would break ties differently


@dataclass
class BurstSequence:
    """One video."""

    id: Any
    where: str  # for messages
    size: tuple[int, int]  # height, width
    frames: list[str]  # names of the annotated images
    negative: frozenset[int]  # categories known to be absent
    partly: frozenset[int]  # categories of which some objects have no annotation
    tracks: list[BurstTrack] = field(default_factory=list)
    # Frame -> ids of its tracks; both in the order of the file, which decides between equally good matches.
    shown: dict[int, list[str]] = field(default_factory=dict)


def read_burst(path: str | Path, ground_truth: Mapping[Key, BurstSequence] | None = None) -> dict[Key, BurstSequence]:
    """Read a file of annotations or, if `ground_truth` is given, of predictions.

    Predictions on frames and sequences that the ground truth does not have are left out, as the benchmark wants; any
    frame rate will do. An unknown sequence is an error, since it is a mistake in most cases.
    """
    content = read_mask_file(path).document
    if not isinstance(content, Mapping) or not isinstance(content.get("sequences"), list):
        raise ValueError(f"{path}: expected BURST's format, an object with a list 'sequences'")
    sequences = {}
    for index, entry in enumerate(content["sequences"]):
        where = f"{path}: sequence at position {index}"
        if not isinstance(entry, Mapping) or not {"dataset", "seq_name", "segmentations"} <= set(entry):
            raise ValueError(f"{where}: expected an object with 'dataset', 'seq_name' and 'segmentations'")
        key = (str(entry["dataset"]), str(entry["seq_name"]))
        where = f"{path}: sequence {'/'.join(key)}"
        if key in sequences:
            raise ValueError(f"{where} occurs twice")
        known = None if ground_truth is None else ground_truth.get(key)
        if ground_truth is not None and known is None:
            raise ValueError(f"{where}: the ground truth has no such sequence")
        sequences[key] = _read_sequence(entry, where, known)
    return sequences


def read_burst_predictions(
    path: str | Path, ground_truth: Mapping[Key, BurstSequence], category_ids: Sequence[int]
) -> dict[Key, BurstSequence]:
    """Read predictions in BURST's format, or results in YouTube-VIS form as our models write them.

    In the latter, `video_id` is the id of the sequence, `category_id` counts the categories of the ground truth from 1,
    and there is one mask per annotated frame. Such results encode empty masks, which are left out here.

    Args:
        path: of the file.
        ground_truth: what `read_burst` gives.
        category_ids: in the order of the ground-truth file.
    """
    file = read_mask_file(path)
    if not isinstance(file.document, list):
        return read_burst(path, ground_truth)
    videos = [
        {"id": each.id, "height": each.size[0], "width": each.size[1], "length": len(each.frames)}
        for each in ground_truth.values()
    ]
    categories = [{"id": place} for place in range(1, len(category_ids) + 1)]
    document = {"videos": videos, "categories": categories, "annotations": []}
    linked = GroundTruth(MaskFile.of(document, f"{path}: the ground truth"))
    key_of = {each.id: key for key, each in ground_truth.items()}
    sequences: dict[Key, BurstSequence] = {}
    for detection in read_predictions(file, linked):
        key = key_of[detection.video_id]
        truth = ground_truth[key]
        where = f"{path}: video {truth.id}"
        if len(detection.masks) != len(truth.frames):
            raise ValueError(f"{where}: expected {len(truth.frames)} segmentations, got {len(detection.masks)}")
        sequence = sequences.setdefault(
            key, BurstSequence(truth.id, where, truth.size, truth.frames, truth.negative, truth.partly)
        )
        place = f"{path}: detection {detection.index} (video {truth.id})"
        runs = TubeRuns([detection.masks], truth.size, partial(_where_of_frame, place))
        masks = [mask if area else None for mask, area in zip(detection.masks, runs.areas[0], strict=True)]
        category = category_ids[detection.category_id - 1]
        categories_per_frame = [None if mask is None else category for mask in masks]
        number = str(detection.index)
        sequence.tracks.append(
            BurstTrack(number, category, categories_per_frame, masks, [detection.score] * len(masks))
        )
        for frame in range(len(masks)):
            if masks[frame] is not None:
                sequence.shown.setdefault(frame, []).append(number)
    for sequence in sequences.values():
        _keep_best(sequence)
    return sequences


def _where_of_frame(place: str, _: int, frame: int) -> str:
    return f"{place}, frame {frame}"


def burst_categories(path: str | Path) -> dict[int, str]:
    """Id -> name of the categories that a file lists, in its order; none where it has no list."""
    content = read_mask_file(path).document
    if not isinstance(content, Mapping) or content.get("categories") is None:
        return {}
    known = rules.categories(content, str(path))
    in_order = (int(entry["id"]) for entry in content["categories"])
    return {number: str(known[number].get("name", number)) for number in in_order}


def _read_sequence(entry: Mapping[str, Any], where: str, known: BurstSequence | None) -> BurstSequence:
    size = known.size if known else rules.frame_size((entry.get("height"), entry.get("width")), where)
    images = entry.get("annotated_image_paths")
    masks = entry["segmentations"]
    if not isinstance(images, list) or not isinstance(masks, list) or len(images) != len(masks):
        raise ValueError(f"{where}: 'annotated_image_paths' and 'segmentations' must be lists of equal length")
    categories = entry.get("track_category_ids") or {}
    if not isinstance(categories, Mapping):
        raise ValueError(f"{where}: 'track_category_ids' must be an object, got {rules.shown(categories)}")
    frames = known.frames if known else [str(image) for image in images]
    place = {name: index for index, name in enumerate(frames)}
    absent, partly = (
        frozenset(rules.id_list(entry, f"{kind}_category_ids", where)) for kind in ("neg", "not_exhaustive")
    )
    sequence = BurstSequence(entry.get("id"), where, size, frames, absent, partly)
    tracks: dict[str, BurstTrack] = {}
    for image, objects in zip(images, masks, strict=True):
        if str(image) not in place:
            continue
        if not isinstance(objects, Mapping):
            raise ValueError(f"{where}, frame {image}: expected an object of tracks, got {type(objects).__name__}")
        frame = place[str(image)]
        if frame in sequence.shown:
            raise ValueError(f"{where}, frame {image}: this image occurs twice")
        _add_frame(tracks, objects, frame, categories, sequence)
        sequence.shown[frame] = [str(name) for name in objects]
    sequence.tracks = list(tracks.values())
    _check_masks(sequence)
    if known:
        _keep_best(sequence)
    return sequence


def _check_masks(sequence: BurstSequence) -> None:
    """Raise ValueError for a mask that cannot be read, with its frame and track."""

    def where(index: int, frame: int) -> str:
        return f"{sequence.where}, frame {sequence.frames[frame]}, track {sequence.tracks[index].id}"

    check_tubes([track.masks for track in sequence.tracks], sequence.size, where)


def _keep_best(sequence: BurstSequence) -> None:
    """Leave the best predictions of every frame, best first where some go, and the tracks that still have a mask."""
    tracks = {track.id: track for track in sequence.tracks}
    for frame, names in sequence.shown.items():
        if len(names) > MAX_PER_IMAGE:
            ranked = sorted(names, key=lambda name: -tracks[name].scores[frame])
            for name in ranked[MAX_PER_IMAGE:]:
                tracks[name].masks[frame] = tracks[name].categories[frame] = None
            sequence.shown[frame] = ranked[:MAX_PER_IMAGE]
    # As published, a track comes where it is first seen, with the category it has there.
    seen: dict[str, int] = {}
    for frame, names in sequence.shown.items():
        for name in names:
            seen.setdefault(name, frame)
    sequence.tracks = [tracks[name] for name in seen]
    for name, frame in seen.items():
        category = tracks[name].categories[frame]
        if category is not None:  # a shown track has one
            tracks[name].category = category


def _score(item: Any) -> float:
    score = item.get("score", 1.0) if isinstance(item, Mapping) else 1.0
    return float(score) if rules.is_finite(score) else float("nan")


def _add_frame(
    tracks: dict[str, BurstTrack],
    objects: Mapping[str, Any],
    frame: int,
    categories: Mapping[str, Any],
    sequence: BurstSequence,
) -> None:
    for name, item in objects.items():
        where = f"{sequence.where}, frame {sequence.frames[frame]}, track {name}"
        if not isinstance(item, Mapping) or not isinstance(item.get("rle"), str):
            raise ValueError(f"{where}: expected an object with a string 'rle'")
        category = item.get("category_id", categories.get(name))
        if not rules.is_whole(category) or not 0 <= category <= rules.MAX_NUMBER:
            raise ValueError(f"{where}: no category, neither here nor in 'track_category_ids'")
        category = int(category)
        score = _score(item)
        if score != score:
            raise ValueError(f"{where}: 'score' must be a number, got {item.get('score')!r}")
        length = len(sequence.frames)
        track = tracks.setdefault(name, BurstTrack(name, category, [None] * length, [None] * length, [1.0] * length))
        track.categories[frame], track.scores[frame] = category, score
        track.masks[frame] = json.dumps(item["rle"]).encode()
