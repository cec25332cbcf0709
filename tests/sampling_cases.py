"""Random inputs of the sampling of deformable attention, for the tests of its kernels."""

from __future__ import annotations

import torch
from torch import Tensor

THREE = [(2, 3), (4, 6), (8, 12)]  # sizes of maps


def random_case(sizes, *, batch=1, num_heads=1, head_dim=4, num_points=1, num_queries=21, spread=4.0):
    """Values, sizes, points (many of them outside of their map) and weights."""
    generator = torch.Generator().manual_seed(0)
    layout = (num_heads, len(sizes), num_points, num_queries)
    value = torch.randn(batch, sum(h * w for h, w in sizes), num_heads, head_dim, generator=generator)
    middle = torch.tensor([[(w - 1) / 2 for _, w in sizes], [(h - 1) / 2 for h, _ in sizes]])
    points = torch.randn(batch, 2, *layout, generator=generator) * spread + middle[:, None, :, None, None]
    return value, sizes, points, torch.rand(batch, *layout, generator=generator)


def sums_and_gradients(kernel, case) -> list[Tensor]:
    value, sizes, points, weights = case
    inputs = [tensor.clone().requires_grad_() for tensor in (value, points, weights)]
    out = kernel(inputs[0], sizes, inputs[1], inputs[2])
    grad = torch.linspace(-1, 1, out.numel()).view(out.shape).to(value.dtype).to(out.dtype)
    return [out, *torch.autograd.grad(out, inputs, grad)]
