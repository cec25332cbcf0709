"""What happens around training steps: timing, learning rate, checkpoints, evaluation, writing numbers down.

Class names, moments and order are detectron2's; `DefaultTrainer.build_hooks` puts them together. Hooks run on every
process: saving a checkpoint and moving losses to process 0 need all of them.
"""

from __future__ import annotations

import datetime
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch

from . import comm
from .events import EventWriter
from .trainer import HookBase

logger = logging.getLogger(__name__)


class SaveFunction(Protocol):
    """Writes a checkpoint called `name`; every process calls it."""

    def __call__(self, name: str) -> None: ...


class IterationTimer(HookBase):
    """Stores the seconds of each iteration as `time`, and logs the speed at the end.

    Args:
        warmup_iter: the first iterations of a run are slow for other reasons; `time` starts at this one.
    """

    def __init__(self, warmup_iter: int = 3) -> None:
        self._warmup_iter = warmup_iter

    def before_train(self) -> None:
        now = time.perf_counter()
        self._step_start = self._timed_start = now
        self._seconds_in_steps = 0.0
        self._timed_iterations = 0

    def before_step(self) -> None:
        self._step_start = time.perf_counter()

    def after_step(self) -> None:
        now = time.perf_counter()
        seconds = now - self._step_start
        if self.trainer.iter - self.trainer.start_iter + 1 < self._warmup_iter:
            self._timed_start = now
            return
        self.trainer.storage.put_scalar("time", seconds)
        self._seconds_in_steps += seconds
        self._timed_iterations += 1

    def after_train(self) -> None:
        if not self._timed_iterations:
            return
        seconds_per_iteration = self._seconds_in_steps / self._timed_iterations
        total = time.perf_counter() - self._timed_start
        logger.info(
            "Overall training speed: %d iterations in %s (%.4f s / it)",
            self._timed_iterations,
            _clock(self._seconds_in_steps),
            seconds_per_iteration,
        )
        on_hooks = max(total - self._seconds_in_steps, 0.0)
        logger.info("Total training time: %s (%s on hooks)", _clock(total), _clock(on_hooks))


