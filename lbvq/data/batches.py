"""Which records make a batch.

Batches are planned from indices alone, in the process that trains, before anything is read. So the plan of a run is a
function of seeds and settings: skipping its first k batches continues a run that has done k iterations.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, repeat
from typing import NamedTuple


class Pick(NamedTuple):
    """One element of a batch: record `index` of data set number `source`, with its own random seed."""

    source: int
    index: int  # type: ignore[assignment]  # hides a method of tuples that nobody needs
    seed: tuple[int, ...]


def arrival_order(indices: Iterable[int], batch_size: int, num_workers: int) -> Iterator[int]:
    """Order in which single elements reached the main process in the published loader.

    Each of W workers took every W-th chunk of `batch_size` indices and the workers delivered in turn. Only the grouping
    by shape sees this order; it is kept so that batches are the published ones for any number of workers.
    """
    stream, num_workers = iter(indices), max(num_workers, 1)
    while chunk := list(islice(stream, batch_size * num_workers)):
        for position in range(batch_size):
            yield from chunk[position::batch_size]


def plain_batches(indices: Iterable[int], batch_size: int) -> Iterator[list[int]]:
    """Cut a stream into batches; an incomplete last batch is dropped."""
    stream = iter(indices)
    while len(batch := list(islice(stream, batch_size))) == batch_size:
        yield batch


def grouped_batches(indices: Iterable[int], is_landscape: Sequence[bool], batch_size: int) -> Iterator[list[int]]:
    """Batches of all wide or all other records, to save padding; squares count as tall.

    Args:
        indices: stream of records.
        is_landscape: of each record, wider than high.
        batch_size: of every batch.
    """
    waiting: dict[bool, list[int]] = {True: [], False: []}
    for index in indices:
        group = waiting[bool(is_landscape[index])]
        group.append(index)
        if len(group) == batch_size:
            yield list(group)
            group.clear()


def mixed_batches(
    sources: Sequence[Iterable[list[int]]], ratios: Sequence[float], batch_size: int, seed: int
) -> Iterator[list[tuple[int, int]]]:
    """Mix data sets: every element of a batch comes from a data set drawn by its ratio.

    Each data set has a pool of its own. (The published loader shares one pool, so a whole batch comes from the data set
    of its first element; with one element per batch there is no difference.)

    Args:
        sources: a stream of batches for each data set.
        ratios: weights, need not sum to 1.
        batch_size: of every batch.
        seed: of the draws of this process.

    Yields:
        `batch_size` pairs (number of the data set, index of the record).
    """
    draw = random.Random(seed)
    streams = [iter(source) for source in sources]
    pools: list[deque[int]] = [deque() for _ in streams]
    while True:
        choices = draw.choices(range(len(streams)), ratios, k=batch_size * 100)
        for start in range(0, len(choices), batch_size):
            batch = []
            for source in choices[start : start + batch_size]:
                if not pools[source]:
                    pools[source].extend(next(streams[source]))
                batch.append((source, pools[source].popleft()))
            yield batch


def tag_single_source(batches: Iterable[list[int]]) -> Iterator[list[tuple[int, int]]]:
    """Batches of one data set in the form of `mixed_batches`."""
    for batch in batches:
        yield list(zip(repeat(0), batch))


def with_seeds(batches: Iterable[list[tuple[int, int]]], seed: int, rank: int) -> Iterator[list[Pick]]:
    """Give every element a seed that depends on its place in the plan only, not on which worker reads it."""
    position = 0
    for batch in batches:
        picks = []
        for source, index in batch:
            picks.append(Pick(source, index, (seed, rank, position)))
            position += 1
        yield picks
