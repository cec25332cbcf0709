"""Read large annotation and result files quickly: the masks stay text until they are needed.

Nearly all bytes of such a file are run-length coded masks. A regular expression takes them out while the file is read,
block by block; what is left is small and goes through Python's JSON reader. A mask that the expression does not know
(polygons, other keys, other white space) simply stays in the document and takes the slow way later.
"""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Iterator
from functools import lru_cache, partial
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lbvq.files.json_files import ByteStream, collector_paused, open_json, parse_json, read_json
from lbvq.files.writing import atomic_path
from lbvq.masks.compiled import load_compiled

BLOCK_BYTES = 1 << 19
_MAX_MASK_BYTES = 1 << 24  # text of a longer mask takes the slow way; searching it again and again would take longer
# Every part of the expressions ends at a character that begins the next mask: no text is searched twice.
_SIZE, _COUNTS = rb"(\[[^\]\[{\"]{0,48}\])", rb"(\"[^\"]*\"|\[[^\]\[{\"]*\])"
_SIZE_FIRST = re.compile(rb'\{"size": ?%s, ?"counts": ?%s\}' % (_SIZE, _COUNTS))
_COUNTS_FIRST = re.compile(rb'\{"counts": ?%s, ?"size": ?%s\}' % (_COUNTS, _SIZE))
# In the document a group of masks becomes this word, for which Python's reader asks us what it means.
_MARK = b"NaN"
_MARKS = re.compile(rb"(NaN(?:, ?NaN)*)")


class MaskFile(NamedTuple):
    """A JSON document whose masks were taken out."""

    name: str  # for messages
    document: Any  # where masks stood, one `range` for each group of neighbours: their indices in the lists below
    texts: list[bytes]  # the counts of every mask as they are in the file
    sizes: list[bytes]  # "[height, width]" of every mask as it is in the file

    @classmethod
    def of(cls, content: Any, name: str) -> MaskFile:
        """A file from its content: masks are Python objects in the document then."""
        return cls(name, content, [], [])

    def mask(self, index: int) -> dict[str, Any]:
        """One of the masks as a Python object; ValueError if it is not JSON."""
        try:
            return {"size": json.loads(self.sizes[index]), "counts": json.loads(self.texts[index])}
        except ValueError as error:
            raise ValueError(f"the mask is not valid JSON ({error})") from None


@lru_cache
def parse_size(text: bytes) -> Any:
    """One of `MaskFile.sizes` as a tuple; as it is, in a string, where it is not JSON."""
    try:
        return tuple(json.loads(text))
    except ValueError:
        return text.decode(errors="replace")


@collector_paused()
def read_mask_file(path: str | os.PathLike[str]) -> MaskFile:
    """Read a .json file, a .json.gz file, or a .zip that holds one .json file; errors are those of `read_json`."""
    texts: list[bytes] = []
    sizes: list[bytes] = []
    with open_json(path) as stream:
        pieces = _MARKS.split(b"".join(_take_masks(stream, texts, sizes)))
    counts = [marks.count(_MARK) for marks in pieces[1::2]]
    if sum(counts) != len(texts) or any(b"Infinity" in piece for piece in pieces):
        return MaskFile.of(read_json(path), os.fspath(path))  # it has words that look like our mark
    pieces[1::2] = [_MARK] * len(counts)
    stops = list(accumulate(counts, initial=0))
    text = b"".join(pieces)
    try:
        document = json.loads(text, parse_constant=partial(next, map(range, stops, stops[1:])))
    except (ValueError, RecursionError):
        # Lines and columns are those of the file only where nothing was taken out.
        return MaskFile.of(read_json(path) if texts else parse_json(text, path), os.fspath(path))
    return MaskFile(os.fspath(path), document, texts, sizes)


def write_mask_file(path: str | Path, document: Any, file: MaskFile) -> None:
    """Write a document made of parts of `file.document`, with its masks as they were; replaces `path` at once."""
    mark = uuid.uuid4().hex  # no text of a file holds it

    def mark_range(item: Any) -> str:
        if not isinstance(item, range):
            raise TypeError(f"{type(item).__name__} cannot be written as JSON")
        return f"{mark}{item.start}:{item.stop}"

    pieces = re.split(rf'"{mark}(\d+):(\d+)"'.encode(), json.dumps(document, default=mark_range).encode())
    with atomic_path(path) as part, open(part, "wb") as stream:
        stream.write(pieces[0])
        for start, stop, rest in zip(pieces[1::3], pieces[2::3], pieces[3::3], strict=True):
            masks = slice(int(start), int(stop))
            written = (
                b'{"size": %s, "counts": %s}' % pair for pair in zip(file.sizes[masks], file.texts[masks], strict=True)
            )
            stream.write(b", ".join(written) + rest)


def _take_masks(stream: ByteStream, texts: list[bytes], sizes: list[bytes]) -> Iterator[bytes]:
    """Yield the file with marks in place of the masks, which go to `texts` and `sizes`."""
    pattern = None
    rest = b""
    while block := stream.read(BLOCK_BYTES):
        block = rest + block
        pattern = pattern or _choose_pattern(block)
        before, tail = _split(block, pattern, texts, sizes) if pattern else (b"", block)
        cut = tail.rfind(b"{")  # this mask may go on in the next block
        if cut < 0 or len(tail) - cut > _MAX_MASK_BYTES:
            cut = len(tail)
        rest = tail[cut:]
        yield before + tail[:cut]
    yield rest


def _split(block: bytes, pattern: re.Pattern, texts: list[bytes], sizes: list[bytes]) -> tuple[bytes, bytes]:
    """Take out the masks of a block; returns what stands before the end of the last one, with marks, and behind it."""
    compiled = load_compiled(len(block))
    if compiled is None:
        pieces = pattern.split(block)
        sizes += _without_copies(pieces[1 if pattern is _SIZE_FIRST else 2 :: 3])
        texts += pieces[2 if pattern is _SIZE_FIRST else 1 :: 3]
        return _MARK.join([*pieces[:-1:3], b""]), pieces[-1]
    taken = compiled.take_masks(block, pattern is _SIZE_FIRST)
    texts += [block[start:stop] for start, stop in taken.counts.tolist()]
    first = np.flatnonzero(taken.is_new)
    known = _without_copies([block[start:stop] for start, stop in taken.size[first].tolist()])
    for size, number in zip(known, np.diff(first, append=len(taken.size)).tolist(), strict=True):
        sizes += [size] * number
    # Behind the last mask stands nothing but its closing brace.
    end = max(taken.counts[-1, 1], taken.size[-1, 1]) + 1 if len(first) else 0
    return taken.rest, block[end:]


def _without_copies(sizes: list[bytes]) -> list[bytes]:
    """Equal sizes as one object: most files have few, and a hundred thousand copies of each."""
    if sizes and sizes.count(sizes[0]) == len(sizes):
        return [sizes[0]] * len(sizes)
    known: dict[bytes, bytes] = {}
    return [known.setdefault(size, size) for size in sizes]


def _choose_pattern(block: bytes) -> re.Pattern | None:
    """Tell from the first mask in which order the file writes the keys; None when the block has no mask."""
    matches = [match for pattern in (_SIZE_FIRST, _COUNTS_FIRST) if (match := pattern.search(block))]
    return min(matches, key=re.Match.start).re if matches else None
