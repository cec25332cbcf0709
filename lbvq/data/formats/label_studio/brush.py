"""The run-length code of Label Studio's brush: a stream of bits, unpacked to the four channels of a picture.

A header of 32 bits (number of values), 5 bits (bits of a value - 1) and four times 4 bits (bits of a length - 1), then
blocks: 1 bit (a run, or single values), 2 bits (which of the four length sizes), the length - 1, and one value or many.
The mask is the fourth channel.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

CHANNELS = 4


class _Bits:
    """Reads whole numbers of any number of bits, most significant first."""

    def __init__(self, data: bytes, where: str) -> None:
        self._data, self._where, self._position = data, where, 0

    def read(self, count: int) -> int:
        start, stop = self._position, self._advance(count)
        chunk = int.from_bytes(self._data[start // 8 : (stop + 7) // 8], "big")
        return (chunk >> (-stop % 8)) & ((1 << count) - 1)

    def read_many(self, count: int, width: int) -> np.ndarray:
        """(count,) values of `width` bits each."""
        start, stop = self._position, self._advance(count * width)
        block = np.frombuffer(self._data[start // 8 : (stop + 7) // 8], dtype=np.uint8)
        bits = np.unpackbits(block)[start % 8 : start % 8 + count * width].reshape(count, width)
        return bits @ (1 << np.arange(width)[::-1])

    def _advance(self, count: int) -> int:
        self._position += count
        if self._position > 8 * len(self._data):
            raise ValueError(f"{self._where}: the brush ends inside its code; it is cut off.")
        return self._position


def decode_brush(code: Sequence[int], size_hw: tuple[int, int], where: str) -> np.ndarray:
    """Unpack the list of bytes of a brush -> (H, W) bool mask."""
    try:
        bits = _Bits(bytes(code), where)
    except (TypeError, ValueError):
        raise ValueError(f"{where}: 'rle' of a brush is a list of numbers from 0 to 255.") from None
    total, width = bits.read(32), bits.read(5) + 1
    lengths = [bits.read(4) + 1 for _ in range(4)]
    if total != size_hw[0] * size_hw[1] * CHANNELS or width > 16:
        raise ValueError(
            f"{where}: the brush has {total} values of {width} bits, {size_hw[0]} x {size_hw[1]} pixels need "
            f"{size_hw[0] * size_hw[1] * CHANNELS}."
        )
    values = np.zeros(total, dtype=np.uint16)
    done = 0
    while done < total:
        is_run = bits.read(1)
        end = min(done + 1 + bits.read(lengths[bits.read(2)]), total)
        values[done:end] = bits.read(width) if is_run else bits.read_many(end - done, width)
        done = end
    return values.reshape(*size_hw, CHANNELS)[..., CHANNELS - 1] > 0
