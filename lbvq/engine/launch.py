"""Start the processes of a run: one, several on this machine, or this one's share of a group started by others.

Who starts the processes:
- `--num-gpus N` (and `--num-machines`, `--machine-rank`, `--dist-url`): `launch` itself, N on every machine;
- torchrun, or SLURM through submitit (`slurm.py`): they set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT,
  and `launch` only joins the group; the options above are then ignored.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Callable
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from . import comm

logger = logging.getLogger(__name__)

DEFAULT_TIMEOUT = timedelta(minutes=30)


def launch(
    main_func: Callable[..., Any],
    num_gpus_per_machine: int = 1,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str | None = None,
    args: tuple = (),
    timeout: timedelta = DEFAULT_TIMEOUT,
) -> Any:
    """Call `main_func(*args)` in every process of the run.

    Args:
        main_func: function of a module, so that new processes can import it.
        num_gpus_per_machine: processes on each machine; without CUDA they share its CPU. 0 means one.
        num_machines: machines; `launch` must be called on each.
        machine_rank: number of this machine.
        dist_url: "tcp://host:port" of machine 0; None or "auto" takes a free port and allows one machine only.
        args: arguments of `main_func`.
        timeout: how long a process waits for the others.

    Returns:
        The result of `main_func` if it runs in this process, else None.
    """
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return _join_group(main_func, args, timeout)
    local_size = max(num_gpus_per_machine, 1)
    if not 0 <= machine_rank < num_machines:
        raise ValueError(f"--machine-rank must be in [0, {num_machines - 1}], got {machine_rank}; see --num-machines.")
    if torch.cuda.is_available() and local_size > torch.cuda.device_count():
        raise ValueError(f"--num-gpus is {local_size}, but this machine has {torch.cuda.device_count()} GPUs.")
    if num_machines * local_size == 1:
        return main_func(*args)
    if dist_url in (None, "auto"):
        if num_machines > 1:
            raise ValueError("With --num-machines > 1 give --dist-url tcp://HOST:PORT of machine 0.")
        dist_url = f"tcp://127.0.0.1:{find_free_port()}"
    if num_machines > 1 and dist_url.startswith("file://"):
        logger.warning("file:// is not reliable on several machines; prefer tcp://.")
    _spawn(main_func, local_size, num_machines, machine_rank, dist_url, args, timeout)
    return None


def find_free_port() -> int:
    """Return a TCP port that nobody listens on now; another program may take it before we do."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _spawn(
    main_func: Callable[..., Any],
    local_size: int,
    num_machines: int,
    machine_rank: int,
    dist_url: str,
    args: tuple,
    timeout: timedelta,
) -> None:
    """Start the processes of this machine and wait; signals to us go to all of them."""
    context = mp.start_processes(
        _run_process,
        args=(main_func, local_size, num_machines, machine_rank, dist_url, args, timeout),
        nprocs=local_size,
        join=False,
        start_method="spawn",
    )

    def forward(number: int, frame: FrameType | None) -> None:
        for process in context.processes:
            if process.is_alive():
                os.kill(process.pid, number)

    forwarded = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)
    previous = {number: signal.signal(number, forward) for number in forwarded}
    try:
        while not context.join():
            pass
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _run_process(
    local_rank: int,
    main_func: Callable[..., Any],
    local_size: int,
    num_machines: int,
    machine_rank: int,
    dist_url: str,
    args: tuple,
    timeout: timedelta,
) -> None:
    """Body of a spawned process: join the group, run, leave the group."""
    os.environ["LOCAL_RANK"] = str(local_rank)
    os.environ["LOCAL_WORLD_SIZE"] = str(local_size)
    rank = machine_rank * local_size + local_rank
    backend = _choose_device(local_rank, local_size)
    try:
        dist.init_process_group(
            backend, init_method=dist_url, rank=rank, world_size=num_machines * local_size, timeout=timeout
        )
    except Exception as error:
        raise RuntimeError(f"Process {rank} cannot join the group at {dist_url}; check --dist-url.") from error
    _run_in_group(main_func, args)


def _join_group(main_func: Callable[..., Any], args: tuple, timeout: timedelta) -> Any:
    """Join the group that the environment describes, run, leave the group."""
    local_rank = int(os.environ.setdefault("LOCAL_RANK", os.environ["RANK"]))
    local_size = int(os.environ.setdefault("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
    dist.init_process_group(_choose_device(local_rank, local_size), timeout=timeout)
    return _run_in_group(main_func, args)


def _run_in_group(main_func: Callable[..., Any], args: tuple) -> Any:
    comm.synchronize()
    result = main_func(*args)
    comm.leave_group()  # not after an exception: it would wait for processes that will never come
    return result


def _choose_device(local_rank: int, local_size: int) -> str:
    """Take this process's GPU, or its share of the CPU's threads; return the backend for it."""
    if not torch.cuda.is_available():
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max((os.cpu_count() or 1) // local_size, 1))
        return "gloo"
    if local_rank >= torch.cuda.device_count():
        raise RuntimeError(
            f"Local process {local_rank} has no GPU: {torch.cuda.device_count()} on this machine. "
            "Start at most one process per GPU."
        )
    torch.cuda.set_device(local_rank)
    return "nccl"
