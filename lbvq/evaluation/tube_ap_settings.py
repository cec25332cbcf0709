"""What the published tube AP evaluators differ in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

AREA_RANGES = {"all": (0.0, 1e10), "small": (0.0, 128.0**2), "medium": (128.0**2, 256.0**2), "large": (256.0**2, 1e10)}
OCCLUSION_RANGES = {"all": (0.0, 1.0), "light": (0.0, 0.25), "medium": (0.25, 0.5), "heavy": (0.5, 1.0)}


@dataclass(frozen=True)
class TubeApSettings:
    """What the published evaluators differ in; the defaults are YouTube-VIS.

    Attributes:
        iou_thresholds: ascending, in (0, 1].
        recall_thresholds: ascending, in [0, 1].
        area_ranges: name -> (low, high) mean area in pixels, both included.
        occlusion_ranges: name -> (low, high) occlusion score, both included; None does not look at occlusion.
        max_detections: limits per video and category; None as the only limit keeps all.
        boundary_ratio: compare boundaries of that share of the image diagonal too, and keep the smaller IoU.
        use_categories: False treats all categories as one.
        crowd_is_ignored: tracks marked as crowd do not count (a detection on them neither).
        crowd_takes_many: any number of detections may be matched to one crowd track.
        one_to_one: a track can be matched once.
        areas: "file" takes areas of tracks from the file where it has them, "masks" measures them, "none" counts
            everything as area 0.
        max_per_video: limit per video over all categories, those the ground truth does not list included, applied
            first; None keeps all.
        empty_is_absent: detections without a pixel do not exist, as in LVIS; else they are false.
        federated: as in LVIS: a category counts in a video only if it occurs there or is listed as absent, and where
            its annotation is known to be incomplete unmatched detections are forgiven.
        different_lengths: accept detections and tracks of other lengths than their video and drop the extra frames.
        id_zero_is_lost: a detection matched to the track with id 0 counts as unmatched.
    """

    iou_thresholds: Sequence[float] = tuple(np.linspace(0.5, 0.95, 10).tolist())
    recall_thresholds: Sequence[float] = tuple(np.linspace(0.0, 1.0, 101).tolist())
    area_ranges: Mapping[str, tuple[float, float]] = field(default_factory=lambda: dict(AREA_RANGES))
    occlusion_ranges: Mapping[str, tuple[float, float]] | None = None
    max_detections: Sequence[int | None] = (1, 10, 100)
    boundary_ratio: float | None = None
    use_categories: bool = True
    crowd_is_ignored: bool = True
    crowd_takes_many: bool = True
    one_to_one: bool = True
    areas: str = "file"
    max_per_video: int | None = None
    federated: bool = False
    empty_is_absent: bool = False
    different_lengths: bool = False
    id_zero_is_lost: bool = False

    def __post_init__(self) -> None:
        if self.areas not in ("file", "masks", "none"):
            raise ValueError(f"areas must be 'file', 'masks' or 'none', got {self.areas!r}")
        limits = [limit for limit in self.max_detections if limit is not None]
        is_mixed = len(limits) < len(self.max_detections) and list(self.max_detections) != [None]
        if is_mixed or not len(self.max_detections) or sorted(limits) != limits or any(limit < 1 for limit in limits):
            raise ValueError(
                f"max_detections must be ascending positive numbers or (None,), got {list(self.max_detections)}"
            )
        if not len(self.iou_thresholds) or list(self.iou_thresholds) != sorted(self.iou_thresholds):
            raise ValueError(f"iou_thresholds must be ascending, got {list(self.iou_thresholds)}")
