"""Unpickle a weight file without running anything that stands in it, in time and memory bounded by its size.

A pickle names functions to call. Here every name stands for a function of ours that builds a plain array, a tensor or
a small container after checking its arguments; anything else is refused by its name. The machine itself is Python's
own, not the one in C, whose memo can be made to take gigabytes by a file of a few bytes.
"""

from __future__ import annotations

import math
import pickle
import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from typing import IO, Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

LEGACY_TORCH_MAGIC = 0x1950A86A20F9469CFC6C  # first object of files that torch.save wrote before version 1.6
MAX_DIMENSIONS = 32
MAX_EXPANDED_BYTES = 1 << 28  # of a tensor that repeats few values

_SCALARS = (str, bytes, int, float, bool, type(None))
_PLAIN_DTYPE = re.compile(r"[<>=|]?(?:[biufc?][0-9]{0,2}|[SU][0-9]{0,6})|bool")


class FindStorage(Protocol):
    """Resolves what a torch file says about a storage; see `torch_files.py`."""

    def __call__(self, reference: Any) -> Storage: ...


class NestedLoader(Protocol):
    """Reads a whole torch file from the bytes of a pickle."""

    def __call__(self, data: bytes) -> Any: ...


def load_pickle(
    file: IO[bytes], *, find_storage: FindStorage | None = None, load_nested: NestedLoader | None = None
) -> Any:
    """Load the next object of `file`; UnpicklingError names the first thing in it that is not allowed.

    Strings of Python 2 files are read as latin-1.

    Args:
        file: seekable; is left after the object.
        find_storage: gives the storages that a torch file refers to.
        load_nested: reads torch files that stand inside the pickle, as plain pickles of tensors have them.
    """
    start = file.tell()
    size = file.seek(0, 2)
    file.seek(start)
    return _SafeUnpickler(_Bounded(file, size), find_storage, load_nested).load()


class Storage:
    """Values of one dtype that tensors are views of."""

    def __init__(self, values: Tensor) -> None:
        """Take a one-dimensional tensor."""
        self.values = values


class StorageKind:
    """Stands for a storage class of torch: its dtype, None where the file says it elsewhere."""

    __slots__ = ("dtype",)

    def __init__(self, dtype: torch.dtype | None) -> None:
        self.dtype = dtype


