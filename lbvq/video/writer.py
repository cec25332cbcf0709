"""Write videos and folders of frames; nothing appears under the final name before it is complete.

Existing files and the inputs of a run are never replaced without being asked to.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import av
import cv2
import numpy as np

from lbvq.files.writing import atomic_path
from lbvq.video.formats import file_url, is_clutter
from lbvq.video.sound import Sound, SoundCopy

if TYPE_CHECKING:
    from typing_extensions import Self

atomic_output = atomic_path  # its former name

VIDEO_SUFFIXES = (".mp4", ".mkv", ".mov")
FRAME_SUFFIXES = (".jpg", ".png")
DEFAULT_FRAME_RATE = 10.0  # of image folders, which have no clock
_CLOCK = 60_000  # ticks per second of videos with uneven frame times; 24, 25, 30 and 29.97 Hz are exact or nearly so
_BT601, _LIMITED_RANGE = 6, 1  # FFmpeg's AVCOL_SPC_SMPTE170M and AVCOL_RANGE_MPEG

logger = logging.getLogger(__name__)


def check_output(path: str | os.PathLike, inputs: Iterable[str | os.PathLike] = (), overwrite: bool = False) -> Path:
    """Raise unless `path` may be written.

    It must be none of `inputs` and hold none of them, and it must be new, or with `overwrite` a file or a folder of
    numbered frames. A folder that holds anything else is never replaced.
    """
    path = Path(path)
    target = path.resolve()
    for item in inputs:
        source = Path(item).resolve()
        if source == target or target in source.parents or (source.is_dir() and source in target.parents):
            raise ValueError(f"the output {path} would overwrite or mix with the input {item}; choose another name")
    content = list(path.iterdir()) if path.is_dir() else []
    if path.suffix and path.is_dir():
        raise FileExistsError(f"{path} is a folder; choose another name")
    strange = [item for item in content if not (re.fullmatch(r"\d{5,}\.(jpg|png)", item.name) or is_clutter(item))]
    if strange:  # replacing the folder would delete them
        raise FileExistsError(f"the folder {path} holds more than numbered frames, such as {strange[0].name}")
    if (content or path.is_file()) and not overwrite:
        raise FileExistsError(f"{path} exists already; pass overwrite (--overwrite in the demo) to replace it")
    return path


def open_writer(
    path: str | os.PathLike,
    frame_rate: float | None = None,
    *,
    frame_suffix: str = ".jpg",
    inputs: Iterable[str | os.PathLike] = (),
    overwrite: bool = False,
    sound: Sound | None = None,
) -> VideoWriter | FolderWriter:
    """Writer for a video file (by its suffix) or, for a path without suffix, a folder of numbered frames.

    Args:
        frame_rate: of a video.
        frame_suffix: of the images in a folder.
        inputs: what must not be overwritten, see `check_output`.
        overwrite: replace what is there.
        sound: what is copied into a video, for frames with the times of those it belongs to.
    """
    path = check_output(path, inputs, overwrite)
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return VideoWriter(path, frame_rate, sound)
    if path.suffix:
        raise ValueError(
            f"cannot write {path}: expected a video ({', '.join(VIDEO_SUFFIXES)}) or a folder name without suffix"
        )
    return FolderWriter(path, frame_suffix)


def write_video(
    path: str | os.PathLike,
    frames: Iterable[np.ndarray],
    frame_rate: float | None = None,
    timestamps: Sequence[float] | None = None,
    **options: Any,
) -> None:
    """Write all frames (H, W, 3) uint8 RGB; `options` are those of `open_writer`."""
    with open_writer(path, frame_rate, **options) as writer:
        for index, frame in enumerate(frames):
            writer.write(frame, None if timestamps is None else float(timestamps[index]))


class _Writer:
    """Context manager around `atomic_path`: leaving without an exception puts the result in place."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.num_frames = 0
        self.is_whole = True  # False: the frames end before the sound does
        self._size: tuple[int, ...] | None = None

    def __enter__(self) -> Self:
        self._target = atomic_path(self.path)
        self._partial = self._target.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._finish(complete=kind is None)
            if kind is None and self.num_frames == 0:
                raise ValueError(f"nothing to write to {self.path}: there was no frame")
        except BaseException as problem:
            self._target.__exit__(type(problem), problem, problem.__traceback__)
            raise
        self._target.__exit__(kind, error, trace)

    def _check(self, frame: np.ndarray) -> np.ndarray:
        if getattr(frame, "ndim", None) != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
            got = f"{getattr(frame, 'dtype', type(frame).__name__)} {getattr(frame, 'shape', '')}"
            raise ValueError(f"a frame must be uint8 RGB of shape (H, W, 3), got {got}")
        if self._size is not None and frame.shape != self._size:
            raise ValueError(f"frame {self.num_frames} has shape {frame.shape}, the first one had {self._size}")
        self._size = frame.shape
        return np.ascontiguousarray(frame)

    def _finish(self, complete: bool) -> None:
        """Close what is open."""


