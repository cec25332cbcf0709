"""JSON in files: plain, gzipped or zipped, in any Unicode encoding, within limits; and written so that it is JSON.

Whatever is wrong with a file, the reader raises one ValueError that begins with its name.
"""

from __future__ import annotations

import gc
import gzip
import io
import json
import lzma
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn, Protocol

PACKING = 1  # level of deflate for results: four times as fast as the usual 6, for masks a quarter larger
MAX_UNPACKED_BYTES = 1 << 34
_ALWAYS_UNPACKED_BYTES = 1 << 26  # whatever the size of the archive
_MAX_RATIO = 100  # of unpacked to packed bytes beyond that; deflate reaches 1,000 on blanks, and masks reach 10
_BLOCK_BYTES = 1 << 20
_ARCHIVE_ERRORS = (
    *(zipfile.BadZipFile, gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError, struct.error),
    *(NotImplementedError, RuntimeError),  # zip files with unknown methods, and with passwords
)


class ByteStream(Protocol):
    """What unpacked bytes are read from."""

    def read(self, size: int = ..., /) -> bytes:
        """The next bytes, at most `size`; all that are left if that is negative or not given."""
        ...


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a .json file, a .json.gz file, or a .zip that holds one .json file.

    Raises:
        OSError: there is no such file, or it cannot be read.
        ValueError: it is damaged, too large when unpacked, or not JSON; NaN and Infinity are not JSON.
    """
    with open_json(path) as stream:
        text = stream.read()
    return parse_json(text, path)


def parse_json(text: bytes | str, name: str | os.PathLike[str]) -> Any:
    """Parse a JSON document that came from `name`, in any encoding of Unicode."""
    try:
        if isinstance(text, bytes):
            text = text.decode(json.detect_encoding(text)).removeprefix("\ufeff")
        return json.loads(text, parse_constant=_refuse)
    except RecursionError:
        raise ValueError(f"{os.fspath(name)}: not valid JSON: lists or objects are nested too deeply") from None
    except ValueError as error:  # also text that is not UTF-8, and numbers of thousands of digits
        raise ValueError(f"{os.fspath(name)}: not valid JSON: {error}") from None


def _refuse(word: str) -> NoReturn:
    raise ValueError(f"the word {word} is not JSON; write a number or null")


def to_json(content: Any, *, indent: int | None = None, sort_keys: bool = False) -> str:
    """Text of a document. JSON knows no nan and no infinity: null stands for them."""
    return json.dumps(without_nan(content), indent=indent, sort_keys=sort_keys, allow_nan=False)


def without_nan(content: Any) -> Any:
    """The content with None in place of every number that is not finite."""
    if isinstance(content, Mapping):
        return {key: without_nan(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


@contextmanager
def collector_paused() -> Iterator[None]:
    """Keep Python from looking for garbage, for functions that make very many objects and none of them in a circle.

    It would look through all of them again and again, which takes a tenth of the time of reading.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


# Opening


@contextmanager
def open_json(path: str | os.PathLike[str]) -> Iterator[ByteStream]:
    """Give the unpacked bytes of a file as UTF-8 without a byte order mark.

    What goes wrong while they are read comes out of the block as a ValueError or OSError that names the file.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; expected a .json, .json.gz or .zip file")
    try:
        with _open_packed(path) as packed:
            yield _as_utf8(packed, path)
    except RecursionError:
        raise
    except _ARCHIVE_ERRORS as error:
        raise ValueError(f"{path}: the archive cannot be read ({error or type(error).__name__})") from None
    except OSError as error:
        if error.filename is not None:
            raise
        if error.errno is None:  # what decompressors say of damaged data
            raise ValueError(f"{path}: the archive cannot be read ({error})") from None
        raise OSError(error.errno, error.strerror, str(path)) from error


def json_members(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """The .json files of an archive, without those that systems add for themselves."""
    return [item for item in archive.infolist() if item.filename.endswith(".json") and not is_litter(item.filename)]


def is_litter(name: str) -> bool:
    """Whether a member of an archive, or a file of a folder, was put there by the system and not by a person."""
    parts = PurePosixPath(name).parts
    return bool(parts) and ("__MACOSX" in parts or parts[-1].startswith("._"))


@contextmanager
def _open_packed(path: Path) -> Iterator[ByteStream]:
    suffix = path.suffix.lower()
    if suffix == ".gz":
        with gzip.open(path, "rb") as stream:
            yield _Bounded.over(stream, path)
    elif suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            members = json_members(archive)
            if len(members) != 1:
                found = ", ".join(item.filename for item in archive.infolist()[:5]) or "nothing"
                raise ValueError(f"{path}: expected exactly one .json file inside, found {found}")
            with archive.open(members[0]) as stream:
                yield _Bounded.over(stream, path)
    else:
        with open(path, "rb") as stream:
            yield stream


class _Bounded(io.RawIOBase):
    """Unpacked bytes, no more of them than the packed file may hold."""

    def __init__(self, stream: Any, path: Path) -> None:
        self._stream = stream
        self._path = path
        packed = path.stat().st_size
        self._limit = min(MAX_UNPACKED_BYTES, max(_ALWAYS_UNPACKED_BYTES, _MAX_RATIO * packed))
        self._read = 0

    @classmethod
    def over(cls, stream: Any, path: Path) -> ByteStream:
        return io.BufferedReader(cls(stream, path), _BLOCK_BYTES)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = self._stream.read(len(buffer))
        self._read += len(block)
        if self._read > self._limit:
            raise ValueError(
                f"{self._path} unpacks to more than {self._limit} bytes ({_MAX_RATIO} times its size, and at most "
                f"{MAX_UNPACKED_BYTES}), as hostile archives do; unpack it yourself if you trust it"
            )
        buffer[: len(block)] = block
        return len(block)


def _as_utf8(stream: ByteStream, path: Path) -> ByteStream:
    """The bytes of a stream as UTF-8 without the mark that some editors write first."""
    head = stream.read(4)
    encoding = json.detect_encoding(head)
    if encoding == "utf-8-sig":
        return _Rest(head[3:], stream)
    if encoding == "utf-8":
        return _Rest(head, stream)
    try:
        text = (head + stream.read()).decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from None
    return io.BytesIO(text.removeprefix("\ufeff").encode("utf-8", "surrogatepass"))


class _Rest:
    """A stream whose first bytes were read already."""

    def __init__(self, head: bytes, stream: ByteStream) -> None:
        self._head, self._stream = head, stream

    def read(self, size: int = -1, /) -> bytes:
        head, self._head = self._head, b""
        return head + (self._stream.read() if size < 0 else self._stream.read(max(0, size - len(head))))
