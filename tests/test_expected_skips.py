"""Skips are counted as failures unless their reason is listed."""

import shutil
import subprocess
import sys

import pytest
from expected_skips import is_expected
from helpers import ROOT

SKIPPING = """
import pytest

def test_passes():
    pass

def test_for_a_listed_reason():
    pytest.skip("needs a CUDA device")

def test_for_no_listed_reason():
    pytest.skip("no time")

def test_with_something_missing():
    pytest.importorskip("package_that_is_not_there")
"""
SKIPPED_WHOLE = "import pytest\npytest.importorskip('package_that_is_not_there')\ndef test_a(): pass"


def run_pytest(folder, *options):
    for name in ("conftest.py", "expected_skips.py"):
        shutil.copy(ROOT / "tests" / name, folder)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True).stdout


def test_a_test_that_is_skipped_for_no_listed_reason_fails(tmp_path):
    (tmp_path / "test_some.py").write_text(SKIPPING)
    said = run_pytest(tmp_path)
    assert "2 failed, 1 passed, 1 skipped" in said and "unexpected skip: Skipped: no time." in said
    assert "1 passed, 3 skipped" in run_pytest(tmp_path, "--allow-skips")


def test_a_file_that_is_skipped_for_no_listed_reason_is_an_error(tmp_path):
    (tmp_path / "test_whole.py").write_text(SKIPPED_WHOLE)
    said = run_pytest(tmp_path)
    assert "unexpected skip" in said and "1 error" in said


@pytest.mark.parametrize(
    "reason, want",
    [
        ("Skipped: needs a CUDA device", True),
        ("needs a CUDA device and time", False),
        ("could not import 'triton': No module named 'triton'", True),
        ("could not import 'submitit': No module named 'submitit'", False),
        ("could not import 'timm': No module named 'timm'", False),
        ("", False),
    ],
)
def test_reasons_are_compared_as_a_whole(reason, want):
    assert is_expected(reason) is want
