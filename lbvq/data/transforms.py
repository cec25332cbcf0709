"""Geometric and colour transforms with fixed parameters, applied alike to images, masks, boxes and polygons.

Images are (H, W, 3) uint8, masks (H, W) uint8. Coordinates are continuous: pixel edges lie at integers, so a flip maps
x to W - x. Random choices are made elsewhere (`augment.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

SMALLEST_POLYGON = 3  # corners


class Transform:
    """A transform that changes nothing; the base of all others."""

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) or (H, W) -> the transformed image."""
        return image

    def apply_mask(self, mask: np.ndarray) -> np.ndarray:
        """(H, W) uint8 -> the transformed mask."""
        return self.apply_image(mask)

    def map_index(self, index: np.ndarray, axis: int) -> np.ndarray | None:
        """Follow where each row (axis 0) or column (axis 1) of a mask comes from.

        Args:
            index: (H,) or (W,) int32, for each row or column of the mask before this transform where it came from.
            axis: 0 or 1.

        Returns:
            The same for the mask after it, -1 for rows and columns that are new and empty; None when rows and columns
            do not stay together.
        """
        return index

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """(N, 2) x, y -> the same points in the transformed image."""
        return coords

    def apply_polygon(self, polygon: np.ndarray) -> np.ndarray:
        """(N, 2) corners -> corners; an empty array when nothing of the polygon is left."""
        return self.apply_coords(polygon)

    def apply_box(self, boxes: np.ndarray) -> np.ndarray:
        """(N, 4) x0, y0, x1, y1 -> the smallest boxes around the transformed corners."""
        boxes = np.asarray(boxes).reshape(-1, 4)
        corners = self.apply_coords(boxes[:, [0, 1, 2, 1, 0, 3, 2, 3]].reshape(-1, 2)).reshape(-1, 4, 2)
        return np.concatenate([corners.min(1), corners.max(1)], axis=1)


class NoOpTransform(Transform):
    """What a policy returns when it decides to do nothing."""


@dataclass(frozen=True)
class ResizeTransform(Transform):
    """Stretch (h, w) to (new_h, new_w): antialiased bilinear for uint8 images, nearest for masks."""

    h: int
    w: int
    new_h: int
    new_w: int

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        self._check(image)
        if image.dtype == np.uint8:
            return self._resize_uint8(image, Image.Resampling.BILINEAR)
        # as published: other types are resized without antialiasing
        channels_first = torch.from_numpy(np.ascontiguousarray(np.atleast_3d(image))).permute(2, 0, 1)[None]
        resized = F.interpolate(channels_first, (self.new_h, self.new_w), mode="bilinear", align_corners=False)
        return resized[0].permute(1, 2, 0).numpy().reshape(self.new_h, self.new_w, *image.shape[2:])

    def apply_mask(self, mask: np.ndarray) -> np.ndarray:
        self._check(mask)
        return self._resize_uint8(mask, Image.Resampling.NEAREST)

    def map_index(self, index: np.ndarray, axis: int) -> np.ndarray:
        size = (1, self.new_h) if axis == 0 else (self.new_w, 1)  # Pillow's order: width, height
        line = Image.fromarray(index[:, None] if axis == 0 else index[None, :])
        return np.asarray(line.resize(size, Image.Resampling.NEAREST)).reshape(-1)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        scaled = coords * np.array([self.new_w / self.w, self.new_h / self.h])
        return scaled.astype(coords.dtype)  # as published: whole numbers stay whole, cut off towards zero

    def _check(self, image: np.ndarray) -> None:
        if image.shape[:2] != (self.h, self.w):
            raise ValueError(
                f"Expected an image of {self.h} x {self.w} pixels, got {image.shape[0]} x {image.shape[1]}."
            )

    def _resize_uint8(self, image: np.ndarray, resample: Image.Resampling) -> np.ndarray:
        if (self.h, self.w) == (self.new_h, self.new_w):
            return image.copy()
        return np.asarray(Image.fromarray(image).resize((self.new_w, self.new_h), resample))


@dataclass(frozen=True)
class HFlipTransform(Transform):
    """Mirror left and right."""

    width: int

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        return np.flip(image, axis=1)

    def map_index(self, index: np.ndarray, axis: int) -> np.ndarray:
        return index[::-1] if axis == 1 else index

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return np.stack([self.width - coords[:, 0], coords[:, 1]], axis=1)


@dataclass(frozen=True)
class VFlipTransform(Transform):
    """Mirror top and bottom."""

    height: int

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        return np.flip(image, axis=0)

    def map_index(self, index: np.ndarray, axis: int) -> np.ndarray:
        return index[::-1] if axis == 0 else index

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return np.stack([coords[:, 0], self.height - coords[:, 1]], axis=1)


