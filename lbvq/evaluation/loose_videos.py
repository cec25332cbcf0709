"""Predictions and targets that are no files: `VideoPrediction`, or arrays as torchmetrics takes them.

A video is a `VideoPrediction` or {"masks": (N, T, H, W) bool, "labels": (N,), "scores": (N,) of predictions,
"iscrowd": (N,) of targets, if any, "video_id": a number, if it matters}.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lbvq.inference.results import VideoPrediction

KEYS = frozenset(("masks", "labels", "scores", "iscrowd", "video_id"))


def as_documents(
    predictions: Any, targets: Any, first_id: int
) -> tuple[dict[str, list[dict[str, Any]]], list[dict[str, Any]]]:
    """Turn videos into the content of an annotation file and of a results file.

    Args:
        predictions, targets: one video each, or equally long lists of them in the same order.
        first_id: id of the first video that says none.

    Raises:
        ValueError: they do not belong together, or one of them is not in the form above.
    """
    predictions, targets = _as_list(predictions, "predictions"), _as_list(targets, "targets")
    if len(predictions) != len(targets):
        raise ValueError(f"there must be a target for every video, got {len(predictions)} and {len(targets)}")
    videos: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    categories: dict[int, str] = {}
    for index, pair in enumerate(zip(predictions, targets, strict=True)):
        found, wanted = (_read(*each) for each in zip(pair, (f"prediction {index}", f"target {index}"), strict=True))
        video_id = _video_id(pair, first_id + index, index)
        shape = wanted.masks.shape[1:]
        if found.masks.shape[1:] != shape:
            raise ValueError(f"video {index}: masks of predictions are {found.masks.shape[1:]} and of targets {shape}")
        num_frames, height, width = shape
        videos.append({"id": video_id, "length": num_frames, "height": height, "width": width})
        for entry, is_crowd in zip(wanted.to_json(video_id), _crowd(pair[1], wanted, f"target {index}"), strict=True):
            del entry["score"]
            annotations.append({**entry, "id": len(annotations) + 1, "iscrowd": int(is_crowd)})
        results += found.to_json(video_id)
        categories |= {**_categories(found), **_categories(wanted)}
    rows = [{"id": number, "name": name} for number, name in sorted(categories.items())]
    return {"videos": videos, "annotations": annotations, "categories": rows}, results


def _as_list(videos: Any, what: str) -> list[Any]:
    if isinstance(videos, (VideoPrediction, Mapping)):
        return [videos]
    if not isinstance(videos, Sequence) or isinstance(videos, (str, bytes)):
        raise TypeError(f"{what} must be a video or a list of videos, got {type(videos).__name__}")
    return list(videos)


def _read(video: Any, where: str) -> VideoPrediction:
    """Any form of a video as a `VideoPrediction`; a target has no scores."""
    if isinstance(video, VideoPrediction):
        return video
    if not isinstance(video, Mapping):
        raise TypeError(f"{where} must be a VideoPrediction or a dict, got {type(video).__name__}")
    needed = {"masks", "labels", "scores"} if where.startswith("prediction") else {"masks", "labels"}
    if not needed <= set(video) <= KEYS:
        raise ValueError(
            f"{where} must have {sorted(needed)} and may have {sorted(KEYS)}, got {sorted(map(str, video))}"
        )
    masks = video["masks"]
    if getattr(masks, "ndim", 0) != 4:
        raise ValueError(f"{where}: masks must be (N, T, H, W), got {getattr(masks, 'shape', type(masks).__name__)}")
    scores = video.get("scores")
    scores = np.ones(len(masks)) if scores is None else scores
    try:
        return VideoPrediction(masks, scores, video["labels"], masks.shape[2:])
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _crowd(target: Any, objects: VideoPrediction, where: str) -> np.ndarray:
    """Flags of the objects of a target, in their order."""
    if not isinstance(target, Mapping) or "iscrowd" not in target:
        return np.zeros(len(objects), bool)
    flags = np.asarray(target["iscrowd"])
    if flags.shape != (len(objects),):
        raise ValueError(f"{where}: iscrowd must be ({len(objects)},), got {flags.shape}")
    return flags[objects.ids - 1]  # ids are places in the arrays that the objects were made of


def _video_id(pair: tuple[Any, Any], default: int, index: int) -> int:
    ids = {int(video["video_id"]) for video in pair if isinstance(video, Mapping) and "video_id" in video}
    if len(ids) > 1:
        raise ValueError(f"video {index}: prediction and target are of different videos, {sorted(ids)}")
    return ids.pop() if ids else default


def _categories(video: VideoPrediction) -> dict[int, str]:
    """Category id -> name of the classes of a video; all of them where it knows them."""
    labels = range(len(video.names)) if video.names else sorted(set(video.labels.tolist()))
    ids = video.category_ids
    return {(ids[label] if ids else label + 1): video.names[label] if video.names else str(label) for label in labels}
