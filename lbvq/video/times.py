"""Times of frames: repaired where a file's clock is broken, without losing the times that are right."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

MAX_RATE = 1000.0  # frames per second of what is written; files with broken clocks claim more
USUAL_STEP = 1 / 30  # seconds between frames of files without a clock
_MIN_SHARE = 0.5  # of frames with a time of their own; with fewer the clock is not believed

logger = logging.getLogger(__name__)


def repair_times(times: Sequence[float | None], name: str) -> np.ndarray:
    """Ascending times of frames from 0 on.

    A frame without a time, or with one that is not after those before it, is put between its neighbours. A file without
    a clock, or with one that is mostly broken, gets equal steps. Both are said.

    Args:
        times: seconds.
        name: of the video, for messages.

    Returns:
        (T,) float64 seconds, strictly ascending.
    """
    known, valid = _valid(times)
    if len(known) < 2 or len(valid) == len(known):
        return known - known[0] if len(valid) == len(known) else np.zeros(len(known))
    steps = np.diff(known[np.isfinite(known)])
    step = float(np.median(steps[steps > 0])) if (steps > 0).any() else USUAL_STEP
    if len(valid) < max(2, _MIN_SHARE * len(known)):
        logger.warning("%s has no usable clock; %g frames per second are assumed", name, 1 / step)
        return np.arange(len(known)) * step
    if len(valid) <= valid[-1] or np.isfinite(known[valid[-1] :]).sum() > 1:  # decoders forget the times of the last
        logger.warning("%s: %d of %d frames had no valid time", name, len(known) - len(valid), len(known))
    index = np.arange(len(known))
    repaired = np.interp(index, valid, known[valid])
    repaired += step * (np.minimum(0, index - valid[0]) + np.maximum(0, index - valid[-1]))
    return repaired - repaired[0]


def better_clock(shown: Sequence[float | None], decoded: Sequence[float | None]) -> list[float | None]:
    """The times with fewer faults: when frames are shown or, in files that do not tell (AVI), when they are decoded."""
    return list(decoded if len(_valid(decoded)[1]) > len(_valid(shown)[1]) else shown)


def _valid(times: Sequence[float | None]) -> tuple[np.ndarray, np.ndarray]:
    """Times, NaN where there is none, and the indices of those that are after all before them."""
    known = np.array([np.nan if time is None else time for time in times], dtype=np.float64)
    before = np.fmax.accumulate(np.concatenate([[-np.inf], np.where(np.isfinite(known), known, -np.inf)]))[:-1]
    return known, np.flatnonzero(np.isfinite(known) & (known > before))


def uneven_times(times: np.ndarray | None) -> np.ndarray | None:
    """Times as a video can be written with them, where they differ from a steady rate by more than a millisecond.

    Frames that follow closer than `1 / MAX_RATE` seconds after the one before are moved just so far that they do not.
    None: a steady rate serves as well, or there are no times.
    """
    if times is None or len(times) < 3:
        return None
    times = spread_times(times, 1 / MAX_RATE)
    steady = np.linspace(times[0], times[-1], len(times))
    return times if np.abs(times - steady).max() > 1e-3 else None


def spread_times(times: np.ndarray, least: float) -> np.ndarray:
    """Move frames that follow closer than `least` seconds after the one before just so far that they do not."""
    spread = times.copy()
    for index in range(1, len(spread)):
        spread[index] = max(spread[index], spread[index - 1] + least)
    return spread
