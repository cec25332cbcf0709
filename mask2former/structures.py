"""Containers that travel between data, models and evaluation: images, objects, boxes and masks.

They offer the part of detectron2's interface that segmentation code uses (`.tensor`, `.image_size`, `len`, indexing,
`to`, `cat`, ...), so samples made by either library work with either model. Coordinates are pixels, x to the right
and y down; an image size is always (height, width).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from torch import Tensor

from .boxes import Boxes, BoxMode

__all__ = [
    "ABSENT",
    "BitMasks",
    "BoxMode",
    "Boxes",
    "ImageList",
    "Instances",
    "ShapeSpec",
    "known_shapes",
    "polygons_to_bitmask",
]


ABSENT = -1  # class and id of an object in a frame that does not show it


@dataclass
class ShapeSpec:
    """What is known of a feature map before it exists; None = unknown. `stride` is input pixels per feature cell."""

    channels: int | None = None
    height: int | None = None
    width: int | None = None
    stride: int | None = None


def known_shapes(shapes: Mapping[str, ShapeSpec]) -> dict[str, tuple[int, int]]:
    """Channels and stride of every feature map; ValueError when one is not known."""
    known = {}
    for name, shape in shapes.items():
        if shape.channels is None or shape.stride is None:
            raise ValueError(f"channels and stride of the feature map {name} must be known, got {shape}.")
        known[name] = (shape.channels, shape.stride)
    return known


class ImageList:
    """Images of different sizes in one tensor, each in the top left corner of its slot.

    Attributes:
        tensor: (N, H, W) or (N, C, H, W).
        image_sizes: N pairs (height, width) before padding.
    """

    def __init__(self, tensor: Tensor, image_sizes: Sequence[tuple[int, int]]) -> None:
        self.tensor = tensor
        self.image_sizes = [(int(height), int(width)) for height, width in image_sizes]

    @classmethod
    def from_tensors(cls, tensors: Sequence[Tensor], size_divisibility: int = 0, pad_value: float = 0.0) -> ImageList:
        """Pad right and bottom to the largest height and width, each rounded up to a multiple of the divisor.

        Args:
            tensors: at least one (C, H, W) or (H, W) tensor; everything but the last two sizes must agree.
            size_divisibility: 0 or 1 means no rounding.
            pad_value: written into the border.
        """
        if not tensors:
            raise ValueError("ImageList.from_tensors needs at least one image, got none.")
        if any(image.dim() < 2 or image.shape[:-2] != tensors[0].shape[:-2] for image in tensors):
            shapes = [tuple(image.shape) for image in tensors]
            raise ValueError(f"Images must be (C, H, W) or (H, W) and agree in all but height and width, got {shapes}.")
        sizes = [(image.shape[-2], image.shape[-1]) for image in tensors]
        divisor = max(int(size_divisibility), 1)
        height, width = (-(-max(side) // divisor) * divisor for side in zip(*sizes, strict=True))
        batch = tensors[0].new_full((len(tensors), *tensors[0].shape[:-2], height, width), pad_value)
        for slot, image, (rows, columns) in zip(batch, tensors, sizes, strict=True):
            slot[..., :rows, :columns].copy_(image)
        return cls(batch, sizes)

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    @property
    def padded_size(self) -> tuple[int, int]:
        """(height, width) of every image with padding."""
        height, width = self.tensor.shape[-2:]
        return (height, width)

    def __len__(self) -> int:
        return len(self.image_sizes)

    def __getitem__(self, index: int | slice) -> Tensor:
        """Return image `index` without its padding, a view; a slice is cropped to the size of its first image."""
        height, width = self.image_sizes[index][0] if isinstance(index, slice) else self.image_sizes[index]
        return self.tensor[index, ..., :height, :width]

    def to(self, *args: Any, **kwargs: Any) -> ImageList:
        return ImageList(self.tensor.to(*args, **kwargs), self.image_sizes)


class Instances:
    """Named fields of equal length that belong to the objects of one image.

    `Instances((480, 640), gt_classes=classes)` or `objects.gt_classes = classes` sets a field, `objects.gt_classes`
    reads it, and indexing with a mask, an index tensor, a slice or an int selects objects in every field at once.
    """

    def __init__(self, image_size: tuple[int, int], **fields: Any) -> None:
        self._image_size = image_size
        self._fields: dict[str, Any] = {}
        for name, value in fields.items():
            self.set(name, value)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width)"""
        return self._image_size

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            super().__setattr__(name, value)
        else:
            self.set(name, value)

    def __getattr__(self, name: str) -> Any:
        fields = self.__dict__.get("_fields", {})  # missing while a copy is being unpickled
        if name not in fields:
            raise AttributeError(f"Instances has no field {name!r}; its fields are {sorted(fields)}.")
        return fields[name]

    def set(self, name: str, value: Any) -> None:
        """Set field `name`; its length must be that of the other fields."""
        if name == "image_size":
            raise AttributeError("image_size is fixed when Instances is made and cannot be a field.")
        if self._fields and len(value) != len(self):
            raise ValueError(f"Field {name!r} has {len(value)} entries, but these Instances have {len(self)}.")
        self._fields[name] = value

    def has(self, name: str) -> bool:
        return name in self._fields

    def get(self, name: str) -> Any:
        return getattr(self, name)

    def remove(self, name: str) -> None:
        del self._fields[name]

    def get_fields(self) -> dict[str, Any]:
        """Return the dictionary of fields itself, not a copy."""
        return self._fields

    def to(self, *args: Any, **kwargs: Any) -> Instances:
        """Move every field that can be moved."""
        fields = {k: v.to(*args, **kwargs) if hasattr(v, "to") else v for k, v in self._fields.items()}
        return Instances(self._image_size, **fields)

    def __len__(self) -> int:
        for value in self._fields.values():
            return len(value)
        raise NotImplementedError("Instances without any field have no length.")

    __iter__ = None  # objects are selected by index or mask; iterating over fields would be ambiguous

    def __getitem__(self, index: int | slice | Tensor | np.ndarray | Sequence[int]) -> Instances:
        """Select objects; an int keeps the object axis, with length one."""
        if isinstance(index, (int, np.integer)):
            index = _int_to_slice(int(index), len(self))
        return Instances(self._image_size, **{name: _select(value, index) for name, value in self._fields.items()})

    def __repr__(self) -> str:
        count = len(self) if self._fields else 0
        return f"Instances({count} objects, image_size={self._image_size}, fields={sorted(self._fields)})"


