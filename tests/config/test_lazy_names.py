"""Packages whose public names are loaded when they are first used."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from mask2former.lazy import lazy_names

PACKAGES = ("lbvq", "lbvq.data", "lbvq.evaluation", "mask2former")


@pytest.mark.parametrize("name", PACKAGES)
def test_every_public_name_is_where_type_checkers_are_told(name):
    package = importlib.import_module(name)
    tree = ast.parse(Path(package.__file__).read_text())
    told = [
        (alias.name, ".".join(filter(None, ["" if node.level == 0 else name, node.module])))
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        for alias in node.names
    ]
    public = set(package.__all__) - {"__version__"}
    assert {each for each, _ in told} == public <= set(dir(package))
    for each, module in told:
        value = getattr(package, each)
        assert value is getattr(importlib.import_module(module), each)


def test_an_unknown_name_lists_what_there_is():
    load, _ = lazy_names("mask2former", {"a": "mask2former.registry"})
    with pytest.raises(AttributeError, match="module 'mask2former' has no attribute 'b'; it offers a"):
        load("b")


def test_packages_are_imported_without_torch():
    code = f"import sys, {', '.join(PACKAGES)}\nprint('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


@pytest.mark.parametrize("name", ["lbvq.evaluation.tube_ap", "lbvq.evaluation.submission", "lbvq.inference.results"])
def test_files_are_scored_checked_and_read_without_libraries_for_pictures_and_networks(name):
    code = f"import sys, {name}\nprint(sorted({{'torch', 'cv2', 'scipy', 'PIL', 'tempfile'}} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
