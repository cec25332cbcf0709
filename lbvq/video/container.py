"""Decode the video stream of one file with PyAV (FFmpeg), and notice when the file is damaged or cut off.

What comes out is what a player shows: the stream it would choose, not a cover picture; frames turned upright, with
square pixels, and only those that an edit list leaves.
"""

from __future__ import annotations

import functools
import logging
import math
import struct
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from av.stream import Disposition

from lbvq.video.formats import VIDEO_FORMATS, file_url
from lbvq.video.structure import is_cut_off, transport_packet

MAX_FRAME_PIXELS = 2**26  # of one frame, 8192 x 8192; the codecs of today allow less
_NO_FILM = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
_HIGH_DYNAMIC_RANGE = (16, 18)  # FFmpeg's AVCOL_TRC_SMPTE2084 and AVCOL_TRC_ARIB_STD_B67
_WITH_PROMISES = ("mov", "matroska", "avi")  # formats whose headers tell how many frames or seconds there are
_MAX_STRETCH = 4.0  # of pixels that are not square; a header that claims more is broken

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Damage:
    """Where reading stopped and why."""

    num_frames: int
    reason: str

    def __str__(self) -> str:
        return f"{self.reason} after {self.num_frames} readable frames"


@dataclass(frozen=True)
class DecodedFrame:
    """A decoded frame whose colours are converted on request.

    Attributes:
        time: seconds, None where the file has none.
        decoding_time: the same of the packet that it comes from.
        size: (height, width) in pixels that a player shows, before the frame is turned upright.
    """

    frame: av.VideoFrame
    time: float | None
    decoding_time: float | None
    size: tuple[int, int]

    def to_rgb(self) -> np.ndarray:
        """(H, W, 3) uint8 RGB, turned upright as players show it."""
        height, width = self.size
        return _upright(self.frame.to_ndarray(format="rgb24", height=height, width=width), self.frame)


Step = tuple[DecodedFrame | None, str | None]  # a frame, or why there are no more


def decode_container(path: Path, error_type: type[Exception]) -> Generator[DecodedFrame, None, Damage | None]:
    """Yield the frames of a video file; the generator's return value is the damage found, if any.

    Args:
        path: of the file.
        error_type: raised when nothing can be read at all or when a frame has another size than the first.
    """
    with open_container(file_url(path), str(path), error_type) as container:
        stream = choose_stream(container, str(path), error_type)
        stream.thread_type = "SLICE"  # decoding whole frames in parallel finds damage at another frame every time
        return (yield from _decode_file(container, stream, path, error_type))


def open_container(
    source: Any,
    name: str,
    error_type: type[Exception],
    *,
    formats: Any = VIDEO_FORMATS,
    protocols: Any = ("file",),
    options: Mapping[str, str] | None = None,
) -> av.container.InputContainer:
    """Open a file, an address or an open binary file; only of the formats and through the protocols that are given.

    Args:
        source: what PyAV opens.
        name: of it, for messages.
        error_type: raised when it is no video.
        formats: FFmpeg's names of the formats that are read.
        protocols: FFmpeg's names of the ways to files that are taken.
        options: of FFmpeg, besides.
    """
    limits = {"format_whitelist": ",".join(formats), "protocol_whitelist": ",".join(protocols)}
    try:
        return av.open(source, container_options={**limits, **(options or {})}, metadata_errors="replace")
    except FFmpegError as error:
        is_other_format = error.strerror is None or "nvalid" in error.strerror  # FFmpeg's word for "not in the list"
        reason = "it is none of the formats that are read" if is_other_format else error.strerror
        suffixes = sorted({suffix for group in VIDEO_FORMATS.values() for suffix in group.split()})
        raise error_type(
            f"{name} cannot be opened as a video: {reason} ({' '.join(suffixes)}, and images); other files become one "
            "of them by: ffmpeg -i FILE video.mp4. (In an mp4 whose recording was cut off the index is missing; "
            "nothing of it can be read.)"
        ) from error


def choose_stream(
    container: av.container.InputContainer, name: str, error_type: type[Exception]
) -> av.video.stream.VideoStream:
    """The stream that a player shows: no cover picture or preview, and of several the best one, which is said."""
    films = [stream for stream in container.streams.video if not stream.disposition & _NO_FILM]
    if not films:
        kinds = "only a picture, such as a cover or a photo (save photos as .jpg or .png)"
        kinds = kinds if container.streams.video else "no video stream"
        raise error_type(f"{name} holds {kinds}")
    best = container.streams.best("video")
    stream = films[0] if best is None else next((film for film in films if film.index == best.index), films[0])
    if len(films) > 1:
        _say_once(f"{name} holds {len(films)} video streams; number {stream.index} is read")
    codec = stream.codec_context
    if codec is None:
        raise error_type(f"{name} cannot be decoded: this FFmpeg does not know the codec of its video")
    if codec.width * codec.height > MAX_FRAME_PIXELS:
        raise error_type(
            f"{name}: frames of {codec.width} x {codec.height} pixels are above the limit of {MAX_FRAME_PIXELS} pixels"
        )
    if codec.color_trc in _HIGH_DYNAMIC_RANGE:
        _say_once(f"{name} has a high dynamic range; its colours look paler here than in a player")
    codec.options = {**codec.options, "max_pixels": str(MAX_FRAME_PIXELS)}  # headers inside the stream may claim more
    return stream


