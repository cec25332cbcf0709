"""Predictions in the forms that other tools read: supervision, tables, COCO-video."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from lbvq.masks import rle
from lbvq.masks.shapes import boxes_of
from lbvq.masks.tubes import MaskTubes

CSV_COLUMNS = ("frame", "id", "class", "score", "x", "y", "width", "height", "area")


class Objects(Protocol):
    """What the objects of a frame and of a video have in common; see `FramePrediction` and `VideoPrediction`."""

    @property
    def scores(self) -> np.ndarray: ...
    @property
    def labels(self) -> np.ndarray: ...
    @property
    def ids(self) -> np.ndarray: ...
    @property
    def names(self) -> tuple[str, ...] | None: ...


class FrameObjects(Objects, Protocol):
    """With masks (N, H, W) bool."""

    @property
    def masks(self) -> np.ndarray: ...


class VideoObjects(Objects, Protocol):
    """With masks (N, T, H, W)."""

    @property
    def masks(self) -> MaskTubes: ...
    @property
    def category_ids(self) -> tuple[int, ...] | None: ...


def to_supervision(frame: FrameObjects, compact: bool) -> Any:
    """See `FramePrediction.to_supervision`; ImportError without the extra."""
    try:
        import supervision
    except ImportError as error:
        raise ImportError('this needs supervision: pip install "lbvq[supervision]"') from error
    shown = frame.masks.any(axis=(1, 2))
    masks = frame.masks[shown]
    boxes = boxes_of(masks)
    labels = frame.labels[shown]
    kept = supervision.CompactMask.from_dense(masks, boxes, masks.shape[1:]) if compact else masks
    return supervision.Detections(
        xyxy=boxes,
        mask=kept,
        confidence=frame.scores[shown],
        class_id=labels,
        tracker_id=frame.ids[shown],
        data={"class_name": np.array([class_name(label, frame.names) for label in labels], dtype=str)},
    )


def class_name(label: int, names: Sequence[str] | None) -> str:
    """Name of a class, or what stands for it."""
    return names[label] if names else f"class {label}"


def csv_text(video: VideoObjects) -> str:
    """A table with `CSV_COLUMNS`, frames counted from 0, lengths in pixels; see `VideoPrediction.to_csv`."""
    rows: list[list[Any]] = []
    for n in range(len(video.scores)):
        name = class_name(int(video.labels[n]), video.names)
        for t, mask in enumerate(video.masks.rles(n)):
            if mask is not None and rle.area(mask):
                place = [int(side) for side in rle.to_bbox(mask)]
                rows.append([t, int(video.ids[n]), name, float(video.scores[n]), *place, rle.area(mask)])
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    rows.sort(key=lambda row: (row[0], row[1]))
    writer.writerows(rows)
    return text.getvalue()


def coco_video(
    video: VideoObjects, video_id: int, video_name: str, file_names: Sequence[str] | None
) -> dict[str, list[dict[str, Any]]]:
    """See `VideoPrediction.to_coco_video`."""
    num_frames, (height, width) = video.masks.num_frames, video.masks.size
    if file_names is None:
        file_names = [f"{video_name}/{t:05d}.jpg" for t in range(num_frames)]
    if len(file_names) != num_frames:
        raise ValueError(f"the video has {num_frames} frames, and {len(file_names)} file names were given")
    size = {"height": height, "width": width}
    number = len(video.names) if video.names else int(video.labels.max(initial=-1)) + 1
    category_ids = video.category_ids or range(1, number + 1)
    images = [
        {"id": t + 1, "video_id": video_id, "frame_id": t, "file_name": name, **size}
        for t, name in enumerate(file_names)
    ]
    annotations: list[dict[str, Any]] = []
    for n in range(len(video.scores)):
        for t, mask in enumerate(video.masks.rles(n)):
            if mask is not None and rle.area(mask):
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": t + 1,
                        "video_id": video_id,
                        "category_id": category_ids[int(video.labels[n])],
                        "instance_id": int(video.ids[n]),
                        "score": float(video.scores[n]),
                        "bbox": rle.to_bbox(mask),
                        "area": rle.area(mask),
                        "segmentation": mask,
                        "iscrowd": 0,
                    }
                )
    return {
        "videos": [{"id": video_id, "name": video_name, **size}],
        "images": images,
        "annotations": annotations,
        "categories": [{"id": category_ids[k], "name": class_name(k, video.names)} for k in range(number)],
    }
