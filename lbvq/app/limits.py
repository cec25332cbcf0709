"""What the page takes from a browser, and the checks of it; files that come in are treated as hostile."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lbvq.video.reader import VideoFrames, read_video

_BLOCK = 2**16  # bytes that are read at once
_SPARE_DISK = 2**28  # bytes that stay free


@dataclass(frozen=True)
class Limits:
    """Attributes:
    num_bytes: of a file.
    seconds: of a video.
    frames: of a video.
    pixels: of one frame.
    waiting: jobs in the queue, besides those that run.
    kept: jobs that have ended and whose files are kept.
    uploads: at a time.
    stall_seconds: that an upload may stand still.
    bytes_per_second: that it has to make on the whole.
    """

    num_bytes: int = 200 * 2**20
    seconds: float = 60.0
    frames: int = 1800
    pixels: int = 3840 * 2160
    waiting: int = 8
    kept: int = 20
    uploads: int = 4
    stall_seconds: float = 20.0
    bytes_per_second: int = 2**14


class Stream(Protocol):
    """A file of which what is there can be read."""

    def read1(self, size: int, /) -> bytes: ...


def receive(stream: Stream, length: int, path: Path, limits: Limits) -> None:
    """Write exactly `length` bytes of a stream to a new file.

    Raises:
        ConnectionError: it ends before, or is too slow.
        OSError: the disk is full.
    """
    if shutil.disk_usage(path.parent).free < length + _SPARE_DISK:
        raise OSError("the disk of this server is nearly full; try again later or with a smaller file.")
    deadline = time.monotonic() + limits.stall_seconds + length / limits.bytes_per_second
    left = length
    with open(path, "xb") as file:
        while left:
            block = stream.read1(min(left, _BLOCK))
            if not block:
                raise ConnectionError(f"the upload was cut: {length - left} of {length} bytes came.")
            if time.monotonic() > deadline:
                raise ConnectionError(f"the upload is too slow: {length - left} of {length} bytes came in time.")
            file.write(block)
            left -= len(block)


def open_upload(path: Path, limits: Limits) -> VideoFrames:
    """Open a file that came in, which decodes its first frame.

    Raises:
        ValueError: it is no video, or its frames are too large.
    """
    frames = read_video(path)
    height, width = frames.size
    if height * width > limits.pixels:
        frames.close()
        raise ValueError(
            f"the frames are too large: {width} x {height} pixels, at most {limits.pixels} pixels are taken; make them "
            "smaller, as with: ffmpeg -i FILE -vf scale=1280:-2 smaller.mp4"
        )
    return frames


def check_length(frames: VideoFrames, limits: Limits) -> None:
    """Decode a video up to its end or its limit; ValueError when it is too long, and when it is damaged."""
    for count, _ in enumerate(frames, start=1):  # headers may say anything
        if count > limits.frames:
            raise ValueError(f"the video is too long: it has more than {limits.frames} frames; cut it into parts.")
    seconds = duration(frames)
    if seconds > limits.seconds:
        raise ValueError(f"the video is too long: {seconds:.1f} s, at most {limits.seconds:g} s; cut it into parts.")


def duration(frames: VideoFrames) -> float:
    """Seconds from the first to the last frame; 0 for images."""
    times = frames.timestamps
    return 0.0 if times is None or not len(times) else float(times[-1])
