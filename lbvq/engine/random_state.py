"""The random number generators of a process: seed them, save them, restore them."""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

logger = logging.getLogger(__name__)


def seed_all_rng(seed: int | None = None) -> int:
    """Seed python, numpy and torch (CPU and every GPU) and return the seed.

    Args:
        seed: at least 0; None makes one up from the clock, the process and the system's entropy, and logs it.
    """
    if seed is None:
        seed = (os.getpid() + int(time.time() * 1000) + int.from_bytes(os.urandom(4), "big")) % 2**31
        logger.info("Using a generated random seed %d.", seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)  # seeds the GPUs as well
    os.environ["PYTHONHASHSEED"] = str(seed)  # for the processes this one starts
    return seed


def get_random_state() -> dict[str, Any]:
    """Return the state of all generators of this process, made of tensors and plain numbers only.

    So the state can stand in a checkpoint that is read without unpickling arbitrary objects.
    """
    version, words, gauss_next = random.getstate()
    name, keys, position, has_gauss, cached_gaussian = np.random.get_state(legacy=True)
    state = {
        "python": {"version": version, "words": torch.tensor(words, dtype=torch.int64), "gauss_next": gauss_next},
        "numpy": {
            "name": name,
            "keys": torch.from_numpy(np.asarray(keys).astype(np.int64)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached_gaussian": float(cached_gaussian),
        },
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()  # of the one GPU this process uses
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Put all generators of this process into a state returned by `get_random_state`."""
    python, numpy = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss_next"]))
    keys = numpy["keys"].numpy().astype(np.uint32)
    np.random.set_state((numpy["name"], keys, numpy["position"], numpy["has_gauss"], numpy["cached_gaussian"]))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


@contextmanager
def preserve_random_state() -> Iterator[None]:
    """Leave the generators as they were found, whatever is drawn inside."""
    state = get_random_state()
    try:
        yield
    finally:
        set_random_state(state)
