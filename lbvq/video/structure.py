"""Whether a file has fewer bytes than its own structure promises, without decoding it."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import BinaryIO

_ASF_START = bytes.fromhex("3026b275")  # of .wmv
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")  # the object that tells the size of the file


def is_cut_off(path: Path) -> bool:
    """Whether a file has fewer bytes than its structure promises, or lacks its end.

    Known are mp4, Matroska, AVI, FLV, WMV, Ogg and transport streams. A transport stream that ends exactly after a
    packet cannot be told from a whole one.
    """
    total = os.path.getsize(path)
    if transport_packet(path):
        return total % transport_packet(path) != 0
    with open(path, "rb") as file:
        head = file.read(4096)
        if head[:4] == b"RIFF" and len(head) >= 8:
            return struct.unpack("<I", head[4:8])[0] + 8 > total
        if head[:4] == b"\x1a\x45\xdf\xa3":
            return _matroska_end(head) > total
        if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
            return _boxes_end(file, total) > total
        if head[:4] == b"FLV\x01" and len(head) > 13:
            return _tags_end(file, total) > total
        if head[:4] == b"OggS":
            return not _has_last_page(file, total)
        if head[:4] == _ASF_START and _ASF_PROPERTIES in head:
            start = head.index(_ASF_PROPERTIES) + 40
            return int.from_bytes(head[start : start + 8], "little") > total
    return False


def transport_packet(path: Path) -> int:
    """Bytes of a packet if the file is an MPEG transport stream (.ts, .m2ts), else 0."""
    with open(path, "rb") as file:
        head = file.read(1024)
    for size, offset in ((188, 0), (192, 4)):
        if len(head) > offset + 3 * size and all(head[offset + k * size] == 0x47 for k in range(4)):
            return size
    return 0


def has_gif_end(path: Path) -> bool:
    """Whether the blocks of a GIF file lead to its last one."""
    with open(path, "rb") as file:
        head = file.read(13)
        _skip_palette(file, head[10:11])
        while kind := file.read(1):
            if kind == b";":
                return True
            if kind == b",":  # a picture
                _skip_palette(file, file.read(9)[8:9])
                file.seek(1, os.SEEK_CUR)
            elif kind == b"!":
                file.seek(1, os.SEEK_CUR)
            else:
                return False
            while (size := file.read(1)) not in (b"", b"\0"):
                file.seek(size[0], os.SEEK_CUR)
    return False


def _skip_palette(file: BinaryIO, flags: bytes) -> None:
    if flags and flags[0] & 0x80:
        file.seek(3 << ((flags[0] & 7) + 1), os.SEEK_CUR)


def _tags_end(file: BinaryIO, total: int) -> int:
    """End of the last tag of an FLV file, its size included, which follows it."""
    position = 13
    while position + 11 <= total:
        file.seek(position)
        position += 11 + int.from_bytes(file.read(4)[1:], "big") + 4
    return position if position == total else total + 1


def _has_last_page(file: BinaryIO, total: int) -> bool:
    """Whether the pages of an Ogg file lead to its end, and some page ends every stream that has begun."""
    position = 0
    streams: set[bytes] = set()
    while position + 27 <= total:
        file.seek(position)
        head = file.read(27)
        sizes = file.read(head[26])
        if head[:4] != b"OggS":
            return False
        flags, number = head[5], head[14:18]
        (streams.discard if flags & 4 else streams.add)(number)
        position += 27 + len(sizes) + sum(sizes)
    return position <= total and not streams


def _boxes_end(file: BinaryIO, total: int) -> int:
    """End of the last top-level box of an mp4 or mov file."""
    position = 0
    while position + 8 <= total:
        file.seek(position)
        head = file.read(16)
        size = struct.unpack(">I", head[:4])[0]
        if size == 1 and len(head) == 16:
            size = struct.unpack(">Q", head[8:])[0]
        if size < 8:  # 0: the box reaches to the end of the file; other values are padding
            return total
        position += size
    return position


def _matroska_end(head: bytes) -> int:
    """End of the segment of a Matroska or WebM file; 0 when its size is not stored (live recordings)."""
    length, position = _matroska_size(head, 4)
    position += length
    if head[position : position + 4] != b"\x18\x53\x80\x67":
        return 0
    size, position = _matroska_size(head, position + 4)
    return position + size


def _matroska_size(head: bytes, position: int) -> tuple[int, int]:
    """Read a variable-length size; return it (0 if unknown) and the position after it."""
    if position >= len(head) or head[position] == 0:
        return 0, position + 1
    length = 9 - head[position].bit_length()
    value = int.from_bytes(head[position : position + length], "big") - (1 << (7 * length))
    return (0 if value == (1 << (7 * length)) - 1 else value), position + length
