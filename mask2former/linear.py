"""Linear maps that use the faster of PyTorch's two CPU libraries at inference.

PyTorch sends float32 products on the CPU to MKL, which runs at less than half of the possible speed on CPUs that are
not Intel's. oneDNN, also part of PyTorch, is fast on all of them (240 against 105 GFLOP/s on one AMD Zen 5 core) and
can apply the ReLU on the way. It has no gradients here, so training keeps the ordinary path. Both are float32; only
the order of the sums differs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MIN_ROWS = 32  # with fewer rows the ordinary path has less overhead


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
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], form)
    out = F.linear(x, weight, bias)
    if gelu:
        return F.gelu(out)
    return F.relu(out) if relu else out


def linear_transposed(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Compute W x^T + b: x (B, Q, C_in), weight (C_out, C_in), bias (C_out,) -> (B, C_out, Q), contiguous."""
    if _can_use_onednn(x, weight, bias):
        product = torch.stack([linear(weight, rows) for rows in x])
    else:
        product = torch.bmm(weight.expand(len(x), -1, -1), x.transpose(1, 2))
    return product + bias[:, None]


class Linear(nn.Linear):
    """`torch.nn.Linear`, faster on the CPU without gradients, with a ReLU if wanted."""

    def forward(self, x: Tensor, *, relu: bool = False) -> Tensor:
        return linear(x, self.weight, self.bias, relu=relu)


def pointwise_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: tuple[int, int] = (1, 1)) -> Tensor:
    """Convolve 1 x 1: x (B, C_in, H, W) with weight (C_out, C_in, 1, 1) and bias (C_out,).

    Returns:
        (B, C_out, H / stride, W / stride), rounded up.
    """
    if not _can_use_onednn(x, weight, bias):
        return F.conv2d(x, weight, bias, stride)
    x = x[:, :, :: stride[0], :: stride[1]]
    pixels = x.permute(0, 2, 3, 1).contiguous()  # no copy if x is channels_last; the result always is
    return linear(pixels, weight.flatten(1), bias).permute(0, 3, 1, 2)


def mask_logits(embeddings: Tensor, features: Tensor) -> Tensor:
    """Multiply mask embeddings with the features of every pixel.

    Args:
        embeddings: (B, Q, C).
        features: (B, C, H, W).

    Returns:
        (B, Q, H, W).
    """
    if _can_use_onednn(embeddings, features):
        pixels = features.permute(0, 2, 3, 1).flatten(1, 2)  # (B, H*W, C)
        masks = torch.stack([linear(*pair) for pair in zip(embeddings, pixels, strict=True)])
    else:
        masks = torch.bmm(embeddings, features.flatten(2))
    return masks.unflatten(2, features.shape[-2:])


_HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _can_use_onednn(x: Tensor, *others: Tensor | None) -> bool:
    """Only for plain float32 CPU tensors without gradients, and outside compilers and tracers, which do their own."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or not _HAS_ONEDNN:
        return False
    given = [x, *(tensor for tensor in others if tensor is not None)]
    if any(tensor.numel() == 0 for tensor in given) or x.numel() < MIN_ROWS * x.shape[-1]:
        return False
    if torch.is_autocast_enabled("cpu") or not torch.backends.mkldnn.enabled:
        return False
    needs_grad = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given)
    return not needs_grad and all(
        tensor.device.type == "cpu" and tensor.dtype == torch.float32 and type(tensor) in (Tensor, nn.Parameter)
        for tensor in given
    )
