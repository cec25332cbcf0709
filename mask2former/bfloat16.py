"""Products in bfloat16 on CPUs that have instructions for it: twice as many in the same time.

Only products change: those of `linear.py` (linear maps and convolutions) round what they multiply to bfloat16, sum in
float32, and give back the type they were given. The tokens of transformers, their norms, softmax, sampling places and
the logits of masks stay in float32, so nothing between two products has to know of it. What goes from one product into
another may stay in bfloat16 on the way, as inside a ResNet, see `linear.compact`.

`torch.autocast` is left alone: it would also change what follows objects from frame to frame, by matrix products of its
own.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

import torch
from torch import Tensor, nn


class Bfloat16Products:
    """Makes products round to bfloat16 inside `active()`, and keeps the rounded weights for as long as it lives.

    Like folded weights, those of parameters that are changed behind autograd's back (`weight.data.copy_(...)`) are not
    noticed.
    """

    def __init__(self) -> None:
        self._rounded: dict[int, tuple[tuple[int, int, torch.Size], Tensor, Tensor]] = {}

    def __reduce__(self) -> tuple:
        return Bfloat16Products, ()  # copies and pickles start empty

    @contextmanager
    def active(self) -> Iterator[None]:
        """Compute in bfloat16 inside, in this thread."""
        token = _ACTIVE.set(self)
        try:
            yield
        finally:
            _ACTIVE.reset(token)

    def rounded(self, weight: Tensor) -> Tensor:
        """`weight` in bfloat16; for a parameter it is rounded once, and again after a change."""
        if weight.dtype == torch.bfloat16:
            return weight
        if not isinstance(weight, nn.Parameter) or weight.is_inference():  # those carry no version to compare
            return weight.bfloat16()
        state = (weight.data_ptr(), weight._version, weight.shape)
        entry = self._rounded.get(id(weight))
        if entry is None or entry[0] != state:
            # The alias keeps the memory of the source from being reused, which makes comparing addresses sound.
            entry = (state, weight.detach(), weight.detach().bfloat16())
            self._rounded[id(weight)] = entry
        return entry[2]


_ACTIVE: ContextVar[Bfloat16Products | None] = ContextVar("bfloat16_products", default=None)


def active_products() -> Bfloat16Products | None:
    """What is active in this thread, None in full precision."""
    return _ACTIVE.get()


def wants_bfloat16(setting: str) -> bool:
    """Read TEST.AMP.CPU: "bfloat16", "float32", or "auto", which is bfloat16 where the CPU has instructions for it."""
    if setting not in ("auto", "bfloat16", "float32"):
        raise ValueError(f"TEST.AMP.CPU must be 'auto', 'bfloat16' or 'float32', got {setting!r}.")
    return cpu_computes_in_bfloat16() if setting == "auto" else setting == "bfloat16"


def bfloat16_if(wanted: bool) -> AbstractContextManager[None]:
    """Products in bfloat16 inside if that is wanted, nothing otherwise."""
    return Bfloat16Products().active() if wanted else nullcontext()


def cpu_computes_in_bfloat16() -> bool:
    """Tell whether this CPU has instructions for bfloat16; without them it is emulated and slower than float32."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(getattr(torch.cpu, check, lambda: False)() for check in checks)
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
