"""Small things that many tests share."""

from __future__ import annotations

import gzip
import importlib
import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"
CONFIGS = ROOT / "configs"


def recorded(stem: str) -> dict[str, Any]:
    """Content of golden/<stem>.json.gz and of golden/<stem>_<method>.json.gz, which has the same keys, as one."""
    whole: dict[str, Any] = {}
    for path in [GOLDEN / f"{stem}.json.gz", *sorted(GOLDEN.glob(f"{stem}_*.json.gz"))]:
        for key, part in json.loads(gzip.decompress(path.read_bytes())).items():
            whole[key] = {**whole.get(key, {}), **part} if isinstance(part, dict) else part
    return whole


def project() -> dict[str, Any]:
    """The table "project" of pyproject.toml: name, dependencies, optional-dependencies, ..."""
    toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")  # pytest brings tomli along
    return toml.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def run_tool(tool: str, *arguments: Any) -> int:
    """Exit code of tools/<tool>.py."""
    return runpy.run_path(str(ROOT / "tools" / f"{tool}.py"))["main"]([str(argument) for argument in arguments])


def run_as_command(script: Path) -> None:
    """Run a script with the arguments in `sys.argv`; what a user did wrong comes out as the exception that it was."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LBVQ_TRACEBACK", "1")
        try:
            runpy.run_path(str(script), run_name="__main__")
        except SystemExit as stop:
            if stop.code:
                raise


def write_evaluation_case(folder: Path) -> Path:
    """Write the recorded ground truth and results of tube AP as gt.json and dt.json; returns `folder`."""
    content = json.loads(gzip.decompress((GOLDEN / "vis_eval_case.json.gz").read_bytes()))
    for name in ("gt", "dt"):
        (folder / f"{name}.json").write_text(json.dumps(content[name]))
    return folder
