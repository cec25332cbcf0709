"""The training loader: a plan of batches, workers that carry it out, and a place to continue from."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from lbvq.data.batches import Pick
from lbvq.data.checks import ObjectCounts

logger = logging.getLogger(__name__)

Sample = dict[str, Any]
Mapper = Callable[..., Sample | None]

_MOST_TRIES = 100  # records tried in place of one that gives no sample


class MappedRecords(Dataset):
    """Samples of one or several data sets, each made by its own mapper with the random seed of its `Pick`."""

    def __init__(self, stores: Sequence[Sequence[dict[str, Any]]], mappers: Sequence[Mapper]) -> None:
        if len(stores) != len(mappers):
            raise ValueError(f"Expected one mapper per data set, got {len(mappers)} for {len(stores)}.")
        self.stores = list(stores)
        self.mappers = list(mappers)

    def __getitem__(self, pick: Pick) -> Sample:
        """Make the sample; where the mapper returns None another record takes its place."""
        with seeded(pick.seed):
            index = pick.index
            for attempt in range(_MOST_TRIES):
                sample = self._make(pick.source, index)
                if sample is not None:
                    return sample
                if attempt >= 2:
                    logger.warning("Record %d gave no sample; %d others were tried.", pick.index, attempt)
                index = random.randrange(len(self.stores[pick.source]))
        raise RuntimeError(
            f"{_MOST_TRIES} records of data set {pick.source} in a row gave no sample; check its mapper."
        )

    def _make(self, source: int, index: int) -> Sample | None:
        store, mapper = self.stores[source], self.mappers[source]
        if getattr(mapper, "needs_partner", False):
            return mapper(store[index], lambda: store[random.randrange(len(store))])
        return mapper(store[index])


@contextlib.contextmanager
def seeded(seed: Sequence[int]) -> Iterator[None]:
    """Seed Python's, numpy's and torch's CPU generator inside the block and put their states back after it."""
    state = np.random.SeedSequence(list(seed)).generate_state(3)
    python_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(int(state[0]))
    np.random.seed(int(state[1]))
    torch.default_generator.manual_seed(int(state[2]))  # not torch.manual_seed: that would touch CUDA in workers
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)


def start_worker(worker_id: int) -> None:
    """What a loader worker does first: seed itself, keep to one thread, and leave signals to the trainer."""
    seed_worker(worker_id)
    cv2.setNumThreads(0)
    _leave_signals_to_trainer()


def seed_worker(worker_id: int) -> None:
    """Seed the random generators of a loader worker.

    As published: torch has put base seed + worker id into its generator, and the worker id is added once more. Samples
    of a plan bring their own seeds; this one is for everything else that a worker may do.
    """
    seed = torch.initial_seed() % 2**31 + worker_id
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)


def _leave_signals_to_trainer() -> None:
    """Obey SIGTERM only when the training process sends it.

    A scheduler that ends a job sends it to all of its processes, and SIGUSR2 as a warning before. If loader workers
    died of it, the trainer would fail before it has saved; if they ignored it, the trainer could not end them.
    """
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal reaches all processes, too
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # threads that start later inherit this

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


def keep_list(samples: list[Sample]) -> list[Sample]:
    """Collate function: a batch is the list of its samples."""
    return samples


class _Remaining:
    """The batches of a plan from a position on; a new iterator each time."""

    def __init__(self, plan: Callable[[], Iterator[list[Pick]]], position: int) -> None:
        self._plan = plan
        self._position = position

    def __iter__(self) -> Iterator[list[Pick]]:
        return islice(self._plan(), self._position, None)


class TrainLoader:
    """Endless batches, each a list of samples, that can go on exactly where an earlier run stopped.

    The state is the seed of the plan and the number of batches handed out; batches that workers have prepared but
    nobody has asked for do not count. Since every sample has a seed of its own, a resumed run sees the same pixels,
    with any number of workers.
    """

    def __init__(
        self,
        dataset: MappedRecords,
        make_plan: Callable[[int, int], Iterator[list[Pick]]],
        *,
        seed: int,
        batch_size: int,
        world_size: int = 1,
        num_workers: int = 0,
        prefetch_factor: int = 2,
        object_counts: Sequence[ObjectCounts] = (),
    ) -> None:
        """Take what a run is made of; nothing starts before the first iteration.

        Args:
            dataset: maps a `Pick` to a sample.
            make_plan: (seed, number of workers) -> endless stream of batches of picks of this process.
            seed: of the plan, the same on all processes.
            batch_size: of this process.
            world_size: number of processes, to translate a state between runs of different size.
            num_workers: loader processes; 0 loads in this process.
            prefetch_factor: batches each worker prepares in advance.
            object_counts: of each data set.
        """
        self.dataset = dataset
        self.batch_size = batch_size
        self.world_size = world_size
        self.num_workers = num_workers
        self.object_counts = list(object_counts)
        self._make_plan = make_plan
        self._seed = seed
        self._plan_workers = num_workers  # a plan depends on it, so a resumed run keeps that of the first one
        self._prefetch_factor = prefetch_factor
        self._position = 0
        self._started = False

    @property
    def position(self) -> int:
        """Number of batches handed out, in this run and the runs it continues."""
        return self._position

    def __iter__(self) -> Iterator[list[Sample]]:
        self._started = True
        seed, workers = self._seed, self._plan_workers
        loader = DataLoader(
            self.dataset,
            batch_sampler=_Remaining(lambda: self._make_plan(seed, workers), self._position),
            num_workers=self.num_workers,
            collate_fn=keep_list,
            worker_init_fn=start_worker,
            prefetch_factor=self._prefetch_factor if self.num_workers else None,
            generator=torch.Generator().manual_seed(seed),  # leave the model's random numbers alone
        )
        for batch in loader:
            self._position += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        return {
            "seed": self._seed,
            "position": self._position,
            "plan_workers": self._plan_workers,
            "batch_size": self.batch_size,
            "world_size": self.world_size,
            "num_records": self._num_records(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`; call it before the first iteration."""
        if self._started:
            raise RuntimeError("The loader is running already; load its state before iterating over it.")
        self._seed = state["seed"]
        self._plan_workers = state["plan_workers"]
        self._position = state["position"]
        if (state["batch_size"], state["world_size"]) != (self.batch_size, self.world_size):
            seen = state["position"] * state["batch_size"] * state["world_size"]
            self._position = seen // (self.batch_size * self.world_size)
            logger.warning(
                "The run was started with %d processes x %d samples and goes on with %d x %d: the order of the data is "
                "not exactly the one it would have had.",
                state["world_size"],
                state["batch_size"],
                self.world_size,
                self.batch_size,
            )
        if state["num_records"] != self._num_records():
            logger.warning(
                "The data sets have %s records, but %s when the run was started: the order of the data is another one.",
                self._num_records(),
                state["num_records"],
            )

    def _num_records(self) -> list[int]:
        return [len(store) for store in self.dataset.stores]
