"""A device that is not there: its tensors lie on the host, and what the host would wait for is noted.

    with PretendDevice() as device:
        model.to(device.name)
        model(samples)
    print(device.waits)

As on a GPU, the host waits when it asks for a number or for a size that depends on numbers, and when it copies without
page-locked memory, so up only by `to_device`; and tensors of the device do not mix with those of the host.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from mask2former.transfer import to_device

ROOT = Path(__file__).resolve().parent.parent
NAME = torch.device("meta")  # known to PyTorch everywhere, and without a thread of its own for gradients

# They tell the host a number, or how large their result is.
READS = ("_local_scalar_dense", "equal", "is_nonzero", "masked_select", "nonzero", "_unique2", "unique_dim")
READS = (*READS, "unique_consecutive", "bincount")
INDEXED = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index")


class OnDevice(Tensor):
    """A tensor of the device; `inner` has its numbers."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> OnDevice:
        layout = (inner.shape, inner.stride(), inner.storage_offset())
        self = Tensor._make_wrapper_subclass(cls, *layout, dtype=inner.dtype, device=NAME)
        self.inner = inner
        return self

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{function} outside of PretendDevice")

    def __repr__(self) -> str:
        return f"OnDevice({self.inner!r})"


class PretendDevice(TorchDispatchMode):
    """While it is active, the device "meta" computes.

    Attributes:
        waits: "what, where in the project" -> how often the host waited for the device.
    """

    name = NAME

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self._patches = (
            patch.object(torch, "autocast", _Autocast),
            patch.object(torch, "is_autocast_enabled", _is_autocast_enabled),
            # tensors made in inference mode would not know what made them
            patch.object(torch, "inference_mode", lambda mode=True: torch.no_grad() if mode else nullcontext()),
        )

    def __enter__(self) -> PretendDevice:
        self._lifted = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)  # so that torch.tensor(..., device=...) is seen as a copy
        for each in self._patches:
            each.start()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for each in self._patches:
            each.stop()
        torch._C._set_only_lift_cpu_tensors(self._lifted)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = function.overloadpacket.__name__
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        wanted = kwargs.pop("device", None)
        to_pretended = any(map(_is_there, tensors)) if wanted is None else torch.device(wanted).type == NAME.type
        what = _why_waiting(name, args, tensors, to_pretended)
        if what:
            self.waits[f"{what}, {_place()}"] += 1
        inner_args, inner_kwargs = tree_map_only(OnDevice, lambda each: each.inner, (args, kwargs))
        if wanted is not None and name != "_to_copy":
            inner_kwargs["device"] = "cpu"
        result = function(*inner_args, **inner_kwargs)
        if not to_pretended or name in ("_local_scalar_dense", "equal", "is_nonzero"):
            return result
        known = {id(each.inner): each for each in tensors if isinstance(each, OnDevice)}
        return tree_map_only(Tensor, lambda each: known[id(each)] if id(each) in known else OnDevice(each), result)


class _Autocast(torch.autocast):
    def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
        super().__init__("cpu" if device_type == NAME.type else device_type, *args, **kwargs)


_autocast_enabled = torch.is_autocast_enabled


def _is_autocast_enabled(device_type: str = "cpu") -> bool:
    return _autocast_enabled("cpu" if device_type == NAME.type else device_type)


def _is_there(tensor: Tensor) -> bool:
    return isinstance(tensor, OnDevice)


def _why_waiting(name: str, args: Any, tensors: list[Tensor], to_pretended: bool) -> str:
    """What the host waits for in an operation, "" if it does not."""
    there = [_is_there(each) for each in tensors]
    if not tensors or not (to_pretended or any(there)):
        return ""
    if not to_pretended:
        return "copied to the host"
    if not any(there):
        return "" if name != "_to_copy" or _is_within(to_device) else "copied from the host"
    if name in READS:
        return name
    if name in INDEXED:
        indices = [index for index in args[1] if index is not None]
        if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
            return "index by truth values"
        return "" if all(map(_is_there, indices)) else "index copied from the host"
    if name == "copy_" and not all(there):
        return "copied from the host" if there[0] else "copied to the host"
    if any(not is_there and each.dim() for each, is_there in zip(tensors, there, strict=True)):
        raise RuntimeError(f"{name} of tensors of the device and of the host, {_place()}")
    return ""


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _is_within(function: Any) -> bool:
    return any(frame.f_code is function.__code__ for frame in _frames())


def _place() -> str:
    """The innermost lines of the project, the last one first."""
    found = []
    for frame in _frames():
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT / "lbvq") or path.is_relative_to(ROOT / "mask2former"):
            found.append(f"{path.stem}.{frame.f_code.co_name}")
    return " < ".join(found[:3])
