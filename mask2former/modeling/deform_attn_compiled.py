"""The sampling of deformable attention in C, on CPUs; see `deform_attn` for what it computes, `deform_attn.c` for how.

Threads are as many as PyTorch may use, and the results do not depend on their number, to the last bit.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..compiled import CSource
from .deform_attn_operator import empty_sums, make_operator

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
    out = empty_sums(value, sizes, points, weights).float()
    heads = _head_by_head(value.float() if value.dtype == torch.float16 else value)
    is_bfloat16 = int(heads.dtype == torch.bfloat16)
    addresses = _addresses(heads, points, weights, out)
    _library().sum_points(*_shape(value, sizes, weights), is_bfloat16, *addresses)
    return out.to(value.dtype)


def _spread_gradient(
    grad: Tensor, value: Tensor, sizes: list[int], points: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    grad = grad.float()
    heads = _head_by_head(value.float())
    grads = torch.zeros_like(heads), torch.empty_like(points), torch.empty_like(weights)
    addresses = _addresses(heads, points, weights, grad, *grads)
    _library().spread_gradient(*_shape(value, sizes, weights), *addresses)
    return grads[0].transpose(1, 2).contiguous().to(value.dtype), *grads[1:]


def _head_by_head(value: Tensor) -> Tensor:
    """(B, S, M, D) -> (B, M, S, D), contiguous, so that cells of a head share lines and pages of memory."""
    return value.transpose(1, 2).contiguous()


def _shape(value: Tensor, sizes: list[int], weights: Tensor) -> tuple[ctypes.Array, ctypes.Array, int]:
    """What both functions of `deform_attn.c` take first."""
    batch, num_cells, num_heads, head_dim = value.shape
    shape = (batch, num_heads, num_cells, head_dim, *weights.shape[2:])
    return (ctypes.c_int64 * len(shape))(*shape), (ctypes.c_int64 * len(sizes))(*sizes), torch.get_num_threads()


def _addresses(*tensors: Tensor) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]


@functools.cache
def _library() -> ctypes.CDLL:
    library = SAMPLING.load()
    if library is None:
        raise OSError(f"{SAMPLING.name}: {SAMPLING.describe()}")
    counts = ctypes.POINTER(ctypes.c_int64)
    first: list[Any] = [counts, counts, ctypes.c_int64]
    library.sum_points.argtypes = [*first, ctypes.c_int, *4 * [ctypes.c_void_p]]
    library.spread_gradient.argtypes = [*first, *7 * [ctypes.c_void_p]]
    library.sum_points.restype = library.spread_gradient.restype = None
    return library


sum_points = make_operator("deform_attn_compiled", _sum_points, _spread_gradient)
