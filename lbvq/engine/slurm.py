"""Run the training script as a SLURM job, through submitit: `train_net.py --slurm partition=gpu,time=2880 ...`.

The job has one task per GPU. When SLURM announces the end of its time or a preemption (SIGUSR2), training saves a
checkpoint and stops, and the job is put back into the queue, where it goes on with `--resume`.
"""

from __future__ import annotations

import argparse
import copy
import logging
import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from .launch import launch

logger = logging.getLogger(__name__)

PARAMETERS = {  # what may stand after --slurm: submitit's name and type
    "partition": ("slurm_partition", str),
    "account": ("slurm_account", str),
    "qos": ("slurm_qos", str),
    "constraint": ("slurm_constraint", str),
    "time": ("timeout_min", int),  # minutes
    "mem": ("mem_gb", int),  # per machine
    "cpus": ("cpus_per_task", int),
    "name": ("name", str),
    "signal_delay": ("slurm_signal_delay_s", int),  # seconds between the announcement and the end
}
DEFAULTS = {"name": "lbvq", "slurm_signal_delay_s": 180, "cpus_per_task": 8}
MAX_TIMEOUTS = 1000  # how often a job may run out of time and go on


class SlurmTask:
    """What every task of the job calls: join the group of tasks, run `main(args)`, requeue when told to stop.

    Args:
        main: function that trains; `args.resume` is set when the job is requeued.
        args: its argument.
    """

    def __init__(self, main: Callable[[argparse.Namespace], Any], args: argparse.Namespace) -> None:
        self.main = main
        self.args = args
        self._told_to_stop = False

    def __call__(self) -> Any:
        import submitit

        submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
        requeue = signal.getsignal(signal.SIGUSR2)  # submitit's handler; it would not wait for our checkpoint
        signal.signal(signal.SIGUSR2, self._remember)
        result = launch(self.main, args=(self.args,))
        if self._told_to_stop and callable(requeue):
            requeue(signal.SIGUSR2, None)
        return result

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._told_to_stop = True

    def checkpoint(self) -> Any:
        """Tell submitit what the requeued job calls."""
        import submitit

        args = copy.copy(self.args)
        args.resume = True
        return submitit.helpers.DelayedSubmission(SlurmTask(self.main, args))


def parse_slurm_parameters(text: str) -> dict[str, Any]:
    """Turn "partition=gpu,time=2880" into submitit's parameters; ValueError lists the names there are."""
    parameters: dict[str, Any] = {}
    for pair in filter(None, text.split(",")):
        name, separator, value = pair.partition("=")
        if name not in PARAMETERS or not separator:
            raise ValueError(f"--slurm takes name=value pairs with the names {', '.join(PARAMETERS)}; got {pair!r}.")
        key, kind = PARAMETERS[name]
        try:
            parameters[key] = kind(value)
        except ValueError as error:
            raise ValueError(f"--slurm {name} must be a whole number, got {value!r}.") from error
    return parameters


def submit(
    main: Callable[[argparse.Namespace], Any], args: argparse.Namespace, folder: str | Path, cluster: str | None = None
) -> Any:
    """Put `main(args)` into the queue and return submitit's job.

    Args:
        main: function of the run.
        args: with `slurm`, `num_gpus` (tasks per machine) and `num_machines`.
        folder: where submitit keeps the job's files and logs.
        cluster: "slurm", "local" to run here, None to find out.
    """
    try:
        import submitit
    except ImportError as error:
        raise ImportError('--slurm needs submitit; pip install "lbvq[slurm]".') from error
    executor = submitit.AutoExecutor(folder=folder, cluster=cluster, slurm_max_num_timeout=MAX_TIMEOUTS)
    tasks = max(args.num_gpus, 1)
    executor.update_parameters(
        nodes=args.num_machines,
        tasks_per_node=tasks,
        gpus_per_node=tasks,
        **{**DEFAULTS, **parse_slurm_parameters(args.slurm)},
    )
    job = executor.submit(SlurmTask(main, args))
    logger.info("Submitted job %s; its logs are in %s", job.job_id, folder)
    return job
