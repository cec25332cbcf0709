"""Writers that need an optional package: TensorBoard and Weights & Biases."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import Any

from lbvq.files.writing import write_text

from .events import WINDOW, EventStorage, EventWriter, get_event_storage

logger = logging.getLogger(__name__)


def has_tensorboard() -> bool:
    """Tell whether the package `tensorboard` is installed."""
    return importlib.util.find_spec("tensorboard") is not None


class _NewScalars:
    """Yields the scalars that came since the last call."""

    def __init__(self, window_size: int) -> None:
        self._window_size = window_size
        self._last_written: dict[str, int] = {}  # iteration by name

    def take(self, storage: EventStorage) -> list[tuple[str, float, int]]:
        """Return (name, smoothed value, iteration) of the names with something new."""
        new = [
            (name, value, iteration)
            for name, (value, iteration) in storage.latest_with_smoothing_hint(self._window_size).items()
            if iteration > self._last_written.get(name, -1)
        ]
        self._last_written.update({name: iteration for name, _, iteration in new})
        return new


class TensorBoardWriter(EventWriter):
    """Writes scalars and histograms for TensorBoard; the file is made at the first write.

    Args:
        log_dir: folder of the event files.
        window_size: iterations of the median filter.
    """

    def __init__(self, log_dir: str | Path, window_size: int = WINDOW) -> None:
        if not has_tensorboard():
            raise ImportError('TensorBoard is not installed; pip install "lbvq[tensorboard]".')
        self._log_dir = str(log_dir)
        self._scalars = _NewScalars(window_size)
        self._writer: Any = None

    def write(self) -> None:
        from torch.utils.tensorboard import SummaryWriter

        if self._writer is None:
            self._writer = SummaryWriter(self._log_dir)
        storage = get_event_storage()
        for name, value, iteration in self._scalars.take(storage):
            self._writer.add_scalar(name, value, iteration)
        for histogram in storage.histograms:
            self._writer.add_histogram_raw(**histogram)
        storage.histograms.clear()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class WandbWriter(EventWriter):
    """Sends scalars to Weights & Biases.

    Args:
        project: project name there.
        log_dir: folder of the local copy; its name becomes the name of the run, so a resumed run goes on in its place.
        config: plain nested dictionary shown beside the curves.
        window_size: iterations of the median filter.
    """

    def __init__(self, project: str, log_dir: str | Path, config: dict[str, Any], window_size: int = WINDOW) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ImportError(
                f'WANDB_PROJECT is {project!r} but wandb is not installed; pip install "lbvq[wandb]".'
            ) from error
        self._scalars = _NewScalars(window_size)
        log_dir = Path(log_dir).resolve()
        id_file = log_dir / "wandb_run_id"
        run_id = id_file.read_text().strip() if id_file.exists() else None
        self._run = wandb.init(
            project=project, name=log_dir.name, dir=str(log_dir), config=config, id=run_id, resume="allow"
        )
        write_text(id_file, self._run.id)

    def write(self) -> None:
        by_iteration: dict[int, dict[str, float]] = {}
        for name, value, iteration in self._scalars.take(get_event_storage()):
            by_iteration.setdefault(iteration, {})[name] = value
        for iteration in sorted(by_iteration):  # steps must not go backwards there
            self._run.log({**by_iteration[iteration], "iteration": iteration}, step=iteration)

    def close(self) -> None:
        self._run.finish()