class _Bounded:
    """A file that refuses to read beyond its end before memory is taken for it."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file = file
        self._size = size
        self.readline = file.readline

    def read(self, count: int) -> bytes:
        if count > self._size - self._file.tell():
            raise EOFError("it ends in the middle of a value")
        return self._file.read(count)

    def readinto(self, buffer: Any) -> int:
        if len(buffer) > self._size - self._file.tell():
            raise EOFError("it ends in the middle of a value")
        data = self._file.read(len(buffer))
        buffer[:] = data
        return len(data)


class _Function:
    """A function that a pickle may call; nothing can be changed about it."""

    __slots__ = ("call",)
    call: Callable[..., Any]

    def __init__(self, call: Callable[..., Any]) -> None:
        object.__setattr__(self, "call", call)

    def __setattr__(self, name: str, value: Any) -> None:
        raise pickle.UnpicklingError("a file may not change functions")


class _SafeUnpickler(pickle._Unpickler):
    dispatch: ClassVar = dict(pickle._Unpickler.dispatch)
    stack: list[Any]  # these four are the machine's own
    append: Callable[[Any], None]
    read: Callable[[int], bytes]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, file: Any, find_storage: FindStorage | None, load_nested: NestedLoader | None) -> None:
        super().__init__(file, encoding="latin1")
        self._find_storage = find_storage
        self._load_nested = load_nested

    def find_class(self, module: str, name: str) -> Any:
        full_name = f"{module}.{name}".replace("numpy._core.", "numpy.core.").replace("__builtin__.", "builtins.")
        if full_name == "torch.storage._load_from_bytes" and self._load_nested is not None:
            return _Function(self._load_nested)
        if full_name in _ALLOWED:
            return _ALLOWED[full_name]
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a weight file")

    def persistent_load(self, reference: Any) -> Any:
        if self._find_storage is None:
            raise pickle.UnpicklingError("it refers to objects outside the file")
        return self._find_storage(reference)

    def load_reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack[-1]
        if not isinstance(function, _Function) or not isinstance(arguments, tuple):
            raise pickle.UnpicklingError(f"calling a {_kind(function)} is not allowed in a weight file")
        self.stack[-1] = function.call(*arguments)

    def load_build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) in (_Dtype, _PlainArray):
            target.__setstate__(state)
        elif type(target) is OrderedDict and isinstance(state, Mapping):
            target.__dict__.update({"_metadata": state["_metadata"]} if "_metadata" in state else {})
        else:
            raise pickle.UnpicklingError(f"setting the state of a {_kind(target)} is not allowed in a weight file")

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._put([key, value])

    def load_setitems(self) -> None:
        self._put(self.pop_mark())

    def _put(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise pickle.UnpicklingError(f"setting items of a {_kind(target)} is not allowed in a weight file")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_checked_key(key)] = value

    def load_append(self) -> None:
        value = self.stack.pop()
        self._extend([value])

    def load_appends(self) -> None:
        self._extend(self.pop_mark())

    def _extend(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise pickle.UnpicklingError(f"appending to a {_kind(self.stack[-1])} is not allowed in a weight file")
        self.stack[-1].extend(items)

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self._put(items)

    def load_additems(self) -> None:
        items = self.pop_mark()
        if type(self.stack[-1]) is not set:
            raise pickle.UnpicklingError(f"adding to a {_kind(self.stack[-1])} is not allowed in a weight file")
        self.stack[-1].update(map(_checked_key, items))

    def load_frozenset(self) -> None:
        self.append(frozenset(map(_checked_key, self.pop_mark())))

    def load_bytearray8(self) -> None:
        count = int.from_bytes(self.read(8), "little")
        self.append(bytearray(self.read(count)))  # Python's own takes the memory before it reads

    def refuse(self) -> None:
        raise pickle.UnpicklingError("making objects of classes is not allowed in a weight file")


_CHECKED = "REDUCE BUILD SETITEM SETITEMS APPEND APPENDS DICT ADDITEMS FROZENSET BYTEARRAY8".split()
_REFUSED = "NEWOBJ NEWOBJ_EX INST OBJ EXT1 EXT2 EXT4".split()
_SafeUnpickler.dispatch.update(
    {getattr(pickle, code)[0]: getattr(_SafeUnpickler, f"load_{code.lower()}") for code in _CHECKED}
    | {getattr(pickle, code)[0]: _SafeUnpickler.refuse for code in _REFUSED}
)


def _kind(value: Any) -> str:
    return "class" if type(value) is _Name else type(value).__name__.strip("_").lower()


def _checked_key(key: Any) -> Any:
    """Return a key that can be hashed at once: tuples that share parts take exponential time."""
    parts = key if type(key) is tuple else (key,)
    if not all(type(part) in _SCALARS for part in parts):
        raise pickle.UnpicklingError(f"a {_kind(key)} as a key is not allowed in a weight file")
    return key


# -- numpy ------------------------------------------------------------------------------------------------------------


class _Dtype:
    """Stands for a numpy dtype while its pickled state is checked; only kinds without pointers are known."""

    def __init__(self, text: Any, align: Any = False, copy: Any = False) -> None:
        text = text.decode("latin1") if isinstance(text, bytes) else text
        if not isinstance(text, str) or not _PLAIN_DTYPE.fullmatch(text):
            shown = text[:40] if isinstance(text, str) else _kind(text)
            raise pickle.UnpicklingError(f"the array type {shown!r}, not of numbers or text, is not allowed")
        self.numpy = np.dtype(text)

    def __setstate__(self, state: Any) -> None:
        """Take the byte order; whatever else a state may say must be what it is for plain numbers."""
        if not isinstance(state, tuple) or len(state) < 8 or state[1] not in ("<", ">", "=", "|", b"<", b">", b"|"):
            raise pickle.UnpicklingError("the state of an array type is damaged")
        if any(part is not None for part in state[2:5]) or state[5] not in (-1, self.numpy.itemsize):
            raise pickle.UnpicklingError("array types with fields or objects are not allowed in a weight file")
        order = state[1].decode("latin1") if isinstance(state[1], bytes) else state[1]
        self.numpy = self.numpy.newbyteorder(order)  # type: ignore[arg-type]  # one of the letters above


class _PlainArray(np.ndarray):
    """An array that takes exactly the bytes that its pickled state brings along."""

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise pickle.UnpicklingError("the state of an array is damaged")
        _, shape, dtype, is_fortran, data = state
        parts: Any = (1, *_array_parts(data, dtype, shape), bool(is_fortran), _as_bytes(data))
        super().__setstate__(parts)


def _array_parts(data: Any, dtype: Any, shape: Any) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of an array whose data has exactly the size they need."""
    if type(dtype) is not _Dtype:
        raise pickle.UnpicklingError(f"an array of {_kind(dtype)} is not allowed in a weight file")
    shape = _sizes(shape)
    if math.prod(shape) * dtype.numpy.itemsize != len(_as_bytes(data)) or dtype.numpy.itemsize == 0:
        raise pickle.UnpicklingError(
            f"an array of shape {shape} and type {dtype.numpy} has {len(_as_bytes(data))} bytes of data"
        )
    return shape, dtype.numpy


