"""Ctrl-C, SIGTERM and a closed terminal end a command between two pieces of work, never inside of one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]


class Interrupts:
    """Context manager under which the first signal raises KeyboardInterrupt, at the end of a part that is `shielded`.

    A second signal ends such a part at once. Outside the main thread signals stay as they are, and so do those that are
    ignored, as `nohup` has it.

    Attributes:
        received: the signal that came, or None.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, object] = {}
        self._is_shielded = self._is_due = False

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            taken = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
            self._previous = {number: signal.signal(number, self._handle) for number in taken}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous.clear()

    @property
    def exit_code(self) -> int:
        """0, or what shells expect of a command that a signal has ended."""
        return 0 if self.received is None else 128 + self.received

    @contextmanager
    def shielded(self) -> Iterator[None]:
        """Let a piece of work end before a signal ends the command; loops in it may look at `received`."""
        self._is_shielded = True
        try:
            yield
        finally:
            self._is_shielded = False
        self._raise_if_due()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Inside of a shielded piece of work: a signal may come through here."""
        self._is_shielded = False
        try:
            self._raise_if_due()
            yield
        finally:
            self._is_shielded = True

    def acknowledge(self) -> None:
        """The signal that came has been acted upon."""
        self._is_due = False

    def _raise_if_due(self) -> None:
        if self._is_due:
            self._is_due = False
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:
        is_first, self.received = self.received is None, signal.Signals(number)
        if is_first and self._is_shielded:
            self._is_due = True
        else:
            raise KeyboardInterrupt
