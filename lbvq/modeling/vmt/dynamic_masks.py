"""Masks by dynamic convolution: every object brings the weights of a small network that is run over all pixels.

Tian et al., "Conditional Convolutions for Instance Segmentation", ECCV 2020. Three 1 x 1 convolutions with 8 channels,
on a few shared channels and the offset of the pixel from the object's centre.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mask2former.transfer import tensor_like

WIDTH = 8  # channels between the three convolutions


def num_parameters(in_channels: int) -> int:
    """Length of the parameter vector of one object: 169 for 10 input channels, 177 for 11."""
    return in_channels * WIDTH + WIDTH * WIDTH + WIDTH + WIDTH + WIDTH + 1


def dynamic_masks(inputs: Tensor, parameters: Tensor) -> Tensor:
    """Run each object's network.

    Args:
        inputs: (T, n, in_channels, h, w).
        parameters: (n, num_parameters(in_channels)): the weights of the three layers, then their biases.

    Returns:
        (T, n, h, w) logits.
    """
    in_channels, size = inputs.shape[2], inputs.shape[-2:]
    lengths = [in_channels * WIDTH, WIDTH * WIDTH, WIDTH, WIDTH, WIDTH, 1]
    first, second, third, *biases = parameters.split(lengths, dim=1)
    x = inputs.flatten(3)  # (T, n, in_channels, h*w)
    x = (first.unflatten(1, (WIDTH, in_channels)) @ x + biases[0][..., None]).relu()
    x = (second.unflatten(1, (WIDTH, WIDTH)) @ x + biases[1][..., None]).relu()
    x = third[:, None] @ x + biases[2][..., None]
    return x[:, :, 0].unflatten(-1, size)


def relative_coordinates(centres: Tensor, size: tuple[int, int], stride: int) -> Tensor:
    """Offset from every cell to the centre of every object.

    Args:
        centres: (T, n, 2) x and y in input pixels.
        size: (h, w) of the map.
        stride: input pixels per cell.

    Returns:
        (T, n, 2, h, w) x and y in input pixels.
    """
    axes = [torch.arange(length, device=centres.device) * stride + stride // 2 for length in size]
    y, x = torch.meshgrid(*axes, indexing="ij")
    return centres[..., None, None] - torch.stack((x, y)).to(centres.dtype)


def double_size(logits: Tensor) -> Tensor:
    """Resize (T, n, h, w) to (T, n, 2h, 2w) such that value (i, j) lies at pixel (2i + 1, 2j + 1) of the result."""
    height, width = logits.shape[-2:]
    if logits.shape[1] == 0:
        return logits.new_zeros(*logits.shape[:2], 2 * height, 2 * width)
    x = F.pad(logits, (0, 1, 0, 1), mode="replicate")
    x = F.interpolate(x, size=(2 * height + 1, 2 * width + 1), mode="bilinear", align_corners=True)
    return F.pad(x, (1, 0, 1, 0), mode="replicate")[..., : 2 * height, : 2 * width]


def centres_in_pixels(references: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """References (..., 2 or 4) in [0, 1] -> (..., 2) x and y in input pixels; `size_hw` is without padding."""
    return references[..., :2] * tensor_like([size_hw[1], size_hw[0]], references)
