"""Read what `torch.save` wrote, in its zip format and in the one before, with our own safe unpickler.

torch's reader ignores the checksums in the file, and some of its versions trust the sizes. Here a damaged byte is an
error, a record is never larger than the file allows, and a tensor never reaches beyond its record.
"""

from __future__ import annotations

import io
import os
import pickle
import sys
import zipfile
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from .safe_pickle import LEGACY_TORCH_MAGIC, Storage, StorageKind, load_pickle

ZIP_START = b"PK\x03\x04"
LEGACY_TORCH_START = LEGACY_TORCH_MAGIC.to_bytes(10, "little")  # among the first bytes of the older format
MAX_UNPACKED = 16  # times the size of the file; torch does not compress
SMALL_FILE = 1 << 20  # bytes that any file may unpack to
CHUNK = 1 << 22  # bytes read at once


def read_torch_file(path: str | os.PathLike) -> Any:
    """Return what the file holds, on the CPU; ValueError names the file and what is wrong with it.

    Plain pickles are read as well; what they may hold is the same.
    """
    with open(path, "rb") as file:
        try:
            return load_content(file)
        except pickle.UnpicklingError as error:
            raise ValueError(f"{path} was not loaded: {error}.") from error
        except zipfile.BadZipFile as error:
            raise ValueError(f"{path} is damaged or no torch file: {error}; copy or download it again.") from error
        except MemoryError as error:
            raise ValueError(f"{path} is damaged or too large for the memory of this machine.") from error
        except Exception as error:  # a damaged pickle makes its functions fail in any way
            text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            raise ValueError(f"{path} is damaged or no weight file: {text[:300]}") from error


def load_content(file: IO[bytes]) -> Any:
    """Read a seekable file of any of the formats from its beginning; raises whatever is wrong."""
    start = file.read(len(ZIP_START))
    file.seek(0)
    if start == ZIP_START:
        with zipfile.ZipFile(file) as archive:
            return _ZipReader(archive, file.seek(0, 2)).read()
    content = load_pickle(file, load_nested=_load_nested)
    is_legacy = isinstance(content, int) and content == LEGACY_TORCH_MAGIC
    return _LegacyReader(file).read() if is_legacy else content


def _load_nested(data: Any) -> Any:
    if not isinstance(data, bytes):
        raise pickle.UnpicklingError("a torch file inside the pickle is damaged")
    return load_content(io.BytesIO(data))


class _ZipReader:
    """The format since torch 1.6: `NAME/data.pkl` and one record `NAME/data/KEY` for each storage."""

    def __init__(self, archive: zipfile.ZipFile, size: int) -> None:
        self._archive = archive
        self._records = {record.filename: record for record in archive.infolist()}
        self._storages: dict[str, Tensor] = {}
        unpacked = sum(record.file_size for record in self._records.values())
        if unpacked > max(MAX_UNPACKED * size, SMALL_FILE) or len(self._records) != len(archive.infolist()):
            raise pickle.UnpicklingError(f"it has {size} bytes and would unpack to {unpacked}, as no torch file does")
        self._folder = next(iter(self._records), "").split("/")[0]
        if f"{self._folder}/data.pkl" not in self._records:
            raise ValueError("a zip file without data.pkl is no torch file")
        if f"{self._folder}/constants.pkl" in self._records:
            raise pickle.UnpicklingError("it is a TorchScript program, not a file of weights")
        if not any(record.CRC for record in self._records.values()):  # torch was told to save without checksums
            for record in self._records.values():
                del record.CRC

    def read(self) -> Any:
        order = f"{self._folder}/byteorder"
        self._is_swapped = order in self._records and self._bytes(order).decode("latin1") != sys.byteorder
        pickled = io.BytesIO(self._bytes(f"{self._folder}/data.pkl"))
        return load_pickle(pickled, find_storage=self._find_storage, load_nested=_load_nested)

    def _bytes(self, name: str) -> bytes:
        return self._archive.read(self._records[name])

    def _find_storage(self, reference: Any) -> Storage:
        kind, key, count = _parse_reference(reference)
        name = f"{self._folder}/data/{key}"
        if name not in self._records:
            raise ValueError(f"the record {name} is missing")
        if name not in self._storages:
            self._storages[name] = self._values(self._records[name])
        return Storage(_as_kind(self._storages[name], kind, count, self._is_swapped))

    def _values(self, record: zipfile.ZipInfo) -> Tensor:
        """All bytes of a record; the archive checks its sum when the last one is read."""
        values = torch.empty(record.file_size, dtype=torch.uint8)
        with self._archive.open(record) as file:
            _fill(values, file)
            file.read(1)  # the sum is checked at the end
        return values


