"""Videos as sequences of frames that are decoded when they are asked for.

Only a few frames are in memory at a time. Reading in order is fast; going back further than the window decodes again
from the start.
"""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from av.error import FFmpegError

from lbvq.files.images import image_size, read_image
from lbvq.video.animation import AnimationFrame
from lbvq.video.container import Damage, DecodedFrame, decode_container
from lbvq.video.sound import Sound, has_sound
from lbvq.video.times import better_clock, repair_times

_WINDOW = 8  # decoded frames that are kept
_WINDOW_BYTES = 2**28  # of these frames together

Decode = Callable[[Path, type[Exception]], Generator[DecodedFrame | AnimationFrame, None, Damage | None]]

logger = logging.getLogger(__name__)


class VideoError(ValueError):
    """A video cannot be read; the message says which frame or file and why."""


class VideoFrames(Sequence, ABC):
    """A sequence of (H, W, 3) uint8 RGB frames of one size; a slice is again such a sequence, nothing is decoded."""

    name: str
    sound: Sound | None = None  # what is heard with these frames
    folder: TemporaryDirectory | None = None  # that lives as long as these frames

    @property
    @abstractmethod
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels, upright."""

    @property
    @abstractmethod
    def timestamps(self) -> np.ndarray | None:
        """(T,) float64 seconds from the first frame, ascending; None for images without a clock."""

    @property
    def frame_rate(self) -> float | None:
        """Average frames per second; None for images and for a single frame of unknown duration."""
        times = self.timestamps
        if times is None or len(times) < 2:
            return None
        return (len(times) - 1) / float(times[-1] - times[0])

    @abstractmethod
    def _frame(self, index: int) -> np.ndarray:
        """Frame `index` >= 0; IndexError past the end."""

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return SelectedFrames(self, range(len(self))[index])
        index = int(index)
        if index < 0:
            index += len(self)
        if index < 0:
            raise IndexError(f"frame {index - len(self)} does not exist, {self.name} has {len(self)} frames")
        return self._frame(index)

    def check(self) -> None:
        """Decode every frame once, so that a damaged file is found before any work; VideoError names it."""
        len(self)

    def close(self) -> None:
        """Let go of the open file; reading on opens it again."""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "folder": None}

    def __enter__(self) -> VideoFrames:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"


class SelectedFrames(VideoFrames):
    """Some frames of another video, in a regular step."""

    def __init__(self, source: VideoFrames, indices: range) -> None:
        self.source, self.indices, self.name = source, indices, source.name

    @property
    def size(self) -> tuple[int, int]:
        return self.source.size

    @property
    def timestamps(self) -> np.ndarray | None:
        times = self.source.timestamps
        if times is None or self.indices.step < 0 or not self.indices:
            return None
        times = times[list(self.indices)]
        return times - times[0]

    def __len__(self) -> int:
        return len(self.indices)

    def _frame(self, index: int) -> np.ndarray:
        return self.source[self.indices[index]]

    def close(self) -> None:
        self.source.close()


class ImageFrames(VideoFrames):
    """Image files as frames; their headers are read at once, so a frame of another size is found before any work."""

    def __init__(self, paths: Sequence[Path], *, allow_truncated: bool = False) -> None:
        if not paths:
            raise FileNotFoundError("the list of images is empty; at least one frame is needed")
        self.paths = list(paths)
        self.name = str(self.paths[0].parent if len(self.paths) > 1 else self.paths[0])
        self._size = self._check_headers(allow_truncated)

    @property
    def size(self) -> tuple[int, int]:
        return self._size

    @property
    def timestamps(self) -> None:
        return None

    def __len__(self) -> int:
        return len(self.paths)

    def check(self) -> None:
        for index in range(len(self)):
            self._frame(index)

    def _frame(self, index: int) -> np.ndarray:
        with _as_video_error():
            return read_image(self.paths[index])

    def _check_headers(self, allow_truncated: bool) -> tuple[int, int]:
        """Check that all images are readable and of one size; return it as (H, W)."""
        sizes: list[tuple[int, int]] = []
        for path in self.paths:
            try:
                with _as_video_error():  # a cut-off file has a whole header; only its pixels tell
                    sizes.append(read_image(path).shape[:2] if allow_truncated else image_size(path))
            except VideoError as error:
                if not allow_truncated or not sizes:
                    raise
                logger.warning("%s; only the %d frames before it are used", error, len(sizes))
                break
            if sizes[-1] != sizes[0]:
                raise VideoError(_other_size(path, sizes[-1], self.paths[0], sizes[0]))
        self.paths = self.paths[: len(sizes)]
        return sizes[0]


class ContainerFrames(VideoFrames):
    """The frames of one file: of the video stream that a player shows, or the pictures of an animated image.

    The number of frames and their times are not trusted to the file's header: asking for them decodes the file once,
    which also finds a damaged or cut-off file before any model runs.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        allow_truncated: bool = False,
        window: int = _WINDOW,
        decode: Decode = decode_container,
    ) -> None:
        self.path, self.name = Path(path), str(path)
        self._allow_truncated, self._window, self._decode_file = allow_truncated, max(1, window), decode
        self._is_video = decode is decode_container  # not an image
        self._recent: OrderedDict[int, np.ndarray] = OrderedDict()
        self._decoder: Generator[DecodedFrame | AnimationFrame, None, None] | None = None
        self._next_index = 0
        self._read_times: list[float | None] | None = None  # as the file has them
        self._start = 0.0  # time of the first frame in the file
        self._times: np.ndarray | None = None
        self._is_damaged = False
        first = self._frame(0)
        self._size = first.shape[:2]
        self._window = min(self._window, max(1, _WINDOW_BYTES // first.nbytes))

    @property
    def size(self) -> tuple[int, int]:
        return self._size

    @property
    def timestamps(self) -> np.ndarray | None:
        times = self._file_times()
        if self._times is None and (self._is_video or times[0] is not None):
            self._times = repair_times(times, self.name)
        return self._times

    @property
    def sound(self) -> Sound | None:  # type: ignore[override]
        if not self._is_video or not has_sound(self.path, VideoError):
            return None
        self._file_times()
        return Sound(self.path, self._start, is_whole=not self._is_damaged)

    def __len__(self) -> int:
        return len(self._file_times())

    def _file_times(self) -> list[float | None]:
        """Time of every frame as the file has it; decodes the file the first time."""
        if self._read_times is None:
            clocks = [(frame.time, frame.decoding_time) for frame in self._decode()]
            self._start = next((time for time in clocks[0] if time is not None), 0.0)
            self._read_times = better_clock(*zip(*clocks, strict=True))
            if len(clocks) == 1:
                logger.warning("%s: this video has one frame", self.name)
        return self._read_times

    def __iter__(self) -> Iterator[np.ndarray]:
        """Decode once from the start to the end, without asking for the length first."""
        return (self._rgb(frame, index) for index, frame in enumerate(self._decode()))

    def close(self) -> None:
        if self._decoder is not None:
            self._decoder.close()
        self._decoder, self._next_index = None, 0
        self._recent.clear()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_decoder": None, "_next_index": 0, "_recent": OrderedDict()}

    def _decode(self) -> Generator[DecodedFrame | AnimationFrame, None, None]:
        """Decoded frames from the start; a damaged file raises, or ends early with one warning."""
        damage = yield from self._decode_file(self.path, VideoError)
        if damage is None:
            return
        if not self._allow_truncated or damage.num_frames == 0:
            hint = "" if self._allow_truncated else "; to use the frames before that, pass allow_truncated=True"
            raise VideoError(f"{self.name} is damaged or cut off: {damage}{hint}")
        if not self._is_damaged:
            self._is_damaged = True
            logger.warning("%s is damaged or cut off: %s; only these frames are used", self.name, damage)

    def _rgb(self, frame: DecodedFrame | AnimationFrame, index: int) -> np.ndarray:
        try:
            return frame.to_rgb()
        except (FFmpegError, ValueError) as error:
            raise VideoError(f"{self.name}: the colours of frame {index} cannot be read: {error}") from error

    def _frame(self, index: int) -> np.ndarray:
        if index in self._recent:
            return self._recent[index].copy()  # the caller may draw into it
        if self._read_times is not None and index >= len(self._read_times):
            raise IndexError(f"frame {index} does not exist, {self.name} has {len(self._read_times)} frames")
        if self._decoder is None or index < self._next_index:
            self.close()
            self._decoder = self._decode()
        for frame in self._decoder:
            position, self._next_index = self._next_index, self._next_index + 1
            if position + self._window > index:  # frames further back are skipped without converting their colours
                self._recent[position] = self._rgb(frame, position)
            while len(self._recent) > self._window:
                self._recent.popitem(last=False)
            if position == index:
                return self._recent[index].copy()
        self.close()
        raise IndexError(f"frame {index} does not exist, {self.name} has fewer frames")


@contextmanager
def _as_video_error() -> Iterator[None]:
    """A frame that is there but no image makes a video that cannot be read."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise VideoError(str(error)) from error


def _other_size(path: Path, size: tuple[int, int], first: Path, first_size: tuple[int, int]) -> str:
    return (
        f"all frames must have one size: {path} is {size[0]} x {size[1]}, "
        f"{first} is {first_size[0]} x {first_size[1]} (height x width)"
    )
