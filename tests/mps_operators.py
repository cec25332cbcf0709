"""Which operators of PyTorch run on Apple's MPS: what PyTorch itself registers, and what a model asks for."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torchgen
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

DECLARED = Path(torchgen.__file__).parent / "packaged" / "ATen" / "native" / "native_functions.yaml"
EVERYWHERE = "Composite"  # made of other operators, which are asked for themselves, or written for all devices


@functools.cache
def declarations() -> dict[str, tuple[set[str], str]]:
    """Operator -> (keys that it is registered for, operator that it leaves the work to) of the installed PyTorch."""
    found = {}
    for entry in DECLARED.read_text(encoding="utf-8").split("\n- func: ")[1:]:
        name = re.match(r"[\w.]+", entry)
        section = re.search(r"^  dispatch:\n((?:    .*\n)+)", entry + "\n", re.MULTILINE)
        lines = [line.split("#")[0] for line in section[1].splitlines()] if section else []
        keys = {key.strip() for line in lines if ":" in line for key in line.split(":")[0].split(",")}
        delegate = re.search(r"^  structured_delegate: ([\w.]+)", entry, re.MULTILINE)
        found[name[0]] = (keys, delegate[1] if delegate else "")
    return found


def runs_on_mps(operator: str) -> bool:
    """Whether PyTorch has a form for MPS of an operator, such as "aten::add.Tensor"."""
    space, _, name = operator.partition("::")
    if space == "profiler":  # takes no tensors
        return True
    if space != "aten" or name not in declarations():
        return False
    keys, delegate = declarations()[name]
    if "MPS" in keys or any(key.startswith(EVERYWHERE) for key in keys):
        return True
    return runs_on_mps(f"aten::{delegate}") if delegate else not keys


class Operators(TorchDispatchMode):
    """Writes down the operators that are called inside the block, backward passes included."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        self.names.add(f"{name}.{func._schema.overload_name}" if func._schema.overload_name else name)
        return func(*args, **(kwargs or {}))


class DoublePrecision(TorchFunctionMode):
    """Writes down where tensors of the device become float64, which MPS does not have.

    On the CPU are what `cpu()` gives, what is made without a device, and what comes of these alone.
    """

    def __init__(self) -> None:
        super().__init__()
        self.places: set[str] = set()

    def __torch_function__(self, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not isinstance(result, Tensor):
            return result
        words = [*args, *kwargs.values()]
        given = [each for each in words if isinstance(each, Tensor)]
        if func is Tensor.cpu or (func is Tensor.to and any(isinstance(each, torch.device) for each in words)):
            result = result.view_as(result)  # not the tensor itself, which stays where it is
            result.is_on_cpu = func is Tensor.cpu  # `to` goes where the model is
        elif not any(result is each for each in given):
            result.is_on_cpu = kwargs.get("device") is None and all(getattr(each, "is_on_cpu", False) for each in given)
        if result.dtype == torch.float64 and not getattr(result, "is_on_cpu", False):
            self.places.add(_caller())
        return result


def _caller() -> str:
    """File and line of the project that called the operator."""
    import traceback

    frames = [f for f in traceback.extract_stack() if re.search(r"/(lbvq|mask2former)/", f.filename)]
    return f"{Path(frames[-1].filename).name}: {frames[-1].line}" if frames else "elsewhere"


class OnMps:
    """Runs a block and tells what it would need on MPS.

    Attributes:
        operators: names such as "aten::add.Tensor".
        doubles: places where float64 is made on the device.
    """

    def __enter__(self) -> OnMps:
        self._operators, self._doubles = Operators(), DoublePrecision()
        self._doubles.__enter__()
        self._operators.__enter__()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._operators.__exit__(kind, error, trace)
        self._doubles.__exit__(kind, error, trace)
        self.operators, self.doubles = self._operators.names, self._doubles.places
