"""Number the objects of per-frame masks, from whatever network they come.

    for detections in lbvq.track(model(frame) for frame in frames):     # supervision.Detections with masks
        detections.tracker_id                                           # the same number as long as it is the object

Objects of neighbouring frames are the same where their masks overlap, matched so that the overlap is greatest in sum;
an object may be hidden for a while. Nothing but the last mask of each object is kept.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lbvq.inference.results import FramePrediction
from lbvq.masks import rle
from lbvq.masks.overlap_matching import LEAST_OVERLAP, LONGEST_GAP, match_by_overlap


def track(frames: Iterable[Any], times: Iterable[float] | None = None, **settings: Any) -> Iterator[Any]:
    """Give the objects of each frame identities that they keep.

    Args:
        frames: for each frame a `supervision.Detections` with masks, a `FramePrediction`, or {"masks": (N, H, W) bool,
            perhaps "labels": (N,)} with whatever else.
        times: of the frames, rising; by default they are numbered.
        settings: see `MaskTracker`.

    Yields:
        What came, with identities: a copy with `tracker_id`, with `ids`, or with a key "ids", as soon as it comes.
    """
    tracker = MaskTracker(**settings)
    moments = None if times is None else iter(times)
    for number, frame in enumerate(frames):
        time = None
        if moments is not None:
            time = next(moments, None)
            if time is None:
                raise ValueError(f"there are fewer times than frames, {number}")
        masks, labels = _masks_and_labels(frame, number)
        yield _numbered(frame, tracker.step(masks, labels, time))


@dataclass
class _Known:
    """An object: its last mask, class and time, and its number."""

    mask: rle.Rle
    label: int
    time: float
    id: int


class MaskTracker:
    """Numbers objects frame after frame, from 1; a number is never used again.

    Attributes:
        next_id: of the next new object.
    """

    def __init__(
        self, *, least_overlap: float = LEAST_OVERLAP, longest_gap: float | None = None, within_class: bool = True
    ) -> None:
        """Args:
        least_overlap: intersection over union of an object's masks in two frames, in (0, 1].
        longest_gap: how long an object may be hidden, in the unit of the times; by default two frames.
        within_class: an object never changes its class; False looks at masks only.
        """
        if not 0 < least_overlap <= 1:
            raise ValueError(f"least_overlap must be in (0, 1], got {least_overlap}")
        if longest_gap is not None and not longest_gap >= 0:
            raise ValueError(f"longest_gap must be at least 0, got {longest_gap}")
        self.least_overlap, self.within_class = least_overlap, within_class
        self.longest_gap = LONGEST_GAP + 1 if longest_gap is None else longest_gap  # from the last mask on
        self.next_id = 1
        self._known: list[_Known] = []
        self._time = -math.inf
        self._size: tuple[int, ...] | None = None

    def step(self, masks: Any, labels: Any = None, time: float | None = None) -> np.ndarray:
        """Number the objects of the next frame.

        Args:
            masks: (N, H, W) bool.
            labels: (N,) class indices; None: all of one class.
            time: later than that of the frame before; None: one later.

        Returns:
            (N,) int64; 0 for an empty mask, which is no object.
        """
        masks = np.asarray(masks)
        labels = np.zeros(len(masks), np.int64) if labels is None else np.asarray(labels)
        self._check(masks, labels)
        self._time = self._later(time)
        self._known = [known for known in self._known if self._time - known.time <= self.longest_gap]

        rows = np.flatnonzero(masks.any(axis=(1, 2)))
        encoded = rle.encode_many(masks[rows])
        same = np.array(
            [[not self.within_class or known.label == labels[row] for row in rows] for known in self._known]
        )
        ids = np.zeros(len(masks), np.int64)
        for old, new in match_by_overlap([known.mask for known in self._known], encoded, same, self.least_overlap):
            known = self._known[old]
            known.mask, known.time, ids[rows[new]] = encoded[new], self._time, known.id
            known.label = int(labels[rows[new]])
        for row, mask in zip(rows, encoded, strict=True):
            if ids[row] == 0:
                self._known.append(_Known(mask, int(labels[row]), self._time, self.next_id))
                ids[row] = self.next_id
                self.next_id += 1
        return ids

    def _check(self, masks: np.ndarray, labels: np.ndarray) -> None:
        if masks.ndim != 3 or (masks.dtype != np.bool_ and len(masks)):
            raise ValueError(f"masks must be (N, H, W) bool, got {masks.shape} {masks.dtype}")
        if labels.shape != (len(masks),):
            raise ValueError(f"there must be one label for each of {len(masks)} masks, got {labels.shape}")
        if len(masks) and self._size not in (None, masks.shape[1:]):
            raise ValueError(f"masks must have the size of the frames before, {self._size}, got {masks.shape[1:]}")
        self._size = masks.shape[1:] if len(masks) else self._size

    def _later(self, time: float | None) -> float:
        """The time of this frame: given, or one later than the frame before."""
        now = time if time is not None else (0.0 if self._time == -math.inf else self._time + 1)
        if not (math.isfinite(now) and now > self._time):
            raise ValueError(f"times must be finite and rise, got {now} after {self._time}")
        return float(now)


def _masks_and_labels(frame: Any, number: int) -> tuple[np.ndarray, Any]:
    if isinstance(frame, Mapping):
        if "masks" not in frame:
            raise ValueError(f"frame {number} lacks 'masks'; it has {sorted(map(str, frame))}")
        return np.asarray(frame["masks"]), frame.get("labels")
    if isinstance(frame, FramePrediction):
        return frame.masks, frame.labels
    if not (hasattr(frame, "mask") and hasattr(frame, "tracker_id")):
        raise TypeError(f"frame {number} must be supervision.Detections, FramePrediction or a dict, got {type(frame)}")
    if frame.mask is None:
        if len(frame):
            raise ValueError(f"frame {number} has {len(frame)} detections without masks")
        return np.zeros((0, 1, 1), bool), None
    return np.asarray(frame.mask), frame.class_id


def _numbered(frame: Any, ids: np.ndarray) -> Any:
    if isinstance(frame, Mapping):
        return {**frame, "ids": ids}
    return dataclasses.replace(frame, **{"ids" if isinstance(frame, FramePrediction) else "tracker_id": ids})