@dataclass(frozen=True)
class CropTransform(Transform):
    """Keep the window of w x h pixels whose top left corner is (x0, y0); it may reach beyond the image."""

    x0: int
    y0: int
    w: int
    h: int

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        return image[self.y0 : self.y0 + self.h, self.x0 : self.x0 + self.w]

    def map_index(self, index: np.ndarray, axis: int) -> np.ndarray:
        return index[self.y0 : self.y0 + self.h] if axis == 0 else index[self.x0 : self.x0 + self.w]

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return coords - np.array([self.x0, self.y0])

    def apply_polygon(self, polygon: np.ndarray) -> np.ndarray:
        """Cut the polygon at the window, so that a later rotation does not bring hidden parts back."""
        return clip_polygon(self.apply_coords(polygon), self.w, self.h)


@dataclass(frozen=True)
class PadTransform(Transform):
    """Add x0 columns left, y0 rows above, x1 columns right and y1 rows below."""

    x0: int
    y0: int
    x1: int
    y1: int
    pad_value: float = 0.0
    mask_pad_value: int = 0

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        return self._pad(image, self.pad_value)

    def apply_mask(self, mask: np.ndarray) -> np.ndarray:
        return self._pad(mask, self.mask_pad_value)

    def map_index(self, index: np.ndarray, axis: int) -> np.ndarray | None:
        border = (self.y0, self.y1) if axis == 0 else (self.x0, self.x1)
        return None if self.mask_pad_value else np.pad(index, border, constant_values=-1)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return coords + np.array([self.x0, self.y0])

    def _pad(self, image: np.ndarray, value: float) -> np.ndarray:
        border = [(self.y0, self.y1), (self.x0, self.x1)] + [(0, 0)] * (image.ndim - 2)
        return np.pad(image, border, constant_values=value)


@dataclass(frozen=True)
class RotationTransform(Transform):
    """Turn by `angle` degrees, counter-clockwise, about `center` (x, y; None: the middle).

    With `expand` the result is large enough to hold every corner, otherwise it has the size of the input.
    """

    h: int
    w: int
    angle: float
    expand: bool = True
    center: tuple[float, float] | None = None

    @cached_property
    def size_hw(self) -> tuple[int, int]:
        """Size of the result."""
        if not self.expand:
            return self.h, self.w
        cosine, sine = self._abs_cos_sin
        bound_h, bound_w = np.rint([self.h * cosine + self.w * sine, self.h * sine + self.w * cosine]).astype(int)
        return int(bound_h), int(bound_w)

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        return self._warp(image, cv2.INTER_LINEAR)

    def apply_mask(self, mask: np.ndarray) -> np.ndarray:
        return self._warp(mask, cv2.INTER_NEAREST)

    def map_index(self, index: np.ndarray, axis: int) -> None:
        return None

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        coords = np.asarray(coords, np.float64)
        if len(coords) == 0 or self._is_identity:
            return coords
        return cv2.transform(coords[:, None, :], self._matrix(0.0))[:, 0, :]

    @property
    def _is_identity(self) -> bool:
        return self.angle % 360 == 0

    @cached_property
    def _abs_cos_sin(self) -> tuple[float, float]:
        radians = np.deg2rad(self.angle)
        return abs(np.cos(radians)), abs(np.sin(radians))

    def _matrix(self, offset: float) -> np.ndarray:
        """(2, 3) affine matrix; `offset` is -0.5 for pixel centres (images) and 0 for coordinates."""
        center = np.array(self.center if self.center is not None else (self.w / 2, self.h / 2))
        matrix = cv2.getRotationMatrix2D(tuple(center + offset), self.angle, 1)
        if self.expand:
            middle = np.array([self.w / 2, self.h / 2])
            moved = cv2.transform((middle + offset)[None, None, :], matrix)[0, 0]
            new_middle = np.array([self.size_hw[1] / 2, self.size_hw[0] / 2])
            matrix[:, 2] += new_middle - (moved - offset)
        return matrix

    def _warp(self, image: np.ndarray, interpolation: int) -> np.ndarray:
        if len(image) == 0 or self._is_identity:
            return image
        if image.shape[:2] != (self.h, self.w):
            raise ValueError(
                f"Expected an image of {self.h} x {self.w} pixels, got {image.shape[0]} x {image.shape[1]}."
            )
        return cv2.warpAffine(image, self._matrix(-0.5), self.size_hw[::-1], flags=interpolation)


@dataclass(frozen=True)
class BlendTransform(Transform):
    """src_weight * src_image + dst_weight * image; masks and coordinates stay."""

    src_image: np.ndarray | float
    src_weight: float
    dst_weight: float

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        blended = self.src_weight * self.src_image + self.dst_weight * image.astype(np.float32)
        if image.dtype == np.uint8:
            return np.clip(blended, 0, 255).astype(np.uint8)
        return blended.astype(image.dtype)

    def apply_mask(self, mask: np.ndarray) -> np.ndarray:
        return mask


