"""Print a table of speed and memory: python tools/benchmark.py {inference,eval,train,loader,...} [options].

Each benchmark is one file in `tools/benchmarks/` with a docstring and `run(args)`; the function `add_` with its name in
`tools/benchmarks/arguments.py` adds its arguments.
Numbers are ratios measured in one run on one machine; they are read by people, never asserted by tests.
"""

from __future__ import annotations

import argparse
import ast
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
    arguments = load(FOLDER / "arguments.py")
    for path in sorted(set(FOLDER.glob("*.py")) - {FOLDER / "arguments.py"}):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        command = commands.add_parser(path.stem, help=text.splitlines()[0], description=text)
        getattr(arguments, f"add_{path.stem}")(command)
    args = parser.parse_args()
    load(FOLDER / f"{args.benchmark}.py").run(args)


if __name__ == "__main__":
    sys.exit(main())
