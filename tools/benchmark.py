"""Print a table of speed and memory: python tools/benchmark.py {inference,eval,train,loader,...} [options].

Each benchmark is one file in `tools/benchmarks/` with a one-line docstring, `add_arguments(parser)` and `run(args)`.
Numbers are ratios measured in one run on one machine; they are read by people, never asserted by tests.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from lbvq.engine.user_errors import user_command

FOLDER = Path(__file__).parent / "benchmarks"


def load(path: Path) -> ModuleType:
    """Import one benchmark file by path, since `tools/` is not a package."""
    spec = importlib.util.spec_from_file_location(f"benchmark_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@user_command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="benchmark", required=True)
    for path in sorted(FOLDER.glob("*.py")):
        module = load(path)
        command = commands.add_parser(path.stem, help=module.__doc__.splitlines()[0], description=module.__doc__)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    sys.exit(main())
