"""Mask refinement by a promptable segmenter: the published procedure, one frame at a time.

Each mask is cut into its connected components, every component becomes a prompt (published: its box), the answers are
joined, and the joined mask replaces the original only where the two agree well enough (LBVQ, "mask refinement"; IoU
above 0.9). Frames and masks come in, masks go out: nothing here knows a model, a data set or a video.

A refiner is a subclass of `PromptRefiner` with two methods, `set_frame` and `predict`, or any object with
`refine(frame, masks) -> masks`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np

PROMPT_KINDS = ("box", "box_point", "mask")


class MaskRefiner(Protocol):
    """What the evaluation loop, the demo and the tools ask of a refiner."""

    def refine(self, frame: np.ndarray, masks: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 RGB and (N, H, W) bool -> (N, H, W) bool."""
        ...


@dataclass(frozen=True)
class Prompts:
    """Prompts for M components of one frame, in pixels of that frame.

    boxes_xyxy: (M, 4) float64; right and bottom are exclusive.
    points_xy: (M, 2) float64 pixel centre well inside each component, or None when points are not wanted.
    masks: (M, H, W) bool component masks, or None when masks are not wanted.
    """

    boxes_xyxy: np.ndarray
    points_xy: np.ndarray | None = None
    masks: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.boxes_xyxy)

    def __getitem__(self, index: slice) -> Prompts:
        points = None if self.points_xy is None else self.points_xy[index]
        masks = None if self.masks is None else self.masks[index]
        return Prompts(self.boxes_xyxy[index], points, masks)


@dataclass(frozen=True)
class RefinedFrame:
    """Masks of one frame after refinement.

    masks: (N, H, W) bool.
    accepted: (N,) bool, whether the segmenter's answer replaced the mask; an empty mask is never replaced.
    ious: (N,) overlap of the answer with the original mask, in [0, 1]; 1 for an empty mask.
    """

    masks: np.ndarray
    accepted: np.ndarray
    ious: np.ndarray


