"""Region similarity J and contour accuracy F of DAVIS (Perazzi et al., CVPR 2016; Pont-Tuset et al., 2017).

J is the IoU of the masks of a frame. F is the harmonic mean of precision and recall of the contours, whose pixels may
be 0.8 % of the image's diagonal apart. Both are means over frames; a frame in which both masks are empty counts as 1.

As in the unsupervised track of DAVIS 2017 (Caelles et al., 2019) every object takes one of the 20 best predictions of
its video, no two the same, so that the mean of J and F is largest. Classes do not matter. All frames count.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from scipy.optimize import linear_sum_assignment

from lbvq.evaluation.annotations import Detection, GroundTruth, Track, Video
from lbvq.masks.rle import decode, to_rle

MAX_PREDICTIONS = 20  # of a video, those with the best scores
_TOLERANCE = 0.008  # of the diagonal


def score_davis(ground_truth: GroundTruth, detections: Sequence[Detection]) -> dict[str, Any]:
    """J and F of all objects that are not crowd, in percent.

    Args:
        ground_truth: with annotations.
        detections: what `read_predictions` returns.

    Returns:
        "J", "F", "J&F", and "J_recall", "F_recall" (share of objects' frames above 0.5, averaged), means over objects,
        nan without any; "objects": one row each, with "video_id", "annotation", "prediction" (place in the results
        file, None for none), "J" and "F"; "per_video": means of the objects of a video.
    """
    objects = []
    for video in ground_truth.videos.values():
        tracks = [each for each in ground_truth.tracks if each.video_id == video.id and not each.is_crowd]
        found = sorted((each for each in detections if each.video_id == video.id), key=lambda each: -each.score)
        if tracks:
            objects += _score_video(video, tracks, found[:MAX_PREDICTIONS])
    videos = dict.fromkeys(row["video_id"] for row in objects)
    per_video = [{"video_id": each} | _means([row for row in objects if row["video_id"] == each]) for each in videos]
    return {**_means(objects), "objects": objects, "per_video": per_video}


def _means(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    names = ("J", "F", "J_recall", "F_recall")
    means = {name: float(np.mean([row[name] for row in rows])) if rows else math.nan for name in names}
    return {"J&F": (means["J"] + means["F"]) / 2, **means}


def _score_video(video: Video, tracks: Sequence[Track], found: Sequence[Detection]) -> list[dict[str, Any]]:
    """One row per track; a track without a prediction is compared with empty masks."""
    size = video.size or (1, 1)
    num_frames = max(len(each.masks) for each in tracks)
    region = np.zeros((len(tracks), len(found) + len(tracks), num_frames))  # as many empty predictions at the end
    contour = np.zeros_like(region)
    for t in range(num_frames):
        wanted = _decode(tracks, t, size)
        masks = np.concatenate((_decode(found, t, size), np.zeros((1, *size), bool)))
        own = np.minimum(np.arange(region.shape[1]), len(found))
        region[..., t] = region_similarity(wanted, masks)[:, own]
        contour[..., t] = contour_accuracy(wanted, masks)[:, own]
    rows, columns = linear_sum_assignment(-(region + contour).mean(2))
    return [
        {
            "video_id": video.id,
            "annotation": tracks[row].id,
            "prediction": found[column].index if column < len(found) else None,
            "J": 100 * float(region[row, column].mean()),
            "F": 100 * float(contour[row, column].mean()),
            "J_recall": 100 * float((region[row, column] > 0.5).mean()),
            "F_recall": 100 * float((contour[row, column] > 0.5).mean()),
        }
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True)
    ]


def _decode(tubes: Sequence[Track | Detection], frame: int, size: tuple[int, int]) -> np.ndarray:
    """(N, H, W) masks of one frame; empty where a tube has none or ends before."""
    masks = np.zeros((len(tubes), *size), bool)
    for index, each in enumerate(tubes):
        text = each.masks[frame] if frame < len(each.masks) else None
        if text is not None:
            masks[index] = decode(to_rle({"size": list(size), "counts": json.loads(text)}, *size))
    return masks


def region_similarity(wanted: np.ndarray, found: np.ndarray) -> np.ndarray:
    """(g, H, W) and (p, H, W) masks -> (g, p) IoU, 1 where both are empty."""
    a, b = (each.reshape(len(each), -1).astype(np.float32) for each in (wanted, found))
    shared = (a @ b.T).round().astype(np.float64)
    union = wanted.sum((1, 2))[:, None] + found.sum((1, 2)) - shared
    return np.divide(shared, union, out=np.ones(shared.shape), where=union > 0)


def contour_accuracy(wanted: np.ndarray, found: np.ndarray) -> np.ndarray:
    """(g, H, W) and (p, H, W) masks -> (g, p) F measure of their contours, 1 where both have none."""
    radius = math.ceil(_TOLERANCE * math.hypot(*wanted.shape[1:]))
    a, b = contours(wanted), contours(found)
    wide_a, wide_b = _widen(a, radius), _widen(b, radius)
    flat = [each.reshape(len(each), -1).astype(np.float32) for each in (a, b, wide_a, wide_b)]
    num_a, num_b = a.sum((1, 2))[:, None], b.sum((1, 2))[None, :]
    shape = (len(a), len(b))
    recall = np.divide(flat[0] @ flat[3].T, num_a, out=np.ones(shape), where=np.broadcast_to(num_a > 0, shape))
    precision = np.divide(flat[2] @ flat[1].T, num_b, out=np.ones(shape), where=np.broadcast_to(num_b > 0, shape))
    total = precision + recall
    return np.divide(2 * precision * recall, total, out=np.zeros(shape), where=total > 0)


def contours(masks: np.ndarray) -> np.ndarray:
    """(N, H, W) pixels that differ from the next one to the right, below, or both; outside continues the border."""
    padded = np.pad(masks, ((0, 0), (0, 1), (0, 1)), mode="edge")
    here = padded[:, :-1, :-1]
    return (here ^ padded[:, :-1, 1:]) | (here ^ padded[:, 1:, :-1]) | (here ^ padded[:, 1:, 1:])


def _widen(masks: np.ndarray, radius: int) -> np.ndarray:
    """(N, H, W) all pixels within a distance."""
    step = np.arange(-radius, radius + 1)
    disk = (step[:, None] ** 2 + step**2 <= radius**2).astype(np.uint8)
    return np.array([cv2.dilate(each.astype(np.uint8), disk) for each in masks], bool).reshape(masks.shape)
