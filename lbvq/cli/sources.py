"""Where frames come from while they are shown: a file, a camera, an address or a pipe."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import NamedTuple

import av
import cv2
import numpy as np

from lbvq.video.address import is_address, local_path, open_address
from lbvq.video.container import choose_stream, decode_stream, open_container
from lbvq.video.formats import STREAM_PROTOCOLS
from lbvq.video.reader import VideoError, read_video
from lbvq.video.sound import Sound
from lbvq.video.times import uneven_times
from mask2former.ahead import FRAMES_AHEAD, ahead

logger = logging.getLogger(__name__)


class TimedFrame(NamedTuple):
    """A frame as it arrives."""

    picture: np.ndarray  # (H, W, 3) uint8 RGB, upright
    time: float | None  # seconds, None where the frame rate of the source tells it


class FrameSource:
    """Iterates over `TimedFrame`s. An iteration that ends early is closed before the source is.

    Attributes:
        frame_rate: None where it is not known.
        sound: what is heard with the frames and can be copied.
        has_sound: whether there is any, also where it cannot be copied.
    """

    frame_rate: float | None = None
    sound: Sound | None = None
    has_sound = False

    def __iter__(self) -> Generator[TimedFrame, None, None]:
        raise NotImplementedError

    def close(self) -> None:
        """Release the device or file."""


class FileSource(FrameSource):
    """A video file or folder of frames, of which a few are decoded while the present one is worked on."""

    def __init__(self, path: str | Path) -> None:
        self._frames = read_video(path)
        if len(self._frames) == 1 and self._frames.timestamps is None:  # an image; the reader says it of files
            logger.warning("%s: this video has one frame", path)
        self.frame_rate = self._frames.frame_rate
        self.sound = self._frames.sound
        self.has_sound = self.sound is not None

    def __iter__(self) -> Generator[TimedFrame, None, None]:
        return ahead(self._decoded(), FRAMES_AHEAD)

    def _decoded(self) -> Generator[TimedFrame, None, None]:
        times = uneven_times(self._frames.timestamps)
        for t in range(len(self._frames)):
            try:
                picture = self._frames[t]
            except VideoError as error:
                if t == 0:
                    raise
                logger.warning("The video ends early: %s", error)  # what was made of it so far is kept
                return
            yield TimedFrame(picture, None if times is None else float(times[t]))

    def close(self) -> None:
        self._frames.close()


class StreamSource(FrameSource):
    """A video that is decoded while it arrives, upright and of one size."""

    def __init__(self, container: av.container.InputContainer, name: str) -> None:
        self._container, self._name = container, name
        self._stream = choose_stream(container, name, VideoError)
        self.frame_rate = float(self._stream.average_rate) if self._stream.average_rate else None
        self.has_sound = bool(container.streams.audio)

    def __iter__(self) -> Generator[TimedFrame, None, None]:
        first = None
        for frame, problem in decode_stream(self._container, self._stream, self._name):
            if frame is None:
                logger.warning("The video ends early: %s", problem)
                return
            first = first or frame.size
            if frame.size != first:
                logger.warning(
                    "The video ends here: its frames change from %s to %s (height, width)", first, frame.size
                )
                return
            yield TimedFrame(frame.to_rgb(), frame.time)

    def close(self) -> None:
        self._container.close()


class CameraSource(FrameSource):
    """A camera, read in the background: frames that come faster than they are used are skipped."""

    def __init__(self, number: int) -> None:
        self._camera = cv2.VideoCapture(number)
        if not self._camera.isOpened():
            raise ValueError(f"camera {number} cannot be opened; give its number or a file with --input")
        self._new = threading.Condition()
        self._frame: TimedFrame | None = None
        self._ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __iter__(self) -> Generator[TimedFrame, None, None]:
        while True:
            with self._new:
                self._new.wait_for(lambda: self._frame is not None or self._ended)
                frame, self._frame = self._frame, None
            if frame is None:
                return
            yield frame._replace(picture=np.ascontiguousarray(frame.picture[:, :, ::-1]))  # OpenCV has BGR

    def close(self) -> None:
        self._ended = True
        self._reader.join(timeout=5)
        self._camera.release()

    def _read(self) -> None:
        while not self._ended:
            found, picture = self._camera.read()
            with self._new:
                self._frame = TimedFrame(picture, time.perf_counter()) if found else self._frame
                self._ended = self._ended or not found
                self._new.notify()


def open_source(name: str) -> FrameSource:
    """Choose the source by its name; see the help of `--input` in `lbvq.cli.live`."""
    if name.isdigit():
        return CameraSource(int(name))
    if name == "-":
        return open_pipe(sys.stdin.buffer, "the standard input")
    if not is_address(name):
        return FileSource(name)
    path = local_path(name)
    return StreamSource(open_address(name, VideoError), name) if path is None else FileSource(path)


def open_pipe(file: object, name: str) -> StreamSource:
    """A video that comes through an open binary file; it names no other files."""
    return StreamSource(open_container(file, name, VideoError, protocols=STREAM_PROTOCOLS), name)
