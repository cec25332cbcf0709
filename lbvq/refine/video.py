"""Refine the tubes of a whole video, a few frames at a time."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np

from lbvq.masks.tubes import MaskTubes

from .base import MaskRefiner, RefinedFrame

logger = logging.getLogger(__name__)


@dataclass
class RefineReport:
    """How many visible masks there were, how many the refiner replaced, and how many of these changed."""

    frames: int = 0
    masks: int = 0
    accepted: int = 0
    changed: int = 0

    def __add__(self, other: RefineReport) -> RefineReport:
        return RefineReport(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))

    def __str__(self) -> str:
        share = self.accepted / max(self.masks, 1)
        return (
            f"{self.accepted} of {self.masks} masks accepted ({share:.1%}), {self.changed} of them changed, "
            f"in {self.frames} frames"
        )


def refine_tubes(
    tubes: MaskTubes,
    frames: Sequence[np.ndarray],
    refiner: MaskRefiner,
    *,
    confident: Sequence[bool] | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[MaskTubes, RefineReport]:
    """Refine every mask of a video; memory is that of one window of frames (one frame for most refiners).

    Args:
        tubes: N objects in T frames.
        frames: T frames (H, W, 3) uint8 RGB of the size of the tubes; read once, in order, and only where needed.
        refiner: any `MaskRefiner`; one with `refine_window` gets `refiner.window` frames at once.
        confident: (N,) bool; the other objects keep their masks. Objects that share a mask are refined once.
        progress: called with the number of frames finished so far.

    Returns:
        The refined tubes and what happened.
    """
    if len(frames) != tubes.num_frames:
        raise ValueError(f"the tubes have {tubes.num_frames} frames, got {len(frames)} images")
    chosen = np.ones(len(tubes), dtype=bool) if confident is None else np.asarray(confident, dtype=bool)
    refined = MaskTubes(tubes.size, num_objects=len(tubes))
    report = RefineReport()
    window = getattr(refiner, "window", 1)
    for start in range(0, tubes.num_frames, window):
        stop = min(start + window, tubes.num_frames)
        for result, masks in _refine_window(tubes, range(start, stop), frames, refiner, chosen):
            report += RefineReport(
                frames=1,
                masks=int(masks[chosen].any(axis=(1, 2)).sum()),
                accepted=int(result.accepted.sum()),
                changed=int((result.masks != masks).any(axis=(1, 2)).sum()),
            )
            refined.append(result.masks[:, None])
        if progress is not None:
            progress(stop)
    return refined, report


def _refine_window(
    tubes: MaskTubes, times: range, frames: Sequence[np.ndarray], refiner: MaskRefiner, chosen: np.ndarray
) -> Iterator[tuple[RefinedFrame, np.ndarray]]:
    """Refine some frames; yields (refined, original masks (N, H, W)) of each."""
    masks = tubes.to_dense(times).numpy()  # (N, t, H, W)
    visible = np.flatnonzero(chosen & masks.any(axis=(1, 2, 3)))
    first = visible[_first_of_equal(masks[visible])]  # the object that stands for each visible one
    unique = np.unique(first)
    if len(unique) == 0:
        for t in range(len(times)):
            yield _unchanged(masks[:, t]), masks[:, t]
        return
    images = [np.asarray(frames[t]) for t in times]
    if hasattr(refiner, "refine_window"):
        results = refiner.refine_window(images, masks[unique])
    else:
        results = [_refine_frame(refiner, image, masks[unique, t]) for t, image in enumerate(images)]
    row = np.searchsorted(unique, first)
    for t, result in enumerate(results):
        whole = _unchanged(masks[:, t].copy())
        whole.masks[visible] = result.masks[row]
        whole.accepted[visible] = result.accepted[row]
        whole.ious[visible] = result.ious[row]
        yield whole, masks[:, t]


def _refine_frame(refiner: MaskRefiner, frame: np.ndarray, masks: np.ndarray) -> RefinedFrame:
    if hasattr(refiner, "refine_frame"):
        return refiner.refine_frame(frame, masks)
    answers = refiner.refine(frame, masks)
    return RefinedFrame(answers, (answers != masks).any(axis=(1, 2)), np.ones(len(masks)))


def _unchanged(masks: np.ndarray) -> RefinedFrame:
    return RefinedFrame(masks, np.zeros(len(masks), dtype=bool), np.ones(len(masks)))


def _first_of_equal(masks: np.ndarray) -> np.ndarray:
    """(N, ...) -> (N,) index of the first equal entry: one query selected under two classes shares its masks."""
    seen: dict[bytes, int] = {}
    return np.array([seen.setdefault(np.packbits(mask).tobytes(), n) for n, mask in enumerate(masks)], dtype=np.int64)


def refine_output(
    output: dict[str, Any], frames: Sequence[np.ndarray], refiner: MaskRefiner, score_threshold: float = 0.0
) -> dict[str, Any]:
    """Refine what a video model returns for one video; scores, labels and the kind of `pred_masks` stay as they are.

    Args:
        output: with `pred_masks` ((N, T, H, W) bool tensor or `MaskTubes`) and `pred_scores` (N).
        frames: T frames (H, W, 3) uint8 RGB of the size of the masks.
        refiner: any `MaskRefiner`.
        score_threshold: objects below it keep their masks.
    """
    masks = output["pred_masks"]
    tubes = masks if isinstance(masks, MaskTubes) else MaskTubes.from_dense(masks)
    confident = [float(score) >= score_threshold for score in output["pred_scores"]]
    refined, report = refine_tubes(tubes, frames, refiner, confident=confident)
    logger.info("refinement: %s", report)
    return {**output, "pred_masks": refined if isinstance(masks, MaskTubes) else refined.to_dense()}