class PromptRefiner(ABC):
    """The procedure around a promptable segmenter: components, prompts in batches, union, acceptance."""

    def __init__(
        self,
        *,
        iou_threshold: float = 0.9,
        prompt: str = "box",
        min_area: int = 0,
        connectivity: int = 4,
        batch_size: int = 64,
    ) -> None:
        """
        Args:
            iou_threshold: the answer is taken when its IoU with the original mask is above this.
            prompt: what the segmenter is shown of a component: "box" (as published), "box_point" (box and a point
                inside) or "mask" (box and the mask itself).
            min_area: components with fewer pixels are kept as they are and not prompted; 0 prompts all, as published.
            connectivity: 4 (as published) or 8 neighbours make a component.
            batch_size: prompts that go through the segmenter's decoder at once; bounds memory, not results.
        """
        if prompt not in PROMPT_KINDS:
            raise ValueError(f"prompt must be one of {', '.join(PROMPT_KINDS)}, got {prompt!r}; set REFINE.PROMPT")
        if connectivity not in (4, 8):
            raise ValueError(f"connectivity must be 4 or 8, got {connectivity}; set REFINE.CONNECTIVITY")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}; set REFINE.BATCH_SIZE")
        self.iou_threshold = iou_threshold
        self.prompt = prompt
        self.min_area = min_area
        self.connectivity = connectivity
        self.batch_size = batch_size

    @abstractmethod
    def set_frame(self, frame: np.ndarray) -> None:
        """Encode one (H, W, 3) uint8 RGB frame; the prompts that follow are about it."""

    @abstractmethod
    def predict(self, prompts: Prompts) -> np.ndarray:
        """One mask for each of at most `batch_size` prompts: (M, H, W) bool."""

    def refine(self, frame: np.ndarray, masks: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 RGB frame and (N, H, W) bool masks -> (N, H, W) bool masks."""
        return self.refine_frame(frame, masks).masks

    def refine_frame(self, frame: np.ndarray, masks: np.ndarray) -> RefinedFrame:
        """Like `refine`, and tells which answers were accepted. The frame is encoded once, or not at all when there
        is nothing to prompt."""
        _check_frame(frame, masks)
        answers = np.zeros_like(masks)
        boxes, components, owners = [], [], []
        for index, mask in enumerate(masks):
            for component in split_components(mask, self.connectivity):
                if component.area < self.min_area:
                    answers[index] |= component.paint(mask.shape)
                    continue
                boxes.append(component.box_xyxy)
                components.append(component)
                owners.append(index)
        if boxes:
            self.set_frame(frame)
        for start in range(0, len(boxes), self.batch_size):
            chosen = slice(start, start + self.batch_size)
            predicted = self.predict(self._make_prompts(boxes[chosen], components[chosen], masks.shape[1:]))
            for index, answer in zip(owners[chosen], predicted, strict=True):
                answers[index] |= answer
        ious = mask_ious(answers, masks)
        accepted = (ious > self.iou_threshold) & masks.any(axis=(1, 2))
        return RefinedFrame(np.where(accepted[:, None, None], answers, masks), accepted, ious)

    def _make_prompts(self, boxes: list, components: list[Component], size_hw: tuple[int, int]) -> Prompts:
        points = masks = None
        if self.prompt == "box_point":
            points = np.array([component.inner_point() for component in components])
        if self.prompt == "mask":
            masks = np.stack([component.paint(size_hw) for component in components])
        return Prompts(np.array(boxes, dtype=np.float64), points, masks)


@dataclass(frozen=True)
class Component:
    """One connected component of a mask: its crop, and where the crop lies."""

    left: int
    top: int
    area: int
    crop: np.ndarray  # (h, w) bool

    @property
    def box_xyxy(self) -> tuple[int, int, int, int]:
        """Right and bottom exclusive."""
        height, width = self.crop.shape
        return (self.left, self.top, self.left + width, self.top + height)

    def paint(self, size_hw: tuple[int, int]) -> np.ndarray:
        """(H, W) bool mask of the whole frame."""
        mask = np.zeros(size_hw, dtype=bool)
        left, top, right, bottom = self.box_xyxy
        mask[top:bottom, left:right] = self.crop
        return mask

    def inner_point(self) -> tuple[float, float]:
        """(x, y) of the pixel farthest from the border, so the point lies inside even for a ring."""
        distance = cv2.distanceTransform(np.pad(self.crop, 1).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        y, x = np.unravel_index(int(distance.argmax()), distance.shape)
        return (self.left + float(x) - 1, self.top + float(y) - 1)


def split_components(mask: np.ndarray, connectivity: int = 4) -> list[Component]:
    """(H, W) bool -> its connected components in the order of their first pixel, row by row; [] for an empty mask."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=connectivity)
    components = []
    for label in range(1, count):
        left, top, width, height, area = (int(value) for value in stats[label])
        crop = labels[top : top + height, left : left + width] == label
        components.append(Component(left, top, area, crop))
    return components


def mask_ious(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Overlap of (N, H, W) bool masks with (N, H, W), pair by pair: (N,) in [0, 1]; two empty masks give 1."""
    intersection = (first & second).sum(axis=(1, 2))
    union = (first | second).sum(axis=(1, 2))
    return (intersection + 1e-6) / (union + 1e-6)  # as published: the same constant on both sides


def _check_frame(frame: np.ndarray, masks: np.ndarray) -> None:
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
        raise ValueError(f"frame must be (H, W, 3) uint8 RGB, got {frame.shape} {frame.dtype}")
    if masks.dtype != bool or masks.ndim != 3 or masks.shape[1:] != frame.shape[:2]:
        raise ValueError(f"masks must be (N, {frame.shape[0]}, {frame.shape[1]}) bool, got {masks.shape} {masks.dtype}")
