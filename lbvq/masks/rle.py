"""Run-length coded masks in the COCO format, checked before anything trusts them.

A mask is a dict ``{"size": [height, width], "counts": str}``. Runs go down the columns and alternate between background
and foreground, starting with background; ``counts`` packs them as signed base-32 digits, from the fourth run on as the
difference to the run two places before (the format of pycocotools).

pycocotools trusts its input: runs that do not fill the image decode to uninitialised memory, a run of length zero in
the middle makes its merge stop early. So every mask from outside passes `validate_rle` or `to_rle` first; decoding,
encoding, area and box are done here in numpy and need no C code.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import pairwise
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
import pycocotools.mask as coco_mask

if TYPE_CHECKING:  # whoever hands a tensor over has imported torch; reading files does not wait for it
    from torch import Tensor

MAX_PIXELS = 2**28  # of any image, frame or mask (16384 x 16384); a file that claims more is broken or hostile
_MAX_DIGITS = 7  # base-32 digits of one run: 34 bits and a sign
_MAX_POLYGON_STEPS = 2**26  # pycocotools walks polygons in fifths of a pixel
_CHUNK_PIXELS = 2**25  # encode so many pixels at once

Rle = dict[str, Any]


def validate_rle(rle: Any, size: Sequence[int] | None = None, where: str = "") -> None:
    """Raise ValueError with the reason unless `rle` is a compressed mask that C code may safely read.

    Args:
        rle: ``{"size": [height, width], "counts": str or bytes}``.
        size: the (height, width) the mask must have; None accepts any.
        where: what the mask is, for the message, e.g. ``"results.json, entry 3, frame 0"``.
    """
    inner = _read(rle, size, where)[2][1:-1]
    if (inner == 0).any():
        index = int(np.flatnonzero(inner == 0)[0]) + 1
        raise _error(where, f"run {index} has length 0, which pycocotools cannot merge; rewrite the mask with to_rle()")


def to_rle(segmentation: Any, height: int, width: int, where: str = "") -> Rle:
    """Turn any segmentation of an annotation file into a compressed mask in canonical form.

    Args:
        segmentation: a compressed mask, a mask with a list of counts, or a list of polygons [x0, y0, x1, y1, ...] in
            pixels (their union is taken; no polygon gives the empty mask).
        height: of the image in pixels.
        width: of the image in pixels.
        where: for the message.

    Returns:
        A new mask; equal pixels always give an equal string.
    """
    size = _check_size([height, width], where)
    if isinstance(segmentation, dict):
        if isinstance(segmentation.get("counts"), (str, bytes)):
            runs = _read(segmentation, size, where)[2]
        else:
            runs = _read_uncompressed(segmentation, size, where)
        return _from_runs(_join_zero_runs(runs), size)
    if isinstance(segmentation, (list, tuple)):
        return _polygons_to_rle(segmentation, size, where)
    raise _error(
        where,
        f"expected a mask {{'size', 'counts'}} or a list of polygons, got {type(segmentation).__name__}",
    )


def encode(mask: np.ndarray | Tensor) -> Rle:
    """(H, W) bool or integer mask (non-zero is foreground) -> compressed mask."""
    if getattr(mask, "ndim", None) != 2:
        raise ValueError(f"mask must have shape (H, W), got {_shape_text(mask)}")
    return encode_many(mask[None])[0]


def encode_many(masks: np.ndarray | Tensor) -> list[Rle]:
    """Encode (N, H, W) bool or integer masks (non-zero is foreground), on any device, into N compressed masks."""
    masks = _as_bool(masks)
    num_masks, height, width = masks.shape
    if num_masks == 0:
        return []
    size = _check_size([height, width], "masks")
    step = max(1, _CHUNK_PIXELS // (height * width))
    strings: list[str] = []
    for start in range(0, num_masks, step):
        strings += _encode_chunk(masks[start : start + step])
    return [{"size": list(size), "counts": counts} for counts in strings]


def decode(rle: Rle, size: Sequence[int] | None = None, where: str = "") -> np.ndarray:
    """Compressed mask -> (H, W) bool array, after the checks of `validate_rle`."""
    height, width, runs = _read(rle, size, where)
    return np.ascontiguousarray(_paint(runs, height, width))


def decode_many(rles: Sequence[Rle | None], size: Sequence[int]) -> np.ndarray:
    """N compressed masks of one (height, width), None for an empty one -> (N, H, W) bool array."""
    height, width = _check_size(size, "size")
    masks = np.zeros((len(rles), height, width), dtype=bool)
    for index, rle in enumerate(rles):
        if rle is not None:
            masks[index] = _paint(_read(rle, (height, width), f"mask {index}")[2], height, width)
    return masks


def area(rle: Rle) -> int:
    """Number of foreground pixels."""
    return int(_read(rle, None, "")[2][1::2].sum())


def to_bbox(rle: Rle) -> list[float]:
    """Tight box [x, y, width, height] in pixels; all zeros for an empty mask."""
    height, _, runs = _read(rle, None, "")
    ends = np.cumsum(runs)
    first, last = ends[0:-1:2], ends[1::2] - 1  # of the foreground runs, inclusive
    first, last = first[first <= last], last[first <= last]
    if len(first) == 0:
        return [0.0, 0.0, 0.0, 0.0]
    spans_columns = first // height != last // height
    top = 0 if spans_columns.any() else int((first % height).min())
    bottom = height - 1 if spans_columns.any() else int((last % height).max())
    left, right = int(first[0] // height), int(last[-1] // height)
    return [float(left), float(top), float(right - left + 1), float(bottom - top + 1)]


# Reading


def _read(rle: Any, size: Sequence[int] | None, where: str) -> tuple[int, int, np.ndarray]:
    """Check a compressed mask and return height, width and its runs (int64, sum height * width)."""
    if not isinstance(rle, dict) or "size" not in rle or "counts" not in rle:
        got = f"a dict with the keys {sorted(map(str, rle))}" if isinstance(rle, dict) else type(rle).__name__
        raise _error(where, f"a mask must be a dict with 'size' and 'counts', got {got}")
    height, width = _check_size(rle["size"], where)
    if size is not None and (height, width) != tuple(int(side) for side in size):
        raise _error(where, f"mask size must be {_size_text(size)}, got {_size_text((height, width))}")
    runs = _unpack(rle["counts"], height * width, where)
    _check_runs(runs, height, width, where)
    return height, width, runs


def _check_size(size: Any, where: str) -> tuple[int, int]:
    if isinstance(size, np.ndarray):
        size = size.tolist()
    if not isinstance(size, (list, tuple)) or len(size) != 2 or not all(_is_integer(side) for side in size):
        raise _error(where, f"'size' must be two integers [height, width], got {size!r:.60}")
    height, width = int(size[0]), int(size[1])
    if height <= 0 or width <= 0:
        raise _error(where, f"'size' must be positive, got {_size_text((height, width))}")
    if height * width > MAX_PIXELS:
        raise _error(where, f"'size' {_size_text((height, width))} is above the limit of {MAX_PIXELS} pixels")
    return height, width


def _unpack(counts: Any, num_pixels: int, where: str) -> np.ndarray:
    """Compressed counts -> int64 runs; checks the digits, not the runs."""
    if isinstance(counts, str):
        try:
            counts = counts.encode("ascii")
        except UnicodeEncodeError:
            raise _error(where, "'counts' holds characters outside ASCII") from None
    if not isinstance(counts, bytes):
        hint = "; convert uncompressed counts with to_rle()" if isinstance(counts, (list, tuple, np.ndarray)) else ""
        raise _error(where, f"'counts' must be a string, got {type(counts).__name__}{hint}")
    if not counts:
        raise _error(where, "'counts' is empty; an empty mask has one background run")
    if len(counts) > _MAX_DIGITS * (2 * num_pixels + 2):
        raise _error(where, f"'counts' has {len(counts)} characters, too many for {num_pixels} pixels")
    digits = np.frombuffer(counts, dtype=np.uint8).astype(np.int64) - 48
    if digits.min() < 0 or digits.max() > 63:
        position = int(np.flatnonzero((digits < 0) | (digits > 63))[0])
        raise _error(
            where, f"'counts' holds the character {chr(counts[position])!r} at {position}; allowed: '0' to 'o'"
        )
    last = np.flatnonzero(digits < 32)  # digits without the continuation bit end a number
    if len(last) == 0 or last[-1] != len(digits) - 1:
        raise _error(where, "'counts' ends inside a number; the string is cut off")
    first = np.concatenate(([0], last[:-1] + 1))
    length = last - first + 1
    if length.max() > _MAX_DIGITS:
        raise _error(
            where, f"'counts' holds a number of {int(length.max())} digits; at most {_MAX_DIGITS} fit an image"
        )
    shift = 5 * (np.arange(len(digits)) - np.repeat(first, length))
    values = np.add.reduceat((digits & 31) << shift, first)
    values -= ((digits[last] & 16) != 0) * (np.int64(1) << (5 * length))  # sign
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def _read_uncompressed(rle: dict, size: tuple[int, int], where: str) -> np.ndarray:
    counts = rle.get("counts")
    if not isinstance(counts, (list, tuple, np.ndarray)) or "size" not in rle:
        raise _error(
            where, f"a mask needs 'size' and 'counts' as a string or a list, got counts {type(counts).__name__}"
        )
    if _check_size(rle["size"], where) != size:
        raise _error(where, f"mask size must be {_size_text(size)}, got {_size_text(rle['size'])}")
    values = counts.tolist() if isinstance(counts, np.ndarray) else counts
    if len(values) == 0 or not all(_is_integer(value) and abs(value) <= MAX_PIXELS for value in values):
        raise _error(where, f"'counts' must be a non-empty list of integers up to {MAX_PIXELS}")
    runs = np.array([int(value) for value in values], dtype=np.int64)
    _check_runs(runs, *size, where)
    return runs


def _check_runs(runs: np.ndarray, height: int, width: int, where: str) -> None:
    num_pixels = height * width
    if runs.min() < 0:
        index = int(np.flatnonzero(runs < 0)[0])
        raise _error(where, f"run {index} of 'counts' is negative ({int(runs[index])})")
    if runs.max() > num_pixels or int(runs.sum()) != num_pixels:
        total = sum(runs.tolist())
        raise _error(where, f"the runs must add up to {height} x {width} = {num_pixels} pixels, they add up to {total}")


def _polygons_to_rle(polygons: Sequence, size: tuple[int, int], where: str) -> Rle:
    height, width = size
    if not polygons:
        return _from_runs(np.array([height * width]), size)
    checked = [_check_polygon(polygon, index, where) for index, polygon in enumerate(polygons)]
    return to_rle(coco_mask.merge(coco_mask.frPyObjects(checked, height, width)), height, width, where)


def _check_polygon(polygon: Any, index: int, where: str) -> list[float]:
    name = f"polygon {index}"
    if not isinstance(polygon, (list, tuple, np.ndarray)):
        raise _error(where, f"{name} must be a list of numbers [x0, y0, ...], got {type(polygon).__name__}")
    values = polygon.reshape(-1).tolist() if isinstance(polygon, np.ndarray) else list(polygon)
    if not all(isinstance(value, Real) and not isinstance(value, bool) for value in values):
        raise _error(where, f"{name} must hold numbers only")
    if len(values) < 6 or len(values) % 2:
        raise _error(
            where, f"{name} must have at least 3 points, that is an even count of numbers >= 6, got {len(values)}"
        )
    try:
        points = np.asarray(values, dtype=np.float64).reshape(-1, 2)
    except OverflowError as error:  # a whole number of hundreds of digits, which JSON allows
        raise _error(where, f"{name} has a coordinate too large for a number") from error
    if not np.isfinite(points).all():
        raise _error(where, f"{name} holds a number that is not finite")
    with np.errstate(over="ignore"):  # infinitely long is too long
        steps = 5 * np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum()
    if steps > _MAX_POLYGON_STEPS or np.abs(points).max() > MAX_PIXELS:
        raise _error(where, f"{name} is {steps / 5:.3g} pixels long; its coordinates are not pixels of this image")
    return points.reshape(-1).tolist()


# Writing


def _as_bool(masks: np.ndarray | Tensor) -> np.ndarray | Tensor:
    """Check (N, H, W) and make it bool; numpy for the CPU, a tensor on another device."""
    if getattr(masks, "ndim", None) != 3:
        raise ValueError(f"masks must have shape (N, H, W), got {_shape_text(masks)}")
    if is_tensor(masks):
        masks = masks.detach()
        if masks.device.type == "cpu":
            masks = masks.numpy()
    if is_tensor(masks):
        is_float = masks.is_floating_point() or masks.is_complex()
    else:
        is_float = np.asarray(masks).dtype.kind not in "biu"
    if is_float:
        raise ValueError(f"masks must be bool or integer, got {masks.dtype}; compare with a threshold first")
    return masks != 0 if str(masks.dtype).removeprefix("torch.") != "bool" else masks


def _encode_chunk(masks: np.ndarray | Tensor) -> list[str]:
    """(N, H, W) bool -> N strings. Only the places where a column changes value leave the device and are sorted."""
    num_masks, height, width = masks.shape
    num_pixels = height * width
    xp: Any = sys.modules["torch"] if is_tensor(masks) else np
    change = xp.empty_like(masks)
    change[:, 1:] = masks[:, 1:] ^ masks[:, :-1]
    change[:, 0, 1:] = masks[:, 0, 1:] ^ masks[:, -1, :-1]  # a column goes on from the end of the one before
    change[:, 0, 0] = masks[:, 0, 0]  # runs start with background
    if is_tensor(change):
        flat = xp.nonzero(change.reshape(-1)).squeeze(1).cpu().numpy()
    else:
        flat = np.flatnonzero(change)
    index, pixel = np.divmod(flat, num_pixels)
    row, column = np.divmod(pixel, width)
    key = index * num_pixels + column * height + row
    key.sort()
    index = key // num_pixels  # ascending, so each mask adds one closing run after its own changes
    ends = np.full(len(key) + num_masks, num_pixels, dtype=np.int64)
    ends[np.arange(len(key)) + index] = key - index * num_pixels
    lengths = np.bincount(index, minlength=num_masks) + 1
    first = np.cumsum(lengths) - lengths
    starts = np.concatenate(([0], ends[:-1]))
    starts[first] = 0
    return _pack(ends - starts, lengths)


def _pack(runs: np.ndarray, lengths: np.ndarray) -> list[str]:
    """Runs of several masks, one after the other, and how many belong to each -> compressed counts."""
    first = np.cumsum(lengths) - lengths
    position = np.arange(len(runs)) - np.repeat(first, lengths)
    values = runs.copy()
    values[2:] -= np.where(position[2:] > 2, runs[:-2], 0)
    num_digits = np.ones(len(values), dtype=np.int64)
    for count in range(1, _MAX_DIGITS):
        limit = np.int64(1) << (5 * count - 1)
        num_digits += (values >= limit) | (values < -limit)
    digit_first = np.cumsum(num_digits) - num_digits
    place = np.arange(int(num_digits.sum())) - np.repeat(digit_first, num_digits)
    digits = (np.repeat(values, num_digits) >> (5 * place)) & 31
    digits += 32 * (place < np.repeat(num_digits, num_digits) - 1)
    text = (digits + 48).astype(np.uint8).tobytes().decode("ascii")
    bounds = np.concatenate((digit_first[first], [len(text)])).tolist()
    return [text[start:stop] for start, stop in pairwise(bounds)]


def _from_runs(runs: np.ndarray, size: Sequence[int]) -> Rle:
    return {"size": list(size), "counts": _pack(runs, np.array([len(runs)]))[0]}


def _join_zero_runs(runs: np.ndarray) -> np.ndarray:
    """Drop runs of length zero except a leading one, joining their neighbours; the pixels stay the same."""
    if not (runs[1:] == 0).any():
        return runs
    ends, foreground = np.cumsum(runs), np.arange(len(runs)) % 2
    filled = runs > 0
    ends, foreground = ends[filled], foreground[filled]
    last_of_value = np.append(foreground[1:] != foreground[:-1], True)
    ends = ends[last_of_value]
    joined = np.diff(ends, prepend=0)
    return np.concatenate(([0], joined)) if foreground[0] else joined


def _paint(runs: np.ndarray, height: int, width: int) -> np.ndarray:
    """Runs -> (H, W) bool view in column order."""
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


# Messages


def _error(where: str, reason: str) -> ValueError:
    return ValueError(f"{where}: {reason}" if where else reason)


def is_tensor(value: Any) -> TypeGuard[Tensor]:
    """Whether a value is a tensor, without importing torch: whoever hands one over has done so."""
    return "torch" in sys.modules and isinstance(value, sys.modules["torch"].Tensor)


def _is_integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, (bool, np.bool_))


def _size_text(size: Sequence[int]) -> str:
    return f"{size[0]} x {size[1]} (height x width)"


def _shape_text(value: Any) -> str:
    return str(tuple(value.shape)) if hasattr(value, "shape") else type(value).__name__