class BitMasks:
    """N masks of one image as a bool tensor (N, H, W)."""

    def __init__(self, tensor: Tensor | np.ndarray) -> None:
        tensor = torch.as_tensor(tensor).to(torch.bool)
        if tensor.dim() != 3:
            raise ValueError(f"BitMasks must have shape (N, H, W), got {tuple(tensor.shape)}.")
        self.tensor = tensor

    @property
    def image_size(self) -> tuple[int, int]:
        height, width = self.tensor.shape[1:]
        return (height, width)

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    def nonempty(self) -> Tensor:
        """(N,) bool: the mask has a pixel."""
        return self.tensor.flatten(1).any(dim=1)

    def get_bounding_boxes(self) -> Boxes:
        """Return the smallest boxes that hold every pixel, right and bottom edge exclusive; zeros for an empty mask."""
        if self.tensor.numel() == 0:
            return Boxes(torch.zeros(len(self), 4, device=self.device))
        left, right = _first_and_last(self.tensor.any(dim=1))
        top, bottom = _first_and_last(self.tensor.any(dim=2))
        boxes = torch.stack([left, top, right, bottom], dim=1)
        return Boxes(boxes * self.nonempty()[:, None])

    def to(self, *args: Any, **kwargs: Any) -> BitMasks:
        return BitMasks(self.tensor.to(*args, **kwargs))

    def __len__(self) -> int:
        return len(self.tensor)

    def __iter__(self) -> Iterator[Tensor]:
        yield from self.tensor

    def __getitem__(self, index: int | slice | Tensor) -> BitMasks:
        return BitMasks(self.tensor[index][None] if isinstance(index, int) else self.tensor[index])

    def __repr__(self) -> str:
        return f"BitMasks({len(self)} masks, image_size={self.image_size})"


def polygons_to_bitmask(polygons: Sequence[Sequence[float]], height: int, width: int) -> np.ndarray:
    """Rasterise the union of polygons into a bool array (height, width); no polygon gives an empty mask."""
    if len(polygons) == 0:
        return np.zeros((height, width), dtype=bool)
    checked = [_as_polygon(points) for points in polygons]
    rle = mask_util.merge(mask_util.frPyObjects(checked, height, width))
    return mask_util.decode(rle).astype(bool)


def _as_polygon(points: Sequence[float]) -> np.ndarray:
    """Check a polygon before compiled code sees it."""
    polygon = np.asarray(points.cpu() if isinstance(points, Tensor) else points, dtype=np.float64)
    if polygon.ndim != 1 or len(polygon) % 2 or len(polygon) < 6:
        raise ValueError(f"A polygon is a flat list of at least 3 x, y pairs, got an array of shape {polygon.shape}.")
    if not np.isfinite(polygon).all():
        raise ValueError("A polygon has infinite or NaN coordinates.")
    return polygon


def _first_and_last(used: Tensor) -> tuple[Tensor, Tensor]:
    """(N, S) bool -> two (N,) float tensors: first True position, and last True position plus one."""
    hits = used.to(torch.uint8)  # argmax returns the first maximum
    first = hits.argmax(dim=1)
    last = used.shape[1] - hits.flip(1).argmax(dim=1)
    return first.float(), last.float()


def _int_to_slice(index: int, length: int) -> slice:
    """Keep the object axis of a single selected object."""
    if not -length <= index < length:
        raise IndexError(f"Object {index} does not exist: there are {length}.")
    index %= length
    return slice(index, index + 1)


def _select(values: Any, index: slice | Tensor | np.ndarray | Sequence[int]) -> Any:
    """Index anything; plain lists and tuples also understand masks and index tensors."""
    if not isinstance(values, (list, tuple)) or isinstance(index, slice):
        return values[index]
    if isinstance(index, (Tensor, np.ndarray)):
        is_mask = index.dtype in (torch.bool, np.bool_)
        index = index.tolist()
    else:
        is_mask = len(index) > 0 and all(isinstance(entry, bool) for entry in index)
    if is_mask and len(index) != len(values):
        raise IndexError(f"A mask of {len(index)} entries cannot select from {len(values)} objects.")
    return type(values)(compress(values, index) if is_mask else [values[position] for position in index])
