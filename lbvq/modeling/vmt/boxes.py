"""Boxes of objects in clips: from masks, and how far two tracks of boxes overlap."""

from __future__ import annotations

import torch
from torch import Tensor

TINY = 1e-6  # centre and size of the box of an object that a frame lacks, as published


def boxes_of_masks(masks: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Tight boxes of masks.

    Args:
        masks: (N, T, H, W) bool, padded.
        size_hw: (height, width) without padding.

    Returns:
        (N, T, 4) centre, width and height in [0, 1] of the size without padding; an empty mask has `TINY` everywhere.
    """
    has_row, has_column = masks.any(dim=3), masks.any(dim=2)
    top, bottom = _ends(has_row)
    left, right = _ends(has_column)
    height, width = size_hw
    box = torch.stack(
        ((left + right) / 2 / width, (top + bottom) / 2 / height, (right - left) / width, (bottom - top) / height),
        dim=-1,
    )
    return torch.where(has_row.any(dim=2)[..., None], box, torch.full_like(box, TINY))


def _ends(marked: Tensor) -> tuple[Tensor, Tensor]:
    """First and one after the last True of (..., length)."""
    length = marked.shape[-1]
    first = marked.int().argmax(dim=-1)
    last = marked.flip(-1).int().argmax(dim=-1)
    return first, length - last


def corners(boxes: Tensor) -> Tensor:
    """Centre, width, height -> left, top, right, bottom; (..., 4)."""
    centre, size = boxes.split(2, dim=-1)
    return torch.cat((centre - size / 2, centre + size / 2), dim=-1)


def giou(first: Tensor, second: Tensor) -> Tensor:
    """Generalised IoU of boxes (..., 4) as corners, pair by pair with broadcasting: (...) in [-1, 1]."""
    overlap = _area(torch.maximum(first[..., :2], second[..., :2]), torch.minimum(first[..., 2:], second[..., 2:]))
    around = _area(torch.minimum(first[..., :2], second[..., :2]), torch.maximum(first[..., 2:], second[..., 2:]))
    union = _area(first[..., :2], first[..., 2:]) + _area(second[..., :2], second[..., 2:]) - overlap
    return overlap / union - (around - union) / around


def _area(low: Tensor, high: Tensor) -> Tensor:
    return (high - low).clamp(min=0).prod(dim=-1)