class LRScheduler(HookBase):
    """Stores the learning rate that the step used as `lr`, then advances the schedule.

    Args:
        optimizer: its most typical parameter group is the one reported.
        scheduler: has `step`, `state_dict`, `load_state_dict`.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, scheduler: Any) -> None:
        self._optimizer = optimizer
        self.scheduler = scheduler
        self._group = 0

    def before_train(self) -> None:
        self._group = self._representative_group(self._optimizer)

    @staticmethod
    def _representative_group(optimizer: torch.optim.Optimizer) -> int:
        """Index of the largest group; when all hold one parameter, of the first with the most common rate."""
        sizes = [len(group["params"]) for group in optimizer.param_groups]
        if max(sizes) > 1:
            return sizes.index(max(sizes))
        rates = [group["lr"] for group in optimizer.param_groups]
        return rates.index(Counter(rates).most_common(1)[0][0])

    def after_step(self) -> None:
        learning_rate = self._optimizer.param_groups[self._group]["lr"]
        self.trainer.storage.put_scalar("lr", learning_rate, smoothing_hint=False)
        self.scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        return self.scheduler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.scheduler.load_state_dict(state)


class PeriodicCheckpointer(HookBase):
    """Saves `model_0004999` and so on every `period` iterations, and `model_final` at the end.

    Args:
        save: writes a checkpoint.
        period: iterations between checkpoints.
        max_to_keep: number of periodic checkpoints of this run that stay; 0 keeps all.
        delete: removes the checkpoint of a name; needed with `max_to_keep`.
    """

    def __init__(
        self, save: SaveFunction, period: int, *, max_to_keep: int = 0, delete: Callable[[str], None] | None = None
    ) -> None:
        if period < 1:
            raise ValueError(f"The checkpoint period must be at least 1, got {period}; set SOLVER.CHECKPOINT_PERIOD.")
        if max_to_keep and delete is None:
            raise ValueError("max_to_keep needs a function that deletes a checkpoint.")
        self._save = save
        self._period = period
        self._max_to_keep = max_to_keep
        self._delete = delete
        self._kept: list[str] = []

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self._period == 0:
            self._save_periodic(f"model_{self.trainer.iter:07d}")
        if done >= self.trainer.max_iter:
            self._save("model_final")

    def _save_periodic(self, name: str) -> None:
        self._kept = [*(kept for kept in self._kept if kept != name), name]
        obsolete = self._kept[: -self._max_to_keep] if self._max_to_keep else []
        if self._max_to_keep:
            self._kept = self._kept[-self._max_to_keep :]
        self._save(name)
        for old in obsolete:  # only when the new one is complete
            if self._delete is not None and comm.is_main_process():
                self._delete(old)

    def state_dict(self) -> dict[str, Any]:
        return {"kept": list(self._kept)} if self._max_to_keep else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._kept = list(state["kept"])


class EvalHook(HookBase):
    """Evaluates every `period` iterations and once when training has finished.

    Args:
        period: iterations between evaluations; 0 evaluates only at the end.
        evaluate: returns {task: {metric: number}} (nested deeper with several data sets), or nothing on processes
            that do not report.
    """

    def __init__(self, period: int, evaluate: Callable[[], Mapping[str, Any] | None]) -> None:
        self._period = period
        self._evaluate = evaluate

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if self._period > 0 and done % self._period == 0 and done != self.trainer.max_iter:
            self._run()

    def after_train(self) -> None:
        if self.trainer.iter >= self.trainer.max_iter:
            self._run()

    def _run(self) -> None:
        results = self._evaluate()
        for name, value in flatten_results(results or {}).items():
            self.trainer.storage.put_scalar(name, value, smoothing_hint=False)
        comm.synchronize()  # evaluation takes unequal time; keep the processes together


class BestCheckpointer(HookBase):
    """Saves `model_best` when an evaluation metric improves. Must stand after `EvalHook`.

    Args:
        metric: name as in metrics.json, e.g. "segm/AP"; larger is better.
        save: writes the weights; only process 0 calls it.
    """

    def __init__(self, metric: str, save: Callable[[str, dict[str, Any]], None]) -> None:
        self._metric = metric
        self._save = save
        self._best: float | None = None
        self._seen_iter: int | None = None

    def after_step(self) -> None:
        self._save_if_better()

    def after_train(self) -> None:
        self._save_if_better()

    def _save_if_better(self) -> None:
        value, iteration = self.trainer.storage.latest().get(self._metric, (math.nan, None))
        if iteration == self._seen_iter:
            return
        self._seen_iter = iteration
        if math.isnan(value):
            logger.warning("%s is not a number at iteration %s; model_best is left as it is.", self._metric, iteration)
        elif self._best is None or value > self._best:
            logger.info("%s improved from %s to %.5f; saving model_best.", self._metric, self._best, value)
            self._best = value
            if comm.is_main_process():
                self._save("model_best", {self._metric: value, "iteration": iteration})

    def state_dict(self) -> dict[str, Any]:
        return {} if self._best is None else {"best": self._best, "metric": self._metric}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["metric"] == self._metric:
            self._best = state["best"]


class PeriodicWriter(HookBase):
    """Lets the writers write every `period` iterations and at the end.

    Args:
        writers: the console first, since it stores the time left; empty on processes other than 0.
        period: iterations between writes.
    """

    def __init__(self, writers: Sequence[EventWriter], period: int = 20) -> None:
        self._writers = list(writers)
        self._period = period

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self._period == 0 or done == self.trainer.max_iter:
            self.trainer.flush()
            self._write()

    def after_train(self) -> None:
        self._write()
        for writer in self._writers:
            writer.close()

    def _write(self) -> None:
        for writer in self._writers:
            writer.write()


def flatten_results(results: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Turn nested results into {"task/metric": number}; ValueError names an entry that is not a number."""
    flat: dict[str, float] = {}
    for name, value in results.items():
        if isinstance(value, Mapping):
            flat.update(flatten_results(value, f"{prefix}{name}/"))
            continue
        try:
            flat[f"{prefix}{name}"] = float(value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"Evaluation result {prefix}{name} must be a number, got {value!r}.") from error
    return flat


def _clock(seconds: float) -> str:
    return str(datetime.timedelta(seconds=int(seconds)))
