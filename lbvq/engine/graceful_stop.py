"""End training on SIGTERM with a checkpoint, so that a preempted or cancelled run loses no work."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from . import comm
from .trainer import HookBase

logger = logging.getLogger(__name__)

CHECK_PERIOD = 10  # iterations between two moments at which several processes agree to stop


class GracefulStop(HookBase):
    """Saves and stops after the current iteration when a signal has come. Must be the last hook.

    With several processes they stop together, within `CHECK_PERIOD` iterations of the first signal. A signal that comes
    when the last iteration is done and saved ends the process at once, also in the middle of the evaluation.

    Args:
        save: writes a checkpoint of a name; every process calls it.
        signals: signals that end training.
    """

    def __init__(self, save: Callable[[str], None], signals: tuple[signal.Signals, ...] = (signal.SIGTERM,)) -> None:
        self._save = save
        self._signals = signals
        self._previous: dict[signal.Signals, Any] = {}
        self.received: signal.Signals | None = None

    def before_train(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            logger.warning("Training runs outside the main thread: SIGTERM will not save a checkpoint.")
            return
        for number in self._signals:
            self._previous[number] = signal.signal(number, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        previous = self._previous.get(self.received)
        if callable(previous):  # a job scheduler's handler wants to know, too
            previous(number, frame)
        if self.trainer.iter >= self.trainer.max_iter:
            logger.warning("Received %s after training had finished and was saved: exiting.", self.received.name)
            sys.exit(0)
        logger.warning("Received %s: saving and stopping after this iteration.", self.received.name)

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        alone = comm.get_world_size() == 1
        if done == self.trainer.max_iter or not (alone or done % CHECK_PERIOD == 0):
            return
        if not comm.any_process(self.received is not None):
            return
        self._save(f"model_{self.trainer.iter:07d}")
        logger.warning("Saved iteration %d; continue with --resume.", self.trainer.iter)
        self.trainer.stop()

    def after_train(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()
