"""Read large annotation and result files quickly: the masks stay text until they are needed.

Nearly all bytes of such a file are run-length coded masks. A regular expression takes them out while the file is read,
block by block; what is left is small and goes through Python's JSON reader. A mask that the expression does not know
(polygons, other keys, other white space) simply stays in the document and takes the slow way later.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import zipfile
from collections.abc import Iterator
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn

from lbvq.files.writing import atomic_path

BLOCK_BYTES = 1 << 20
_MAX_ZIP_BYTES = 1 << 35  # of the unpacked file
_SIZE_FIRST = re.compile(rb'\{"size": ?(\[[^\]]*\]), ?"counts": ?("[^"]*"|\[[^\]]*\])\}')
_COUNTS_FIRST = re.compile(rb'\{"counts": ?("[^"]*"|\[[^\]]*\]), ?"size": ?(\[[^\]]*\])\}')
# In the document a group of masks becomes this word, for which Python's reader asks us what it means.
_MARK = b"NaN"
_MARKS = re.compile(rb"(NaN(?:, ?NaN)*)")
_RANGE_MARKS = re.compile(rb'"\\u0000(\d+):(\d+)"')


class MaskFile(NamedTuple):
    """A JSON document whose masks were taken out."""

    name: str  # for messages
    document: Any  # where masks stood, one `range` for each group of neighbours: their indices in the lists below
    texts: list[bytes]  # the counts of every mask as they are in the file
    sizes: list[bytes]  # "[height, width]" of every mask as it is in the file


class _UnusualFileError(ValueError):
    """The file holds words that look like our mark, or is broken."""


def read_mask_file(path: str | Path) -> MaskFile:
    """Read a .json file, a .json.gz file, or a .zip that holds one .json file.

    Raises:
        ValueError: the file is not valid JSON; the message names file, line and column.
    """
    path = Path(path)
    try:
        with _open(path) as stream:
            return _read(stream, str(path))
    except _UnusualFileError:
        return _read_plainly(path)
    except (zipfile.BadZipFile, gzip.BadGzipFile, EOFError) as error:
        raise ValueError(f"{path}: the archive cannot be read ({error})") from None


def write_mask_file(path: str | Path, document: Any, file: MaskFile) -> None:
    """Write a document made of parts of `file.document`, with its masks as they were; replaces `path` at once."""
    text = json.dumps(document, default=_mark_range).encode()
    with atomic_path(path) as part, open(part, "wb") as stream:
        pieces = _RANGE_MARKS.split(text)
        stream.write(pieces[0])
        for start, stop, rest in zip(pieces[1::3], pieces[2::3], pieces[3::3], strict=True):
            masks = slice(int(start), int(stop))
            written = (
                b'{"size": %s, "counts": %s}' % pair for pair in zip(file.sizes[masks], file.texts[masks], strict=True)
            )
            stream.write(b", ".join(written) + rest)


def _mark_range(item: Any) -> str:
    if not isinstance(item, range):
        raise TypeError(f"{type(item).__name__} cannot be written as JSON")
    return f"\0{item.start}:{item.stop}"  # no text of a file holds this character


def _open(path: Path) -> BinaryIO:
    if path.is_dir():
        raise ValueError(f"{path} is a folder; expected a .json, .json.gz or .zip file")
    if path.suffix == ".gz":
        return gzip.open(path, "rb")
    if path.suffix != ".zip":
        return open(path, "rb")
    archive = zipfile.ZipFile(path)
    members = [item for item in archive.infolist() if item.filename.endswith(".json")]
    if len(members) != 1:
        found = ", ".join(item.filename for item in archive.infolist()[:5]) or "nothing"
        raise ValueError(f"{path}: expected exactly one .json file inside, found {found}")
    if members[0].file_size > _MAX_ZIP_BYTES:
        raise ValueError(f"{path}: {members[0].filename} would unpack to {members[0].file_size} bytes; unpack it first")
    return io.BufferedReader(archive.open(members[0]))


def _read(stream: BinaryIO, name: str) -> MaskFile:
    texts: list[bytes] = []
    sizes: list[bytes] = []
    pieces = _MARKS.split(b"".join(_take_masks(stream, texts, sizes)))
    counts = [marks.count(_MARK) for marks in pieces[1::2]]
    if sum(counts) != len(texts) or any(b"Infinity" in piece for piece in pieces):
        raise _UnusualFileError(name)
    pieces[1::2] = [_MARK] * len(counts)
    stops = list(accumulate(counts, initial=0))
    try:
        document = json.loads(b"".join(pieces), parse_constant=partial(next, map(range, stops, stops[1:])))
    except ValueError:
        raise _UnusualFileError(name) from None
    return MaskFile(name, document, texts, sizes)


def _read_plainly(path: Path) -> MaskFile:
    """Read the document with its masks, which are dicts then; slower, with an exact message."""

    def refuse(word: str) -> NoReturn:
        raise ValueError(f"the word {word} is not JSON; write a number")

    with _open(path) as stream:
        try:
            return MaskFile(str(path), json.load(stream, parse_constant=refuse), [], [])
        except ValueError as error:  # also text that is not UTF-8
            raise ValueError(f"{path}: not valid JSON: {error}") from None


def _take_masks(stream: BinaryIO, texts: list[bytes], sizes: list[bytes]) -> Iterator[bytes]:
    """Yield the file with marks in place of the masks, which go to `texts` and `sizes`."""
    pattern = None
    rest = b""
    while block := stream.read(BLOCK_BYTES):
        block = rest + block
        pattern = pattern or _choose_pattern(block)
        pieces = pattern.split(block) if pattern else [block]
        sizes += pieces[1 if pattern is _SIZE_FIRST else 2 :: 3]
        texts += pieces[2 if pattern is _SIZE_FIRST else 1 :: 3]
        tail = pieces[-1]
        cut = tail.rfind(b"{")  # this mask may go on in the next block
        if cut < 0:
            cut = len(tail)
        pieces[-1], rest = tail[:cut], tail[cut:]
        yield _MARK.join(pieces[::3])
    yield rest


def _choose_pattern(block: bytes) -> re.Pattern | None:
    """Tell from the first mask in which order the file writes the keys; None when the block has no mask."""
    matches = [match for pattern in (_SIZE_FIRST, _COUNTS_FIRST) if (match := pattern.search(block))]
    return min(matches, key=re.Match.start).re if matches else None
