"""Linear maps that use the faster of PyTorch's two CPU libraries, above all at inference.

PyTorch sends float32 products on the CPU to MKL, which runs at less than half of the possible speed on CPUs that are
not Intel's. oneDNN, also part of PyTorch, is fast on all of them (240 against 105 GFLOP/s on one AMD Zen 5 core) and
can apply the ReLU on the way. It has no gradients here, so training keeps the ordinary path but for convolutions and
large feed-forward networks. Both are float32; only the order of the sums differs. Inside
`bfloat16.Bfloat16Products.active()` linear maps and convolutions multiply in bfloat16 and give back the type they were
given; the logits of masks stay in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .bfloat16 import active_products

MIN_ROWS = 32  # with fewer rows the ordinary path has less overhead
MIN_HIDDEN = 2**20  # numbers in the hidden layer of a feed-forward network, from which it is trained in parts
ROWS_AT_ONCE = 512  # of it in the backward pass, so that caches hold what is between two products


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, relu: bool = False, gelu: bool = False) -> Tensor:
    """Compute x W^T + b, then ReLU or GELU if wanted.

    Args:
        x: (..., C_in).
        weight: (C_out, C_in).
        bias: (C_out,).

    Returns:
        (..., C_out).
    """
    if _can_use_onednn(x, weight, bias):
        activation, form = ("gelu", "none") if gelu else ("relu" if relu else "none", "")
        inputs = _rounded(x, weight, bias)
        return torch.ops.mkldnn._linear_pointwise(*inputs, activation, [], form).to(x.dtype)
    out = F.linear(x, weight, bias)
    if gelu:
        return F.gelu(out)
    return F.relu(out) if relu else out


def linear_transposed(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute W x^T + b: x (B, Q, C_in), weight (C_out, C_in), bias (C_out,) -> (B, C_out, Q), never in bfloat16."""
    if _can_use_onednn(x, weight, bias):
        out = _stack([_exact_product(weight, rows) for rows in x])
        return out if bias is None else out.add_(bias[:, None])
    out = torch.bmm(weight.expand(x.shape[0], -1, -1), x.transpose(1, 2))
    return out if bias is None else out + bias[:, None]


def compact(x: Tensor) -> Tensor:
    """Round a tensor that only products read, once for all of them; in full precision it stays as it is.

    A product of what this returns is bfloat16, too; adding that to a float32 tensor ends it.
    """
    if not _onednn_is_free() or active_products() is None or torch.is_grad_enabled():
        return x
    is_plain = x.device.type == "cpu" and x.dtype == torch.float32 and x.numel() > 0
    return x.bfloat16() if is_plain else x


def exact(x: Tensor) -> Tensor:
    """What products of compact tensors gave, for everything but products: float32 again."""
    return x.float() if x.dtype == torch.bfloat16 and active_products() is not None else x


class Linear(nn.Linear):
    """`torch.nn.Linear`, faster on the CPU without gradients, with a ReLU if wanted."""

    def forward(self, x: Tensor, *, relu: bool = False) -> Tensor:
        return linear(x, self.weight, self.bias, relu=relu)


def feed_forward(x: Tensor, first: Linear, second: Linear, dropout: nn.Dropout) -> Tensor:
    """Two linear maps with ReLU and dropout between them: x (..., C) -> (..., C_out)."""
    given = (x, first.weight, first.bias, second.weight, second.bias)
    if _can_train_with_onednn(*given) and not (dropout.training and dropout.p > 0):
        # Only here: graphs that are exported or compiled must not depend on the size.
        if x.numel() // x.shape[-1] * first.out_features >= MIN_HIDDEN:
            return _FeedForward.apply(*given)
    return second(dropout(first(compact(x), relu=True)))


