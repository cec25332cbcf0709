"""Decode many run-length coded masks at once, checking every one of them.

Masks come as the bytes they have in a JSON file: a quoted string of compressed counts (``"d2Oo..."``) or a list of run
lengths (``[12, 5, ...]``). Both describe runs down the columns that alternate between background and foreground. The
runs of all frames of a tube (the masks of one object in one video) are laid behind each other, so that a tube is one
long mask, and overlaps of tubes are overlaps of runs.

All arithmetic is done on whole batches in numpy: reading a mask costs less than a microsecond. `compiled` does it in a
third of that, where there is a C compiler and enough to read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from lbvq.masks.compiled import load_compiled
from lbvq.masks.rle import MAX_PIXELS, to_rle

_QUOTE = ord('"') - ord("0") + 256  # a quotation mark, counted as a base-32 digit in uint8
_BACKSLASH = ord("\\") - ord("0")
_MAX_EXTRA_DIGITS = 5  # after the first; six digits hold every run of MAX_PIXELS; longer numbers take the slow way
_PORTION_BYTES = 1 << 18
_MAX_FACTOR = 10**8  # nine decimals hold every run of MAX_PIXELS


class FrameRuns(NamedTuple):
    """Foreground runs of F masks that belong to tubes, or of F whole tubes; runs of length zero may occur."""

    start: np.ndarray  # (R,) first pixel of every run, counted from the start of its tube
    end: np.ndarray  # (R,) pixel behind its last one
    first: np.ndarray  # (F + 1,) row at which each mask begins, or each tube
    areas: np.ndarray  # (F,) int64, foreground pixels of each mask; (F, T) of the frames of each tube


class _UnusualMasksError(Exception):
    """Some mask of the batch is broken or written in a form that only the slow reader knows."""


def keep_freed_memory() -> None:
    """Have the C library keep the memory of freed arrays instead of asking the system anew each time.

    glibc returns blocks above a threshold to the system at once, and raises the threshold to the size of such a block
    when it is freed. So this untouched block, which costs nothing, spares a tenth of all time here.
    """
    np.empty(31 << 20, np.uint8)


def decode_masks(
    texts: Sequence[bytes], sizes: np.ndarray, offsets: np.ndarray, where: Callable[[int], str]
) -> FrameRuns:
    """Decode F masks and check each: digits, signs, and that the runs fill the frame exactly.

    Args:
        texts: F masks as JSON bytes, quoted strings or lists of integers.
        sizes: (F, 2) height and width of each mask.
        offsets: (F,) number of pixels that lie before each mask in its tube.
        where: gives the place of mask i for the message of the ValueError that a broken mask raises.
    """
    num_pixels = sizes[:, 0] * sizes[:, 1]
    whole = [(0, len(texts))] if len(texts) else []
    parts = []
    for start, stop in _portions(texts) if load_compiled(sum(map(len, texts))) is None else whole:
        part = slice(start, stop)
        try:
            runs = _decode(texts[part], num_pixels[part], offsets[part])
        except _UnusualMasksError:
            rewritten = _rewrite(texts[part], sizes[part], partial(_later, where, start))
            runs = _decode(rewritten, num_pixels[part], offsets[part])
        parts.append(runs)
    return _concatenate(parts)


def check_masks(texts: Sequence[bytes], size_hw: tuple[int, int], where: Callable[[int], str]) -> None:
    """Check F masks of one size as `decode_masks` does, which takes longer; ValueError says which is broken."""
    if _not_canonical(texts, size_hw) is None:
        keep_freed_memory()
        sizes = np.broadcast_to(np.array(size_hw, np.int64), (len(texts), 2))
        decode_masks(texts, sizes, np.zeros(len(texts), np.int64), where)


def canonical_counts(masks: Sequence[Any], size: tuple[int, int], where: Callable[[int], str]) -> list[str]:
    """The counts that `to_rle` gives each of N segmentations, for nearly all of them at once.

    Args:
        masks: compressed masks as a rule, or the counts of masks of that size as they are in a JSON file, in bytes;
            other forms take longer.
        size: height and width of all.
        where: gives the place of mask i for the message of the ValueError that a broken one raises.
    """
    wanted = list(size)
    counts: list[str] = []
    try:
        texts = [_quoted(mask, wanted, where, index) for index, mask in enumerate(masks)]
        for start, stop in _portions(texts):
            some = texts[start:stop]
            rewritten = _not_canonical(some, size)
            if rewritten is None:
                if not _has_plain_escapes(b"".join(some)):
                    some = [text if _has_plain_escapes(text) else _with_plain_escapes(text) for text in some]
                rewritten = _find_not_canonical(some, size)
            # There is nothing but digits between the quotation marks.
            counts += b"".join(some)[1:-1].replace(b"\\\\", b"\\").decode().split('""')
            for index in (start + rewritten).tolist():
                counts[index] = to_rle({"size": wanted, "counts": counts[index]}, *size)["counts"]
        return counts
    except ValueError:
        for index, mask in enumerate(masks):  # now it is known that one is broken: the first says why
            to_rle(_unquoted(mask, wanted, where, index), *size, where(index))
        raise


def _quoted(mask: Any, size: list[int], where: Callable[[int], str], index: int) -> bytes:
    """Counts as they would be in a JSON file."""
    if isinstance(mask, bytes):
        if mask[:1] == b'"':
            return mask
        mask = _unquoted(mask, size, where, index)
    counts = mask.get("counts") if isinstance(mask, dict) else None
    given = mask.get("size") if isinstance(counts, (str, bytes)) else None
    if not isinstance(given, list) or given != size or type(given[0]) is not int or type(given[1]) is not int:
        counts = to_rle(mask, size[0], size[1], where(index))["counts"]
    raw = counts if isinstance(counts, bytes) else str(counts).encode("ascii")
    return b'"%s"' % raw.replace(b"\\", b"\\\\")


def _has_plain_escapes(text: bytes) -> bool:
    """Whether nothing but the backslash is escaped."""
    return b"\\" not in text.replace(b"\\\\", b"")


def _with_plain_escapes(text: bytes) -> bytes:
    """The same string in that form."""
    return b'"%s"' % json.loads(text).encode("ascii").replace(b"\\", b"\\\\")


def _unquoted(mask: Any, size: list[int], where: Callable[[int], str], index: int) -> Any:
    """A mask as a Python object."""
    if not isinstance(mask, bytes):
        return mask
    try:
        return {"size": size, "counts": json.loads(mask)}
    except ValueError as error:
        raise ValueError(f"{where(index)}: the mask is not valid JSON ({error})") from None


def _not_canonical(texts: Sequence[bytes], size: tuple[int, int]) -> np.ndarray | None:
    """Check compressed masks of one size, and give the positions of those with a run or a digit too many.

    None where that is not compiled, or where one is broken or unusual.
    """
    compiled = load_compiled(sum(map(len, texts))) if size[0] * size[1] <= MAX_PIXELS else None
    is_canonical = None if compiled is None else compiled.find_canonical(texts, size[0] * size[1])
    return None if is_canonical is None else np.flatnonzero(~is_canonical)


def _find_not_canonical(texts: Sequence[bytes], size: tuple[int, int]) -> np.ndarray:
    """The same in numpy; ValueError if one is broken."""
    keep_freed_memory()
    sizes = np.broadcast_to(np.array(size, np.int64), (len(texts), 2))
    runs = decode_masks(texts, sizes, np.zeros(len(texts), np.int64), str)
    first, last = runs.first[:-1], runs.first[1:] - 1
    is_empty = runs.start == runs.end
    before = np.concatenate(([-1], runs.end[:-1]))
    before[first] = -1  # a mask may begin with foreground
    digits = np.frombuffer(b"".join(texts), np.uint8) - np.uint8(ord("0"))
    closing = np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts))) - 1
    ends = np.flatnonzero(digits < 32)
    numbers = np.diff(np.searchsorted(ends, closing), prepend=0)
    no_last_run = is_empty[last] & (numbers == 2 * (last - first) + 1)  # then the decoder has added one
    is_empty[last] &= ~no_last_run
    too_many = np.searchsorted(first, np.flatnonzero(is_empty | (runs.start == before)), side="right") - 1
    # The digit before a last one says with bit 16 whether the last one only repeats the sign.
    digit, sign = digits.take(ends), digits.take(ends - 1)
    is_repeated = ((sign & 0xE0) == 32) & (digit == np.where(sign & 16, 31, 0))
    too_long = np.searchsorted(closing, ends[np.flatnonzero(is_repeated)])
    return np.unique(np.concatenate((too_many, too_long)))


def _later(where: Callable[[int], str], start: int, index: int) -> str:
    return where(start + index)


def _portions(texts: Sequence[bytes]) -> list[tuple[int, int]]:
    """Cut the masks into portions whose arrays fit the processor's cache, which is twice as fast as one large array."""
    total = np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)))
    num_bytes = int(total[-1]) if len(texts) else 0
    num_portions = -(-num_bytes // _PORTION_BYTES)
    cuts = np.searchsorted(total, np.arange(1, num_portions) * (num_bytes / max(1, num_portions)))
    return [(start, stop) for start, stop in pairwise([0, *cuts.tolist(), len(texts)]) if start < stop]


def _concatenate(parts: list[FrameRuns]) -> FrameRuns:
    if len(parts) == 1:
        return parts[0]
    if not parts:
        return FrameRuns(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(1, np.int64), np.zeros(0, np.int64))
    start, end, areas = (np.concatenate([getattr(part, key) for part in parts]) for key in ("start", "end", "areas"))
    rows = np.concatenate([np.diff(part.first) for part in parts])
    return FrameRuns(start, end, np.concatenate(([0], np.cumsum(rows))), areas)


def _rewrite(texts: Sequence[bytes], sizes: np.ndarray, where: Callable[[int], str]) -> list[bytes]:
    """Read the masks one by one with the strict reader; the first broken one raises ValueError with its place."""
    rewritten = []
    for index, text in enumerate(texts):
        height, width = (int(side) for side in sizes[index])
        try:
            counts = json.loads(text)
        except ValueError as error:
            raise ValueError(f"{where(index)}: the mask is not valid JSON ({error})") from None
        rle = to_rle({"size": [height, width], "counts": counts}, height, width, where(index))
        rewritten.append(json.dumps(rle["counts"]).encode())
    return rewritten


def _decode(texts: Sequence[bytes], num_pixels: np.ndarray, offsets: np.ndarray) -> FrameRuns:
    # 32 bits are twice as fast. They may wrap around on broken masks, but not unseen: no step of a sum below is longer
    # than 2**29, so a sum that leaves the allowed range must stop at least once in the forbidden part of the 32 bits.
    dtype = np.int32 if int((offsets + num_pixels).max()) < 2**31 else np.int64
    if int(num_pixels.max()) > MAX_PIXELS or int(num_pixels.min()) <= 0:
        raise _UnusualMasksError
    compiled = load_compiled()
    if compiled is not None and dtype is np.int32:
        decoded = compiled.decode(texts, num_pixels, offsets)
        if decoded is None:
            raise _UnusualMasksError
        return FrameRuns(*decoded)
    read = _read_compressed if texts[0][:1] == b'"' else _read_lists
    return _place(read(b"".join(texts), len(texts), dtype), num_pixels, offsets)


class _RunLengths(NamedTuple):
    """Runs of F masks in pairs of background and foreground. Apart, because numpy is slow on every second number."""

    background: np.ndarray  # (R,)
    foreground: np.ndarray  # (R,)
    first: np.ndarray  # (F + 1,) pair at which each mask begins


def _place(lengths: _RunLengths, num_pixels: np.ndarray, offsets: np.ndarray) -> FrameRuns:
    """Check the lengths and give the runs their positions; overwrites the background."""
    background, foreground, first = lengths
    shortest, longest = min(background.min(), foreground.min()), max(background.max(), foreground.max())
    if shortest < 0 or longest > num_pixels.max():
        raise _UnusualMasksError
    starts, lasts = first[:-1], first[1:] - 1
    areas = np.add.reduceat(foreground, starts)
    stops = offsets + num_pixels
    background[starts] += (offsets - np.concatenate(([0], stops[:-1]))).astype(background.dtype)  # to the own place
    background += foreground
    end = np.cumsum(background, dtype=background.dtype)
    start = end - foreground
    if start.min() < 0 or end.max() > stops.max() or (end[lasts] != stops).any():
        raise _UnusualMasksError
    return FrameRuns(start, end, first, areas.astype(np.int64))


def _read_compressed(blob: bytes, num_masks: int, dtype: type) -> _RunLengths:
    """Joined quoted strings -> lengths of their runs."""
    digits = np.frombuffer(blob, np.uint8) - np.uint8(ord("0"))
    is_end = digits < 32  # the last digit of a number lacks the continuation bit
    others = np.flatnonzero(~is_end)
    kinds = digits.take(others)
    quotes = np.flatnonzero(kinds == _QUOTE)  # among the others
    if len(quotes) != 2 * num_masks or np.count_nonzero(kinds > 63) != len(quotes):
        raise _UnusualMasksError
    opening, closing = others[quotes[::2]], others[quotes[1::2]]
    if opening[0] != 0 or closing[-1] != len(digits) - 1 or (opening[1:] != closing[:-1] + 1).any():
        raise _UnusualMasksError
    if not is_end[closing - 1].all():  # an empty or cut off string
        raise _UnusualMasksError
    _check_escapes(others.take(np.flatnonzero(kinds == _BACKSLASH)))
    numbers = np.diff(closing - quotes[1::2], prepend=0)  # of each mask
    is_odd = numbers % 2 == 1
    is_end[closing[is_odd]] = True  # the quotation mark stands for a last foreground run of length zero
    values = _join_digits(digits, dtype).take(np.flatnonzero(is_end))
    first = np.concatenate(([0], np.cumsum((numbers + is_odd) // 2)))
    return _undo_differences(values[::2].copy(), values[1::2].copy(), first, is_odd)


def _check_escapes(backslashes: np.ndarray) -> None:
    """A backslash is a digit, which JSON writes twice; other escapes are unusual."""
    if len(backslashes) % 2 or (backslashes[1::2] != backslashes[::2] + 1).any():
        raise _UnusualMasksError


def _join_digits(digits: np.ndarray, dtype: type) -> np.ndarray:
    """Give the last digit of every number the value of the whole number; digits of higher places come later."""
    low = digits & 31
    is_continued = (digits & 0xE0) == 32
    # Numbers of up to two digits first; bit 16 of the last digit is the sign.
    values = ((low ^ 16).view(np.int8) - np.int8(16)).astype(np.int16)
    values[1:] <<= 5 * is_continued[:-1].view(np.uint8)
    values[1:] += low[:-1] * is_continued[:-1]
    values = values.astype(dtype)
    digit = 1 + np.flatnonzero(is_continued[:-2] & is_continued[1:-1] & ~is_continued[2:])
    end = digit + 1
    for _ in range(_MAX_EXTRA_DIGITS):  # the last time only to see that no number goes on
        digit -= 1 + (digits.take(digit) == _BACKSLASH)  # the twin of a backslash is no digit of its own
        more = np.flatnonzero(is_continued.take(digit))
        if len(more) == 0:
            return values
        digit, end = digit.take(more), end.take(more)
        values[end] = (values.take(end) << 5) + low.take(digit)
    raise _UnusualMasksError


def _undo_differences(
    background: np.ndarray, foreground: np.ndarray, first: np.ndarray, is_odd: np.ndarray
) -> _RunLengths:
    """From the fourth number of a mask on, a number is the difference to the run two places before."""
    starts, num_pairs = first[:-1], np.diff(first)
    third = starts[num_pairs > 1] + 1
    background[third] -= background[third - 1]  # the third number is a run, not a difference: make it one

    def summed(differences: np.ndarray) -> np.ndarray:
        sums = np.cumsum(differences, dtype=differences.dtype)  # over all masks
        sums -= np.repeat(sums[starts] - differences[starts], num_pairs)
        return sums

    lengths = _RunLengths(summed(background), summed(foreground), first)
    lengths.foreground[first[1:][is_odd] - 1] = 0
    return lengths


def _read_lists(blob: bytes, num_masks: int, dtype: type) -> _RunLengths:
    """Joined lists of run lengths -> these lengths."""
    chars = np.frombuffer(blob + b"[", np.uint8)
    digits = chars - np.uint8(ord("0"))
    is_digit = digits < 10
    is_space = chars == ord(" ")
    is_end = (chars == ord(",")) | (chars == ord("]"))
    num_open = np.count_nonzero(chars == ord("["))
    if np.count_nonzero(is_digit) + np.count_nonzero(is_space) + np.count_nonzero(is_end) + num_open != len(chars):
        raise _UnusualMasksError
    # A number must end at its comma or bracket, and there must be one before each of them.
    if (is_digit[:-1] & is_space[1:]).any() or (is_end[1:] & ~is_digit[:-1]).any():
        raise _UnusualMasksError
    ends = np.flatnonzero(is_end)
    last = np.flatnonzero(chars.take(ends) == ord("]"))  # among the ends
    opening = ends.take(last) + 1  # of the next mask
    if (
        len(last) != num_masks
        or num_open != num_masks + 1
        or chars[0] != ord("[")
        or (chars[opening] != ord("[")).any()
    ):
        raise _UnusualMasksError
    numbers = np.diff(last, prepend=-1)
    is_odd = numbers % 2 == 1
    is_end[opening[is_odd]] = True  # this bracket stands for a last foreground run of length zero
    values = _join_decimals(digits, is_digit, dtype).take(np.flatnonzero(is_end) - 1)  # at the last digits
    background, foreground = values[::2].copy(), values[1::2].copy()
    first = np.concatenate(([0], np.cumsum((numbers + is_odd) // 2)))
    foreground[first[1:][is_odd] - 1] = 0
    return _RunLengths(background, foreground, first)


def _join_decimals(digits: np.ndarray, is_digit: np.ndarray, dtype: type) -> np.ndarray:
    """Give the last digit of every decimal number the value of the whole number."""
    ones = digits * is_digit
    pairs = ones.copy()  # pairs[i]: value of the one or two digits that end at i
    pairs[1:] += ones[:-1] * np.uint8(10)
    pairs *= is_digit
    values = pairs.astype(dtype)
    # The type is said, because numpy before 2.0 multiplies small integers by a typed number in 8 bits.
    values[2:] += np.multiply(pairs[:-2] * is_digit[1:-1], 100, dtype=dtype)  # now of up to four digits
    five = is_digit[:-4] & is_digit[1:-3] & is_digit[2:-2] & is_digit[3:-1] & is_digit[4:]
    place = np.flatnonzero(five)  # rare: only the first run of a mask is that long as a rule
    end = place + 4
    place, end = place[~is_digit[end + 1]], end[~is_digit[end + 1]]
    factor = 1000
    while len(place):
        factor *= 10
        if factor > _MAX_FACTOR:
            raise _UnusualMasksError
        values[end] += np.multiply(digits[place], factor, dtype=dtype)
        place = place - 1
        more = is_digit[place]
        place, end = place[more], end[more]
    return values
