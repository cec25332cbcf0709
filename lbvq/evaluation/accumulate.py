"""Match the collected detections with the tracks and compute precision and recall per category and range."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from lbvq.evaluation.annotations import GroundTruth
from lbvq.evaluation.matching import Candidates, match_greedily, precision_and_recall
from lbvq.evaluation.tube_ap_result import TubeApResult
from lbvq.evaluation.tube_ap_settings import TubeApSettings

logger = logging.getLogger(__name__)


@dataclass
class _Table:
    """D detections sorted by category, video and descending score, and P candidate pairs that refer to them."""

    place: np.ndarray  # (D,) position of the category, 0 if categories do not matter
    score: np.ndarray  # (D,)
    area: np.ndarray  # (D,)
    forgiven: np.ndarray  # (D,) does not count when unmatched
    rank: np.ndarray  # (D,) among the detections of the same video and category, 0 is the best
    source: np.ndarray  # (D,) position among the collected detections
    candidates: Candidates


@dataclass(frozen=True)
class Verdicts:
    """What became of D detections, those behind the last detection limit left out, at S IoU thresholds.

    They are in the order in which a category counts them: descending scores, equal ones by video and place in the file.
    """

    source: np.ndarray  # (D,) position among the collected detections
    place: np.ndarray  # (D,) position of the category, 0 if categories do not matter
    true: np.ndarray  # (D, S) found a track that counts
    false: np.ndarray  # (D, S); a detection that is neither is ignored
    track: np.ndarray  # (D, S) position of the track it took, -1 for none
    ignored: np.ndarray  # (G,) tracks that do not count


def judge(ground_truth: GroundTruth, settings: TubeApSettings, collected: Mapping[str, np.ndarray]) -> Verdicts:
    """Match as `accumulate` does, objects of all sizes and occlusions, and tell the outcome of every detection."""
    settings = replace(settings, area_ranges={"all": (0.0, math.inf)}, occlusion_ranges=None)
    table = _sort(ground_truth, settings, collected)
    ignored = _ignored_tracks(ground_truth, settings, np.zeros(len(ground_truth.tracks)))
    limit = settings.max_detections[-1]
    rows = np.argsort(-table.score, kind="stable")
    rows = rows if limit is None else rows[table.rank[rows] < limit]
    verdict = _Judge(ground_truth, settings, table, ignored)
    true, false = verdict(rows)
    track = np.where(false[:, 0], -1, verdict.choice(rows)[:, 0])
    return Verdicts(table.source[rows], table.place[rows], true[:, 0], false[:, 0], track, ignored[:, 0])


def accumulate(
    ground_truth: GroundTruth,
    settings: TubeApSettings,
    collected: Mapping[str, np.ndarray],
    track_areas: np.ndarray,
    is_counted: np.ndarray | None = None,
) -> TubeApResult:
    """Match detections with tracks and compute precision and recall.

    Args:
        ground_truth: videos, categories and G tracks.
        settings: see there.
        collected: of D detections `order` (in the file), `video`, `category`, `score`, `area`; of P pairs
            `pair_detection`, `pair_track` (positions) and `pair_iou`.
        track_areas: (G,) mean areas in pixels.
        is_counted: (G,) bool; the other tracks are treated as if they did not exist. Their detections must not count.
    """
    table = _sort(ground_truth, settings, collected)
    ignored = _ignored_tracks(ground_truth, settings, track_areas)
    if is_counted is not None:
        ignored |= ~is_counted[:, None]
    judge = _Judge(ground_truth, settings, table, ignored)
    category_place = _places(ground_truth, settings)
    track_place = np.array([category_place[track.category_id] for track in ground_truth.tracks], np.int64)
    num_categories = len(category_place) if settings.use_categories else 1
    shape = (len(settings.iou_thresholds), num_categories, ignored.shape[1], len(settings.max_detections))
    recall = np.full(shape, -1.0)
    precision = np.full((shape[0], len(settings.recall_thresholds), *shape[1:]), -1.0)
    scores = precision.copy()
    recall_thresholds = np.array(settings.recall_thresholds)
    for k in range(num_categories):
        num_tracks = np.count_nonzero(~ignored[track_place == k], axis=0)
        if not num_tracks.any():
            continue
        start, stop = np.searchsorted(table.place, [k, k + 1])
        order = start + np.argsort(-table.score[start:stop], kind="stable")
        found, num_rows = (np.empty(0),) * 3, -1
        for m, limit in enumerate(settings.max_detections):
            rows = order if limit is None else order[table.rank[order] < limit]
            if len(rows) != num_rows:  # otherwise this limit leaves out nobody that the last one has kept
                true, false = judge(rows)
                found = precision_and_recall(table.score[rows], true, false, num_tracks, recall_thresholds)
                num_rows = len(rows)
            precision[:, :, k, :, m] = found[0].transpose(1, 2, 0)
            recall[:, k, :, m] = found[1].T
            scores[:, :, k, :, m] = found[2].transpose(1, 2, 0)
    return _result(ground_truth, settings, precision, recall, scores)


def _places(ground_truth: GroundTruth, settings: TubeApSettings) -> dict[int, int]:
    """Category id -> position on the axis of categories."""
    return {each: index if settings.use_categories else 0 for index, each in enumerate(ground_truth.categories)}


def _result(
    ground_truth: GroundTruth,
    settings: TubeApSettings,
    precision: np.ndarray,
    recall: np.ndarray,
    scores: np.ndarray,
) -> TubeApResult:
    """Give the occlusion ranges an axis of their own."""
    if settings.occlusion_ranges is not None:
        axes = (len(settings.area_ranges), len(settings.occlusion_ranges), len(settings.max_detections))
        precision, recall, scores = (each.reshape(*each.shape[:-2], *axes) for each in (precision, recall, scores))
    if settings.use_categories:
        categories = {each: ground_truth.category_name(each) for each in ground_truth.categories}
    else:
        categories = {-1: "all categories"}
    return TubeApResult(settings, categories, precision, recall, scores)


def _sort(ground_truth: GroundTruth, settings: TubeApSettings, collected: Mapping[str, np.ndarray]) -> _Table:
    """Sort the detections as published: ties of the score keep the order of the file, within a video and category."""
    category_ids = np.array(list(ground_truth.categories), np.int64)
    category = np.searchsorted(category_ids, collected["category"])
    place = category if settings.use_categories else np.zeros_like(category)
    video, score = collected["video"], collected["score"]
    order = np.lexsort((collected["order"], category, -score, video, place))
    order = order[collected["counts"][order]]
    rank = _rank_in_group(place[order], video[order])
    new_index = np.full(len(score), -1)
    new_index[order] = np.arange(len(order))
    detection = new_index[collected["pair_detection"]]
    kept = detection >= 0
    limit = settings.max_detections[-1]
    if limit is not None:
        kept[kept] = rank[detection[kept]] < limit
    candidates = Candidates(detection[kept], collected["pair_track"][kept], collected["pair_iou"][kept])
    score, area, forgiven = (collected[key][order] for key in ("score", "area", "forgiven"))
    return _Table(place[order], score, area, forgiven, rank, order, candidates)


def _rank_in_group(*keys: np.ndarray) -> np.ndarray:
    """Place 0, 1, ... of every row in its group of consecutive rows with equal keys."""
    is_first = np.zeros(len(keys[0]), bool)
    is_first[:1] = True
    for key in keys:
        is_first[1:] |= key[1:] != key[:-1]
    index = np.arange(len(is_first))
    return index - np.maximum.accumulate(np.where(is_first, index, 0))


def _ranges(settings: TubeApSettings) -> list[tuple[tuple[float, float], tuple[float, float] | None]]:
    """All pairs of area range and occlusion range, the latter running faster."""
    levels = [None] if settings.occlusion_ranges is None else list(settings.occlusion_ranges.values())
    return [(area, level) for area in settings.area_ranges.values() for level in levels]


def _ignored_tracks(ground_truth: GroundTruth, settings: TubeApSettings, areas: np.ndarray) -> np.ndarray:
    """(G, A) tracks that do not count in each range."""
    tracks = ground_truth.tracks
    is_crowd = np.array([track.is_crowd for track in tracks], bool)
    occlusion = np.array([np.nan if track.occlusion is None else track.occlusion for track in tracks])
    if settings.occlusion_ranges is not None and np.isnan(occlusion).any():
        number = np.count_nonzero(np.isnan(occlusion))
        text = "%s: %d annotations have no 'occlusion'; they count only where it does not matter"
        logger.warning(text, ground_truth.name, number)
    columns = []
    for (low, high), level in _ranges(settings):
        column = (areas < low) | (areas > high)
        if level is not None and level != (0.0, 1.0):
            column |= ~((level[0] <= occlusion) & (occlusion <= level[1]))
        columns.append(column | (is_crowd & settings.crowd_is_ignored))
    return np.stack(columns, axis=1) if columns else np.zeros((len(tracks), 0), bool)


class _Judge:
    """Tells which detections are true, false, or ignored in each range and at each threshold."""

    def __init__(self, ground_truth: GroundTruth, settings: TubeApSettings, table: _Table, ignored: np.ndarray) -> None:
        tracks = ground_truth.tracks
        is_crowd = np.array([track.is_crowd for track in tracks], bool)
        reusable = (is_crowd & settings.crowd_takes_many) | (not settings.one_to_one)
        candidates = table.candidates
        with_candidates, detection = np.unique(candidates.detection, return_inverse=True)
        choice = match_greedily(
            Candidates(detection, candidates.track, candidates.iou),
            table.rank[with_candidates],
            np.array(settings.iou_thresholds),
            ignored,
            reusable,
        )  # (D', A, S)
        # One row more, for index -1, stands for "no track".
        is_lost = np.array([settings.id_zero_is_lost and track.id == 0 for track in tracks] + [True], bool)
        is_ignored = np.concatenate((ignored, np.zeros((1, ignored.shape[1]), bool)))
        matched = ~is_lost[choice]
        self._choice = choice
        # An unmatched detection counts only in the ranges of its own area.
        areas = [area for area, _ in _ranges(settings)]
        outside = np.stack([(table.area < low) | (table.area > high) for low, high in areas], axis=1)
        self._outside = outside | table.forgiven[:, None]
        skipped = is_ignored[choice, np.arange(ignored.shape[1])[:, None]]
        skipped |= ~matched & self._outside[with_candidates][..., None]
        self._true, self._false = matched & ~skipped, ~matched & ~skipped
        self._row = np.full(len(table.score), -1)
        self._row[with_candidates] = np.arange(len(with_candidates))

    def __call__(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(n,) detections -> (n, A, S) true positives and (n, A, S) false positives."""
        true = np.zeros((len(rows), *self._true.shape[1:]), bool)
        false = np.repeat(~self._outside[rows][..., None], true.shape[2], axis=2)
        own = self._row[rows]
        judged = np.flatnonzero(own >= 0)
        true[judged], false[judged] = self._true[own[judged]], self._false[own[judged]]
        return true, false

    def choice(self, rows: np.ndarray) -> np.ndarray:
        """(n,) detections -> (n, A, S) position of the track that each takes, -1 for none."""
        taken = np.full((len(rows), *self._choice.shape[1:]), -1, self._choice.dtype)
        own = self._row[rows]
        taken[own >= 0] = self._choice[own[own >= 0]]
        return taken
