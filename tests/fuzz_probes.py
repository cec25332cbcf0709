"""Fuzz targets that do one of the things that fuzzing counts, chosen by the content of the file."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np

from lbvq.fuzz.targets import target

FILES = ("good", "refuses", "unnamed", "untyped", "unicode", "dies", "spins", "too_large", "wrong")


def write_seeds(folder: Path) -> None:
    for name in FILES:
        (folder / name).write_text(name)


@target("probe", write_seeds, mutate=lambda data, rng: data)
def read(path: Path) -> None:
    action = path.read_text()
    if action == "refuses":
        raise ValueError(f"{path} is refused")
    if action == "unnamed":
        raise ValueError("some file is refused")
    if action == "untyped":
        raise AttributeError(f"{path} has no attribute")
    if action == "unicode":
        raise UnicodeDecodeError("utf-8", b"x", 0, 1, f"{path}")
    if action == "dies":
        os.kill(os.getpid(), signal.SIGSEGV)
    if action == "wrong":
        raise AssertionError(f"{path} was read wrong")
    while action == "spins":
        pass
    if action == "too_large":
        np.ones(1 << 33, dtype=np.uint8)
