"""Frames for the network: tensors of images, and a whole video that is decoded only as far as somebody looks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from lbvq.files.images import read_image

__all__ = ["LazyFrames", "check_size", "read_image", "to_tensor"]


def check_size(image: np.ndarray, record: dict[str, Any], file_name: str) -> None:
    """Raise when an image is not as large as its record says."""
    height, width = image.shape[:2]
    if (record.get("height", height), record.get("width", width)) != (height, width):
        raise ValueError(
            f"{file_name} has {height} x {width} pixels (height x width), but the annotation file says "
            f"{record['height']} x {record['width']}; images and annotations do not belong together."
        )


def to_tensor(image: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 -> (3, H, W) uint8 tensor with its own memory."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


class LazyFrames(Sequence[Tensor]):
    """The frames of a video as (3, H, W) uint8 tensors, each decoded when it is asked for and then forgotten.

    While a frame is in use the next ones are decoded in the background, so reading in order does not wait. Memory is
    bounded by `prefetch` frames whatever the length of the video.
    """

    def __init__(self, file_names: Sequence[str], decode: Callable[[str], Tensor], prefetch: int = 2) -> None:
        """Take the files in order; `decode` reads one and must be picklable if the frames travel between processes."""
        self.file_names = list(file_names)
        self._decode = decode
        self._prefetch = prefetch
        self._executor: ThreadPoolExecutor | None = None
        self._waiting: dict[int, Future[Tensor]] = {}

    def __len__(self) -> int:
        return len(self.file_names)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...

    @overload
    def __getitem__(self, index: slice) -> list[Tensor]: ...

    def __getitem__(self, index: int | slice) -> Tensor | list[Tensor]:
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"Frame {index} does not exist: the video has {len(self)} frames.")
        index %= len(self)
        wanted = range(index + 1, min(index + 1 + self._prefetch, len(self)))
        frame = self._waiting.pop(index, None)
        self._waiting = {k: future for k, future in self._waiting.items() if k in wanted}
        for k in wanted:
            if k not in self._waiting:
                self._waiting[k] = self._pool().submit(self._decode, self.file_names[k])
        return frame.result() if frame is not None else self._decode(self.file_names[index])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_executor": None, "_waiting": {}}

    def _pool(self) -> ThreadPoolExecutor:
        if self._executor is None:
            self._executor = ThreadPoolExecutor(max(1, self._prefetch), thread_name_prefix="decode-frames")
        return self._executor
