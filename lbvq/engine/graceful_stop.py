"""End training on SIGTERM or Ctrl-C with a checkpoint, so that a preempted or cancelled run loses no work."""

from __future__ import annotations

import logging
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from . import comm
from .trainer import HookBase

logger = logging.getLogger(__name__)

SAME_INTERRUPT_SECONDS = 1.0
CHECK_PERIOD = 10  # iterations between two moments at which several processes agree to stop


class GracefulStop(HookBase):
    """Saves and stops after the current iteration when a signal has come. Must be the last hook.

    With several processes they stop together, within `CHECK_PERIOD` iterations of the first signal. A signal that comes
    when the last iteration is done and saved ends the process at once, also in the middle of the evaluation. So does a
    second Ctrl-C, without saving.

    Args:
        save: writes a checkpoint of a name; every process calls it.
        signals: signals that end training.
    """

    def __init__(self, save: Callable[[str], None], signals: tuple[signal.Signals, ...] = (signal.SIGTERM,)) -> None:
        self._save = save
        self._signals = signals
        self._previous: dict[signal.Signals, Any] = {}
        self.received: signal.Signals | None = None
        self._interrupted_at: float | None = None

    def before_train(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            logger.warning("Training runs outside the main thread: SIGTERM will not save a checkpoint.")
            return
        for number in self._signals:
            self._previous[number] = signal.signal(number, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        if number == signal.SIGINT and self._is_repeated():
            raise KeyboardInterrupt
        previous = self._previous.get(self.received)
        if callable(previous) and previous is not signal.default_int_handler:
            previous(number, frame)  # a job scheduler's handler wants to know, too
        if self.trainer.iter >= self.trainer.max_iter:
            logger.warning("Received %s after training had finished and was saved: exiting.", self.received.name)
            sys.exit(0)
        again = " Once more Ctrl-C ends it at once, without saving." if number == signal.SIGINT else ""
        logger.warning("Received %s: saving and stopping after this iteration.%s", self.received.name, again)

    def _is_repeated(self) -> bool:
        """Whether a Ctrl-C is another one; a terminal and the process that started this one may both send the first."""
        now = time.monotonic()
        first = self._interrupted_at
        if first is None:
            self._interrupted_at = now
        return first is not None and now - first > SAME_INTERRUPT_SECONDS

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