class _FeedForward(torch.autograd.Function):
    """`feed_forward` whose gradients are made a few rows at a time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, last_weight: Tensor, last_bias: Tensor) -> Tensor:
        hidden = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "relu", [], "")
        ctx.save_for_backward(x, weight, last_weight, hidden)
        return _exact_product(hidden, last_weight, last_bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        x, weight, last_weight, hidden = ctx.saved_tensors
        grads = [torch.empty_like(x), *map(torch.zeros_like, (weight, weight[:, 0], last_weight))]
        grad_x, grad_weight, grad_bias, grad_last = grads
        rows = [each.flatten(0, -2).split(ROWS_AT_ONCE) for each in (grad_x, x, hidden, grad)]
        for few_grad_x, few_x, few_hidden, few_grad in zip(*rows, strict=True):
            grad_last.addmm_(few_grad.T, few_hidden)
            inner = torch.ops.aten.threshold_backward(_exact_product(few_grad, last_weight.T), few_hidden, 0)
            grad_weight.addmm_(inner.T, few_x)
            grad_bias += inner.sum(0)
            few_grad_x.copy_(_exact_product(inner, weight.T))
        return grad_x, grad_weight, grad_bias, grad_last, grad.flatten(0, -2).sum(0)


def pointwise_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: tuple[int, int] = (1, 1)) -> Tensor:
    """Convolve 1 x 1: x (B, C_in, H, W) with weight (C_out, C_in, 1, 1) and bias (C_out,).

    Returns:
        (B, C_out, H / stride, W / stride), rounded up.
    """
    if _can_train_with_onednn(x, weight, bias):  # which PyTorch does on its own with several threads only
        return torch.ops.aten.mkldnn_convolution(x, weight, bias, (0, 0), stride, (1, 1), 1)
    if not _can_use_onednn(x, weight, bias):
        return F.conv2d(x, weight, bias, stride)
    x_rounded, weight, bias = _rounded(x[:, :, :: stride[0], :: stride[1]], weight, bias)
    pixels = x_rounded.permute(0, 2, 3, 1).contiguous()  # no copy if x is channels_last; the result always is
    return _exact_product(pixels, weight.flatten(1), bias).permute(0, 3, 1, 2).to(x.dtype)


def convolve(conv: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve as `conv` does, with other weights; in bfloat16 where products are."""
    if active_products() is None or not _can_use_onednn(x, weight, bias):
        return conv._conv_forward(x, weight, bias)
    return conv._conv_forward(*_rounded(x, weight, bias)).to(x.dtype)


def mask_logits(embeddings: Tensor, features: Tensor) -> Tensor:
    """Multiply mask embeddings with the features of every pixel, never in bfloat16.

    Args:
        embeddings: (B, Q, C).
        features: (B, C, H, W).

    Returns:
        (B, Q, H, W).
    """
    if _can_use_onednn(embeddings, features):
        pixels = features.permute(0, 2, 3, 1).flatten(1, 2)  # (B, H*W, C)
        masks = _stack([_exact_product(*pair) for pair in zip(embeddings, pixels, strict=True)])
    else:
        masks = torch.bmm(embeddings, features.flatten(2))
    return masks.unflatten(2, features.shape[-2:])


def predicted_masks(embeddings: Tensor, features: Tensor) -> dict[str, Any]:
    """`pred_masks` of all queries, see `mask_logits`; with gradients also what they are made of, `mask_parts`.

    Losses look at the masks of a few queries. Made once more from the parts, they have gradients of their own size.
    """
    masks = {"pred_masks": mask_logits(embeddings, features)}
    return {**masks, "mask_parts": (embeddings, features)} if masks["pred_masks"].requires_grad else masks


def _exact_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b by oneDNN in the type of the inputs."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _stack(tensors: list[Tensor]) -> Tensor:
    """`torch.stack` without a copy of a single tensor."""
    return tensors[0][None] if len(tensors) == 1 else torch.stack(tensors)


def _rounded(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """What a product multiplies: in bfloat16 where products are, as it is elsewhere."""
    products = active_products()
    if products is None:
        return x, weight, bias
    return x.bfloat16(), products.rounded(weight), None if bias is None else products.rounded(bias)


_HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _onednn_is_free() -> bool:
    """Not inside compilers, tracers and autocast, which choose on their own."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or not _HAS_ONEDNN:
        return False
    return bool(torch.backends.mkldnn.enabled) and not torch.is_autocast_enabled("cpu")


def _can_train_with_onednn(*given: Tensor | None) -> bool:
    """Only for plain float32 tensors on the CPU of which some want a gradient."""
    tensors = [tensor for tensor in given if tensor is not None]
    return (
        torch.is_grad_enabled()
        and _onednn_is_free()
        and any(tensor.requires_grad for tensor in tensors)
        and all(_is_plain(tensor, (torch.float32,)) and tensor.numel() > 0 for tensor in tensors)
    )


def _is_plain(tensor: Tensor, types: Sequence[torch.dtype]) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype in types and type(tensor) in (Tensor, nn.Parameter)


def _can_use_onednn(x: Tensor, *others: Tensor | None) -> bool:
    """Only for plain CPU tensors without gradients, float32 or, inside `Bfloat16Products.active()`, also bfloat16."""
    if not _onednn_is_free():
        return False
    given = [x, *(tensor for tensor in others if tensor is not None)]
    is_small = x.dtype == torch.float32 and x.numel() < MIN_ROWS * x.shape[-1]
    if is_small or any(tensor.numel() == 0 for tensor in given):
        return False
    needs_grad = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given)
    types = (torch.float32,) if active_products() is None else (torch.float32, torch.bfloat16)
    return not needs_grad and all(_is_plain(tensor, types) for tensor in given)
