"""Who am I among the training processes, and how do we talk: a thin layer over `torch.distributed`.

Every function works without a process group and then behaves like a group of one, so code that uses it runs unchanged
on a laptop. Python objects travel over gloo, also when gradients travel over NCCL.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist


def is_distributed() -> bool:
    """Tell whether this process belongs to a process group."""
    return dist.is_available() and dist.is_initialized()


def get_world_size() -> int:
    """Number of processes that train together, 1 without a process group."""
    return dist.get_world_size() if is_distributed() else 1


def get_rank() -> int:
    """Number of this process among all processes on all machines, 0 without a process group."""
    return dist.get_rank() if is_distributed() else 0


def get_local_rank() -> int:
    """Number of this process on its own machine; `launch` and torchrun both publish it in the variable LOCAL_RANK."""
    return int(os.environ.get("LOCAL_RANK", "0")) if is_distributed() else 0


def get_local_size() -> int:
    """Number of processes on this machine, 1 without a process group."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if is_distributed() else 1


def is_main_process() -> bool:
    """Tell whether this is the one process that prints and writes files."""
    return get_rank() == 0


def synchronize() -> None:
    """Wait until every process has arrived here; does nothing alone."""
    if get_world_size() == 1:
        return
    if dist.get_backend() == "nccl":
        dist.barrier(device_ids=[torch.cuda.current_device()])
    else:
        dist.barrier()


_objects_over_gloo: Any = None  # a ProcessGroup

# Seconds in which gloo's threads drop what they sent last, for which they need Python's lock: PyTorch 2.6 holds it
# while it waits for the end of these threads, and so forever.
LAST_WORK = 0.2


def leave_group() -> None:
    """Leave the process group for good. All references go with it: threads that outlive it abort the process."""
    global _objects_over_gloo
    _objects_over_gloo = None
    time.sleep(LAST_WORK)
    dist.destroy_process_group()


def _object_group() -> Any:
    """Return the gloo group for python objects, which must be asked for the first time by all processes together."""
    global _objects_over_gloo
    if dist.get_backend() == "gloo":
        return dist.group.WORLD
    if _objects_over_gloo is None:
        _objects_over_gloo = dist.new_group(backend="gloo")
    return _objects_over_gloo


def all_gather(value: Any) -> list[Any]:
    """Collect one picklable value from every process, on every process, in order of rank."""
    if get_world_size() == 1:
        return [value]
    values: list[Any] = [None] * get_world_size()
    dist.all_gather_object(values, value, group=_object_group())
    return values


def gather(value: Any, dst: int = 0) -> list[Any]:
    """Collect one picklable value from every process on process `dst`; the others get an empty list."""
    if get_world_size() == 1:
        return [value]
    values: list[Any] | None = [None] * get_world_size() if get_rank() == dst else None
    dist.gather_object(value, values, dst=dst, group=_object_group())
    return values or []


def broadcast(value: Any, src: int = 0) -> Any:
    """Return the picklable value that process `src` passed; the argument of the others is ignored."""
    if get_world_size() == 1:
        return value
    box = [value if get_rank() == src else None]
    dist.broadcast_object_list(box, src=src, group=_object_group())
    return box[0]


def once_per_machine(function: Callable[[], Any]) -> Any:
    """Run a function on one process of each machine while the others wait; all get its result, or raise its error."""
    offer: tuple[Any, Exception | None] = (None, None)
    if get_local_rank() == 0:
        try:
            offer = (function(), None)
        except Exception as error:  # raised below, in all processes
            offer = (None, error)
    offers = all_gather(offer)
    for _, raised in offers:
        if raised is not None:
            raise raised
    return offers[get_rank() - get_local_rank()][0]  # ranks of one machine are consecutive


def shared_random_seed() -> int:
    """Draw a seed in [0, 2**31) from numpy's global generator of process 0 and return it on every process."""
    return all_gather(int(np.random.randint(2**31)))[0]


def any_process(flag: bool) -> bool:
    """Tell every process whether the flag of at least one is True."""
    if get_world_size() == 1:
        return flag
    box = torch.tensor(int(flag))
    dist.all_reduce(box, op=dist.ReduceOp.MAX, group=_object_group())
    return bool(box)
