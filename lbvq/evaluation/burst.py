"""The official BURST evaluation (Athar et al., WACV 2023): HOTA per frame and AP of tracks, in its own file format.

Three tasks: "class_guided" (common), "exemplar_guided" (the first-frame object is given) and "open_world" (all objects
are one class, only what is found counts). `lbvq.evaluation.video_metrics` has the tube AP that the open-vocabulary
literature reports on BURST; the two are not comparable.

A category is judged in a frame only where its annotation is complete: predictions of a category that neither occurs
there nor is listed as absent from the video are left out, and so are unmatched ones of partly annotated categories.
Frames without any object in the ground truth do not count in HOTA.

    score_burst("all_classes.json", "predictions.json")["HOTA"]["all"]

The published code hands boxes instead of masks to HOTA (AP is computed on masks), and its IoU thresholds of AP are sums
of 0.05, which overlaps of exactly 0.85, 0.9 and 0.95 miss. Here HOTA is computed on masks and the thresholds are exact;
`reference=True` gives the published numbers, but for one case: it lets a track be found twice when the first prediction
has the id 0.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from lbvq.evaluation.annotations import GroundTruth
from lbvq.evaluation.burst_files import (
    BurstSequence,
    Key,
    burst_categories,
    read_burst,
    read_burst_predictions,
)
from lbvq.evaluation.hota import FrameOverlaps, HotaCounts, count_sequence
from lbvq.evaluation.overlap import TubeRuns, divide, tube_iou
from lbvq.evaluation.tube_ap import TubeAP
from lbvq.evaluation.tube_ap_settings import TubeApSettings
from lbvq.files.mask_file import MaskFile

BURST_TASKS = ("class_guided", "exemplar_guided", "open_world")
_OBJECT = 1  # the only category of the open world
_MIN_IOU = 0.5 - np.finfo(np.float64).eps
# as published: sums of 0.05, of which the last three are too large by more than the slack they get
_PUBLISHED_THRESHOLDS = tuple((np.arange(0.5, 0.96, 0.05) - np.finfo(np.float64).eps).tolist())
Table = dict[str, dict[str, float]]


def score_burst(
    ground_truth: str | Path, predictions: str | Path, task: str = "class_guided", *, reference: bool = False
) -> dict[str, Any]:
    """Evaluate as the benchmark does.

    Args:
        ground_truth: `all_classes.json` or its folder; the open world also wants `common_classes.json` and
            `uncommon_classes.json` beside it.
        predictions: file in the same format, with scores, or a results.json, see `read_burst_predictions`.
        task: one of BURST_TASKS.
        reference: reproduce the published code, see above.

    Returns:
        {"HOTA", "DetA", "AssA", "AP"} -> {"all", "common", "uncommon"} -> percent, and "per_class" -> name -> metric
        -> percent; in the open world {"OWTA", "DetRe", "AssA"} -> the same three. nan where there is no class.
    """
    if task not in BURST_TASKS:
        raise ValueError(f"unknown BURST task {task!r}; there are {', '.join(BURST_TASKS)}")
    path = Path(ground_truth)
    folder = path if path.is_dir() else path.parent
    path = path / "all_classes.json" if path.is_dir() else path
    if task == "open_world":
        files = {"all": path, "common": folder / "common_classes.json", "uncommon": folder / "uncommon_classes.json"}
        return _score_open_world(files, predictions, reference)
    truth = read_burst(path)
    names = burst_categories(path)
    predicted = read_burst_predictions(predictions, truth, list(names))
    return _score_classes(truth, predicted, names, task == "exemplar_guided", reference)


def _score_classes(
    truth: Mapping[Key, BurstSequence],
    predicted: Mapping[Key, BurstSequence],
    names: Mapping[int, str],
    keep_all: bool,
    reference: bool,
) -> dict[str, Any]:
    table = _tao_table()
    _drop_distractors(truth)
    _merge_categories([*truth.values(), *predicted.values()], table["tao_merged"])
    # A category may be merged into a distractor, which does not become a class by that.
    annotated = {track.category for sequence in truth.values() for track in sequence.tracks}
    classes = sorted(annotated - set(table["tao_distractor_ids"]))
    counts = {each: HotaCounts.zero() for each in classes}
    for key, sequence in truth.items():
        for each, own in _count_sequence(sequence, predicted.get(key), classes, keep_all, reference).items():
            counts[each] += own
    precision = _track_ap(truth, predicted, classes, reference)
    per_class = {each: counts[each].scores() | {"AP": precision[each]} for each in classes}
    common = set(table["tao_common_ids"])
    groups = {
        "all": classes,
        "common": [each for each in classes if each in common],
        "uncommon": [each for each in classes if each not in common],
    }
    result: dict[str, Any] = {
        metric: {group: _percent(per_class[each][metric] for each in members) for group, members in groups.items()}
        for metric in ("HOTA", "DetA", "AssA", "AP")
    }
    result["per_class"] = {
        names.get(each, str(each)): {metric: 100 * value for metric, value in per_class[each].items()}
        for each in classes
    }
    return result


def _score_open_world(files: Mapping[str, Path], predictions: str | Path, reference: bool) -> Table:
    """OWTA of all objects, those of common and those of uncommon classes, each in a file of its own."""
    result: Table = {"OWTA": {}, "DetRe": {}, "AssA": {}}
    for group, path in files.items():
        truth = read_burst(path)
        predicted = read_burst_predictions(predictions, truth, list(burst_categories(path)))
        _drop_distractors(truth)
        total = HotaCounts.zero()
        for key, sequence in truth.items():
            other = predicted.get(key)
            sequence.negative = frozenset()
            # as published: the list is about TAO's categories, one of which has the number of "object"
            sequence.partly = sequence.partly & {_OBJECT} if reference else frozenset()
            for each in (sequence, *([other] if other else [])):
                for track in each.tracks:
                    track.categories = [None if own is None else _OBJECT for own in track.categories]
            total = sum(_count_sequence(sequence, other, [_OBJECT], False, reference).values(), total)
        scores = total.scores()
        for metric, row in result.items():
            row[group] = 100 * scores[metric]
    return result


def _tao_table() -> dict[str, Any]:
    """Facts about TAO's categories, whose ids BURST uses."""
    from lbvq.data.categories import category_table  # importing the data package takes seconds

    return category_table("burst")


