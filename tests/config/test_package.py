"""What `import lbvq` offers, and that it stays light."""

from __future__ import annotations

import ast
import re
import subprocess
import sys

import pytest
from helpers import ROOT

import lbvq


@pytest.mark.parametrize("name", lbvq.__all__)
def test_every_public_name_exists(name):
    assert getattr(lbvq, name) is not None
    assert name in dir(lbvq)


def test_type_checkers_see_the_public_names_where_they_are_defined():
    tree = ast.parse((ROOT / "lbvq" / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    assert {alias.asname: node.module for node in block.body for alias in node.names} == lbvq._HOME
    assert all((ROOT / package / "py.typed").is_file() for package in ("lbvq", "mask2former"))


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(AttributeError, match=r"no attribute 'VideoPredicter'; it offers .*VideoPredictor"):
        _ = lbvq.VideoPredicter


def test_the_version_is_that_of_the_package():
    packaged = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)
    assert packaged is None or lbvq.__version__ == packaged[1]


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, lbvq; print({'torch', 'numpy', 'lbvq.config'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
