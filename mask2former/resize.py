"""Bilinear resizing of feature maps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# PyTorch's CPU code resizes many channels in place of pixels (channels_last) only up to this height plus width.
FAST_CHANNELS_LAST_SIZE = 128


def resize_bilinear(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (B, C, H, W) to (B, C, *size), without aligned corners; the memory format stays.

    Beyond a certain size PyTorch leaves channels_last for the resize on the CPU, and what follows pays for mixed
    formats. One axis after the other is faster then; only rounding differs.
    """
    is_plain = torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing()
    is_plain = is_plain or x.device.type != "cpu" or x.shape[1] < 4 or sum(size) <= FAST_CHANNELS_LAST_SIZE
    if is_plain or x.numel() == 0 or not x.is_contiguous(memory_format=torch.channels_last):
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False)
    pixels = _resize_axis(_resize_axis(x.permute(0, 2, 3, 1), 1, size[0]), 2, size[1])
    return pixels.permute(0, 3, 1, 2)


def size_of(maps: Tensor) -> tuple[int, int]:
    """(height, width) of maps (..., H, W)."""
    height, width = maps.shape[-2:]
    return (height, width)


def _resize_axis(x: Tensor, axis: int, length: int) -> Tensor:
    """Resize one axis that is followed by at least one other."""
    old_length = x.shape[axis]
    if old_length == length:
        return x
    centres = torch.arange(length, dtype=torch.float32, device=x.device) + 0.5
    position = (centres * (old_length / length) - 0.5).clamp_(min=0)
    low = position.long()
    high = (low + 1).clamp_(max=old_length - 1)
    fraction = (position - low).to(x.dtype).view(-1, *[1] * (x.dim() - axis - 1))
    return torch.lerp(x.index_select(axis, low), x.index_select(axis, high), fraction)
