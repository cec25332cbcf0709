"""Makes an operator of a kernel of deformable attention, which has gradients and stays whole in compiled networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Sums = Callable[[Tensor, list[int], Tensor, Tensor], Tensor]
Gradients = Callable[[Tensor, Tensor, list[int], Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


def make_operator(name: str, sums: Sums, gradients: Gradients) -> Sums:
    """Register `mask2former::name` and `mask2former::name_backward`, and return the former.

    Args:
        sums: (value, sizes, points, weights) -> sampled as `deform_attn.Kernel`, but sizes are H_1, W_1, H_2, ..., the
            result has the type of the values, and all tensors are contiguous.
        gradients: (gradient of the result, value, sizes, points, weights) -> those of value, points and weights, in
            their types.
    """

    def compute(value: Tensor, sizes: list[int], points: Tensor, weights: Tensor) -> Tensor:
        if value.numel() == 0 or weights.numel() == 0:
            return empty_sums(value, sizes, points, weights).zero_()  # no points, or nothing to read
        return sums(value.contiguous(), sizes, points.contiguous(), weights.contiguous())

    def compute_gradients(
        grad: Tensor, value: Tensor, sizes: list[int], points: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        if grad.numel() == 0:
            return torch.zeros_like(value), torch.zeros_like(points), torch.zeros_like(weights)
        inputs = (points.contiguous(), weights.contiguous())
        return gradients(grad.contiguous(), value.contiguous(), sizes, *inputs)

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        value, points, weights = ctx.saved_tensors
        grad_value, grad_points, grad_weights = spread(grad, value, ctx.sizes, points, weights)
        return grad_value, None, grad_points, grad_weights

    inputs = "Tensor value, int[] sizes, Tensor points, Tensor weights"
    operator = torch.library.custom_op(f"mask2former::{name}", compute, mutates_args=(), schema=f"({inputs}) -> Tensor")
    operator.register_fake(empty_sums)
    operator.register_autograd(backward, setup_context=_save)
    spread = torch.library.custom_op(
        f"mask2former::{name}_backward",
        compute_gradients,
        mutates_args=(),
        schema=f"(Tensor grad, {inputs}) -> (Tensor, Tensor, Tensor)",
    )
    spread.register_fake(_empty_gradients)
    return operator


def empty_sums(value: Tensor, sizes: list[int], points: Tensor, weights: Tensor) -> Tensor:
    """Where the result goes, see `room_for_sums`."""
    return room_for_sums(value, weights.shape[-1])


def room_for_sums(value: Tensor, num_queries: int, dtype: torch.dtype | None = None) -> Tensor:
    """(B, Q, M*D) for the sums of values (B, S, M, D), in their type if no other is given."""
    batch, _, num_heads, head_dim = value.shape
    return value.new_empty(batch, num_queries, num_heads * head_dim, dtype=dtype)


def _empty_gradients(
    grad: Tensor, value: Tensor, sizes: list[int], points: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    contiguous = torch.contiguous_format
    like = [torch.empty_like(tensor, memory_format=contiguous) for tensor in (value, points, weights)]
    return like[0], like[1], like[2]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, ctx.sizes, points, weights = inputs
    ctx.save_for_backward(value, points, weights)
