"""Fold a fixed normalisation into the convolution before it, for inference only.

With fixed statistics, normalisation is a scale and a shift per channel, so the pair is one convolution with scaled
weights. The parameters are left alone: folded weights live beside the modules, never in a state dict, a copy or a
pickle, and are made again when a source tensor has changed.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..layers import FrozenBatchNorm2d
from ..linear import compact, convolve, pointwise_conv


class FixedNorm(Protocol):
    """A normalisation with fixed statistics and an affine map."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    eps: float


class FoldCache:
    """Folded weights of the convolutions of one module.

    A source that is changed behind autograd's back (`weight.data.copy_(...)`) cannot be noticed; `WithFolds` clears
    the cache whenever the mode is set, so that `model.eval()` after such a change is always enough.
    """

    def __init__(self) -> None:
        self._entries: dict[int, tuple[tuple, list[Tensor], tuple[Tensor, Tensor]]] = {}

    def __reduce__(self) -> tuple:
        return FoldCache, ()  # copies and pickles start empty

    def clear(self) -> None:
        self._entries.clear()

    def apply(self, conv: nn.Conv2d, norm: nn.Module | None, x: Tensor) -> Tensor:
        """Return norm(conv(x)) for x (B, C, H, W), with one operation where that is possible."""
        if norm is None:
            return _convolve(conv, x, conv.weight, conv.bias)
        if not _can_fold(norm, conv):
            return norm(_convolve(conv, x, conv.weight, conv.bias))
        rounded = compact(x)
        if rounded.dtype == torch.bfloat16:
            return _convolve(conv, rounded, *self._folded(conv, norm, torch.bfloat16)).to(x.dtype)
        return _convolve(conv, x, *self._folded(conv, norm, _compute_dtype(conv.weight, x)))

    def _folded(self, conv: nn.Conv2d, norm: FixedNorm, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return folded weight and bias in `dtype`, from the cache if nothing has changed."""
        tensors = [conv.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var]
        tensors += [] if conv.bias is None else [conv.bias]
        if any(tensor.is_inference() for tensor in tensors):
            return _fold(conv, norm, dtype)  # such tensors carry no version to compare
        state = (dtype, *((tensor.data_ptr(), tensor._version, tensor.dtype) for tensor in tensors))
        entry = self._entries.get(id(conv))
        if entry is None or entry[0] != state:
            # The aliases keep the memory of the sources from being reused, which makes comparing addresses sound.
            entry = (state, [tensor.detach() for tensor in tensors], _fold(conv, norm, dtype))
            self._entries[id(conv)] = entry
        return entry[2]


class WithFolds(nn.Module):
    """Mixin for modules that run their convolutions through a cache of folded weights, `self.folds`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.folds = FoldCache()

    def train(self, mode: bool = True) -> WithFolds:
        self.folds.clear()
        return super().train(mode)


def _can_fold(norm: nn.Module, conv: nn.Conv2d) -> TypeGuard[FixedNorm]:
    """Only without gradients, in evaluation, and outside compilers, which fuse on their own."""
    if torch.is_grad_enabled() or conv.training or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    if isinstance(norm, FrozenBatchNorm2d):
        return True
    is_fixed = isinstance(norm, _BatchNorm) and not norm.training
    return is_fixed and norm.running_mean is not None and norm.weight is not None


def _compute_dtype(weight: Tensor, x: Tensor) -> torch.dtype:
    """Return the type the convolution will run in."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


def _fold(conv: nn.Conv2d, norm: FixedNorm, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Scale in float32 at least, round once; weights become channels_last, which is faster on the CPU by 15 %."""
    exact = torch.promote_types(conv.weight.dtype, torch.float32)
    scale = norm.weight.to(exact) * (norm.running_var.to(exact) + norm.eps).rsqrt()
    bias = norm.bias.to(exact) - norm.running_mean.to(exact) * scale
    if conv.bias is not None:
        bias = bias + conv.bias.to(exact) * scale
    weight = conv.weight.to(exact) * scale[:, None, None, None]
    return weight.to(dtype, memory_format=torch.channels_last), bias.to(dtype)


def _convolve(conv: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if (conv.kernel_size, conv.padding, conv.groups) == ((1, 1), (0, 0), 1):
        rows, columns = conv.stride
        return pointwise_conv(x, weight, bias, (rows, columns))
    return convolve(conv, x, weight, bias)