def _drop_distractors(truth: Mapping[Key, BurstSequence]) -> None:
    """TAO annotates some categories only because they look like others; the benchmark leaves them out."""
    distractors = set(_tao_table()["tao_distractor_ids"])
    for sequence in truth.values():
        sequence.tracks = [track for track in sequence.tracks if track.category not in distractors]


def _percent(values: Iterable[float]) -> float:
    values = list(values)
    return 100 * sum(values) / len(values) if values else float("nan")


def _merge_categories(sequences: Iterable[BurstSequence], merged: Sequence[tuple[int, Sequence[int]]]) -> None:
    """Give objects of a category that TAO has merged into another the other category."""
    parent = {child: category for category, children in merged for child in children}
    for sequence in sequences:
        for track in sequence.tracks:
            track.category = parent.get(track.category, track.category)
            track.categories = [None if each is None else parent.get(each, each) for each in track.categories]


def _count_sequence(
    truth: BurstSequence, predicted: BurstSequence | None, classes: Iterable[int], keep_all: bool, boxes: bool
) -> dict[int, HotaCounts]:
    """HOTA of every class that occurs in one sequence; with `keep_all` no prediction is left out."""
    tracks = truth.tracks
    others = predicted.tracks if predicted else []
    present = _classes_per_frame(truth), _classes_per_frame(predicted)
    iou = _frame_overlaps(truth, predicted, present, boxes)
    counts = {}
    for category in classes:
        frames = []
        for frame in present[0]:
            rows, columns = (np.array(side[frame].get(category, []), np.int64) for side in present)
            overlap = iou.get((frame, category), np.zeros((len(rows), len(columns))))
            if not keep_all:
                kept = _judged_predictions(truth, category, overlap)
                columns, overlap = columns[kept], overlap[:, kept]
            frames.append(FrameOverlaps(rows, columns, overlap))
        if any(len(frame.tracks) or len(frame.predictions) for frame in frames):
            counts[category] = count_sequence(frames, len(tracks), len(others))
    return counts


