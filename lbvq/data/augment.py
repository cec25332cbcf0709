"""Random transforms that treat the frames of a clip alike.

A policy holds only its settings. For every clip a `ClipAugmenter` asks each policy to `draw` its parameters, and then
for the `transform` of each frame. A coherent policy draws once per clip, at its first frame; an incoherent one draws
for every frame. So nothing is left over from one clip to the next, and a clip that fails does not disturb others.

Random numbers come from numpy's global generator in the published order: policy by policy at the first frame, and only
the incoherent ones again at later frames.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from lbvq.data.transforms import (
    BlendTransform,
    CropTransform,
    HFlipTransform,
    NoOpTransform,
    PadTransform,
    ResizeTransform,
    RotationTransform,
    Transform,
    TransformList,
    VFlipTransform,
    resized_shape,
)

Size = tuple[int, int]  # (height, width) in pixels


@dataclass(frozen=True, kw_only=True)
class Policy:
    """A random transform. `coherent`: one draw serves all frames of a clip."""

    coherent: bool = True

    def draw(self, size_hw: Size, num_frames: int) -> Any:
        """Draw the parameters for the next `num_frames` frames, of which the first has size `size_hw`."""
        raise NotImplementedError

    def transform(self, drawn: Any, frame: int, image: np.ndarray) -> Transform:
        """Return the transform of frame number `frame` (0 for an incoherent policy); `image` is what it will act on."""
        raise NotImplementedError

    def apply(self, drawn: Any, frame: int, image: np.ndarray) -> tuple[np.ndarray, Transform]:
        """Return the transformed frame and the transform."""
        transform = self.transform(drawn, frame, image)
        return transform.apply_image(image), transform


class ClipAugmenter:
    """Applies policies to the frames of one clip, which must be given in order."""

    def __init__(self, policies: Sequence[Policy], num_frames: int) -> None:
        self._policies = list(policies)
        self._num_frames = num_frames
        self._next_frame = 0
        self._drawn: list[Any] = [None] * len(self._policies)

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, TransformList]:
        """(H, W, 3) uint8 frame -> the transformed frame and what was done to it."""
        if self._next_frame >= self._num_frames:
            raise RuntimeError(f"This clip has {self._num_frames} frames; use a new ClipAugmenter for the next clip.")
        transforms = []
        for index, policy in enumerate(self._policies):
            size_hw = (image.shape[0], image.shape[1])
            if not policy.coherent:
                image, transform = policy.apply(policy.draw(size_hw, 1), 0, image)
            else:
                if self._next_frame == 0:
                    self._drawn[index] = policy.draw(size_hw, self._num_frames)
                image, transform = policy.apply(self._drawn[index], self._next_frame, image)
            transforms.append(transform)
        self._next_frame += 1
        return image, TransformList(transforms)


@dataclass(frozen=True)
class RandomApply(Policy):
    """With probability `probability` apply all inner policies, otherwise none and draw nothing for them."""

    policies: tuple[Policy, ...]
    probability: float = 0.5

    def draw(self, size_hw: Size, num_frames: int) -> ClipAugmenter | None:
        applies = np.random.uniform(0, 1) < self.probability
        return ClipAugmenter(self.policies, num_frames) if applies else None

    def apply(self, drawn: ClipAugmenter | None, frame: int, image: np.ndarray) -> tuple[np.ndarray, Transform]:
        return drawn(image) if drawn is not None else (image, NoOpTransform())


@dataclass(frozen=True)
class ResizeShortestEdge(Policy):
    """Resize so that the short edge becomes one of `sizes` and the long edge does not exceed `max_size`.

    Attributes:
        sizes: pixels to choose from; with style "range" the smallest and the largest. 0 leaves the image as it is.
        max_size: pixels.
        style: "choice" or "range".
    """

    sizes: tuple[int, ...]
    max_size: float = float("inf")
    style: str = "range"

    def __post_init__(self) -> None:
        if self.style not in ("choice", "range"):
            raise ValueError(
                f"style must be 'choice' or 'range', got {self.style!r}; set INPUT.MIN_SIZE_TRAIN_SAMPLING."
            )
        if not self.sizes or (self.style == "range" and len(self.sizes) != 2):
            wanted = "a smallest and a largest size" if self.style == "range" else "at least one size"
            raise ValueError(f"Style {self.style!r} needs {wanted}, got {self.sizes}; set INPUT.MIN_SIZE_TRAIN.")

    def draw(self, size_hw: Size, num_frames: int) -> int:
        if self.style == "range":
            return int(np.random.randint(self.sizes[0], self.sizes[1] + 1))
        return int(np.random.choice(self.sizes))

    def transform(self, drawn: int, frame: int, image: np.ndarray) -> Transform:
        h, w = image.shape[:2]
        return ResizeTransform(h, w, *resized_shape(h, w, drawn, self.max_size)) if drawn else NoOpTransform()


@dataclass(frozen=True)
class RandomFlip(Policy):
    """Mirror with probability `probability`, left-right or (`vertical`) top-bottom."""

    probability: float = 0.5
    vertical: bool = False

    def draw(self, size_hw: Size, num_frames: int) -> bool:
        return bool(np.random.uniform(0, 1) < self.probability)

    def transform(self, drawn: bool, frame: int, image: np.ndarray) -> Transform:
        if not drawn:
            return NoOpTransform()
        return VFlipTransform(image.shape[0]) if self.vertical else HFlipTransform(image.shape[1])


@dataclass(frozen=True)
class RandomCrop(Policy):
    """Cut out a window that drifts steadily through the clip.

    Attributes:
        kind: "absolute" (size in pixels), "absolute_range" (height and width each drawn between the two pixel numbers),
            "relative" (size as shares of the image), "relative_range" (shares drawn between `size` and 1).
        size: (height, width), or for "absolute_range" (smallest, largest).
    """

    kind: str
    size: tuple[float, float]

    def __post_init__(self) -> None:
        kinds = ("absolute", "absolute_range", "relative", "relative_range")
        if self.kind not in kinds:
            raise ValueError(f"The type of a crop is one of {kinds}, got {self.kind!r}; set INPUT.CROP.TYPE.")
        if len(self.size) != 2 or (self.kind.startswith("relative") and not all(0 < share <= 1 for share in self.size)):
            raise ValueError(f"A crop of type {self.kind!r} cannot have the size {self.size}; set INPUT.CROP.SIZE.")

    def draw(self, size_hw: Size, num_frames: int) -> list[CropTransform]:
        h, w = size_hw
        crop_h, crop_w = self._crop_size(h, w)
        y_start = np.random.randint(h - crop_h + 1)
        x_start = np.random.randint(w - crop_w + 1)
        y_end = np.random.randint(y_start, h - crop_h + 1)
        x_end = np.random.randint(x_start, w - crop_w + 1)
        shares = np.sort(np.random.rand(num_frames))
        y = np.round(y_start * shares + y_end * (1 - shares)).astype(int)
        x = np.round(x_start * shares + x_end * (1 - shares)).astype(int)
        if np.random.uniform(0, 1) < 0.5:
            y, x = y[::-1], x[::-1]
        return [CropTransform(int(x0), int(y0), crop_w, crop_h) for y0, x0 in zip(y, x, strict=True)]

    def transform(self, drawn: list[CropTransform], frame: int, image: np.ndarray) -> Transform:
        return drawn[frame]

    def _crop_size(self, h: int, w: int) -> Size:
        if self.kind == "absolute":
            return min(int(self.size[0]), h), min(int(self.size[1]), w)
        if self.kind == "absolute_range":
            low, high = (int(side) for side in self.size)
            crop_h = int(np.random.randint(min(h, low), min(h, high) + 1))
            crop_w = int(np.random.randint(min(w, low), min(w, high) + 1))
            return crop_h, crop_w
        shares: np.ndarray = np.asarray(self.size, np.float32 if self.kind == "relative_range" else np.float64)
        if self.kind == "relative_range":
            shares = shares + np.random.rand(2) * (1 - shares)
        return int(h * shares[0] + 0.5), int(w * shares[1] + 0.5)


@dataclass(frozen=True)
class RandomRotation(Policy):
    """Turn steadily through the clip, between angles drawn from a range, about one centre.

    Attributes:
        angle: (lowest, highest) in degrees.
        center: ((x, y) lowest, (x, y) highest) as shares of the width and height; None: the middle.
        expand: enlarge the frame so that nothing is cut off.
        probability: of turning from the largest angle to the smallest instead of the other way round.
    """

    angle: tuple[float, float]
    center: tuple[tuple[float, float], tuple[float, float]] | None = None
    expand: bool = True
    probability: float = 0.5

    def draw(self, size_hw: Size, num_frames: int) -> tuple[np.ndarray, tuple[float, float] | None]:
        if not self.coherent:  # as published: single images draw one angle and no direction
            return np.random.uniform(*self.angle, 1), self._draw_center(size_hw)
        angles = np.random.uniform(*self.angle, num_frames)
        center = self._draw_center(size_hw)
        angles = np.sort(angles)
        return (angles[::-1] if np.random.uniform(0, 1) < self.probability else angles), center

    def transform(self, drawn: tuple[np.ndarray, Any], frame: int, image: np.ndarray) -> Transform:
        angles, center = drawn
        h, w = image.shape[:2]
        in_pixels = (w * center[0], h * center[1]) if center is not None else None
        if angles[frame] % 360 == 0:
            return NoOpTransform()
        return RotationTransform(h, w, float(angles[frame]), self.expand, in_pixels)

    def _draw_center(self, size_hw: Size) -> tuple[float, float] | None:
        if self.center is None:
            return None
        (x_low, y_low), (x_high, y_high) = self.center
        return float(np.random.uniform(x_low, x_high)), float(np.random.uniform(y_low, y_high))


@dataclass(frozen=True)
class ResizeScale(Policy):
    """Fit the image into (height, width) times a random scale, keeping its shape (large-scale jitter)."""

    min_scale: float
    max_scale: float
    height: int
    width: int

    def draw(self, size_hw: Size, num_frames: int) -> float:
        return float(np.random.uniform(self.min_scale, self.max_scale))

    def transform(self, drawn: float, frame: int, image: np.ndarray) -> Transform:
        h, w = image.shape[:2]
        ratio = min(self.height * drawn / h, self.width * drawn / w)
        new_h, new_w = (max(1, int(side)) for side in np.round(np.multiply((h, w), ratio)))
        return ResizeTransform(h, w, new_h, new_w)


@dataclass(frozen=True)
class FixedSizeCrop(Policy):
    """Cut a window of fixed size at a random place, and fill what lies beyond the image when `pad`.

    Attributes:
        size: (height, width) in pixels.
        pad_value: grey level of the filling; masks are filled with 0.
    """

    size: Size
    pad: bool = True
    pad_value: float = 128.0

    def draw(self, size_hw: Size, num_frames: int) -> float:
        return float(np.random.uniform(0.0, 1.0))

    def transform(self, drawn: float, frame: int, image: np.ndarray) -> Transform:
        size = np.array(self.size)
        room = np.maximum(np.array(image.shape[:2]) - size, 0)
        y0, x0 = (int(offset) for offset in np.round(room * drawn))
        crop = CropTransform(x0, y0, self.size[1], self.size[0])
        if not self.pad:
            return crop
        missing_h, missing_w = (int(gap) for gap in np.maximum(size - np.array(image.shape[:2]), 0))
        return TransformList([crop, PadTransform(0, 0, missing_w, missing_h, self.pad_value)])


@dataclass(frozen=True)
class RandomPhotometric(Policy):
    """Mix the image with black (brightness), its mean (contrast) or its grey version (saturation).

    The weight of the image is drawn from [low, high]; saturation takes the image to be RGB.
    """

    kind: str
    low: float = 0.9
    high: float = 1.1

    def __post_init__(self) -> None:
        if self.kind not in ("brightness", "contrast", "saturation"):
            raise ValueError(f"Expected brightness, contrast or saturation, got {self.kind!r}")

    def draw(self, size_hw: Size, num_frames: int) -> float:
        return float(np.random.uniform(self.low, self.high))

    def transform(self, drawn: float, frame: int, image: np.ndarray) -> Transform:
        if self.kind == "brightness":
            other: np.ndarray | float = 0.0
        elif self.kind == "contrast":
            other = float(image.mean())
        else:
            other = image.dot(np.array([0.299, 0.587, 0.114]))[:, :, None]
        return BlendTransform(other, 1 - drawn, drawn)


class ColorJitterTransform(Transform):
    """Brightness, contrast, saturation and hue as drawn by `RandomColorJitter`; masks and coordinates stay."""

    def __init__(self, steps: Sequence[tuple[str, float]], image_format: str) -> None:
        self.steps = list(steps)
        self.image_format = image_format

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        if image.dtype != np.uint8:
            raise ValueError(f"Colour jitter needs a uint8 image, got {image.dtype}")
        image = image[..., ::-1] if self.image_format == "RGB" else image  # the steps take BGR
        for kind, value in self.steps:
            if kind == "brightness":
                image = _to_uint8(image.astype(np.float32) + value)
            elif kind == "contrast":
                image = _to_uint8(image.astype(np.float32) * value)
            else:
                image = _change_hsv(image, kind, value)
        return image[..., ::-1] if self.image_format == "RGB" else image

    def apply_mask(self, mask: np.ndarray) -> np.ndarray:
        return mask


@dataclass(frozen=True)
class RandomColorJitter(Policy):
    """The colour augmentation of SSD; draws from Python's `random`, as published."""

    image_format: str = "RGB"

    def draw(self, size_hw: Size, num_frames: int) -> list[tuple[str, float]]:
        steps: list[tuple[str, float]] = []
        self._maybe(steps, "brightness", -32, 32)
        contrast_first = random.randrange(2)
        if contrast_first:
            self._maybe(steps, "contrast", 0.5, 1.5)
        self._maybe(steps, "saturation", 0.5, 1.5)
        if random.randrange(2):
            steps.append(("hue", random.randint(-18, 18)))
        if not contrast_first:
            self._maybe(steps, "contrast", 0.5, 1.5)
        return steps

    def transform(self, drawn: list[tuple[str, float]], frame: int, image: np.ndarray) -> Transform:
        return ColorJitterTransform(drawn, self.image_format)

    @staticmethod
    def _maybe(steps: list[tuple[str, float]], kind: str, low: float, high: float) -> None:
        if random.randrange(2):
            steps.append((kind, random.uniform(low, high)))


def _to_uint8(image: np.ndarray) -> np.ndarray:
    return np.clip(image, 0, 255).astype(np.uint8)


def _change_hsv(image: np.ndarray, kind: str, value: float) -> np.ndarray:
    """Scale the saturation or shift the hue (half degrees) of a BGR image."""
    hsv = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_BGR2HSV)
    if kind == "saturation":
        hsv[..., 1] = _to_uint8(hsv[..., 1].astype(np.float32) * value)
    else:
        hsv[..., 0] = (hsv[..., 0].astype(int) + int(value)) % 180
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