class _LegacyReader:
    """The format before torch 1.6: four pickles, the list of storage keys, then the storages one after the other."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        begin = file.tell()
        self._left = file.seek(0, 2) - begin
        file.seek(begin)
        self._storages: dict[str, Tensor] = {}
        self._item_sizes: dict[str, int] = {}

    def read(self) -> Any:
        load_pickle(self._file)  # version of the format
        system = load_pickle(self._file)
        is_little = system.get("little_endian", True) if isinstance(system, dict) else True
        if is_little != (sys.byteorder == "little"):
            raise ValueError("an old torch file of a machine with another byte order cannot be read")
        content = load_pickle(self._file, find_storage=self._find_storage, load_nested=_load_nested)
        keys = load_pickle(self._file)
        if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(self._storages):
            raise ValueError("the list of its storages is damaged")
        for key in keys:
            self._fill(str(key))
        return content

    def _find_storage(self, reference: Any) -> Storage:
        kind, key, count = _parse_reference(reference)
        item = 1 if kind.dtype is None else kind.dtype.itemsize
        if key not in self._storages:
            self._left -= count * item
            if self._left < 0:
                raise EOFError("it ends before its last tensor")
            self._storages[key], self._item_sizes[key] = torch.empty(count * item, dtype=torch.uint8), item
        view = reference[5] if len(reference) > 5 else None
        whole = _as_kind(self._storages[key], kind, count, False)
        if view is None:
            return Storage(whole)
        _, offset, size = view
        return Storage(whole.narrow(0, offset, size))

    def _fill(self, key: str) -> None:
        values = self._storages[key]
        count = int.from_bytes(self._file.read(8), "little", signed=True)
        if count * self._item_sizes[key] != len(values):
            raise ValueError(f"the storage {key} has {count} values, another number than its tensors say")
        _fill(values, self._file)


def _fill(values: Tensor, file: IO[bytes]) -> None:
    """Read as many bytes as there are values."""
    target = values.numpy()
    for begin in range(0, len(target), CHUNK):
        piece = file.read(min(CHUNK, len(target) - begin))
        if len(piece) < min(CHUNK, len(target) - begin):
            raise EOFError("it ends before its last tensor")
        target[begin : begin + len(piece)] = np.frombuffer(piece, np.uint8)


def _parse_reference(reference: Any) -> tuple[StorageKind, str, int]:
    """Kind, key and number of values in ("storage", kind, key, place, number, ...)."""
    if not isinstance(reference, tuple) or len(reference) < 5 or reference[0] != "storage":
        raise pickle.UnpicklingError("it refers to something else than storages")
    _, kind, key, _, count = reference[:5]
    if not isinstance(kind, StorageKind) or not isinstance(key, str) or type(count) is not int or count < 0:
        raise pickle.UnpicklingError("a reference to a storage is damaged")
    return kind, key, count


def _as_kind(values: Tensor, kind: StorageKind, count: int, is_swapped: bool) -> Tensor:
    """Bytes as `count` values of a kind, in the byte order of this machine."""
    dtype = kind.dtype or torch.uint8
    if len(values) != count * dtype.itemsize:
        raise ValueError(f"a storage of {count} values of {dtype} has {len(values)} bytes")
    if is_swapped and dtype.itemsize > 1:
        width = dtype.itemsize // (2 if dtype.is_complex else 1)
        values = torch.from_numpy(np.frombuffer(values.numpy(), f"u{width}").byteswap().view(np.uint8))
    return values.view(dtype)
