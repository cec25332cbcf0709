"""From whatever a user calls a video to what a model reads: frames one by one, resized when they are asked for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lbvq.data.transforms import ResizeTransform, resized_shape
from lbvq.video.reader import VideoFrames, read_video

if TYPE_CHECKING:
    from mask2former.cfg import Cfg

IMAGE_FORMATS = ("RGB", "BGR")


def open_frames(video: Any, *, allow_truncated: bool = False) -> Sequence[np.ndarray]:
    """Make a sequence of (H, W, 3) uint8 RGB arrays of one size, without decoding or copying the whole video.

    Args:
        video: a path or glob pattern (see `read_video`), a list of image files, a `VideoFrames`, an array or tensor
            (T, H, W, 3) or (T, 3, H, W), or a sequence of arrays or tensors (H, W, 3) or (3, H, W); uint8 RGB pixels.
        allow_truncated: for files that are cut off, see `read_video`.
    """
    if isinstance(video, VideoFrames):
        frames: Sequence[np.ndarray] = video
    elif isinstance(video, (str, os.PathLike)) or _is_list_of_paths(video):
        frames = read_video(video, allow_truncated=allow_truncated)
    elif isinstance(video, (np.ndarray, Tensor)):
        if video.ndim != 4:
            raise ValueError(f"a video must have shape (T, H, W, 3) or (T, 3, H, W), got {tuple(video.shape)}")
        frames = ArrayFrames(video)
    elif isinstance(video, Sequence):
        frames = ArrayFrames(video)
    else:
        raise ValueError(f"cannot read a video from {type(video).__name__}; expected a path, frames or an array")
    if len(frames) == 0:
        raise ValueError("the video has no frames")
    return frames


class ArrayFrames(Sequence):
    """Frames that are in memory already, checked and turned into RGB arrays when they are asked for."""

    def __init__(self, frames: Sequence | np.ndarray | Tensor) -> None:
        self._frames = frames
        self._shape = as_rgb(frames[0], 0).shape if len(frames) else (0, 0, 3)

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return ArrayFrames(self._frames[index])
        frame = as_rgb(self._frames[index], index)
        if frame.shape != self._shape:
            raise ValueError(
                f"all frames must have one size: frame {index} is {frame.shape[0]} x {frame.shape[1]}, "
                f"frame 0 is {self._shape[0]} x {self._shape[1]} (height x width)"
            )
        return frame


@dataclass(frozen=True)
class Resize:
    """How frames are made ready for a model, see `ResizedFrames`; by default as published for YouTube-VIS."""

    min_size: int = 360
    max_size: float = 1333
    image_format: str = "RGB"

    @classmethod
    def from_config(cls, cfg: Cfg) -> Resize:
        """That of a configuration at test time."""
        return cls(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, cfg.INPUT.FORMAT)

    def __call__(self, frames: Sequence[np.ndarray], on_read: Callable[[int], None] | None = None) -> ResizedFrames:
        """Frames (H, W, 3) uint8 RGB as the model reads them."""
        return ResizedFrames(frames, **vars(self), on_read=on_read)


class ResizedFrames(Sequence):
    """What a model reads as `sample["image"]`: (3, h, w) uint8 tensors, resized as at test time when indexed.

    The published rule: antialiased bilinear, so that the short side becomes `min_size` unless the long side would then
    exceed `max_size`.
    """

    def __init__(
        self,
        frames: Sequence[np.ndarray],
        *,
        min_size: int,
        max_size: float,
        image_format: str = "RGB",
        on_read: Callable[[int], None] | None = None,
    ) -> None:
        """Args:
        frames: T arrays (H, W, 3) uint8 RGB.
        min_size: pixels; 0 keeps the size of the frames.
        max_size: pixels.
        image_format: channel order of the result, "RGB" or "BGR".
        on_read: called with the index of every frame that is read.
        """
        if image_format not in IMAGE_FORMATS:
            raise ValueError(f"INPUT.FORMAT must be one of {IMAGE_FORMATS}, got {image_format!r}")
        if min_size < 0 or max_size <= 0:
            raise ValueError(f"expected INPUT.MIN_SIZE_TEST >= 0 and MAX_SIZE_TEST > 0, got {min_size} and {max_size}")
        self._frames, self._image_format, self._on_read = frames, image_format, on_read
        height, width = frames[0].shape[:2]
        new_size = resized_shape(height, width, min_size, max_size) if min_size else (height, width)
        self.original_size = (height, width)
        self.size = (max(1, new_size[0]), max(1, new_size[1]))  # a very long, thin frame keeps one row
        self._resize = ResizeTransform(height, width, *self.size)

    def sample(self) -> dict[str, Any]:
        """The video as a model takes it; masks of the result have the size of the frames and are kept as RLE."""
        height, width = self.original_size
        times = {"video_len": len(self), "frame_idx": list(range(len(self)))}
        return {"image": self, "height": height, "width": width, **times, "dense_masks": False}

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[t] for t in range(len(self))[index]]
        index = range(len(self))[int(index)]
        image = self._resize.apply_image(self._frames[index])
        if self._image_format == "BGR":
            image = image[:, :, ::-1]
        if self._on_read is not None:
            self._on_read(index)
        return torch.from_numpy(np.array(image.transpose(2, 0, 1), order="C"))

    def __iter__(self) -> Iterator[Tensor]:
        return (self[t] for t in range(len(self)))


def _is_list_of_paths(video: Any) -> bool:
    return (
        isinstance(video, (list, tuple))
        and len(video) > 0
        and all(isinstance(item, (str, os.PathLike)) for item in video)
    )


def as_rgb(frame: Any, index: int) -> np.ndarray:
    """One frame, channels first or last, array, tensor or PIL image -> (H, W, 3) uint8."""
    array = np.asarray(frame.detach().cpu() if isinstance(frame, Tensor) else frame)
    if array.ndim != 3 or 3 not in (array.shape[0], array.shape[2]):
        raise ValueError(f"frame {index} must have shape (H, W, 3) or (3, H, W), got {array.shape}")
    if array.dtype != np.uint8:
        raise ValueError(f"frame {index} must be uint8 with values 0 to 255, got {array.dtype}")
    if 0 in array.shape:
        raise ValueError(f"frame {index} has no pixels, its shape is {array.shape}")
    return array if array.shape[2] == 3 else array.transpose(1, 2, 0)
