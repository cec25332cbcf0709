"""The sampling of deformable attention in C, on CPUs; see `deform_attn` for what it computes, `deform_attn.c` for how.

Threads are as many as PyTorch may use, and the results do not depend on their number, to the last bit.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..compiled import CSource
from .deform_attn_operator import make_operator, room_for_sums

MAX_POINTS = 64  # as in the C source
TYPES = (torch.float32, torch.bfloat16, torch.float16)  # of values; points and weights are float32

SAMPLING = CSource("sampling of deformable attention", Path(__file__).with_name("deform_attn.c"))


def why_not(value: Tensor, points_dtype: torch.dtype, num_points: int) -> str:
    """Why the kernel cannot take values (B, S, M, D) with so many points on all maps together, or an empty text."""
    if value.device.type != "cpu":
        return f"it is for CPUs, the values are on {value.device}"
    if value.dtype not in TYPES or points_dtype != torch.float32:
        return f"it takes values of {TYPES} and points of float32, got {value.dtype} and {points_dtype}"
    if num_points > MAX_POINTS:
        return f"it takes up to {MAX_POINTS} points per query and head, got {num_points}"
    return "" if SAMPLING.load() is not None else SAMPLING.describe()


def _sum_points(value: Tensor, sizes: list[int], points: Tensor, weights: Tensor) -> Tensor:
    heads, out = _head_by_head(value), _for_sums(value, weights.shape[-1])
    addresses = _addresses(heads, points, weights, out)
    _library().sum_points(*_shape(value, sizes, weights.shape[2:]), out.dtype == torch.bfloat16, *addresses)
    return out.to(value.dtype)


@torch.library.custom_op(
    "mask2former::deform_attn_projected",
    mutates_args=(),
    schema="(Tensor value, int[] sizes, Tensor projected, Tensor bias, Tensor starts, Tensor? reach, Tensor weights)"
    " -> Tensor",
)
def sum_projected(
    value: Tensor,
    sizes: list[int],
    projected: Tensor,
    bias: Tensor,
    starts: Tensor,
    reach: Tensor | None,
    weights: Tensor,
) -> Tensor:
    """Sample without gradients where a linear map says: the sums of `deform_attn.Kernel`, in the type of the values.

    Args:
        value: (B, S, M, D), see `why_not`; all others are float32.
        sizes: H_1, W_1, H_2, ...
        projected: (B, R, Q), of which the first 2*M*L*P rows are x of all points, then y.
        bias: (R,), to be added to that.
        starts: (B or 1, 2, L, Q), to be added to x and y of the points on each map.
        reach: (B or 1, 2, L, Q), what they are multiplied by before.
        weights: (B, M, L, P, Q).
    """
    out = _for_sums(value, weights.shape[-1])
    if out.numel() > 0:
        tensors = (_head_by_head(value), projected, bias, starts, reach, weights)
        given = [None if tensor is None else tensor.contiguous() for tensor in tensors]
        counts = (projected.shape[1], len(starts))
        first = _shape(value, sizes, weights.shape[2:])
        _library().sum_projected(*first, out.dtype == torch.bfloat16, *_addresses(*given), *counts, out.data_ptr())
    return out.to(value.dtype)


@sum_projected.register_fake
def _empty_projected_sums(value: Tensor, sizes: list[int], projected: Tensor, *others: Any) -> Tensor:
    return room_for_sums(value, projected.shape[-1])


def _spread_gradient(
    grad: Tensor, value: Tensor, sizes: list[int], points: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    grad = grad.float()
    heads = _head_by_head(value)
    grads = torch.zeros_like(heads), torch.empty_like(points), torch.empty_like(weights)
    addresses = _addresses(heads, points, weights, grad, *grads)
    _library().spread_gradient(*_shape(value, sizes, weights.shape[2:]), *addresses)
    return grads[0].transpose(1, 2).contiguous().to(value.dtype), *grads[1:]


def _head_by_head(value: Tensor) -> Tensor:
    """(B, S, M, D) -> (B, M, S, D) in float32, contiguous: cells of a head share lines and pages of memory then."""
    return value.transpose(1, 2).to(torch.float32, memory_format=torch.contiguous_format).contiguous()


def _for_sums(value: Tensor, num_queries: int) -> Tensor:
    """(B, Q, M*D) as C writes it, bfloat16 or float32."""
    dtype = torch.bfloat16 if value.dtype == torch.bfloat16 else torch.float32
    return room_for_sums(value, num_queries, dtype)


def _shape(value: Tensor, sizes: list[int], counts: Sequence[int]) -> tuple[ctypes.Array, ctypes.Array, int]:
    """What all functions of `deform_attn.c` take first; counts are L, P and Q."""
    batch, num_cells, num_heads, head_dim = value.shape
    shape = (batch, num_heads, num_cells, head_dim, *counts)
    return (ctypes.c_int64 * len(shape))(*shape), (ctypes.c_int64 * len(sizes))(*sizes), torch.get_num_threads()


def _addresses(*tensors: Tensor | None) -> list[int | None]:
    return [None if tensor is None else tensor.data_ptr() for tensor in tensors]


@functools.cache
def _library() -> ctypes.CDLL:
    library = SAMPLING.load()
    if library is None:
        raise OSError(f"{SAMPLING.name}: {SAMPLING.describe()}")
    counts = ctypes.POINTER(ctypes.c_int64)
    first: list[Any] = [counts, counts, ctypes.c_int64]
    library.sum_points.argtypes = [*first, ctypes.c_int, *4 * [ctypes.c_void_p]]
    library.spread_gradient.argtypes = [*first, *7 * [ctypes.c_void_p]]
    last: list[Any] = [ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p]
    library.sum_projected.argtypes = [*first, ctypes.c_int, *6 * [ctypes.c_void_p], *last]
    library.sum_projected.restype = None
    library.sum_points.restype = library.spread_gradient.restype = None
    return library


sum_points = make_operator("deform_attn_compiled", _sum_points, _spread_gradient)
