"""Average precision of mask tubes: the metric of YouTube-VIS, OVIS, HQ-YTVIS, LV-VIS and BURST in one class.

    ap = TubeAP("valid.json")
    ap.update("results.json")          # or any number of lists of results, in any order
    print(ap.compute().summary())

    ap = TubeAP()
    for video, truth in ...:           # arrays, dictionaries or `VideoPrediction`, see `loose_videos`
        ap.update(model(video), truth)

Masks are decoded video by video and forgotten; what stays is a few numbers per detection. So instances that saw
different videos, in different processes, can be merged exactly.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lbvq.evaluation.accumulate import accumulate
from lbvq.evaluation.annotations import Detection, GroundTruth, Track, Video, read_predictions
from lbvq.evaluation.boundary import BoundaryTubes, boundary_iou
from lbvq.evaluation.mask_texts import Masks
from lbvq.evaluation.overlap import TubeRuns, tube_iou
from lbvq.evaluation.tube_ap_result import TubeApResult
from lbvq.evaluation.tube_ap_settings import TubeApSettings
from lbvq.masks.runs import keep_freed_memory

_FRAMES_AT_ONCE = 1024  # masks that are decoded together
_BOUNDARIES_AT_ONCE = 512  # masks whose boundaries are held together
NOTHING: dict[str, Any] = {"videos": [], "categories": [], "annotations": []}
_PART_TYPES = {  # what is kept of each detection, and of each pair of detection and track
    "order": np.int64,
    "video": np.int64,
    "category": np.int64,
    "score": np.float64,
    "area": np.float64,
    "length": np.int64,
    "counts": bool,
    "forgiven": bool,
    "pair_detection": np.int64,
    "pair_track": np.int64,
    "pair_iou": np.float64,
}


class TubeAP:
    """Collect predictions and compute tube AP."""

    def __init__(
        self,
        ground_truth: GroundTruth | str | Path | Mapping[str, Any] | None = None,
        settings: TubeApSettings | None = None,
        **changes: Any,
    ) -> None:
        """Prepare for one data set.

        Args:
            ground_truth: `GroundTruth`, or what it can be made of: a path or the content of an annotation file. None:
                it comes with the predictions.
            settings: by default those of YouTube-VIS; `changes` replace single ones.
        """
        self._truth_grows = ground_truth is None
        source = NOTHING if ground_truth is None else ground_truth
        self.ground_truth = source if isinstance(source, GroundTruth) else GroundTruth(source)
        self.settings = replace(settings or TubeApSettings(), **changes)
        self._tracks_of: dict[int, list[int]] = defaultdict(list)  # video id -> positions in ground_truth.tracks
        self._categories_of: dict[int, set[int]] = defaultdict(set)
        self._index_tracks(0)
        self._smallest_iou = min(self.settings.iou_thresholds[0], 1 - 1e-10)
        self.reset()

    def _index_tracks(self, first: int) -> None:
        """Note where the tracks from position `first` on belong."""
        for index, track in enumerate(self.ground_truth.tracks[first:], first):
            self._check_length(self.ground_truth.videos[track.video_id], len(track.masks), self._name_track(index))
            self._tracks_of[track.video_id].append(index)
            self._categories_of[track.video_id].add(track.category_id)

    def check_masks(self) -> None:
        """Decode every mask of the ground truth; ValueError names the first that is broken."""
        for index, track in enumerate(self.ground_truth.tracks):
            self._decode_track(index)
            if self.settings.boundary_ratio is not None and track.boundary_masks is not None:
                self._decode_track(index, track.boundary_masks)

    def reset(self) -> None:
        """Forget all predictions."""
        self._parts: list[dict[str, np.ndarray]] = []
        self._num_detections = 0
        self._track_areas: dict[int, float] = {}

    def update(self, predictions: Any, targets: Any = None, name: str = "predictions") -> TubeAP:
        """Add predictions: a results file, or a list in its form. Masks are checked, compared and forgotten.

        Args:
            predictions: [{"video_id", "category_id", "score", "segmentations": [mask or None per frame]}], or its
                file. With targets: one video or a list of them, see `loose_videos`.
            targets: ground truth of the same videos, if there was none at the beginning.
            name: of a list, for messages.
        """
        if isinstance(targets, str):  # `name` was the second argument once
            name, targets = targets, None
        if targets is not None:
            return self._update_both(predictions, targets)
        if self._truth_grows:
            raise ValueError(
                "there is no ground truth; give targets with the predictions, or TubeAP an annotation file"
            )
        keep_freed_memory()
        limit = self.settings.max_per_video
        detections = read_predictions(predictions, self.ground_truth, name, max_per_video=limit)
        source = str(predictions) if isinstance(predictions, (str, Path)) else name
        for detection in detections:
            video = self.ground_truth.videos[detection.video_id]
            self._check_length(video, len(detection.masks), f"{source}: detection {detection.index} (video {video.id})")
        parts = [
            self._compare([detections[index] for index in members], np.array(members), source)
            for members in self._batches(detections)
        ]
        self._parts += parts  # all or nothing: a broken mask leaves no trace
        self._num_detections += len(detections)
        return self

    def _update_both(self, predictions: Any, targets: Any) -> TubeAP:
        """Add videos with their ground truth, all of them or none."""
        from lbvq.evaluation.loose_videos import as_documents  # here: scoring files does not wait for it

        if not self._truth_grows:
            raise ValueError("targets were given, and the ground truth was known from the beginning")
        truth = self.ground_truth
        document, results = as_documents(predictions, targets, max(truth.videos, default=0) + 1)
        part = TubeAP(document, self.settings).update(results)
        twice = sorted(truth.videos.keys() & part.ground_truth.videos.keys())
        if twice:
            raise ValueError(f"video {twice[0]} was given before; every video counts once")
        shift = len(truth.tracks)
        truth.add(part.ground_truth)
        self._index_tracks(shift)
        for numbers in part._parts:
            moved = {"order": numbers["order"] + self._num_detections, "pair_track": numbers["pair_track"] + shift}
            self._parts.append({**numbers, **moved})
        self._num_detections += part._num_detections
        self._track_areas |= {shift + index: area for index, area in part._track_areas.items()}
        return self

    def merge(self, other: TubeAP | Mapping[str, Any]) -> TubeAP:
        """Add what another instance (or its `state()`), with the same ground truth and settings, has collected."""
        state = other.state() if isinstance(other, TubeAP) else other
        if state["ground_truth"] != self._fingerprint():
            raise ValueError(
                f"cannot merge: this instance has {self._fingerprint()} and the other {state['ground_truth']} "
                "(videos, categories, tracks of the ground truth, settings)"
            )
        for part in state["parts"]:
            self._parts.append({**part, "order": part["order"] + self._num_detections})
        self._num_detections += state["num_detections"]
        self._track_areas.update(state["track_areas"])
        return self

    def state(self) -> dict[str, Any]:
        """What `merge` needs: numbers only, a few dozen bytes per detection, to be sent between processes."""
        return {
            "ground_truth": self._fingerprint(),
            "num_detections": self._num_detections,
            "parts": list(self._parts),
            "track_areas": dict(self._track_areas),
        }

    def _fingerprint(self) -> tuple[Any, ...]:
        truth = self.ground_truth
        return len(truth.videos), len(truth.categories), len(truth.tracks), repr(self.settings)

    def _name_track(self, index: int) -> str:
        track = self.ground_truth.tracks[index]
        return f"{self.ground_truth.name}: {self.ground_truth.noun} {track.video_id}, annotation {track.id}"

    def _check_length(self, video: Video, length: int, where: str) -> None:
        if video.length is None:
            video.length = length
        if length != video.length and not self.settings.different_lengths:
            raise ValueError(f"{where}: expected {video.length} segmentations, one per frame, got {length}")

    def _batches(self, detections: list[Detection]) -> Iterator[list[int]]:
        """Positions of the detections, in batches of one frame size and a bounded number of masks.

        A video is cut only if it is long: its tracks are decoded once per batch.
        """
        videos = self.ground_truth.videos
        order = sorted(
            range(len(detections)),
            key=lambda index: (videos[detections[index].video_id].size or (1, 1), detections[index].video_id),
        )
        batch: list[int] = []
        num_masks = 0
        for index in order:
            video = videos[detections[index].video_id]
            last = videos[detections[batch[-1]].video_id] if batch else video
            too_many = num_masks > (4 if video is last else 1) * _FRAMES_AT_ONCE
            if batch and (video.size != last.size or too_many):
                yield batch
                batch, num_masks = [], 0
            batch.append(index)
            num_masks += len(detections[index].masks)
        if batch:
            yield batch

    def _compare(self, detections: list[Detection], order: np.ndarray, source: str) -> dict[str, np.ndarray]:
        """Compare detections of one frame size with their tracks; returns the numbers to keep, see _PART_TYPES."""
        truth = self.ground_truth
        video_ids = dict.fromkeys(detection.video_id for detection in detections)
        track_index = np.array([index for video_id in video_ids for index in self._tracks_of.get(video_id, ())], int)
        tracks = [truth.tracks[index] for index in track_index]
        size = truth.videos[detections[0].video_id].size or (1, 1)  # without any mask the size does not matter

        def where_detection(index: int, frame: int) -> str:
            detection = detections[index]
            return f"{source}: detection {detection.index} ({truth.noun} {detection.video_id}), frame {frame}"

        def where_track(index: int, frame: int) -> str:
            return f"{self._name_track(int(track_index[index]))}, frame {frame}"

        found = TubeRuns([detection.masks for detection in detections], size, where_detection)
        wanted = TubeRuns([track.masks for track in tracks], size, where_track)
        pairs = self._pairs(detections, tracks)
        kept, iou = tube_iou(found, wanted, pairs, at_least=self._smallest_iou)
        pairs = pairs[kept]
        if self.settings.boundary_ratio is not None:
            edges = self._boundary_source(wanted, tracks, where_track)
            is_crowd = np.array([track.is_crowd for track in tracks], bool)
            pairs, iou = self._compare_boundaries(found, edges, is_crowd, pairs, iou)
        areas = found.mean_areas()
        if self.settings.areas == "none":
            areas = np.zeros(len(detections))
        for index, track, area in zip(track_index.tolist(), tracks, wanted.mean_areas().tolist(), strict=True):
            if self.settings.areas == "masks" or track.area is None:
                self._track_areas[index] = area
        return {
            "order": order + self._num_detections,
            "video": np.array([detection.video_id for detection in detections], np.int64),
            "category": np.array([detection.category_id for detection in detections], np.int64),
            "score": np.array([detection.score for detection in detections], np.float64),
            "area": areas,
            "length": np.count_nonzero(found.areas, axis=1),
            **self._federation(detections, found),
            "pair_detection": pairs[:, 0],
            "pair_track": track_index[pairs[:, 1]],
            "pair_iou": iou,
        }

    def _federation(self, detections: list[Detection], tubes: TubeRuns) -> dict[str, np.ndarray]:
        """Whether detections count, and whether they are forgiven when unmatched; see `TubeApSettings.federated`."""
        exists = np.ones(len(detections), bool)
        if self.settings.empty_is_absent:
            exists = np.any(tubes.areas, axis=1)
        if not self.settings.federated:
            return {"counts": exists, "forgiven": np.zeros(len(detections), bool)}
        counts, forgiven = [], []
        for detection in detections:
            video = self.ground_truth.videos[detection.video_id]
            present = detection.category_id in self._categories_of[video.id]
            counts.append(present or detection.category_id in video.negative_categories)
            forgiven.append(detection.category_id in video.partly_annotated_categories)
        return {"counts": exists & np.array(counts, bool), "forgiven": np.array(forgiven, bool)}

    def _pairs(self, detections: list[Detection], tracks: list[Track]) -> np.ndarray:
        """(P, 2) index of detection and track of one video and, unless categories do not matter, one category."""
        by_group: dict[tuple[int, int], list[int]] = defaultdict(list)
        use_categories = self.settings.use_categories
        for index, track in enumerate(tracks):
            by_group[track.video_id, track.category_id if use_categories else 0].append(index)
        pairs = [
            (index, track)
            for index, detection in enumerate(detections)
            for track in by_group.get((detection.video_id, detection.category_id if use_categories else 0), ())
        ]
        return np.array(pairs, np.int64).reshape(-1, 2)

    def _boundary_source(self, wanted: TubeRuns, tracks: list[Track], where: Any) -> TubeRuns:
        """Tubes of the tracks whose boundary counts."""
        if all(track.boundary_masks is None for track in tracks):
            return wanted
        masks = [track.masks if track.boundary_masks is None else track.boundary_masks for track in tracks]
        return TubeRuns(masks, wanted.size_hw, where)

    def _compare_boundaries(
        self, found: TubeRuns, wanted: TubeRuns, is_crowd: np.ndarray, pairs: np.ndarray, iou: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Lower the IoU of each pair to that of the boundaries, for tracks that are not crowd, and drop small ones."""
        track_index, track = np.unique(pairs[:, 1], return_inverse=True)
        ratio = self.settings.boundary_ratio or 0.0  # who compares boundaries has set one
        edges = BoundaryTubes(wanted, track_index, ratio)
        compared = np.flatnonzero(~is_crowd[pairs[:, 1]])
        per_step = max(1, _BOUNDARIES_AT_ONCE // max(1, found.areas.shape[1]))
        detection_index, detection = np.unique(pairs[compared, 0], return_inverse=True)
        for step in range(0, len(detection_index), per_step):
            part = np.flatnonzero((detection >= step) & (detection < step + per_step))
            chosen = compared[part]
            boundary = boundary_iou(
                BoundaryTubes(found, detection_index[step : step + per_step], ratio),
                edges,
                np.stack((detection[part] - step, track[chosen]), axis=1),
                np.minimum(found.lengths[pairs[chosen, 0]], wanted.lengths[pairs[chosen, 1]]),
            )
            iou[chosen] = np.minimum(iou[chosen], boundary)
        enough = iou >= self._smallest_iou
        return pairs[enough], iou[enough]

    def compute(self, video_ids: Iterable[int] | None = None, **changes: Any) -> TubeApResult:
        """Match everything collected so far and return the numbers; more may be added afterwards.

        Args:
            video_ids: count only these videos, as if the others did not exist.
            changes: settings that replace ours here, for instance other ranges. Masks are not compared again.
        """
        fixed = {"boundary_ratio", "use_categories", "areas", "different_lengths", "federated"} & set(changes)
        settings = replace(self.settings, **changes)
        if fixed or settings.iou_thresholds[0] < self.settings.iou_thresholds[0]:
            raise ValueError(f"{sorted(fixed) or 'lower IoU thresholds'} cannot change after masks were compared")
        return self._accumulate(settings, self.collected(), self.track_areas(), video_ids)

    def compute_by_length(self, ranges: Mapping[str, tuple[float, float]]) -> TubeApResult:
        """As `compute`, with ranges of the number of frames in which an object is visible in place of area ranges."""
        collected = self.collected()
        collected["area"] = collected["length"].astype(np.float64)
        settings = replace(self.settings, area_ranges=dict(ranges))
        return self._accumulate(settings, collected, self.track_lengths().astype(np.float64), None)

    def _accumulate(
        self,
        settings: TubeApSettings,
        collected: dict[str, np.ndarray],
        track_areas: np.ndarray,
        video_ids: Iterable[int] | None,
    ) -> TubeApResult:
        if video_ids is None:
            return accumulate(self.ground_truth, settings, collected, track_areas)
        videos = np.array(sorted(set(video_ids)), np.int64)
        collected["counts"] = collected["counts"] & np.isin(collected["video"], videos)
        own = np.array([track.video_id for track in self.ground_truth.tracks], np.int64)
        return accumulate(self.ground_truth, settings, collected, track_areas, np.isin(own, videos))

    def collected(self) -> dict[str, np.ndarray]:
        """What is known of all D detections and P pairs of detection and track that overlap enough.

        Returns:
            (D,) `order`, `video`, `category`, `score`, `area`, `length` (frames with a mask), `counts` and `forgiven`;
            (P,) `pair_detection`, `pair_track` (positions in `ground_truth.tracks`) and `pair_iou`.
        """
        empty = {key: np.zeros(0, dtype) for key, dtype in _PART_TYPES.items()}
        collected = {key: np.concatenate([part[key] for part in [empty, *self._parts]]) for key in empty}
        # The pairs of a part count its detections from 0.
        shift = np.cumsum([0, *(len(part["order"]) for part in self._parts)])
        pair_counts = [len(part["pair_iou"]) for part in self._parts]
        collected["pair_detection"] += np.repeat(shift[:-1], pair_counts)
        return collected

    def track_areas(self) -> np.ndarray:
        """(G,) mean areas of the tracks: those of the file, or measured where it has none."""
        areas = [track.area for track in self.ground_truth.tracks]
        if self.settings.areas == "none":
            areas = [0.0] * len(areas)
        for index in range(len(areas)):
            if self.settings.areas == "masks" or areas[index] is None:
                if index not in self._track_areas:  # in a video without a detection so far
                    self._track_areas[index] = float(self._decode_track(index).mean_areas()[0])
                areas[index] = self._track_areas[index]
        return np.array(areas, np.float64)

    def track_lengths(self) -> np.ndarray:
        """(G,) int64 number of frames in which each track has a pixel; an encoded empty mask has none."""
        tracks = range(len(self.ground_truth.tracks))
        return np.array([np.count_nonzero(self._decode_track(index).areas) for index in tracks], np.int64)

    def _decode_track(self, index: int, masks: Masks | None = None) -> TubeRuns:
        """Decode all masks of a track (or others of it); ValueError names the first that is broken."""
        track = self.ground_truth.tracks[index]
        size, name = self.ground_truth.videos[track.video_id].size or (1, 1), self._name_track(index)
        return TubeRuns([masks or track.masks], size, lambda _, frame: f"{name}, frame {frame}")