def _as_bytes(data: Any) -> bytes:
    """Bytes; files of Python 2 have them as text."""
    if isinstance(data, str):
        return data.encode("latin1")
    if not isinstance(data, (bytes, bytearray)):
        raise pickle.UnpicklingError(f"array data of {_kind(data)} is not allowed in a weight file")
    return bytes(data) if isinstance(data, bytearray) else data


def _sizes(sizes: Any) -> tuple[int, ...]:
    sizes = (sizes,) if isinstance(sizes, int) else sizes
    if not isinstance(sizes, (tuple, list)) or not all(type(size) is int and 0 <= size < 2**48 for size in sizes):
        raise pickle.UnpicklingError("the shape of an array is damaged")
    if len(sizes) > MAX_DIMENSIONS:
        raise pickle.UnpicklingError(f"an array has {len(sizes)} dimensions, more than {MAX_DIMENSIONS}")
    return tuple(sizes)


def _reconstruct(kind: Any, shape: Any, code: Any) -> np.ndarray:
    """An array that its state will fill; `kind` must be the name of numpy's own class."""
    if kind is not _NDARRAY:
        raise pickle.UnpicklingError(f"an array of the class {_kind(kind)} is not allowed in a weight file")
    return np.empty(0, np.uint8).view(_PlainArray)


def _scalar(dtype: Any, data: Any) -> np.generic:
    _, numpy_dtype = _array_parts(data, dtype, ())
    return np.frombuffer(_as_bytes(data), numpy_dtype)[0]


