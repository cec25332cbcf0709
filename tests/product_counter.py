"""Counts the multiplications of matrix products and convolutions by the type of what they multiply."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

LINEAR = ("mkldnn::_linear_pointwise",)  # (x, weight, ...)
CONVOLUTIONS = ("aten::convolution", "aten::mkldnn_convolution", "aten::conv2d")
PRODUCTS = ("aten::mm", "aten::bmm", "aten::addmm", "aten::linear")


class ProductCounter(TorchDispatchMode):
    """Attribute `counts`: multiplications by type."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[torch.dtype] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name
        if name in (*LINEAR, *CONVOLUTIONS, *PRODUCTS):
            self.counts[out.dtype] += _multiplications(name, args, out)
        return out

    def share(self, dtype: torch.dtype) -> float:
        return self.counts[dtype] / max(self.counts.total(), 1)


def _multiplications(name: str, args: tuple, out: Tensor) -> int:
    """Those of one number of the result, times how many there are."""
    if name in CONVOLUTIONS:
        each = math.prod(args[1].shape[1:])
    elif name == "aten::addmm":
        each = args[1].shape[-1]
    else:
        each = args[0].shape[-1]
    return out.numel() * each
