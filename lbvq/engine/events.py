"""Numbers that a training run produces, and the files and lines they end up in.

`EventStorage` collects scalars by name and iteration; the trainer and its hooks put them, model code may too through
`get_event_storage()`. Writers read the innermost storage when the `PeriodicWriter` hook asks them to. Names, windows
and formats are detectron2's, so its plotting scripts read our `metrics.json`.
"""

from __future__ import annotations

import datetime
import logging
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lbvq.files.json_files import to_json

WINDOW = 20  # iterations over which printed and stored values are smoothed
_STORAGES: list[EventStorage] = []  # innermost last, see EventStorage.__enter__


def get_event_storage() -> EventStorage:
    """Return the storage of the training loop that is running; RuntimeError outside of one."""
    if not _STORAGES:
        raise RuntimeError("There is no EventStorage here; use `with EventStorage(start_iter):` around this code.")
    return _STORAGES[-1]


def has_event_storage() -> bool:
    """Tell whether a training loop is running in this process."""
    return bool(_STORAGES)


class History:
    """The values one name has had, with the iterations they belong to."""

    def __init__(self) -> None:
        self.samples: list[tuple[float, int]] = []  # (value, iteration) in the order they came
        self._sum = 0.0

    def update(self, value: float, iteration: int) -> None:
        """Append one value."""
        self.samples.append((value, iteration))
        self._sum += value

    def latest(self) -> float:
        """Return the value put last."""
        return self.samples[-1][0]

    def last(self, count: int) -> list[float]:
        """Return the last `count` values, fewer when there are fewer; none for 0."""
        return [value for value, _ in self.samples[-count:]] if count > 0 else []

    def count_since(self, iteration: int) -> int:
        """Count the values at the end of the history that belong to iterations after `iteration`."""
        count = 0
        for _, sample_iteration in reversed(self.samples):
            if sample_iteration <= iteration:
                break
            count += 1
        return count

    def count_in_window(self, window: int) -> int:
        """Count the values of the last `window` iterations up to this name's newest one; at least 1."""
        return self.count_since(self.samples[-1][1] - window)

    def median(self, count: int) -> float:
        """Return the median of the last `count` values."""
        return statistics.median(self.last(count))

    def avg(self, count: int) -> float:
        """Return the mean of the last `count` values."""
        return statistics.fmean(self.last(count))

    def global_avg(self) -> float:
        """Return the mean of all values."""
        return self._sum / len(self.samples)


class EventStorage:
    """Scalars (and histograms for TensorBoard) of one run; a context manager, and contexts nest.

    Args:
        start_iter: iteration the run begins at, larger than 0 when it is resumed.
    """

    def __init__(self, start_iter: int = 0) -> None:
        self.iter = start_iter  # the iteration that values belong to unless told otherwise
        self._histories: dict[str, History] = {}
        self._latest: dict[str, tuple[float, int]] = {}
        self._smoothing_hints: dict[str, bool] = {}
        self._prefix = ""
        # Keywords of SummaryWriter.add_histogram_raw; cleared by the writer that shows them.
        self.histograms: list[dict[str, Any]] = []

    def put_scalar(self, name: str, value: Any, smoothing_hint: bool = True, cur_iter: int | None = None) -> None:
        """Add a number to the history of `name`.

        Args:
            name: loss names contain "loss" and so appear on the console; names with "[metric]" appear there, too.
            value: anything `float()` accepts; a tensor on a GPU makes the host wait for it.
            smoothing_hint: writers show the median of the last 20 iterations if True, the plain value if False.
            cur_iter: iteration the value belongs to; the current one by default.
        """
        name = self._prefix + name
        hint = self._smoothing_hints.setdefault(name, smoothing_hint)
        if hint != smoothing_hint:
            raise ValueError(f"Scalar {name!r} was first put with smoothing_hint={hint}, now with {smoothing_hint}.")
        iteration = self.iter if cur_iter is None else cur_iter
        value = float(value)
        self._histories.setdefault(name, History()).update(value, iteration)
        self._latest[name] = (value, iteration)

    def put_scalars(self, *, smoothing_hint: bool = True, cur_iter: int | None = None, **scalars: Any) -> None:
        """Put several scalars given as keywords."""
        for name, value in scalars.items():
            self.put_scalar(name, value, smoothing_hint=smoothing_hint, cur_iter=cur_iter)

    def put_histogram(self, name: str, values: torch.Tensor, bins: int = 1000) -> None:
        """Keep the histogram of a tensor of any shape for TensorBoard; an empty tensor is skipped."""
        if values.numel() == 0:
            return
        values = values.detach().float()
        low, high = values.min().item(), values.max().item()
        edges = torch.linspace(low, high, steps=bins + 1)
        self.histograms.append(
            {
                "tag": self._prefix + name,
                "min": low,
                "max": high,
                "num": values.numel(),
                "sum": float(values.sum()),
                "sum_squares": float(values.square().sum()),
                "bucket_limits": edges[1:].tolist(),
                "bucket_counts": torch.histc(values.cpu(), bins=bins).tolist(),
                "global_step": self.iter,
            }
        )

    def history(self, name: str) -> History:
        """Return the history of one name; KeyError lists the names there are."""
        if name not in self._histories:
            raise KeyError(f"Nothing was put under {name!r}; names: {', '.join(self._histories) or 'none'}.")
        return self._histories[name]

    def histories(self) -> dict[str, History]:
        """Return the histories by name, in the order names were first put."""
        return self._histories

    def latest(self) -> dict[str, tuple[float, int]]:
        """Return (last value, its iteration) by name."""
        return self._latest

    def latest_with_smoothing_hint(self, window_size: int = WINDOW) -> dict[str, tuple[float, int]]:
        """Return (value, iteration of the last one) by name.

        The value is the median over the last `window_size` iterations of that name, or the last value for names put
        with `smoothing_hint=False`.
        """
        result = {}
        for name, (value, iteration) in self._latest.items():
            if self._smoothing_hints[name]:
                history = self._histories[name]
                value = history.median(history.count_in_window(window_size))
            result[name] = (value, iteration)
        return result

    def step(self) -> None:
        """Go to the next iteration; the trainer sets `iter` itself, other loops may call this."""
        self.iter += 1

    @contextmanager
    def name_scope(self, name: str) -> Iterator[None]:
        """Put "name/" before all names used inside the context."""
        outer = self._prefix
        self._prefix = outer + name.rstrip("/") + "/"
        try:
            yield
        finally:
            self._prefix = outer

    def __enter__(self) -> EventStorage:
        _STORAGES.append(self)
        return self

    def __exit__(self, *exception: object) -> None:
        if not _STORAGES or _STORAGES.pop() is not self:
            raise RuntimeError("EventStorage contexts were not closed in the order they were opened.")