def _classes_per_frame(sequence: BurstSequence | None) -> dict[int, dict[int, list[int]]]:
    """Frame -> category -> positions of its tracks in that frame, in the order of the file."""
    found: dict[int, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    if sequence is None:
        return found
    place = {track.id: index for index, track in enumerate(sequence.tracks)}
    for frame, names in sorted(sequence.shown.items()):
        for index in (place[name] for name in names if name in place):
            category = sequence.tracks[index].categories[frame]
            if category is not None:
                found[frame][category].append(index)
    return found


def _frame_overlaps(
    truth: BurstSequence,
    predicted: BurstSequence | None,
    present: tuple[Mapping[int, Mapping[int, list[int]]], Mapping[int, Mapping[int, list[int]]]],
    boxes: bool,
) -> dict[tuple[int, int], np.ndarray]:
    """(frame, category) -> IoU (g, p) of its ground truth and its predictions, where there are both."""
    blocks = [
        (frame, category, rows, present[1][frame][category])
        for frame, by_category in list(present[0].items())
        for category, rows in by_category.items()
        if frame in present[1] and category in present[1][frame]
    ]
    if not blocks or predicted is None:
        return {}
    left = [(truth.tracks[row], frame) for frame, _, rows, _ in blocks for row in rows]
    right = [(predicted.tracks[column], frame) for frame, _, _, columns in blocks for column in columns]
    wanted, found = (
        TubeRuns([[track.masks[frame]] for track, frame in side], truth.size, _never) for side in (left, right)
    )
    pairs, first = [], np.zeros(2, np.int64)
    for _, _, rows, columns in blocks:
        pairs.append(np.argwhere(np.ones((len(rows), len(columns)))) + first)
        first += (len(rows), len(columns))
    pairs_in_all = np.concatenate(pairs)
    values = _box_iou(wanted, found, pairs_in_all) if boxes else tube_iou(wanted, found, pairs_in_all)[1]
    cuts = np.cumsum([len(each) for each in pairs])[:-1]
    return {
        (frame, category): part.reshape(len(rows), len(columns))
        for (frame, category, rows, columns), part in zip(blocks, np.split(values, cuts), strict=True)
    }


def _never(index: int, frame: int) -> str:
    return f"mask {index}"  # the readers have checked every mask


def _box_iou(left: TubeRuns, right: TubeRuns, pairs: np.ndarray) -> np.ndarray:
    """(P,) IoU of the boxes around pairs of masks."""
    a, b = left.boxes()[pairs[:, 0]], right.boxes()[pairs[:, 1]]
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    intersection = np.maximum(sides, 0).prod(1)
    area_a, area_b = (np.prod(each[:, 2:] - each[:, :2], axis=1) for each in (a, b))
    return divide(intersection, area_a + area_b - intersection)


def _judged_predictions(truth: BurstSequence, category: int, iou: np.ndarray) -> np.ndarray:
    """(p,) whether each prediction of a frame counts: it is matched, or the annotation is complete."""
    num_tracks, num_predictions = iou.shape
    if category not in truth.partly and (num_tracks > 0 or category in truth.negative):
        return np.ones(num_predictions, bool)
    kept = np.zeros(num_predictions, bool)
    if iou.size:
        good = np.where(iou >= _MIN_IOU, iou, 0)
        rows, columns = linear_sum_assignment(-good)
        kept[columns[good[rows, columns] > 0]] = True
    return kept


def _track_ap(
    truth: Mapping[Key, BurstSequence],
    predicted: Mapping[Key, BurstSequence],
    classes: Sequence[int],
    reference: bool,
) -> dict[int, float]:
    """Category -> AP of whole tracks in [0, 1], mean over IoU 0.5 to 0.95."""
    annotations, results = _TrackDocument("ground truth"), _TrackDocument("predictions")
    videos = []
    order = sorted(truth, key="-".join)  # as published: ties of the score are broken in the order of these names
    for video_id, key in enumerate(order, start=1):
        sequence = truth[key]
        videos.append(
            {
                "id": video_id,
                "height": sequence.size[0],
                "width": sequence.size[1],
                "length": len(sequence.frames),
                "neg_category_ids": sequence.negative,
                "not_exhaustive_category_ids": sequence.partly,
            }
        )
        annotations.add(video_id, sequence, classes)
        if key in predicted:
            results.add(video_id, predicted[key], classes)
    document = {
        "videos": videos,
        "categories": [{"id": each} for each in classes],
        "annotations": annotations.entries,
    }
    settings = TubeApSettings(max_detections=(None,), federated=True)
    if reference:
        settings = replace(settings, iou_thresholds=_PUBLISHED_THRESHOLDS)
    ap = TubeAP(GroundTruth(annotations.file(document)), settings)
    result = ap.update(results.file(results.entries)).compute()
    return {each: result.average(category_ids=[each]) for each in classes}


class _TrackDocument:
    """Tracks of BURST sequences as annotations or results in YouTube-VIS form."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._texts: list[bytes] = []
        self._sizes: list[bytes] = []
        self.entries: list[dict[str, Any]] = []

    def add(self, video_id: int, sequence: BurstSequence, classes: Sequence[int]) -> None:
        """Append the tracks of a sequence whose class counts."""
        size = b"[%d, %d]" % sequence.size
        for track in sequence.tracks:
            if track.category not in classes:
                continue
            masks = []
            for text in track.masks:
                masks.append(None if text is None else range(len(self._texts), len(self._texts) + 1))
                if text is not None:
                    self._texts.append(text)
                    self._sizes.append(size)
            entry = {"video_id": video_id, "category_id": track.category, "score": track.score, "segmentations": masks}
            self.entries.append({"id": len(self.entries) + 1, **entry})

    def file(self, document: Any) -> MaskFile:
        """What the readers of annotations and results take."""
        return MaskFile(self._name, document, self._texts, self._sizes)
