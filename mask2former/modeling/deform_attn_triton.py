"""The sampling of deformable attention as one kernel for GPUs; see `deform_attn` for what it computes.

What it must move and compute at least, per image with S cells and Q queries, M heads of D channels, L maps, P points:

    bytes       values S*M*D and sums Q*M*D in the type of the values, points and weights 3 * Q*M*L*P in float32
    operations  8 * Q*M*L*P*D: four neighbours, a product and a sum each

ResNet-50 at 360 x 640 (384 x 640 padded, S = Q = 5040, M = 8, D = 32, L = 3, P = 4): 16.1 MB and 0.12 GFLOP per layer
and frame in float32, 11.0 MB with bfloat16 values. The gradients move 27.1 MB and take 0.25 GFLOP. `grid_sample` writes
and reads the 12 samples of every (query, head) before it sums them, 62 MB each way. Whatever the type, four neighbours
per point are gathered through the caches (248 MB in float32), which is what bounds the kernel, not the memory.

A program sums one block of queries of one head: the D channels of a neighbour lie next to each other, so that a gather
reads whole cache lines, and points and weights are read once, in order. Sums are as precise as the points, that is
float32 for bfloat16 values. Gradients of the values are added atomically, in an order that may differ between runs.

Nothing but `deform_attn` imports this file, and only where the kernel is used, because it imports Triton.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .deform_attn_operator import empty_sums, make_operator

MAX_LEVELS = 4  # sizes are arguments of the kernel: no copy to the device, no compilation for other frame sizes
MAX_HEAD_DIM = 256
TILE = 2048  # numbers that a program sums at once: queries of a block times channels, rounded up to a power of two
MAX_QUERIES = 64  # of a block

_SIZES = ["num_cells", "num_queries", *(f"{side}{level}" for level in range(MAX_LEVELS) for side in "hw")]


@triton.jit
def _split(point, size):
    """Cell before each point, and how far the point is beyond it; cells far outside stand for all beyond."""
    near = tl.where(point > -2, point, -2.0)  # also where the point is not a number, which no integer could hold
    near = tl.where(near < size + 1, near, size + 1.0)
    cell = tl.floor(near)
    return cell.to(tl.int32), near - cell + (point - point)  # not a number remains one


@triton.jit
def _neighbour(row, column, below: tl.constexpr, right: tl.constexpr, height, width):
    """Number within its map of a neighbour of every point, and whether it is inside."""
    inside = (row + below >= 0) & (row + below < height) & (column + right >= 0) & (column + right < width)
    return (row + below) * width + column + right, inside


@triton.jit
def _size(level: tl.constexpr, h0, w0, h1, w1, h2, w2, h3, w3):
    height, width = h0, w0
    if level == 1:
        height, width = h1, w1
    if level == 2:
        height, width = h2, w2
    if level == 3:
        height, width = h3, w3
    return height, width


@triton.jit(do_not_specialize=_SIZES)
def _sum_points(
    value,
    points,
    weights,
    out,
    num_cells,
    num_queries,
    h0,
    w0,
    h1,
    w1,
    h2,
    w2,
    h3,
    w3,
    M: tl.constexpr,
    L: tl.constexpr,
    P: tl.constexpr,
    D: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    blocks = tl.cdiv(num_queries, BLOCK_Q)
    image_head = (tl.program_id(0) // blocks).to(tl.int64)  # neighbours in time read the same values
    image, head = image_head // M, image_head % M
    query = (tl.program_id(0) % blocks) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    channel = tl.arange(0, BLOCK_D)
    is_query, is_channel = query < num_queries, channel < D
    x_row = points + (image * 2 * M + head) * L * P * num_queries + query
    y_row = x_row + M * L * P * num_queries
    weight_row = weights + image_head * L * P * num_queries + query
    level_value = value + (image * num_cells * M + head) * D
    total = tl.zeros((BLOCK_Q, BLOCK_D), dtype=weights.dtype.element_ty)
    for level in tl.static_range(L):
        height, width = _size(level, h0, w0, h1, w1, h2, w2, h3, w3)
        for point in range(P):
            skip = (level * P + point) * num_queries
            weight = tl.load(weight_row + skip, mask=is_query, other=0.0)
            column, x_part = _split(tl.load(x_row + skip, mask=is_query, other=0.0), width)
            row, y_part = _split(tl.load(y_row + skip, mask=is_query, other=0.0), height)
            for corner in tl.static_range(4):
                cell, inside = _neighbour(row, column, corner // 2, corner % 2, height, width)
                share_x = x_part if corner % 2 == 1 else 1 - x_part
                share_y = y_part if corner // 2 == 1 else 1 - y_part
                places = level_value + cell.to(tl.int64)[:, None] * (M * D) + channel[None, :]
                read = (is_query & inside)[:, None] & is_channel[None, :]
                values = tl.load(places, mask=read, other=0.0).to(total.dtype)
                total += (weight * share_x * share_y)[:, None] * values
        level_value += height * width * (M * D)
    places = out + ((image * num_queries + query[:, None]) * M + head) * D + channel[None, :]
    tl.store(places, total.to(out.dtype.element_ty), mask=is_query[:, None] & is_channel[None, :])


@triton.jit(do_not_specialize=_SIZES)
def _spread_gradient(
    value,
    points,
    weights,
    grad_out,
    grad_value,
    grad_points,
    grad_weights,
    num_cells,
    num_queries,
    h0,
    w0,
    h1,
    w1,
    h2,
    w2,
    h3,
    w3,
    M: tl.constexpr,
    L: tl.constexpr,
    P: tl.constexpr,
    D: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    blocks = tl.cdiv(num_queries, BLOCK_Q)
    image_head = (tl.program_id(0) // blocks).to(tl.int64)
    image, head = image_head // M, image_head % M
    query = (tl.program_id(0) % blocks) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    channel = tl.arange(0, BLOCK_D)
    is_query, is_channel = query < num_queries, channel < D
    x_start = (image * 2 * M + head) * L * P * num_queries
    y_start = x_start + M * L * P * num_queries
    weight_start = image_head * L * P * num_queries
    level_start = (image * num_cells * M + head) * D
    places = grad_out + ((image * num_queries + query[:, None]) * M + head) * D + channel[None, :]
    grad = tl.load(places, mask=is_query[:, None] & is_channel[None, :], other=0.0).to(weights.dtype.element_ty)
    for level in tl.static_range(L):
        height, width = _size(level, h0, w0, h1, w1, h2, w2, h3, w3)
        for point in range(P):
            skip = (level * P + point) * num_queries + query
            weight = tl.load(weights + weight_start + skip, mask=is_query, other=0.0)
            column, x_part = _split(tl.load(points + x_start + skip, mask=is_query, other=0.0), width)
            row, y_part = _split(tl.load(points + y_start + skip, mask=is_query, other=0.0), height)
            grad_x, grad_y, grad_weight = weight * 0, weight * 0, weight * 0
            for corner in tl.static_range(4):
                cell, inside = _neighbour(row, column, corner // 2, corner % 2, height, width)
                share_x = x_part if corner % 2 == 1 else 1 - x_part
                share_y = y_part if corner // 2 == 1 else 1 - y_part
                offsets = level_start + cell.to(tl.int64)[:, None] * (M * D) + channel[None, :]
                read = (is_query & inside)[:, None] & is_channel[None, :]
                values = tl.load(value + offsets, mask=read, other=0.0).to(grad.dtype)
                product = tl.sum(values * grad, axis=1)
                grad_x += product * share_y * (2 * (corner % 2) - 1)
                grad_y += product * share_x * (2 * (corner // 2) - 1)
                grad_weight += product * share_x * share_y
                tl.atomic_add(grad_value + offsets, (weight * share_x * share_y)[:, None] * grad, mask=read)
            tl.store(grad_points + x_start + skip, grad_x * weight, mask=is_query)
            tl.store(grad_points + y_start + skip, grad_y * weight, mask=is_query)
            tl.store(grad_weights + weight_start + skip, grad_weight, mask=is_query)
        level_start += height * width * (M * D)


def _launch(kernel: Any, tensors: list[Tensor], sizes: list[int], value: Tensor, weights: Tensor) -> None:
    """Run a kernel on value (B, S, M, D) and weights (B, M, L, P, Q); `tensors` are what it reads and writes."""
    batch, num_cells, num_heads, head_dim = value.shape
    num_levels, num_points, num_queries = weights.shape[2:]
    block_d = triton.next_power_of_2(head_dim)
    block_q = min(MAX_QUERIES, max(1, TILE // block_d))
    grid = (batch * num_heads * triton.cdiv(num_queries, block_q),)
    padded = [*sizes, *[1] * (2 * MAX_LEVELS - len(sizes))]
    constants = (num_heads, num_levels, num_points, head_dim, block_q, block_d)
    with torch.cuda.device_of(value):  # Triton launches on the current device
        kernel[grid](*tensors, num_cells, num_queries, *padded, *constants)


def _sum_on_device(value: Tensor, sizes: list[int], points: Tensor, weights: Tensor) -> Tensor:
    out = empty_sums(value, sizes, points, weights)
    _launch(_sum_points, [value, points, weights, out], sizes, value, weights)
    return out


def _spread_on_device(
    grad: Tensor, value: Tensor, sizes: list[int], points: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    grads = torch.zeros_like(value, dtype=weights.dtype), torch.zeros_like(points), torch.zeros_like(weights)
    _launch(_spread_gradient, [value, points, weights, grad, *grads], sizes, value, weights)
    return grads[0].to(value.dtype), *grads[1:]


sum_points = make_operator("deform_attn", _sum_on_device, _spread_on_device)
