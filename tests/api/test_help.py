"""`--help` of every command answers without importing the network: its arguments are read first."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

from lbvq.__main__ import COMMANDS, main

BLOCKS = runpy.run_path(str(Path(__file__).with_name("test_code_blocks.py")))

# Runs a script as Python does, and at the end says on the standard error whether torch was imported.
WATCH = """
import runpy, sys
script, sys.argv = sys.argv[1], sys.argv[1:]
try:
    runpy.run_path(script, run_name="__main__")
finally:
    print("torch" in sys.modules, file=sys.stderr)
"""
SCRIPTS = [
    ROOT / "train_net.py",
    *(path for folder in ("demo", "tools", "datasets") for path in (ROOT / folder).glob("*.py")),
]
BENCHMARKS = {path.stem for path in (ROOT / "tools" / "benchmarks").glob("*.py")} - {"arguments"}
CASES = {
    **{str(path.relative_to(ROOT)): [path] for path in SCRIPTS},
    **{f"lbvq {name}": [ROOT / "lbvq" / "__main__.py", name] for name in COMMANDS},
    **{f"benchmark {name}": [ROOT / "tools" / "benchmark.py", name] for name in BENCHMARKS},
}


@pytest.mark.parametrize("case", sorted(CASES))
def test_help_imports_no_torch(case):
    command = [sys.executable, "-c", WATCH, *map(str, CASES[case]), "--help"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=Path.home(), check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: ") and done.stderr.split()[-1] == "False"


FRONT_DOOR = "predict stream train eval convert doctor split export compare app download list info".split()


def examples_of(name: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Commands that `lbvq NAME --help` shows."""
    with pytest.raises(SystemExit):
        main([name, "--help"])
    lines = re.findall(r"^  (\S.*)$", capsys.readouterr().out.partition("\nexamples:\n")[2], re.MULTILINE)
    return [re.split(r"  +", line)[0] for line in lines]  # what a command does stands behind it


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_two_examples_that_the_command_takes(name, capsys):
    examples = [command for command in examples_of(name, capsys) if re.search(rf"\blbvq {name} ?", command)]
    assert len(examples) >= 2
    for command in examples:
        BLOCKS["check"](command.partition(" > ")[0])


def test_the_front_door_has_every_command():
    assert set(FRONT_DOOR) <= set(COMMANDS)


def test_the_watch_notices_torch(tmp_path):
    (tmp_path / "script.py").write_text("import torch")
    done = subprocess.run(
        [sys.executable, "-c", WATCH, str(tmp_path / "script.py")], capture_output=True, text=True, check=True
    )
    assert done.stderr.split()[-1] == "True"
