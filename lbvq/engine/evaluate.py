"""Run a model over a data set, and what is done with the numbers: print, store, compare with expected ones."""

from __future__ import annotations

import contextlib
import datetime
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from mask2former.bfloat16 import bfloat16_if

from . import comm

logger = logging.getLogger(__name__)

LOG_SECONDS = 5.0  # progress is logged at most so often


class _Stopwatch:
    """Seconds spent in the stages of the loop; the first iterations are left out."""

    def __init__(self, warmup: int) -> None:
        self.warmup = warmup
        self._begin()

    def _begin(self) -> None:
        self.start = time.perf_counter()
        self.seconds = {"Dataloading": 0.0, "Inference": 0.0, "Eval": 0.0}
        self._lap = self.start

    def lap(self, stage: str, synchronize: bool = False) -> None:
        """Add the time since the last lap to a stage, waiting for the GPU first if asked to."""
        if synchronize and torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds[stage] += now - self._lap
        self._lap = now

    def begin_iteration(self, idx: int) -> None:
        """Forget everything measured so far when the warm-up ends."""
        if idx == self.warmup:
            self._begin()


def inference_on_dataset(
    model: Callable[[Any], Any],
    data_loader: Any,
    evaluator: Any,
    *,
    postprocess: Callable[[Any, Any], Any] | None = None,
    amp_dtype: torch.dtype | None = None,
    cpu_bfloat16: bool = False,
) -> dict[str, Any]:
    """Feed every batch to the model and every output to the evaluator, without gradients.

    Args:
        model: `model(inputs) -> outputs`; a module is in evaluation mode meanwhile and gets its mode back afterwards.
        data_loader: sized iterable of inputs, this process's share of the data; may be empty.
        evaluator: `reset()`, `process(inputs, outputs)`, `evaluate()`; None only measures the speed.
        postprocess: `postprocess(inputs, outputs) -> outputs` between model and evaluator, e.g. mask refinement.
        amp_dtype: dtype of autocast on CUDA; None, and any other device, computes in the model's own precision.
        cpu_bfloat16: compute the products of the model in bfloat16 where it runs on a CPU.

    Returns:
        What `evaluator.evaluate()` returns, {} instead of None.
    """
    total = len(data_loader)
    logger.info("Start inference on %d batches", total)
    if evaluator is not None:
        evaluator.reset()
    watch = _Stopwatch(warmup=max(min(5, total - 1), 0))
    last_log = time.perf_counter()
    with _evaluating(model), _autocast(model, amp_dtype), bfloat16_if(cpu_bfloat16):
        for idx, inputs in enumerate(data_loader):
            watch.lap("Dataloading")
            watch.begin_iteration(idx)
            outputs = model(inputs)
            if postprocess is not None:
                outputs = postprocess(inputs, outputs)
            watch.lap("Inference", synchronize=True)
            if evaluator is not None:
                evaluator.process(inputs, outputs)
            watch.lap("Eval")
            if time.perf_counter() - last_log > LOG_SECONDS:
                _log_progress(watch, idx, total)
                last_log = time.perf_counter()
    _log_summary(watch, total)
    results = None if evaluator is None else evaluator.evaluate()
    return {} if results is None else results


@contextlib.contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode and no gradients inside; every module gets its own mode back, also after an exception."""
    modes = {module: module.training for module in model.modules()} if isinstance(model, nn.Module) else {}
    if modes:
        model.eval()
    try:
        with torch.no_grad():  # under inference_mode a module's cached tensors could not be used in training again
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def _autocast(model: Any, amp_dtype: torch.dtype | None) -> contextlib.AbstractContextManager:
    on_cuda = isinstance(model, nn.Module) and any(parameter.is_cuda for parameter in model.parameters())
    if amp_dtype is None or not on_cuda:
        return contextlib.nullcontext()
    return torch.amp.autocast("cuda", dtype=amp_dtype)


def _log_progress(watch: _Stopwatch, idx: int, total: int) -> None:
    done = max(idx + 1 - (watch.warmup if idx >= watch.warmup else 0), 1)
    per_iteration = (time.perf_counter() - watch.start) / done
    stages = " ".join(f"{stage}: {seconds / done:.4f} s/iter." for stage, seconds in watch.seconds.items())
    eta = datetime.timedelta(seconds=int(per_iteration * (total - idx - 1)))
    logger.info("Inference done %d/%d. %s Total: %.4f s/iter. ETA=%s", idx + 1, total, stages, per_iteration, eta)


def _log_summary(watch: _Stopwatch, total: int) -> None:
    timed = max(total - watch.warmup, 1)
    devices = comm.get_world_size()
    for words, seconds in (
        ("Total inference time", time.perf_counter() - watch.start),
        ("Total inference pure compute time", watch.seconds["Inference"]),
    ):
        clock = datetime.timedelta(seconds=int(seconds))
        logger.info("%s: %s (%.6f s / iter per device, on %d devices)", words, clock, seconds / timed, devices)


def print_csv_format(results: Mapping[str, Any]) -> None:
    """Log results so that they can be pasted into a spreadsheet; metrics of single classes ("AP-cat") are left out."""
    for task, metrics in results.items():
        if not isinstance(metrics, Mapping):
            logger.info("copypaste: %s=%s", task, metrics)
            continue
        important = {name: value for name, value in metrics.items() if "-" not in name}
        logger.info("copypaste: Task: %s", task)
        logger.info("copypaste: %s", ",".join(important))
        logger.info("copypaste: %s", ",".join(f"{value:.4f}" for value in important.values()))


class UnexpectedResultsError(RuntimeError):
    """The results of an evaluation are not the ones in TEST.EXPECTED_RESULTS."""


def verify_results(expected: Sequence[Sequence[Any]], results: Mapping[str, Mapping[str, float]]) -> bool:
    """Compare results with the rows of TEST.EXPECTED_RESULTS.

    Args:
        expected: rows [task, metric, value, tolerance]; none passes.
        results: {task: {metric: number}}.

    Returns:
        True; otherwise UnexpectedResultsError names every row that is missing, not finite or out of tolerance.
    """
    faults = []
    for row in expected:
        if len(row) != 4:
            raise ValueError(f"TEST.EXPECTED_RESULTS needs rows [task, metric, value, tolerance], got {row}.")
        task, metric, want, tolerance = row
        got = results.get(task, {}).get(metric)
        if got is None:
            faults.append(f"{task}/{metric} was not computed")
        elif not math.isfinite(got) or abs(got - want) > tolerance:
            faults.append(f"{task}/{metric} is {got}, expected {want} ± {tolerance}")
    if faults:
        raise UnexpectedResultsError("Results differ from TEST.EXPECTED_RESULTS: " + "; ".join(faults))
    if expected:
        logger.info("All %d expected results are met.", len(expected))
    return True
