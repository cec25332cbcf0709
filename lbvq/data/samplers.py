"""In which order records are visited: endless streams for training, a share of the records for testing.

The sequences are the published ones, number for number. A training stream is a function of its seed alone, so going on
after a restart means skipping what was seen.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from itertools import islice
from typing import Any

import torch

from lbvq.engine import comm

TRAINING_SAMPLERS = ("TrainingSampler", "RepeatFactorTrainingSampler")


class TrainingSampler:
    """Every record once per epoch, in a new random order each time, without end; process r of w takes every w-th."""

    def __init__(
        self,
        size: int,
        *,
        seed: int,
        shuffle: bool = True,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        """Take the number of records and a seed that all processes share.

        Rank and world size are those of this process unless they are given.
        """
        if size < 1:
            raise ValueError(f"Training needs at least one record, got {size}; check DATASETS.TRAIN.")
        self.size = size
        self.seed = seed
        self.shuffle = shuffle
        self.rank = comm.get_rank() if rank is None else rank
        self.world_size = comm.get_world_size() if world_size is None else world_size

    def __iter__(self) -> Iterator[int]:
        return islice(self._all_processes(), self.rank, None, self.world_size)

    def _all_processes(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            yield from self._epoch(generator).tolist()

    def _epoch(self, generator: torch.Generator) -> torch.Tensor:
        return torch.randperm(self.size, generator=generator) if self.shuffle else torch.arange(self.size)


class RepeatFactorTrainingSampler(TrainingSampler):
    """As `TrainingSampler`, but records with rare categories come several times per epoch.

    A factor of 2.3 means two times, and a third time in 30 % of the epochs.
    """

    def __init__(self, factors: Sequence[float] | torch.Tensor, *, seed: int, **options: Any) -> None:
        super().__init__(len(factors), seed=seed, **options)
        self.factors = torch.as_tensor(factors, dtype=torch.float32)
        if self.factors.min() < 1:
            raise ValueError(f"Repeat factors must be at least 1, got {float(self.factors.min())}.")

    def _epoch(self, generator: torch.Generator) -> torch.Tensor:
        whole = self.factors.trunc()
        extra = torch.rand(self.size, generator=generator) < self.factors - whole
        repeats = (whole + extra.float()).long()
        indices = torch.repeat_interleave(torch.arange(self.size), repeats)
        return indices[torch.randperm(len(indices), generator=generator)] if self.shuffle else indices


def repeat_factors(categories: Sequence[Collection[int]], threshold: float, *, sqrt: bool = True) -> torch.Tensor:
    """How often each record is repeated: by its rarest category, once if that is frequent enough or if it has none.

    Args:
        categories: of each record.
        threshold: a category in a smaller share of the records than this is rare.
        sqrt: repeat by the square root of threshold / share instead of by the ratio itself.

    Returns:
        (len(categories),) float32, at least 1.
    """
    counts = Counter(category for found in categories for category in set(found))
    factors = {}
    for category, count in counts.items():
        ratio = threshold / (count / len(categories))
        factors[category] = max(1.0, math.sqrt(ratio) if sqrt else ratio)
    return torch.tensor(
        [max((factors[each] for each in found), default=1.0) for found in categories], dtype=torch.float32
    )


class InferenceSampler:
    """Each record once; process r takes one contiguous share, the first shares are one longer if it does not divide."""

    def __init__(self, size: int, *, rank: int | None = None, world_size: int | None = None) -> None:
        rank = comm.get_rank() if rank is None else rank
        world_size = comm.get_world_size() if world_size is None else world_size
        share, rest = divmod(size, world_size)
        start = rank * share + min(rank, rest)
        self.indices = range(start, start + share + (rank < rest))

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)
