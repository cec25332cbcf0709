"""Read a pickled weight file without running anything that stands in it.

A pickle names functions to call. Only the ones that build plain arrays and tensors are let through; two that would open
a back door are replaced by harmless versions.
"""

from __future__ import annotations

import importlib
import io
import pickle
from collections import OrderedDict
from typing import Any, BinaryIO

import numpy as np
import torch

LEGACY_TORCH_MAGIC = 0x1950A86A20F9469CFC6C  # first object of files that torch.save wrote before version 1.6

_NUMPY_CORE = ("numpy.core", "numpy._core")  # before and since numpy 2


def load_pickle(file: BinaryIO) -> Any:
    """Load one object; UnpicklingError names the first thing in it that is not allowed.

    Strings of Python 2 files are read as latin-1.
    """
    return _SafeUnpickler(file, encoding="latin1").load()


class _SafeUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        full_name = f"{module}.{name}"
        if full_name in _ALLOWED:
            return _ALLOWED[full_name]
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        raise pickle.UnpicklingError(f"{full_name} is not allowed in a weight file")


def _encode_latin1(text: str, encoding: str) -> bytes:
    """`_codecs.encode` as pickles of bytes use it; other encodings may run arbitrary codecs."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"_codecs.encode to {encoding!r} is not allowed in a weight file")
    return text.encode("latin1")


def _load_storage(data: bytes) -> Any:
    """`torch.storage._load_from_bytes`, which plain pickles of tensors call; torch's own unpickles without limits."""
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _numpy_core(module: str, name: str) -> Any:
    for core in reversed(_NUMPY_CORE):
        try:
            return getattr(importlib.import_module(f"{core}.{module}"), name)
        except (ImportError, AttributeError):
            continue
    raise ImportError(f"This numpy ({np.__version__}) has no {module}.{name}.")


_ALLOWED: dict[str, Any] = {
    "_codecs.encode": _encode_latin1,
    "collections.OrderedDict": OrderedDict,
    "numpy.dtype": np.dtype,
    "numpy.ndarray": np.ndarray,
    "torch.Size": torch.Size,
    "torch._utils._rebuild_parameter": torch._utils._rebuild_parameter,
    "torch._utils._rebuild_tensor_v2": torch._utils._rebuild_tensor_v2,
    "torch.device": torch.device,
    "torch.nn.parameter.Parameter": torch.nn.Parameter,
    "torch.storage._load_from_bytes": _load_storage,
}
for _core in _NUMPY_CORE:
    for _module, _name in (("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numeric", "_frombuffer")):
        _ALLOWED[f"{_core}.{_module}.{_name}"] = _numpy_core(_module, _name)


def numpy_globals() -> list[Any]:
    """What `torch.serialization.safe_globals` needs so that torch files may hold numpy scalars and arrays."""
    reconstruct, scalar = _numpy_core("multiarray", "_reconstruct"), _numpy_core("multiarray", "scalar")
    names = [(f, f"{core}.multiarray.{f.__name__}") for f in (reconstruct, scalar) for core in _NUMPY_CORE]
    dtypes = [type(np.dtype(code)) for code in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "?")]
    return [np.ndarray, np.dtype, *names, *dtypes]