def decode_stream(
    container: av.container.InputContainer, stream: av.video.stream.VideoStream, name: str
) -> Iterator[Step]:
    """Yield (frame, None); at the first damage the frames still inside the decoder, then (None, reason)."""
    stretch = _Stretch(stream, name)
    try:
        for packet in container.demux(stream):
            if packet.is_corrupt:
                yield from _flush(stream, stretch)
                yield None, "a damaged packet"
                return
            for frame in packet.decode():
                yield stretch(frame), None
    except FFmpegError as error:
        yield from _flush(stream, stretch)
        yield None, f"the decoder stops ({error.strerror or error})"


@functools.lru_cache(maxsize=1024)
def _say_once(text: str) -> None:
    """Warn; a file is opened several times."""
    logger.warning("%s", text)


class _Stretch:
    """Makes `DecodedFrame`s with square pixels: the shorter side of a pixel is stretched, so that none is lost."""

    def __init__(self, stream: av.video.stream.VideoStream, name: str) -> None:
        self._time_base = stream.time_base
        ratio = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio
        self._ratio = float(ratio) if ratio else 1.0
        if not 1 / _MAX_STRETCH <= self._ratio <= _MAX_STRETCH:
            _say_once(f"{name} claims pixels {self._ratio:g} times as wide as high; they are taken as square")
            self._ratio = 1.0
        elif self._ratio != 1:
            _say_once(f"{name} has pixels of {ratio} (width/height); they are made square, as players do")

    def __call__(self, frame: av.VideoFrame) -> DecodedFrame:
        time, decoding_time = (
            None if ticks is None else float(ticks * self._time_base) for ticks in (frame.pts, frame.dts)
        )
        height, width = frame.height * max(1, 1 / self._ratio), frame.width * max(1, self._ratio)
        return DecodedFrame(frame, time, decoding_time, (round(height), round(width)))


def _decode_file(
    container: av.container.InputContainer,
    stream: av.video.stream.VideoStream,
    path: Path,
    error_type: type[Exception],
) -> Generator[DecodedFrame, None, Damage | None]:
    count, end, begins_corrupt = 0, 0.0, False
    first: tuple[int, int] | None = None
    reason: str | None = None
    is_short = is_cut_off(path)
    frames = decode_stream(container, stream, str(path))
    if is_short and transport_packet(path):
        frames = _without_last(frames)  # a part of it may be missing, and the decoder does not always notice
    for frame, problem in frames:
        if frame is None or (frame.frame.is_corrupt and count):
            reason = problem or "a damaged frame"
            break
        begins_corrupt = begins_corrupt or frame.frame.is_corrupt  # recordings of broadcasts begin anywhere
        first = first or frame.size
        check_size(frame.size, first, count, path, error_type)
        yield frame
        count, end = count + 1, frame.time or 0.0
    if reason is None and is_short and not _has_every_frame(container, stream, count, end):
        reason = "the file is shorter than its header says"
    if count == 0 or (count == 1 and begins_corrupt):
        return Damage(0, reason or "no whole frame can be decoded")
    return None if reason is None else Damage(count, reason)


def check_size(
    size: tuple[int, int], first: tuple[int, int], count: int, path: Path, error_type: type[Exception]
) -> None:
    """Raise when frame number `count` is too large or has another (height, width) than the first one."""
    if math.prod(size) > MAX_FRAME_PIXELS:
        raise error_type(
            f"{path}: frame {count} claims {size[0]} x {size[1]} pixels, above the limit {MAX_FRAME_PIXELS}"
        )
    if size != first:
        raise error_type(
            f"all frames must have one size: frame {count} of {path} is {size[0]} x {size[1]}, "
            f"the first is {first[0]} x {first[1]} (height x width)"
        )


def _flush(stream: av.video.stream.VideoStream, stretch: _Stretch) -> Iterator[Step]:
    try:
        for frame in stream.codec_context.decode(None):
            yield stretch(frame), None
    except (FFmpegError, EOFError):
        return  # the decoder has nothing left; the caller reports the first damage


def _without_last(frames: Iterator[Step]) -> Iterator[Step]:
    """Hold every frame back until there is another one after it; damage passes."""
    held: Step | None = None
    for item in frames:
        if held is not None:
            yield held
        held = item
    if held is not None and held[0] is None:
        yield held


def _has_every_frame(
    container: av.container.InputContainer, stream: av.video.stream.VideoStream, count: int, end: float
) -> bool:
    """Whether the cut only removed what is not needed for decoding, such as an index at the end."""
    if container.format.name.split(",")[0] not in _WITH_PROMISES:
        return False
    if stream.frames:
        return count >= stream.frames
    duration = container.duration / av.time_base if container.duration else 0.0
    rate = float(stream.average_rate) if stream.average_rate else 0.0
    return bool(count and duration and rate and end >= duration - 1.5 / rate)


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
