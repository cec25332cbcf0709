"""Read damaged files for a while, and report what must not happen.

    python tools/fuzz.py --minutes 5 --target videos

Every input is read in a process of its own kind with limits: 2 seconds of the processor and 2 GB of memory. Counted as
faults are processes that end by a signal, hangs, too much memory, and refusals that are no ValueError, KeyError or
OSError of this project or do not name the file. The inputs of faults are kept. Exit code 1 when there is one. POSIX.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lbvq.engine.user_errors import user_command
from lbvq.fuzz.run import Tally, Worker, format_table, fuzz
from lbvq.fuzz.targets import target_names

SHOWN = 5  # findings of each target


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, help="time for all targets together (default 1, without --inputs)")
    parser.add_argument("--inputs", type=int, metavar="N", help="read so many files of each target")
    parser.add_argument("--target", nargs="+", choices=target_names(), default=target_names())
    parser.add_argument("--seed", type=int, default=0, help="other seeds make other inputs")
    parser.add_argument("--keep", type=Path, default=Path("fuzz_findings"), help="folder for the inputs of faults")
    parser.add_argument("--file", type=Path, help="read this file only, with the (one) target")
    return parser.parse_args(arguments)


@user_command
def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    if args.file is not None:
        return read_one(args.target[0], args.file)
    minutes = 1.0 if args.minutes is None and args.inputs is None else args.minutes
    seconds = None if minutes is None else minutes * 60 / len(args.target)
    tallies = []
    for name in args.target:
        tallies.append(fuzz(name, inputs=args.inputs, seconds=seconds, seed=args.seed, keep=args.keep))
        show_findings(tallies[-1])
    print(format_table(tallies))
    return int(not all(tally.is_clean for tally in tallies))


def show_findings(tally: Tally) -> None:
    for outcome, name, message in tally.findings[:SHOWN]:
        print(f"{tally.target}: {outcome}: {name}: {message[:300]}")
    if len(tally.findings) > SHOWN:
        print(f"{tally.target}: {len(tally.findings) - SHOWN} more")


def read_one(target: str, path: Path) -> int:
    with Worker(target) as worker:
        print(*worker.read(path.resolve()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
