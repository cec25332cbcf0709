"""The encoded frames of a video of any length, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType

from torch import Tensor

from ..feature_store import FeatureStore
from .mask_heads import FrameMaps

# Shares of the budget: roughly what a frame of 360 x 640 pixels needs of each kind.
SHARES = {"memory": 0.4, "coarse": 0.01, "fine": 0.04, "high": 0.3, "images": 0.25}


class FrameStore:
    """Memory of the decoder and maps of the mask heads, frame by frame; what exceeds the budget goes to files.

    Use it in a `with` statement, as `FeatureStore`.
    """

    def __init__(self, budget_mib: float, *, has_shallow: bool) -> None:
        """Args: has_shallow: `FrameMaps.shallow` is kept too, in the budget of `high`."""
        shares = dict(SHARES)
        if has_shallow:
            shares["shallow"] = shares["high"] = shares["high"] / 2
        self._stores = {name: FeatureStore(share * budget_mib) for name, share in shares.items()}

    def __len__(self) -> int:
        return len(self._stores["memory"])

    def append(self, memory: Tensor, maps: FrameMaps) -> None:
        """Add t frames: memory (t, S, C) and their maps."""
        for name, store in self._stores.items():
            store.append(memory[..., None] if name == "memory" else getattr(maps, name))

    def read_memory(self, size: int) -> Iterator[Tensor]:
        """Memory of one clip in pieces (1, t, S, C)."""
        for _, values in self._stores["memory"].chunks(size):
            yield values[None, ..., 0]

    def read_maps(self, size: int) -> Iterator[tuple[int, FrameMaps]]:
        """(first frame, maps) in pieces of at most `size` frames."""
        names = [name for name in self._stores if name != "memory"]
        for pieces in zip(*(self._stores[name].chunks(size) for name in names), strict=True):
            maps = {name: piece for name, (_, piece) in zip(names, pieces, strict=True)}
            yield pieces[0][0], FrameMaps(**{"shallow": None, **maps})

    def close(self) -> None:
        """Free the memory and delete the files."""
        for store in self._stores.values():
            store.close()

    def __enter__(self) -> FrameStore:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
