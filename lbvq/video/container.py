"""Decode the video stream of one file with PyAV (FFmpeg), and notice when the file is damaged or cut off."""

from __future__ import annotations

import os
import struct
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError

from lbvq.masks.rle import MAX_PIXELS


@dataclass(frozen=True)
class Damage:
    """Where reading stopped and why."""

    num_frames: int
    reason: str

    def __str__(self) -> str:
        return f"{self.reason} after {self.num_frames} readable frames"


@dataclass(frozen=True)
class DecodedFrame:
    """A decoded frame whose colours are converted on request."""

    frame: av.VideoFrame
    time: float | None

    def to_rgb(self) -> np.ndarray:
        """(H, W, 3) uint8 RGB, turned upright as players show it."""
        return _upright(self.frame.to_ndarray(format="rgb24"), self.frame)


def decode_container(path: Path, error_type: type[Exception]) -> Generator[DecodedFrame, None, Damage | None]:
    """Yield the frames of the first video stream; the generator's return value is the damage found, if any.

    Args:
        path: of the file.
        error_type: raised when nothing can be read at all or when a frame has another size than the first.
    """
    try:
        container = av.open(str(path))
    except FFmpegError as error:
        raise error_type(
            f"{path} cannot be opened as a video: {error.strerror or error}. "
            "(In an mp4 whose recording was cut off the index is missing; nothing of it can be read.)"
        ) from error
    with container:
        if not container.streams.video:
            raise error_type(f"{path} holds no video stream")
        stream = container.streams.video[0]
        stream.thread_type = "SLICE"  # decoding whole frames in parallel finds damage at another frame every time
        return (yield from _decode_stream(container, stream, path, error_type))


def _decode_stream(container, stream, path: Path, error_type: type[Exception]):
    count, end, first, reason = 0, 0.0, None, None
    is_cut_off = _is_cut_off(path)
    frames = _frames_until_damage(container, stream)
    if is_cut_off and _transport_packet(path):
        frames = _without_last(frames)  # a part of it may be missing, and the decoder does not always notice
    for frame, problem in frames:
        if frame is None or (frame.is_corrupt and count):
            reason = problem or "a damaged frame"
            break
        size = (frame.height, frame.width)
        first = first or size
        if size[0] * size[1] > MAX_PIXELS:
            raise error_type(f"{path}: frame {count} claims {size[0]} x {size[1]} pixels, above the limit {MAX_PIXELS}")
        if size != first:
            raise error_type(
                f"all frames must have one size: frame {count} of {path} is {size[0]} x {size[1]}, "
                f"the first is {first[0]} x {first[1]} (height x width)"
            )
        time = None if frame.pts is None else float(frame.pts * stream.time_base)
        yield DecodedFrame(frame, time)
        count, end = count + 1, time or 0.0
    if reason is None and is_cut_off and not _has_every_frame(container, stream, count, end):
        reason = "the file is shorter than its header says"
    if reason is None and count == 0:
        reason = "no frame can be decoded"
    return None if reason is None else Damage(count, reason)


def _frames_until_damage(container, stream):
    """Yield (frame, None); at the first damage the frames still inside the decoder, then (None, reason)."""
    try:
        for packet in container.demux(stream):
            if packet.is_corrupt:
                yield from _flush(stream)
                yield None, "a damaged packet"
                return
            for frame in packet.decode():
                yield frame, None
    except FFmpegError as error:
        yield from _flush(stream)
        yield None, f"the decoder stops ({error.strerror or error})"


def _flush(stream):
    try:
        for frame in stream.codec_context.decode(None):
            yield frame, None
    except (FFmpegError, EOFError):
        return  # the decoder has nothing left; the caller reports the first damage


def _without_last(frames):
    """Hold every frame back until there is another one after it; damage passes."""
    held = None
    for item in frames:
        if held is not None:
            yield held
        held = item
    if held is not None and held[0] is None:
        yield held


def _has_every_frame(container, stream, count: int, end: float) -> bool:
    """Whether the cut only removed what is not needed for decoding, such as an index at the end."""
    if container.format.name == "mpegts":
        return False
    if stream.frames:
        return count >= stream.frames
    duration = container.duration / av.time_base if container.duration else 0.0
    rate = float(stream.average_rate) if stream.average_rate else 0.0
    return bool(count and duration and rate and end >= duration - 1.5 / rate)


def _is_cut_off(path: Path) -> bool:
    """Whether an mp4, Matroska, AVI or transport stream file has fewer bytes than its own structure promises.

    A transport stream that ends exactly after a packet cannot be told from a whole one.
    """
    total = os.path.getsize(path)
    if _transport_packet(path):
        return total % _transport_packet(path) != 0
    with open(path, "rb") as file:
        head = file.read(64)
        if head[:4] == b"RIFF":
            return struct.unpack("<I", head[4:8])[0] + 8 > total
        if head[:4] == b"\x1a\x45\xdf\xa3":
            return _matroska_end(head) > total
        if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
            return _boxes_end(file, total) > total
    return False


def _transport_packet(path: Path) -> int:
    """Bytes of a packet if the file is an MPEG transport stream (.ts, .m2ts), else 0."""
    with open(path, "rb") as file:
        head = file.read(1024)
    for size, offset in ((188, 0), (192, 4)):
        if len(head) > offset + 3 * size and all(head[offset + k * size] == 0x47 for k in range(4)):
            return size
    return 0


def _boxes_end(file, total: int) -> int:
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


def _upright(image: np.ndarray, frame: av.VideoFrame) -> np.ndarray:
    """Apply the display matrix (phones record turned by 90 degrees and store how to turn it back)."""
    for item in frame.side_data:
        if item.type.name == "DISPLAYMATRIX":
            break
    else:
        return image
    a, b, _, c, d = struct.unpack("=5i", bytes(item)[:20])  # x' = a x + c y, y' = b x + d y
    if abs(b) > abs(a):
        image, a, d = image.transpose(1, 0, 2), c, b
    if a < 0:
        image = image[:, ::-1]
    if d < 0:
        image = image[::-1]
    return np.ascontiguousarray(image)