class EventWriter:
    """Shows what the innermost storage holds, each time `write` is called."""

    def write(self) -> None:
        """Write what is new since the last call."""
        raise NotImplementedError

    def close(self) -> None:
        """Release files; no call follows. Nothing to do for most writers."""
        return


class JSONWriter(EventWriter):
    """Appends one line of JSON per iteration to a file, which survives a kill at any moment.

    Args:
        json_file: the file, created when missing; a line cut off by a crash is closed before the first new line.
        window_size: iterations of the median filter.
    """

    def __init__(self, json_file: str | Path, window_size: int = WINDOW) -> None:
        self._path = Path(json_file)
        self._window_size = window_size
        self._last_written = -1
        cut_off = self._path.exists() and not self._path.read_bytes().endswith(b"\n") and self._path.stat().st_size > 0
        self._file = self._path.open("a", encoding="utf-8")
        if cut_off:
            self._file.write("\n")

    def write(self) -> None:
        storage = get_event_storage()
        lines: dict[int, dict[str, float]] = {}
        for name, (value, iteration) in storage.latest_with_smoothing_hint(self._window_size).items():
            if iteration > self._last_written:
                lines.setdefault(iteration, {})[name] = value
        if not lines:
            return
        self._last_written = max(lines)
        for iteration, scalars in lines.items():
            self._file.write(to_json({**scalars, "iteration": iteration}, sort_keys=True) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class CommonMetricPrinter(EventWriter):
    """Logs one line: time left, iteration, losses, "[metric]" values, seconds per iteration, learning rate, memory.

    Args:
        max_iter: where training ends, for the time left; None prints no estimate.
        window_size: iterations of the median filter.
    """

    def __init__(self, max_iter: int | None = None, window_size: int = WINDOW) -> None:
        self.logger = logging.getLogger(__name__)
        self._max_iter = max_iter
        self._window_size = window_size
        self._last_write: tuple[int, float] | None = None  # (iteration, wall clock)

    def write(self) -> None:
        storage = get_event_storage()
        if storage.iter == self._max_iter:  # the loop is over, this iteration does not exist
            return
        self.logger.info(self._line(storage))

    def _line(self, storage: EventStorage) -> str:
        histories = storage.histories()
        eta = self._eta(storage)
        pieces = [f"eta: {eta}  " if eta else "", f"iter: {storage.iter}  "]
        pieces += [self._medians(histories, "loss"), "  ", self._medians(histories, "[metric]"), "  "]
        if "time" in histories:
            pieces.append(f"time: {histories['time'].global_avg():.4f}  last_time: {histories['time'].latest():.4f}  ")
        if "data_time" in histories:
            data_time = histories["data_time"]
            mean = data_time.avg(data_time.count_since(storage.iter - self._window_size) or 1)
            pieces.append(f"data_time: {mean:.4f}  last_data_time: {data_time.latest():.4f}  ")
        learning_rate = f"{histories['lr'].latest():.5g}" if "lr" in histories else "N/A"
        pieces.append(f" lr: {learning_rate}  ")
        if torch.cuda.is_available():
            pieces.append(f"max_mem: {torch.cuda.max_memory_allocated() / 2**20:.0f}M")
        return " " + "".join(pieces)

    def _medians(self, histories: dict[str, History], word: str) -> str:
        return "  ".join(
            f"{name}: {history.median(history.count_in_window(self._window_size)):.4g}"
            for name, history in histories.items()
            if word in name
        )

    def _eta(self, storage: EventStorage) -> str | None:
        """Estimate the time left, and store it as "eta_seconds" when iterations have been timed."""
        if self._max_iter is None:
            return None
        left = self._max_iter - storage.iter - 1
        seconds = None
        if "time" in storage.histories():
            seconds = storage.history("time").median(1000) * left
            storage.put_scalar("eta_seconds", seconds, smoothing_hint=False)
        elif self._last_write is not None:
            last_iter, last_clock = self._last_write
            seconds = (time.perf_counter() - last_clock) / max(storage.iter - last_iter, 1) * left
        self._last_write = (storage.iter, time.perf_counter())
        return None if seconds is None else str(datetime.timedelta(seconds=int(seconds)))
