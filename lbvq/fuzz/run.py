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
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def read(self, path: Path) -> tuple[str, str]:
        """Let it read a file; return the outcome and a message."""
        self._process = process = self._process or self._start()
        assert process.stdin is not None
        try:
            process.stdin.write(f"{path}\n".encode())
            process.stdin.flush()
            line = _line(process, _WALL_SECONDS)
        except BrokenPipeError:  # it ended between two files
            line = b""
        if line:
            outcome, message = json.loads(line)
            return outcome, message
        code = None if line is None else process.wait()
        self._stop()
        if code is None:
            return "hang", f"no answer in {_WALL_SECONDS} seconds"
        if code == _SIGPROF:
            return "hang", "more time of the processor than allowed"
        return "signal", f"the process ended with {code}"

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "lbvq.fuzz.worker", self._target, *self._topics]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        if _line(process, _START_SECONDS) != b"ready\n":
            process.kill()
            process.communicate()
            raise OSError(f"the worker of the target {self._target!r} does not start")
        return process

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def _line(process: subprocess.Popen[bytes], seconds: float) -> bytes | None:
    """The next answer of a process, b"" when it ended, None when the time is over."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], seconds)
    return process.stdout.readline() if ready else None
