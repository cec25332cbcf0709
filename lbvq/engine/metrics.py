"""Losses on their way from the device to the `EventStorage`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import comm
from .events import EventStorage


class MetricBuffer:
    """Keeps losses on their device and moves many iterations of them to the host at once.

    Reading a number from a GPU makes the host wait until the GPU is there; once in 20 iterations that costs nothing.
    """

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self._iterations: list[int] = []
        self._names: list[tuple[str, ...]] = []
        self._values: list[Tensor] = []  # per iteration: (number of losses,) on the device
        self._data_times: list[float] = []

    def __len__(self) -> int:
        return len(self._iterations)

    def add(self, iteration: int, losses: dict[str, Tensor], data_time: float) -> None:
        """Remember the losses of one iteration and the seconds spent waiting for its batch."""
        self._iterations.append(iteration)
        self._names.append(tuple(losses))
        self._values.append(torch.stack([loss.detach().float().reshape(()) for loss in losses.values()]))
        self._data_times.append(data_time)

    def flush(self, storage: EventStorage) -> None:
        """Move everything into the storage: on process 0 the mean over all processes, elsewhere only `rank_data_time`.

        Every process must call this with the same iterations. FloatingPointError if a total loss is not finite.
        """
        rows = self._take_rows()
        for iteration, row in rows:
            storage.put_scalar("rank_data_time", row["data_time"], cur_iter=iteration)
        rows_of_processes = comm.gather(rows)
        if not comm.is_main_process():
            return
        for same_iteration in zip(*rows_of_processes, strict=True):
            self._put(storage, same_iteration[0][0], [row for _, row in same_iteration])

    def _take_rows(self) -> list[tuple[int, dict[str, float]]]:
        """Empty the buffer; return (iteration, values by name) with one transfer from the device."""
        if not self._iterations:
            return []
        values = iter(torch.cat(self._values).tolist())
        rows = []
        for iteration, names, data_time in zip(self._iterations, self._names, self._data_times, strict=True):
            rows.append((iteration, {"data_time": data_time, **{name: next(values) for name in names}}))
        self._forget()
        return rows

    @staticmethod
    def _put(storage: EventStorage, iteration: int, rows: list[dict[str, float]]) -> None:
        """Store one iteration: the longest wait for data, the mean of each loss, the sum of the means."""
        storage.put_scalar("data_time", max(row.pop("data_time") for row in rows), cur_iter=iteration)
        means: dict[str, float] = {}
        for name in dict.fromkeys(name for row in rows for name in row):  # a process may lack a loss
            found = [row[name] for row in rows if name in row]
            means[name] = sum(found) / len(found)
        total = sum(means.values())
        if not math.isfinite(total):
            raise FloatingPointError(f"Loss became infinite or NaN at iteration {iteration}: {means}")
        storage.put_scalar("total_loss", total, cur_iter=iteration)
        if len(means) > 1:
            for name, mean in means.items():
                storage.put_scalar(name, mean, cur_iter=iteration)
