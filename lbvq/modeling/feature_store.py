"""Keep one feature map per frame of a video of any length in bounded memory.

The clip module needs all frames before it can say what the objects are, and only then are the masks made from the
feature maps of every frame. Up to a budget the maps stay where they were computed; the rest goes to a temporary file,
with plain reads and writes so that resident memory does not grow, and comes back bit for bit.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, cast

import torch
from torch import Tensor

MIB = 2**20


class FeatureStore:
    """A sequence of feature maps (C, h, w) of equal shape, appended once and read back in order.

    Use it in a `with` statement: leaving it frees the memory and deletes the file. The file has no name on systems that
    allow it, so that it vanishes even when the process is killed.
    """

    def __init__(self, budget_mib: float, *, directory: str | Path | None = None) -> None:
        """Args:
        budget_mib: MiB of features kept in memory; 0 sends every frame to the file.
        directory: folder of the temporary file; the system's temporary folder when None.
        """
        if not budget_mib >= 0:
            raise ValueError(f"the feature budget must be at least 0 MiB, got {budget_mib}; set TEST.FEATURE_BUDGET_MB")
        self.budget_bytes = budget_mib * MIB
        self.directory = directory
        self._resident: list[Tensor] = []  # frames 0 .. r-1
        self._file: BinaryIO | None = None
        self._num_spilled = 0
        self._like = torch.empty(0)  # an empty tensor with the dtype and device of the features
        self._frame_shape: tuple[int, ...] = ()  # as stored
        self._is_channels_last = False  # stored as (h, w, C), the order in which the maps lie in memory

    def __len__(self) -> int:
        return len(self._resident) + self._num_spilled

    @property
    def num_spilled(self) -> int:
        """Number of frames that are in the file."""
        return self._num_spilled

    def append(self, features: Tensor) -> None:
        """Add the maps (t, C, h, w) of the next t frames."""
        if not self._frame_shape:
            self._like = features.new_empty(0)
            self._is_channels_last = _is_channels_last(features)
            self._frame_shape = tuple(self._as_stored(features).shape[1:])
        frames = self._as_stored(features)
        if tuple(frames.shape[1:]) != self._frame_shape:
            want = tuple(self._as_given(self._like.new_empty(0, *self._frame_shape)).shape[1:])
            raise ValueError(
                f"every frame of a video must give features of shape {want}, got {tuple(features.shape[1:])}"
            )
        for frame in frames:
            if self._num_spilled == 0 and (len(self) + 1) * self._frame_bytes() <= self.budget_bytes:
                # contiguous() alone would keep the whole chunk alive through a view of it
                self._resident.append(frame.clone(memory_format=torch.contiguous_format))
            else:
                self._spill(frame)

    def chunks(self, size: int) -> Iterator[tuple[int, Tensor]]:
        """Yield (first frame, maps (t, C, h, w)) in order, t <= size, on the device they came from."""
        starts = range(0, len(self), size)
        lengths = [min(size, len(self) - start) for start in starts]
        yield from zip(starts, self.runs(lengths), strict=True)

    def runs(self, lengths: Sequence[int]) -> Iterator[Tensor]:
        """Yield maps (t, C, h, w) in order, with t given for every piece; the lengths add up to all frames."""
        if sum(lengths) != len(self):
            raise ValueError(f"{len(self)} frames are stored, got lengths that add up to {sum(lengths)}")
        start = 0
        for length in lengths:
            stop = start + length
            resident = self._resident[start:stop]
            parts = [torch.stack(resident) if len(resident) > 1 else resident[0][None]] if resident else []
            if stop > len(self._resident):
                parts.append(self._read(max(start, len(self._resident)), stop))
            yield self._as_given(parts[0] if len(parts) == 1 else torch.cat(parts))
            start = stop

    def close(self) -> None:
        """Free the memory and delete the file."""
        self._resident.clear()
        self._num_spilled = 0
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> FeatureStore:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _as_stored(self, features: Tensor) -> Tensor:
        return features.movedim(1, -1) if self._is_channels_last else features

    def _as_given(self, frames: Tensor) -> Tensor:
        return frames.movedim(-1, 1) if self._is_channels_last else frames

    def _frame_bytes(self) -> int:
        count = 1
        for length in self._frame_shape:
            count *= length
        return count * self._like.element_size()

    def _spill(self, frame: Tensor) -> None:
        """Write one map at the end of the file."""
        try:
            file = self._opened()
            file.seek(self._num_spilled * self._frame_bytes())
            file.write(_bytes_of(frame.detach().cpu().contiguous()))
            file.flush()  # a full disk must be noticed here, with the explanation below
        except OSError as error:
            raise OSError(
                f"cannot write mask features of frame {len(self)} to a temporary file in "
                f"{self.directory or tempfile.gettempdir()} ({error}). Set TMPDIR to a folder with more room, or raise "
                "TEST.FEATURE_BUDGET_MB to keep more of them in memory."
            ) from error
        self._num_spilled += 1

    def _opened(self) -> BinaryIO:
        if self._file is None:
            self._file = cast(BinaryIO, tempfile.TemporaryFile(prefix="lbvq-features-", dir=self.directory))
        return self._file

    def _read(self, start: int, stop: int) -> Tensor:
        """Read the maps of the spilled frames start <= t < stop (numbers within the whole video)."""
        features = torch.empty((stop - start, *self._frame_shape), dtype=self._like.dtype)
        file = self._opened()
        file.seek((start - len(self._resident)) * self._frame_bytes())
        num_read = cast(io.BufferedIOBase, file).readinto(_bytes_of(features))
        if num_read != features.numel() * features.element_size():
            raise OSError(f"the temporary file of mask features ended early: frames {start} to {stop} are incomplete")
        return features.to(self._like.device)


def _is_channels_last(features: Tensor) -> bool:
    """Whether maps (t, C, h, w) have the channels of a pixel side by side, and not its neighbours too."""
    is_dense = features.dim() == 4 and features.is_contiguous(memory_format=torch.channels_last)
    return is_dense and not features.is_contiguous()


def _bytes_of(tensor: Tensor) -> memoryview:
    """View the memory of a contiguous CPU tensor of any type as bytes."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data