class FolderWriter(_Writer):
    """Numbered images 00000.jpg, 00001.jpg, ... in a new folder."""

    def __init__(self, path: str | os.PathLike, frame_suffix: str = ".jpg") -> None:
        super().__init__(Path(path))
        if frame_suffix not in FRAME_SUFFIXES:
            raise ValueError(f"frame_suffix must be one of {FRAME_SUFFIXES}, got {frame_suffix!r}")
        self._frame_suffix = frame_suffix

    def write(self, frame: np.ndarray, time: float | None = None) -> None:
        """Add a (H, W, 3) uint8 RGB frame; images have no `time`."""
        frame = self._check(frame)
        self._partial.mkdir(exist_ok=True)
        name = self._partial / f"{self.num_frames:05d}{self._frame_suffix}"
        options = [cv2.IMWRITE_JPEG_QUALITY, 95] if self._frame_suffix == ".jpg" else []
        done, data = cv2.imencode(self._frame_suffix, frame[:, :, ::-1], options)
        if not done:
            raise OSError(f"frame {self.num_frames} cannot be encoded as {self._frame_suffix}")
        name.write_bytes(data.tobytes())
        self.num_frames += 1


class VideoWriter(_Writer):
    """H.264 video that common players and browsers show: 4:2:0 colours, the index in front.

    H.264 with 4:2:0 colours needs even sides, so an odd side is extended by repeating its last row or column. Where
    this FFmpeg has no H.264 encoder, MPEG-4 part 2 is used and a message says so.
    """

    def __init__(self, path: str | os.PathLike, frame_rate: float | None = None, sound: Sound | None = None) -> None:
        super().__init__(Path(path))
        rate = DEFAULT_FRAME_RATE if frame_rate is None else float(frame_rate)
        if not 0 < rate <= 1000:
            raise ValueError(f"frame_rate must be in (0, 1000] frames per second, got {frame_rate}")
        self._rate = Fraction(rate).limit_denominator(1001)
        self._container: av.container.OutputContainer | None = None
        self._ticks: list[int] = []  # of the last two frames
        self._held: av.Packet | None = None
        self._sound = sound
        self._copy: SoundCopy | None = None

    def write(self, frame: np.ndarray, time: float | None = None) -> None:
        """Add a (H, W, 3) uint8 RGB frame.

        Args:
            time: seconds from the first frame; give it for all frames or for none (then the frame rate decides).
        """
        frame = self._check(frame)
        if self._container is None:
            self._open(frame.shape[0], frame.shape[1], timed=time is not None)
        if (time is not None) != self._timed:
            raise ValueError("give a time for every frame or for none")
        tick = self.num_frames if time is None else round(time * _CLOCK)
        if self._ticks and tick <= self._ticks[-1]:
            raise ValueError(f"the time of frame {self.num_frames} must be after that of the frame before, got {time}")
        picture = av.VideoFrame.from_ndarray(_even(frame), format="rgb24")
        picture.pts, picture.time_base = tick, self._clock
        for packet in self._stream.encode(picture):
            self._mux(packet)
        self._ticks = [*self._ticks[-1:], tick]
        self.num_frames += 1

    def _open(self, height: int, width: int, timed: bool) -> None:
        self._timed = timed
        self._clock = Fraction(1, _CLOCK) if timed else 1 / self._rate
        options = {"movflags": "+faststart"} if self.path.suffix.lower() != ".mkv" else {}
        kind = {".mkv": "matroska"}.get(self.path.suffix.lower(), self.path.suffix.lower()[1:])
        self._container = av.open(file_url(self._partial), "w", format=kind, options=options)
        codec, codec_options = _encoder()
        self._stream = self._container.add_stream(codec, rate=self._rate, options=codec_options)
        self._stream.width, self._stream.height = width + width % 2, height + height % 2
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = self._clock
        self._stream.codec_context.colorspace = _BT601  # what FFmpeg converts RGB to; players assume BT.709 if unsaid
        self._stream.codec_context.color_range = _LIMITED_RANGE
        if self._sound is not None:
            self._copy = SoundCopy(self._sound, self._container)

    def _mux(self, packet: av.Packet | None) -> None:
        """Write the packet before; one is held back because the last one's duration is known only at the end."""
        if self._held is not None and self._container is not None:
            if self._copy is not None:
                self._copy.write_until(float(self._held.dts * self._held.time_base))
            self._container.mux(self._held)
        self._held = packet

    def _finish(self, complete: bool) -> None:
        if self._container is None:
            return
        try:
            if complete:
                for packet in self._stream.encode(None):
                    self._mux(packet)
                duration = self._last_duration()
                if self._held is not None:
                    self._held.duration = round(duration / self._held.time_base)
                self._mux(None)
                if self._copy is not None:
                    self._copy.finish(float(self._ticks[-1] * self._clock + duration), self.is_whole)
        finally:
            if self._copy is not None:
                self._copy.close()
            self._container.close()

    def _last_duration(self) -> Fraction:
        """Seconds that the last frame is shown."""
        step = self._ticks[-1] - self._ticks[0] if self._timed and len(self._ticks) > 1 else 0
        return (step or round(1 / self._rate / self._clock)) * self._clock


def _encoder() -> tuple[str, dict[str, str]]:
    if "libx264" in av.codecs_available:
        return "libx264", {"crf": "20", "preset": "veryfast"}
    logger.warning("this FFmpeg has no H.264 encoder (libx264); writing MPEG-4 part 2, which browsers do not play")
    return "mpeg4", {"qscale": "3"}


def _even(frame: np.ndarray) -> np.ndarray:
    height, width = frame.shape[:2]
    if height % 2 or width % 2:
        return np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return frame
