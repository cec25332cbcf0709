"""Pixels that predictions and tracks of one video and category share, frame by frame."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lbvq.evaluation.annotations import Detection, GroundTruth, Track
from lbvq.evaluation.overlap import TubeRuns


@dataclass(frozen=True)
class FramePixels:
    """n predictions and g tracks of one video and category, in T frames.

    Attributes:
        video: id.
        place: position of the category, 0 if categories do not matter.
        detections: (n,) positions in the list of detections.
        tracks: (g,) positions in the ground truth.
        found: (n, T) pixels of the predictions.
        wanted: (g, T) pixels of the tracks.
        shared: (n, g, T) pixels of both.
    """

    video: int
    place: int
    detections: np.ndarray
    tracks: np.ndarray
    found: np.ndarray
    wanted: np.ndarray
    shared: np.ndarray

    def iou(self) -> np.ndarray:
        """(n, g, T) of single frames, 0 where both are empty."""
        union = self.found[:, None] + self.wanted[None] - self.shared
        return np.divide(self.shared, union, out=np.zeros(union.shape), where=union > 0)


def frame_pixels(
    ground_truth: GroundTruth, detections: Sequence[Detection], *, use_categories: bool = True
) -> Iterator[FramePixels]:
    """Compare every prediction with the tracks of its video and category; one entry where there is either.

    Args:
        ground_truth: with annotations.
        detections: what `read_predictions` returns.
        use_categories: False compares all of a video.
    """
    places = {each: index if use_categories else 0 for index, each in enumerate(ground_truth.categories)}
    sides: tuple[dict[int, list[int]], dict[int, list[int]]] = {}, {}
    entries: tuple[Sequence[Detection | Track], ...] = (detections, ground_truth.tracks)
    for side, own in zip(sides, entries, strict=True):
        for index, each in enumerate(own):
            side.setdefault(each.video_id, []).append(index)
    for video in sorted(set(sides[0]) | set(sides[1])):
        yield from _compare_video(ground_truth, detections, video, places, *(side.get(video, []) for side in sides))


def _compare_video(
    truth: GroundTruth,
    detections: Sequence[Detection],
    video: int,
    places: Mapping[int, int],
    found: list[int],
    wanted: list[int],
) -> Iterator[FramePixels]:
    size = truth.videos[video].size or (1, 1)
    tubes = [
        TubeRuns([each.masks for each in own], size, lambda index, frame: f"{truth.noun} {video}, frame {frame}")
        for own in ([detections[index] for index in found], [truth.tracks[index] for index in wanted])
    ]
    num_frames = max(each.areas.shape[1] for each in tubes)
    areas = [np.pad(each.areas, ((0, 0), (0, num_frames - each.areas.shape[1]))) for each in tubes]
    own_places = [
        np.array([places[each.category_id] for each in own], np.int64)
        for own in ([detections[index] for index in found], [truth.tracks[index] for index in wanted])
    ]
    for place in np.unique(np.concatenate(own_places)).tolist():
        d, g = (np.flatnonzero(each == place) for each in own_places)
        shared = np.zeros((len(d), len(g), num_frames), np.int64)
        for column, track in enumerate(g.tolist()):
            shared[:, column] = _shared(tubes[0], d, tubes[1], track, num_frames)
        positions = np.array(found, np.int64)[d], np.array(wanted, np.int64)[g]
        yield FramePixels(video, place, *positions, areas[0][d], areas[1][g], shared)


def _shared(detections: TubeRuns, index: np.ndarray, tracks: TubeRuns, track: int, num_frames: int) -> np.ndarray:
    """(n, T) pixels that the detections at `index` share with one track."""
    wanted, found = tracks.by_column, detections.by_column
    rows = wanted.rows(track)
    start, end = wanted.start[rows].astype(np.int64), wanted.end[rows].astype(np.int64)
    before = np.concatenate(([0], np.cumsum(end - start)))  # pixels of the track before each of its runs
    start, end = np.append(start, np.iinfo(np.int64).max), np.append(end, np.iinfo(np.int64).max)

    def pixels_before(position: np.ndarray) -> np.ndarray:
        run = np.searchsorted(end, position, side="right")  # the first run that does not end before
        return before[run] + np.maximum(position - start[run], 0)

    result = np.zeros((len(index), num_frames), np.int64)
    for place, each in enumerate(index.tolist()):
        own = found.rows(each)
        shared = pixels_before(found.end[own]) - pixels_before(found.start[own])
        frame = found.column[own] // detections.size_hw[1]
        result[place] = np.bincount(frame, weights=shared, minlength=num_frames)[:num_frames]
    return result
