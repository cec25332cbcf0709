"""Boxes, and the ways their four numbers can be meant."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from enum import IntEnum
from typing import Any

import numpy as np
import torch
from torch import Tensor


class BoxMode(IntEnum):
    """How the four numbers of a box are meant, in pixels; the values are detectron2's."""

    XYXY_ABS = 0
    XYWH_ABS = 1

    @staticmethod
    def convert(box: Any, from_mode: BoxMode, to_mode: BoxMode) -> Any:
        """Convert one box (list or tuple) or many (array or tensor (N, 4)); the type of `box` is kept.

        As published: a list of floats goes through float32, so 0.1 comes back as 0.10000000149.
        """
        if from_mode == to_mode:
            return box
        from_mode, to_mode = BoxMode(from_mode), BoxMode(to_mode)
        converter = _CONVERTERS[from_mode, to_mode]
        if isinstance(box, (list, tuple)):
            boxes = torch.tensor(box)[None]
        else:
            boxes = torch.from_numpy(np.asarray(box)).clone() if isinstance(box, np.ndarray) else box.clone()
        if boxes.shape[-1] != 4:
            raise ValueError(f"A box has 4 numbers, got {boxes.shape[-1]}.")
        result = converter(boxes)
        if isinstance(box, (list, tuple)):
            return type(box)(result.flatten().tolist())
        return result.numpy() if isinstance(box, np.ndarray) else result


class Boxes:
    """N boxes as a float32 tensor (N, 4): x0, y0, x1, y1."""

    def __init__(self, tensor: Tensor | np.ndarray | Sequence[Sequence[float]]) -> None:
        tensor = torch.as_tensor(tensor, dtype=torch.float32)
        if tensor.numel() == 0:
            tensor = tensor.reshape(-1, 4)
        if tensor.dim() != 2 or tensor.shape[1] != 4:
            raise ValueError(f"Boxes must have shape (N, 4), got {tuple(tensor.shape)}.")
        self.tensor = tensor

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    def area(self) -> Tensor:
        """(N,) width times height."""
        return (self.tensor[:, 2] - self.tensor[:, 0]) * (self.tensor[:, 3] - self.tensor[:, 1])

    def clip(self, box_size: tuple[int, int]) -> None:
        """Limit the coordinates to an image of (height, width), in place."""
        if not torch.isfinite(self.tensor).all():
            raise ValueError("Boxes contain infinite or NaN coordinates.")
        height, width = box_size
        limit = self.tensor.new_tensor([width, height, width, height])
        self.tensor = torch.minimum(self.tensor.clamp(min=0), limit)

    def nonempty(self, threshold: float = 0.0) -> Tensor:
        """(N,) bool: both sides are longer than `threshold`."""
        sides = self.tensor[:, 2:] - self.tensor[:, :2]
        return (sides > threshold).all(dim=1)

    def clone(self) -> Boxes:
        return Boxes(self.tensor.clone())

    def to(self, device: torch.device | str) -> Boxes:
        return Boxes(self.tensor.to(device=device))

    def __len__(self) -> int:
        return len(self.tensor)

    def __iter__(self) -> Iterator[Tensor]:
        yield from self.tensor

    def __getitem__(self, index: int | slice | Tensor) -> Boxes:
        return Boxes(self.tensor[index].view(1, -1) if isinstance(index, int) else self.tensor[index])

    @classmethod
    def cat(cls, parts: Sequence[Boxes]) -> Boxes:
        return cls(torch.cat([part.tensor for part in parts]) if parts else torch.zeros(0, 4))

    def __repr__(self) -> str:
        return f"Boxes({self.tensor})"


def _corner_from_size(boxes: Tensor) -> Tensor:
    boxes[..., 2:4] += boxes[..., 0:2]
    return boxes


def _size_from_corner(boxes: Tensor) -> Tensor:
    boxes[..., 2:4] -= boxes[..., 0:2]
    return boxes


_CONVERTERS: dict[tuple[BoxMode, BoxMode], Callable[[Tensor], Tensor]] = {
    (BoxMode.XYWH_ABS, BoxMode.XYXY_ABS): _corner_from_size,
    (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS): _size_from_corner,
}