class TransformList(Transform):
    """Several transforms, one after the other."""

    def __init__(self, transforms: Sequence[Transform]) -> None:
        self.transforms: list[Transform] = [
            part
            for each in transforms
            for part in (each.transforms if isinstance(each, TransformList) else [each])
            if not isinstance(part, NoOpTransform)
        ]
        self._maps: dict[tuple[int, int], tuple[np.ndarray, np.ndarray, int]] = {}  # of the masks of one frame

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        for transform in self.transforms:
            image = transform.apply_image(image)
        return image

    def apply_mask(self, mask: np.ndarray) -> np.ndarray:
        """(H, W) bool or uint8 -> the transformed mask.

        As long as rows and columns stay together only their numbers are transformed, and the mask is read once.
        """
        rows, columns, num_done = self._index_maps(mask.shape[0], mask.shape[1])
        if num_done:
            mask = mask[rows][:, columns]
            mask[rows < 0] = 0
            mask[:, columns < 0] = 0
        for transform in self.transforms[num_done:]:
            mask = transform.apply_mask(mask.view(np.uint8) if mask.dtype == bool else mask)
        return mask

    def _index_maps(self, height: int, width: int) -> tuple[np.ndarray, np.ndarray, int]:
        """Follow rows and columns as far as possible; return where they come from and after how many transforms."""
        if (height, width) not in self._maps:
            rows: np.ndarray = np.arange(height, dtype=np.int32)
            columns: np.ndarray = np.arange(width, dtype=np.int32)
            num_done = 0
            for transform in self.transforms:
                new_rows, new_columns = transform.map_index(rows, 0), transform.map_index(columns, 1)
                if new_rows is None or new_columns is None:
                    break
                rows, columns = new_rows, new_columns
                num_done += 1
            self._maps[height, width] = rows, columns, num_done
        return self._maps[height, width]

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        for transform in self.transforms:
            coords = transform.apply_coords(coords)
        return coords

    def apply_polygon(self, polygon: np.ndarray) -> np.ndarray:
        for transform in self.transforms:
            if len(polygon) == 0:
                break
            polygon = transform.apply_polygon(polygon)
        return polygon

    def apply_box(self, boxes: np.ndarray) -> np.ndarray:
        for transform in self.transforms:
            boxes = transform.apply_box(boxes)
        return boxes


def resized_shape(h: int, w: int, short_edge: float, max_size: float) -> tuple[int, int]:
    """Size after the short edge became `short_edge`, or less where the long edge would exceed `max_size`.

    As published: rounded to the nearest integer, halves up (torchvision truncates and gets other sizes).
    """
    scale = short_edge / min(h, w)
    new_h, new_w = (float(short_edge), scale * w) if h < w else (scale * h, float(short_edge))
    if max(new_h, new_w) > max_size:
        shrink = max_size / max(new_h, new_w)
        new_h, new_w = new_h * shrink, new_w * shrink
    return int(new_h + 0.5), int(new_w + 0.5)


def clip_polygon(polygon: np.ndarray, width: float, height: float) -> np.ndarray:
    """Cut a polygon at the rectangle [0, width] x [0, height] (Sutherland and Hodgman's algorithm).

    Args:
        polygon: (N, 2) corners.

    Returns:
        (M, 2) corners, (0, 2) when nothing is left. Parts that fall apart stay joined by edges on the border, which
        enclose no area.
    """
    polygon = np.asarray(polygon, np.float64)
    for axis, limit, keeps_below in ((0, 0.0, False), (0, width, True), (1, 0.0, False), (1, height, True)):
        if len(polygon) == 0:
            break
        values = polygon[:, axis]
        inside = values <= limit if keeps_below else values >= limit
        if inside.all():
            continue
        kept: list[np.ndarray] = []
        for k, corner in enumerate(polygon):
            previous = polygon[k - 1]
            if inside[k] != inside[k - 1]:
                share = (limit - previous[axis]) / (corner[axis] - previous[axis])
                crossing = previous + share * (corner - previous)
                crossing[axis] = limit
                kept.append(crossing)
            if inside[k]:
                kept.append(corner)
        polygon = np.array(kept).reshape(-1, 2)
    if len(polygon):
        polygon = polygon[np.any(polygon != np.roll(polygon, 1, axis=0), axis=1)]  # corners on the border come twice
    x, y = polygon[:, 0], polygon[:, 1]
    area = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
    return polygon if len(polygon) >= SMALLEST_POLYGON and area > 0 else np.zeros((0, 2))
