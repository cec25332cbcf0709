"""Make damaged files, feed them to worker processes and count what came of it."""

from __future__ import annotations

import json
import select
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from lbvq.fuzz.targets import TOPICS, Target, all_targets

OUTCOMES = ("accepted", "refused", "signal", "hang", "memory", "untyped", "unnamed")
FAULTS = OUTCOMES[2:]
_START_SECONDS = 300  # a worker imports the project, on a machine that may be busy
_WALL_SECONDS = 30  # for one file: the worker's limit counts the processor's time, this one finds who sleeps
_SIGPROF = -27


@dataclass
class Tally:
    """What came of the inputs of one target."""

    target: str
    counts: Counter[str] = field(default_factory=Counter)
    findings: list[tuple[str, str, str]] = field(default_factory=list)  # outcome, input, message

    @property
    def is_clean(self) -> bool:
        return not any(self.counts[fault] for fault in FAULTS)


def fuzz(
    name: str, *, inputs: int | None = None, seconds: float | None = None, seed: int = 0, keep: Path | None = None
) -> Tally:
    """Try damaged files on one target until so many were read or so much time is over.

    Args:
        name: of the target.
        inputs: how many files; None for no limit.
        seconds: of wall time; None for no limit.
        seed: decides the inputs.
        keep: folder for the inputs that show a fault.
    """
    target, tally = all_targets()[name], Tally(name)
    end = None if seconds is None else time.monotonic() + seconds
    with TemporaryDirectory(prefix="fuzz-") as folder, Worker(name) as worker:
        for path in damaged_files(target, Path(folder), seed, inputs):
            outcome, message = worker.read(path)
            tally.counts[outcome] += 1
            if outcome in FAULTS:
                tally.findings.append((outcome, path.name, message))
                if keep is not None:
                    keep.mkdir(parents=True, exist_ok=True)
                    (keep / f"{name}_{outcome}_{path.name}").write_bytes(path.read_bytes())
            path.unlink()
            if end is not None and time.monotonic() > end:
                break
    return tally


def damaged_files(target: Target, folder: Path, seed: int, limit: int | None) -> Iterator[Path]:
    """Write one input after the other into `folder`; input k depends on `seed` and k alone."""
    seeds = read_seeds(target, folder / "seeds")
    index = 0
    while limit is None or index < limit:
        rng = Random(f"{seed} {target.name} {index}")
        name, content = rng.choice(seeds)
        path = folder / f"{index:06d}_{name}"
        path.write_bytes(target.mutate(content, rng) if index >= len(seeds) else seeds[index][1])
        yield path
        index += 1


def read_seeds(target: Target, folder: Path) -> list[tuple[str, bytes]]:
    """Names and contents of the files that a target starts from."""
    folder.mkdir()
    target.write_seeds(folder)
    return [(path.name, path.read_bytes()) for path in sorted(folder.iterdir())]


def format_table(tallies: Sequence[Tally]) -> str:
    """One line for each target."""
    lines = [f"{'target':14}{'inputs':>9}" + "".join(f"{outcome:>10}" for outcome in OUTCOMES)]
    for tally in tallies:
        cells = "".join(f"{tally.counts[outcome]:10}" for outcome in OUTCOMES)
        lines.append(f"{tally.target:14}{tally.counts.total():9}{cells}")
    return "\n".join(lines)


class Worker:
    """A reading process that is started again whenever an input ends it."""

    def __init__(self, target: str, topics: Sequence[str] = TOPICS) -> None:
        self._target, self._topics = target, topics
        self._process: subprocess.Popen | None = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def read(self, path: Path) -> tuple[str, str]:
        """Let it read a file; return the outcome and a message."""
        if self._process is None:
            self._start()
        self._process.stdin.write(f"{path}\n".encode())
        self._process.stdin.flush()
        line = self._line(_WALL_SECONDS)
        if line:
            return tuple(json.loads(line))
        if line is None:
            self._stop()
            return "hang", f"no answer in {_WALL_SECONDS} seconds"
        code = self._process.wait()
        self._stop()
        if code == _SIGPROF:
            return "hang", "more time of the processor than allowed"
        return "signal", f"the process ended with {code}"

    def _start(self) -> None:
        command = [sys.executable, "-m", "lbvq.fuzz.worker", self._target, *self._topics]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        if self._line(_START_SECONDS) != b"ready\n":
            self._stop()
            raise OSError(f"the worker of the target {self._target!r} does not start")

    def _line(self, seconds: float) -> bytes | None:
        """The next answer, b"" when the process ended, None when the time is over."""
        ready, _, _ = select.select([self._process.stdout], [], [], seconds)
        return self._process.stdout.readline() if ready else None

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process.stdin.close()
            self._process.stdout.close()
            self._process = None
