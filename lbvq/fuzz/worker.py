"""A process that reads the files named on its standard input, one line each, and answers how that went.

    python -m lbvq.fuzz.worker TARGET MODULE ...

The modules hold the targets. Answers are JSON lines. A file that takes more than its time of the processor ends the
process with SIGPROF, also inside C code; the address space is limited, so that a file that asks for too much memory
gets none.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from lbvq.engine.memory import peak_memory_mib
from lbvq.fuzz.targets import Target, all_targets

CPU_SECONDS = 2.0  # for one file
MEMORY_BYTES = 2 << 30  # in use at one time
_ADDRESS_BYTES = 2 * MEMORY_BYTES  # on top of what the libraries have mapped; asking for more gets none
REFUSALS = (ValueError, KeyError, OSError)
_OURS = ("builtins", "lbvq", "mask2former")  # where the type of a refusal is defined


def judge(target: Target, path: Path) -> tuple[str, str]:
    """Read one file; return what happened ("accepted", "refused", "memory", "untyped" or "unnamed") and the message."""
    try:
        target.read(path)
        return "accepted", ""
    except MemoryError as error:
        return "memory", repr(error)
    except Exception as error:  # whatever comes out is what is looked for
        return _judge_refusal(error, path.name), f"{type(error).__module__}.{type(error).__name__}: {error}"[:1000]


def _judge_refusal(error: BaseException, name: str) -> str:
    reason: BaseException | None = error
    while reason is not None:
        if type(reason) is MemoryError:  # not FFmpeg's kind: it refuses sizes before it asks for them
            return "memory"
        reason = reason.__cause__ or reason.__context__
    is_ours = type(error).__module__.split(".")[0] in _OURS and not isinstance(error, UnicodeError)
    if not (isinstance(error, REFUSALS) and is_ours):
        return "untyped"
    return "refused" if name in str(error) else "unnamed"


def main(name: str, topics: Sequence[str]) -> None:
    answers = _take_standard_output()
    logging.disable(logging.CRITICAL)
    target = all_targets(topics)[name]
    answers.write("ready\n")
    is_limited = False
    for line in sys.stdin:
        if not is_limited:  # after the first line: the libraries are loaded
            _limit_memory()
            is_limited = True
        _reset_peak()
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        with warnings.catch_warnings(record=True):
            outcome, message = judge(target, Path(line.rstrip("\n")))
        signal.setitimer(signal.ITIMER_PROF, 0)
        if peak_memory_mib() * 2**20 > MEMORY_BYTES:
            outcome, message = "memory", f"a peak of {peak_memory_mib() / 2**10:.1f} GiB ({outcome}: {message})"
        answers.write(json.dumps([outcome, message]) + "\n")


def _take_standard_output() -> IO[str]:
    """A stream to the standard output; what the readers and their libraries print goes nowhere from here on."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    return answers


def _limit_memory() -> None:
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + _ADDRESS_BYTES,) * 2)


def _reset_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return  # the peak of the process stands for that of the file


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
