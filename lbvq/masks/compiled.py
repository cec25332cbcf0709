"""The inner loops of decoding and comparing masks in C, see `mask2former.compiled`.

    python -m lbvq.masks.compiled

compiles them now, and says whether that went well. Nobody has to: they are compiled when there is enough work for them.
`runs` and `evaluation.overlap` do the same in numpy where they are not. Results are equal to the last bit.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mask2former.compiled import CSource

if TYPE_CHECKING:
    from lbvq.masks.runs import FrameRuns

FLAGS = ("-fwrapv",)
SOURCE = Path(__file__).with_name("runs.c")
_LEAST_BYTES = len('{"size":[],"counts":""}')
LOOPS = CSource("loops of masks", SOURCE, FLAGS, worth=1 << 20)  # bytes of masks


def load_compiled(num_bytes: int = 0) -> Library | None:
    """The compiled functions, None where they are not compiled.

    Args:
        num_bytes: of masks that are to be read. A million is read before anything is compiled.
    """
    library = LOOPS.load(num_bytes)
    return None if library is None else _functions(library)


@lru_cache
def _functions(library: ctypes.CDLL) -> Library:
    return Library(library)


class TakenMasks(NamedTuple):
    """Where M masks stand in a text."""

    counts: np.ndarray  # (M, 2) int32 first byte, and byte behind the last
    size: np.ndarray  # (M, 2) int32 the same of their sizes
    is_new: np.ndarray  # (M,) bool, whether a size differs from that of the mask before
    rest: bytes  # the text up to the end of the last mask, with NaN for each


class Library:
    """The functions of `runs.c`, called with arrays. All positions are int32 here, see `runs.FrameRuns`."""

    def __init__(self, functions: ctypes.CDLL) -> None:
        """Say what the functions take."""
        pointer, whole = ctypes.c_void_p, ctypes.c_int64
        self._decode, self._cut, self._count = functions.decode, functions.cut, functions.count_shared
        self._decode.argtypes = [pointer, whole, *9 * [pointer]]
        self._cut.argtypes = [pointer, pointer, whole, pointer, ctypes.c_int32, whole, *4 * [pointer]]
        tubes: list[Any] = [*4 * [pointer], whole]
        self._count.argtypes = [*tubes, *tubes, whole, whole, *3 * [pointer]]
        self._take = functions.take_masks
        self._take.argtypes = [ctypes.c_char_p, whole, ctypes.c_int, *5 * [pointer]]
        self._decode.restype = self._cut.restype = self._take.restype = whole
        self._count.restype = None

    def decode(
        self, texts: Sequence[bytes], num_pixels: np.ndarray, offsets: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None:
        """Start, end, first and areas of F masks as in `FrameRuns`; None if one is broken or unusual."""
        lengths = np.fromiter(map(len, texts), np.int64, len(texts))
        start, end = np.empty((2, int(lengths.sum()) // 2 + len(texts)), np.int32)  # a number takes a byte at least
        first = np.empty(len(texts) + 1, np.int64)
        decoded = self._decode_all(texts, lengths, num_pixels, offsets, (start, end), first)
        return decoded and (start[: decoded[0]], end[: decoded[0]], first, decoded[1])

    def find_canonical(self, texts: Sequence[bytes], num_pixels: int) -> np.ndarray | None:
        """(F,) bool, which masks of one size are as `rle.to_rle` writes them; None if one is broken or unusual."""
        lengths = np.fromiter(map(len, texts), np.int64, len(texts))
        sizes = np.full(len(texts), num_pixels, np.int64)
        runs = np.empty((2, int(lengths.max(initial=0)) // 2 + 1), np.int32)  # of one mask at a time
        decoded = self._decode_all(texts, lengths, sizes, np.zeros(len(texts), np.int64), (runs[0], runs[1]), None)
        return decoded and decoded[2]

    def _decode_all(
        self,
        texts: Sequence[bytes],
        lengths: np.ndarray,
        num_pixels: np.ndarray,
        offsets: np.ndarray,
        runs: tuple[np.ndarray, np.ndarray],
        first: np.ndarray | None,
    ) -> tuple[int, np.ndarray, np.ndarray] | None:
        """Number of runs, areas and which masks are canonical."""
        areas, is_canonical = np.empty(len(texts), np.int64), np.empty(len(texts), bool)
        values = np.empty(int(lengths.max(initial=0)) + 8, np.int32)
        given = [np.ascontiguousarray(each, np.int64) for each in (np.cumsum(lengths), num_pixels, offsets)]
        filled = (_address(values), *map(_address, runs), None if first is None else _address(first))
        num_rows = self._decode(
            b"".join(texts), len(texts), *map(_address, given), *filled, _address(areas), _address(is_canonical)
        )
        return None if num_rows < 0 else (num_rows, areas, is_canonical)

    def cut_at_columns(
        self, start: np.ndarray, end: np.ndarray, first: np.ndarray, height: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Start, end, column and first, see `overlap.ColumnRuns`."""
        room = len(start)  # as a rule no run is cut
        while True:
            starts, ends, column = np.empty((3, room), np.int32)
            cut_first = np.empty(len(first), np.int64)
            given = (_address(start), _address(end), len(first) - 1, _address(first), height, room)
            filled = [_address(each) for each in (starts, ends, column, cut_first)]
            num_rows = self._cut(*given, *filled)
            if num_rows <= room:
                return starts, ends, column, cut_first
            room = num_rows

    def count_shared(
        self, one: FrameRuns, other: FrameRuns, num_pixels: int, pairs: np.ndarray, needed: np.ndarray
    ) -> np.ndarray:
        """(P,) pixels that pairs of tubes share; 0 may stand for less than is needed.

        Args:
            one, other: int32 runs of N and of G tubes.
            num_pixels: of a frame.
            pairs: (P, 2) int64 indices of tubes.
            needed: (P,) int64 pixels.
        """
        counts = np.empty(len(pairs), np.int64)
        sides = [[*map(_address, side), side.areas.shape[1]] for side in (one, other)]
        arrays = [np.ascontiguousarray(each, np.int64) for each in (pairs, needed)]
        self._count(*sides[0], *sides[1], num_pixels, len(pairs), *map(_address, arrays), _address(counts))
        return counts

    def take_masks(self, text: bytes, size_first: bool) -> TakenMasks:
        """Take out the masks that `files.mask_file` knows, of which all have the size first, or all the counts."""
        room = len(text) // _LEAST_BYTES + 1
        counts, size = np.empty((2, room, 2), np.int32)
        is_new, rest = np.empty(room, bool), np.empty(len(text), np.uint8)
        length = np.empty(1, np.int64)
        filled = map(_address, (counts, size, is_new, rest, length))
        num_masks = self._take(text, len(text), size_first, *filled)
        return TakenMasks(counts[:num_masks], size[:num_masks], is_new[:num_masks], rest[: length[0]].tobytes())


def _address(array: np.ndarray) -> int:
    """Where the numbers of a contiguous array lie; the array must outlive the use of it."""
    return array.ctypes.data


if __name__ == "__main__":
    said = f"{LOOPS.name}: {LOOPS.describe()}"
    if LOOPS.load() is None:
        sys.exit(said)
    print(said)
