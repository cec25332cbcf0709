"""The masks of a video's objects, kept as compressed run lengths frame by frame.

A dense (N, T, H, W) mask of a long video does not fit in memory; its run-length code is about a thousand times smaller.
`MaskTubes` grows by chunks of frames, so nobody has to hold the dense masks of more frames than one chunk.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from lbvq.masks import rle
from lbvq.masks.runs import canonical_counts

if TYPE_CHECKING:
    from torch import Tensor

Rle = dict[str, Any]


class MaskTubes:
    """N objects x T frames of masks of one size; an object that is not visible in a frame takes no memory there.

    ``tubes.append(masks)`` adds frames. ``tubes[index]`` selects objects by int, slice, list of int, or bool mask and
    is again a `MaskTubes` (an int gives one object). Iterating goes over the objects.
    """

    def __init__(self, size_hw: Sequence[int], num_frames: int = 0, num_objects: int | None = None) -> None:
        """Start with `num_frames` frames in which nothing is visible.

        Args:
            size_hw: (height, width) of every frame in pixels.
            num_frames: T at the start.
            num_objects: N; by default the first `append` decides.
        """
        height, width = (int(side) for side in size_hw)
        if height <= 0 or width <= 0:
            raise ValueError(f"size_hw must be positive (height, width), got {tuple(size_hw)}")
        if num_frames < 0 or (num_objects or 0) < 0:
            raise ValueError(f"num_frames and num_objects must not be negative, got {num_frames} and {num_objects}")
        self.size = (height, width)
        self.num_frames = int(num_frames)
        self._objects_known = num_objects is not None
        self._empty = rle.to_rle([], height, width)["counts"]
        # counts[n][t]: compressed string, None where object n is not visible
        self._counts: list[list[str | None]] = [[None] * self.num_frames for _ in range(num_objects or 0)]

    @classmethod
    def from_dense(cls, masks: np.ndarray | Tensor) -> MaskTubes:
        """(N, T, H, W) bool or integer masks -> tubes."""
        if getattr(masks, "ndim", None) != 4:
            raise ValueError(f"masks must have shape (N, T, H, W), got {_shape_text(masks)}")
        tubes = cls(masks.shape[2:], num_objects=masks.shape[0])
        tubes.append(masks)
        return tubes

    @classmethod
    def from_rle(
        cls,
        segmentations: Sequence[Sequence[Any]],
        size: Sequence[int],
        num_frames: int | None = None,
        where: str = "",
    ) -> MaskTubes:
        """Build from N lists of T masks each: compressed or uncompressed run lengths, polygons, or None.

        Counts of that size may also come in bytes, as they are in a JSON file, with quotation marks.

        Args:
            segmentations: every one is checked; equal pixels end up as equal strings.
            size: (height, width) that every mask must have.
            num_frames: T; needed only when there are no objects, checked otherwise.
            where: for error messages.
        """
        if num_frames is None:
            num_frames = len(segmentations[0]) if len(segmentations) else 0
        tubes = cls(size, num_frames, len(segmentations))
        prefix = f"{where}, " if where else ""
        for n, masks in enumerate(segmentations):
            if not isinstance(masks, (list, tuple)) or len(masks) != num_frames:
                got = len(masks) if isinstance(masks, (list, tuple)) else type(masks).__name__
                raise ValueError(f"{prefix}object {n}: expected a list of {num_frames} masks, got {got}")
        shown = [mask for masks in segmentations for mask in masks if mask is not None]

        @cache  # few ask
        def places() -> list[tuple[int, int]]:
            return [(n, t) for n, masks in enumerate(segmentations) for t, mask in enumerate(masks) if mask is not None]

        def name(index: int) -> str:
            return "{}object {}, frame {}".format(prefix, *places()[index])

        coded = iter(canonical_counts(shown, tubes.size, name))
        for counts, masks in zip(tubes._counts, segmentations, strict=True):
            counts[:] = [None if mask is None or (text := next(coded)) == tubes._empty else text for mask in masks]
        return tubes

    def append(self, masks: np.ndarray | Tensor, rows: Sequence[int] | Tensor | None = None) -> None:
        """Add frames at the end.

        Args:
            masks: (N, t, H, W) bool or integer masks of the next t frames, on any device; t may be 0.
            rows: (N,) indices into the first axis of `masks`, when several objects share a mask; the same index may
                occur several times and is encoded once. By default object n is row n.
        """
        if getattr(masks, "ndim", None) != 4 or tuple(masks.shape[2:]) != self.size:
            raise ValueError(f"masks must have shape (N, t, {self.size[0]}, {self.size[1]}), got {_shape_text(masks)}")
        order = list(range(masks.shape[0])) if rows is None else _index_list(rows, masks.shape[0])
        if not self._objects_known:
            self._counts = [[None] * self.num_frames for _ in order]
            self._objects_known = True
        if len(order) != len(self):
            raise ValueError(f"these tubes hold {len(self)} objects, got masks of {len(order)}; see add_objects()")
        for t in range(masks.shape[1]):
            coded = self._encode_frame(masks[:, t])
            for counts, row in zip(self._counts, order, strict=True):
                counts.append(coded[row])
        self.num_frames += masks.shape[1]

    def add_objects(self, count: int) -> None:
        """Add `count` objects at the end that are not visible in the frames so far."""
        self._counts += [[None] * self.num_frames for _ in range(count)]
        self._objects_known = True

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, T, H, W)."""
        return (len(self), self.num_frames, *self.size)

    def __len__(self) -> int:
        return len(self._counts)

    def __getitem__(self, index: Any) -> MaskTubes:
        if isinstance(index, slice):
            chosen = list(range(len(self)))[index]
        elif isinstance(index, (int, np.integer)) or getattr(index, "ndim", None) == 0:
            chosen = _index_list([int(index)], len(self))
        else:
            chosen = _index_list(index, len(self))
        selected = MaskTubes(self.size, self.num_frames, 0)
        selected._counts = [list(self._counts[n]) for n in chosen]
        return selected

    def __iter__(self) -> Iterator[MaskTubes]:
        return (self[n] for n in range(len(self)))

    def __eq__(self, other: object) -> bool:
        """Equal shape and equal pixels."""
        if not isinstance(other, MaskTubes):
            return NotImplemented
        return self.shape == other.shape and self._counts == other._counts

    __hash__ = None  # type: ignore[assignment]  # tubes grow

    def __repr__(self) -> str:
        return "MaskTubes(objects={}, frames={}, height={}, width={})".format(*self.shape)

    def rles(self, n: int) -> list[Rle | None]:
        """The T masks of object `n` as ``{"size", "counts"}``, None where it is not visible."""
        return [None if counts is None else {"size": list(self.size), "counts": counts} for counts in self._counts[n]]

    def frame(self, t: int) -> Tensor:
        """Masks of all objects in frame `t`: (N, H, W) bool tensor on the CPU."""
        import torch  # here: files of masks are read and written without it

        return torch.from_numpy(self._frame(t))

    def frames(self) -> Iterator[Tensor]:
        """Go through the video frame by frame: T times (N, H, W) bool."""
        return (self.frame(t) for t in range(self.num_frames))

    def to_dense(self, frames: slice | Iterable[int] | None = None) -> Tensor:
        """(N, T, H, W) bool tensor of all frames, or of the given ones in the given order."""
        every = range(self.num_frames)
        chosen = list(every[frames]) if isinstance(frames, slice) else list(every if frames is None else frames)
        import torch

        dense = np.empty((len(self), len(chosen), *self.size), dtype=bool)
        for position, t in enumerate(chosen):
            dense[:, position] = self._frame(t)
        return torch.from_numpy(dense)

    def visible(self) -> np.ndarray:
        """(N, T) bool: whether the object has at least one pixel in the frame."""
        seen = [[counts is not None for counts in row] for row in self._counts]
        return np.array(seen, dtype=bool).reshape(self.shape[:2])

    def areas(self) -> np.ndarray:
        """(N, T) int64 number of pixels."""
        return self._measure(rle.area, np.zeros(self.shape[:2], dtype=np.int64))

    def boxes(self) -> np.ndarray:
        """(N, T, 4) float64 tight boxes [x, y, width, height] in pixels, zeros where not visible."""
        return self._measure(rle.to_bbox, np.zeros((*self.shape[:2], 4)))

    def _measure(self, measure: Any, values: np.ndarray) -> np.ndarray:
        for n in range(len(self)):
            for t, mask in enumerate(self.rles(n)):
                if mask is not None:
                    values[n, t] = measure(mask)
        return values

    def _frame(self, t: int) -> np.ndarray:
        if not -self.num_frames <= t < self.num_frames:
            raise IndexError(f"frame {t} does not exist, the tubes have {self.num_frames} frames")
        masks = [None if row[t] is None else {"size": self.size, "counts": row[t]} for row in self._counts]
        return rle.decode_many(masks, self.size)

    def _encode_frame(self, masks: np.ndarray | Tensor) -> list[str | None]:
        """(N, H, W) -> N strings, None for masks without a pixel."""
        return [None if mask["counts"] == self._empty else mask["counts"] for mask in rle.encode_many(masks)]


def _index_list(index: Any, length: int) -> list[int]:
    """List, array or tensor of int, or bool mask -> ints in [0, length)."""
    values = np.asarray(index.cpu() if rle.is_tensor(index) else index)
    if values.size == 0 and values.dtype.kind != "b":
        return []
    if values.dtype.kind == "b":
        if values.shape != (length,):
            raise IndexError(f"a bool index must have shape ({length},), got {values.shape}")
        return np.flatnonzero(values).tolist()
    if values.dtype.kind not in "iu" or values.ndim != 1:
        raise IndexError(f"objects are selected by int, slice, list of int or bool mask, got {index!r:.60}")
    if values.min() < -length or values.max() >= length:
        raise IndexError(f"object index must be in [{-length}, {length - 1}], got {values.tolist()!s:.60}")
    return (values % length).tolist()


def _shape_text(value: Any) -> str:
    return str(tuple(value.shape)) if hasattr(value, "shape") else type(value).__name__
