"""Read videos: files (mp4, webm, avi, ...), folders of frames, glob patterns and single images, decoded as needed.

`read_video` returns a `VideoFrames`, a sequence of (H, W, 3) uint8 RGB arrays turned upright. Only a few frames are in
memory at a time. Reading in order is fast; going back further than the window decodes again from the start.
Writing is in `lbvq.video.writer`.
"""

from __future__ import annotations

import glob
import logging
import os
import re
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from lbvq.files.images import IMAGE_SUFFIXES, image_size, read_image
from lbvq.video.container import decode_container

__all__ = ["IMAGE_SUFFIXES", "VideoError", "VideoFrames", "natural_key", "read_image", "read_video"]

_WINDOW = 8  # decoded frames that are kept

logger = logging.getLogger(__name__)


class VideoError(ValueError):
    """A video cannot be read; the message says which frame or file and why."""


def read_video(source: str | os.PathLike | Sequence, *, allow_truncated: bool = False) -> VideoFrames:
    """Open a video without decoding it.

    Args:
        source: a video file, a folder of images, a glob pattern of images, one image, or a list of image files.
            Images of a folder or pattern are taken in natural order (frame2 before frame10).
        allow_truncated: use the frames before the first one that cannot be read, with a warning, instead of raising.

    Returns:
        A sequence of (H, W, 3) uint8 RGB arrays of one size.

    Raises:
        VideoError: nothing can be read, or frames have different sizes.
        FileNotFoundError: there is no such file or folder, or no image in it.
    """
    if isinstance(source, (list, tuple)):
        return ImageFrames([Path(item) for item in source], allow_truncated=allow_truncated)
    path = Path(source)
    if path.is_dir():
        images = [item for item in path.iterdir() if item.suffix.lower() in IMAGE_SUFFIXES and item.is_file()]
        if not images:
            raise FileNotFoundError(f"{path} holds no image; expected files ending in {', '.join(IMAGE_SUFFIXES)}")
        return ImageFrames(sorted(images, key=natural_key), allow_truncated=allow_truncated)
    if not path.exists() and glob.has_magic(str(source)):
        return _read_pattern(str(source), allow_truncated)
    if not path.exists():
        raise FileNotFoundError(f"there is no file or folder {path}")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return ImageFrames([path], allow_truncated=allow_truncated)
    return ContainerFrames(path, allow_truncated=allow_truncated)


def natural_key(path: Path) -> list:
    """Sort key under which numbers in file names count as numbers: frame2 comes before frame10."""
    parts = re.split(r"(\d+)", path.name)
    return [(int(part), part) if index % 2 else (0, part.lower()) for index, part in enumerate(parts)]


class VideoFrames(Sequence, ABC):
    """A sequence of (H, W, 3) uint8 RGB frames of one size; a slice is again such a sequence, nothing is decoded."""

    name: str

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

    def close(self) -> None:
        """Let go of the open file; reading on opens it again."""

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
    """The first video stream of a file.

    The number of frames and their times are not trusted to the file's header: asking for them decodes the file once,
    which also finds a damaged or cut-off file before any model runs.
    """

    def __init__(self, path: str | os.PathLike, *, allow_truncated: bool = False, window: int = _WINDOW) -> None:
        self.path, self.name = Path(path), str(path)
        self._allow_truncated, self._window = allow_truncated, max(1, window)
        self._recent: OrderedDict[int, np.ndarray] = OrderedDict()
        self._decoder: Iterator | None = None
        self._next_index = 0
        self._times: np.ndarray | None = None
        self._warned = False
        self._size = self._frame(0).shape[:2]

    @property
    def size(self) -> tuple[int, int]:
        return self._size

    @property
    def timestamps(self) -> np.ndarray:
        if self._times is None:
            self._times = _ascending([frame.time for frame in self._decode()])
        return self._times

    def __len__(self) -> int:
        return len(self.timestamps)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Decode once from the start to the end, without asking for the length first."""
        return (frame.to_rgb() for frame in self._decode())

    def close(self) -> None:
        if self._decoder is not None:
            self._decoder.close()  # type: ignore[attr-defined]
        self._decoder, self._next_index = None, 0
        self._recent.clear()

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_decoder": None, "_next_index": 0, "_recent": OrderedDict()}

    def _decode(self) -> Iterator:
        """Decoded frames from the start; a damaged file raises, or ends early with one warning."""
        damage = yield from decode_container(self.path, VideoError)
        if damage is None:
            return
        if not self._allow_truncated or damage.num_frames == 0:
            hint = "" if self._allow_truncated else "; to use the frames before that, pass allow_truncated=True"
            raise VideoError(f"{self.path} is damaged or cut off: {damage}{hint}")
        if not self._warned:
            self._warned = True
            logger.warning("%s is damaged or cut off: %s; only these frames are used", self.path, damage)

    def _frame(self, index: int) -> np.ndarray:
        if index in self._recent:
            return self._recent[index].copy()  # the caller may draw into it
        if self._times is not None and index >= len(self._times):
            raise IndexError(f"frame {index} does not exist, {self.path} has {len(self._times)} frames")
        if self._decoder is None or index < self._next_index:
            self.close()
            self._decoder = self._decode()
        for frame in self._decoder:
            position, self._next_index = self._next_index, self._next_index + 1
            if position + self._window > index:  # frames further back are skipped without converting their colours
                self._recent[position] = frame.to_rgb()
            while len(self._recent) > self._window:
                self._recent.popitem(last=False)
            if position == index:
                return self._recent[index].copy()
        self.close()
        raise IndexError(f"frame {index} does not exist, {self.path} has fewer frames")


@contextmanager
def _as_video_error() -> Iterator[None]:
    """A frame that is there but no image makes a video that cannot be read."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise VideoError(str(error)) from error


def _read_pattern(pattern: str, allow_truncated: bool) -> VideoFrames:
    found = [Path(item) for item in glob.glob(pattern)]
    if not found:
        raise FileNotFoundError(f"no file matches {pattern}")
    others = [item for item in found if item.suffix.lower() not in IMAGE_SUFFIXES]
    if len(found) == 1:
        return read_video(found[0], allow_truncated=allow_truncated)
    if others:
        raise VideoError(f"{pattern} matches {len(found)} files that are not all images, such as {others[0]}")
    return ImageFrames(sorted(found, key=natural_key), allow_truncated=allow_truncated)


def _other_size(path: Path, size: tuple[int, int], first: Path, first_size: tuple[int, int]) -> str:
    return (
        f"all frames must have one size: {path} is {size[0]} x {size[1]}, "
        f"{first} is {first_size[0]} x {first_size[1]} (height x width)"
    )


def _ascending(times: list[float | None]) -> np.ndarray:
    """Frame times from 0; where the file has none or they do not ascend, equal steps take their place."""
    known = np.array([np.nan if time is None else time for time in times], dtype=np.float64)
    if len(known) > 1 and np.isfinite(known).all() and (np.diff(known) > 0).all():
        return known - known[0]
    finite = known[np.isfinite(known)]
    span = float(finite.max() - finite.min()) if len(finite) > 1 else 0.0
    return np.arange(len(known)) * (span / (len(known) - 1) if span > 0 else 1 / 30)