def _frombuffer(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    shape, numpy_dtype = _array_parts(data, dtype, shape)
    return np.frombuffer(_as_bytes(data), numpy_dtype).reshape(shape, order="F" if order == "F" else "C")


# -- torch ------------------------------------------------------------------------------------------------------------


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Tensor:
    """A view of a storage; torch itself checks that it lies inside, and an expanded one stays below a limit."""
    if not isinstance(storage, Storage):
        raise pickle.UnpicklingError(f"a tensor over a {_kind(storage)} is not allowed in a weight file")
    size, values = _sizes(size), storage.values
    if math.prod(size) > max(len(values), MAX_EXPANDED_BYTES // values.element_size()):
        raise pickle.UnpicklingError(f"a tensor of shape {size} has {len(values)} values in the file")
    return values.as_strided(size, _sizes(stride), _sizes(offset)[0])


def _rebuild_tensor_v3(storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any) -> Tensor:
    """A view of a storage of bytes, for dtypes that have no storage class."""
    if not isinstance(storage, Storage) or not isinstance(dtype, torch.dtype):
        raise pickle.UnpicklingError(f"a tensor over a {_kind(storage)} is not allowed in a weight file")
    return _rebuild_tensor(Storage(storage.values.view(dtype)), offset, size, stride)


def _rebuild_parameter(data: Any, *rest: Any) -> Tensor:
    if not isinstance(data, Tensor):
        raise pickle.UnpicklingError(f"a parameter made of a {_kind(data)} is not allowed in a weight file")
    return data


def _rebuild_with_attributes(function: Any, kind: Any, arguments: Any, state: Any) -> Any:
    """A tensor that had Python attributes, which are left out."""
    if not isinstance(function, _Function):
        raise pickle.UnpicklingError(f"calling a {_kind(function)} is not allowed in a weight file")
    return function.call(*arguments)


def _device(kind: Any, index: Any = None) -> torch.device:
    return torch.device(kind) if index is None else torch.device(kind, index)


# -- containers -------------------------------------------------------------------------------------------------------


def _encode_latin1(text: str, encoding: str) -> bytes:
    """`_codecs.encode` as pickles of bytes use it; other encodings may run arbitrary codecs."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"_codecs.encode to {encoding!r} is not allowed in a weight file")
    return text.encode("latin1")


def _mapping(kind: type[dict]) -> Callable[..., dict]:
    """A function that fills a `kind` from nothing, a mapping or pairs."""

    def make(content: Any = ()) -> dict:
        pairs = content.items() if isinstance(content, dict) else content
        if not isinstance(pairs, (list, tuple, type({}.items()))):
            raise pickle.UnpicklingError(f"a mapping made of a {_kind(content)} is not allowed in a weight file")
        return kind({_checked_key(key): value for key, value in pairs})

    return make


def _set(items: Any = ()) -> set:
    if not isinstance(items, (list, tuple)):
        raise pickle.UnpicklingError(f"a set made of a {_kind(items)} is not allowed in a weight file")
    return set(map(_checked_key, items))


def _bytearray(data: Any = b"", encoding: str = "latin1") -> bytearray:
    if not isinstance(data, (str, bytes)):  # a number would ask for that many bytes
        raise pickle.UnpicklingError(f"bytes made of a {_kind(data)} are not allowed in a weight file")
    return bytearray(_encode_latin1(data, encoding) if isinstance(data, str) else data)


class _Name:
    """Stands for a class that is only ever named, as an argument."""

    __slots__ = ()


_NDARRAY = _Name()
_ALLOWED: dict[str, Any] = {
    "_codecs.encode": _Function(_encode_latin1),
    "builtins.bytearray": _Function(_bytearray),
    "builtins.bytes": _Function(lambda data=b"": bytes(_bytearray(data))),
    "builtins.complex": _Function(lambda real, imaginary: complex(real, imaginary)),
    "builtins.set": _Function(_set),
    "collections.Counter": _Function(_mapping(Counter)),
    "collections.OrderedDict": _Function(_mapping(OrderedDict)),
    "numpy.core.multiarray._reconstruct": _Function(_reconstruct),
    "numpy.core.multiarray.scalar": _Function(_scalar),
    "numpy.core.numeric._frombuffer": _Function(_frombuffer),
    "numpy.dtype": _Function(_Dtype),
    "numpy.ndarray": _NDARRAY,
    "torch.Size": _Function(lambda sizes=(): torch.Size(_sizes(sizes))),
    "torch.Tensor": _Name(),
    "torch._tensor._rebuild_from_type_v2": _Function(_rebuild_with_attributes),
    "torch._utils._rebuild_parameter": _Function(_rebuild_parameter),
    "torch._utils._rebuild_parameter_with_state": _Function(_rebuild_parameter),
    "torch._utils._rebuild_tensor": _Function(_rebuild_tensor),
    "torch._utils._rebuild_tensor_v2": _Function(_rebuild_tensor),
    "torch._utils._rebuild_tensor_v3": _Function(_rebuild_tensor_v3),
    "torch.device": _Function(_device),
    "torch.nn.parameter.Parameter": _Function(_rebuild_parameter),
    **{
        f"torch.{name}Storage": StorageKind(dtype)
        for name, dtype in (
            ("Double", torch.float64),
            ("Float", torch.float32),
            ("Half", torch.float16),
            ("BFloat16", torch.bfloat16),
            ("Long", torch.int64),
            ("Int", torch.int32),
            ("Short", torch.int16),
            ("Char", torch.int8),
            ("Byte", torch.uint8),
            ("Bool", torch.bool),
            ("ComplexDouble", torch.complex128),
            ("ComplexFloat", torch.complex64),
        )
    },
    "torch.storage.UntypedStorage": StorageKind(None),
}
