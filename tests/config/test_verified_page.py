"""The figures in docs/verified.md that can be counted are those of the repository."""

from __future__ import annotations

import re

from helpers import GOLDEN, ROOT

PAGE = re.sub(r"\s+", " ", (ROOT / "docs" / "verified.md").read_text(encoding="utf-8"))
TITLES = {"PyTorch": "torch", "PyAV": "av", "OpenCV": "opencv-python-headless"}  # where they differ from the package


def test_the_page_counts_the_recordings():
    assert f"holds {len(list(GOLDEN.rglob('*.npz')))} files of arrays" in PAGE


def test_the_oldest_releases_on_the_page_are_those_that_are_tested():
    lock = (ROOT / "requirements-oldest.lock").read_text(encoding="utf-8")
    pins = dict(re.findall(r"^([\w.-]+)==([\d.]+)", lock, re.MULTILINE))
    told = re.findall(r"(\w+) (\d[\d.]*\d)", PAGE.partition("`requirements-oldest.lock`: ")[2].partition(")")[0])
    assert len(told) >= 5
    for name, version in told:
        pinned = pins[TITLES.get(name, name)]
        assert pinned == version or pinned.startswith(f"{version}."), name  # 4.9.0 is 4.9.0.80


def test_files_and_targets_on_the_page_exist():
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(re.findall(r"`make ([\w-]+)", PAGE)) <= set(targets)
    named = re.findall(r"`((?:tests|tools|docs)/[\w/.]+)`", PAGE)
    assert len(named) > 8 and [path for path in named if not (ROOT / path).exists()] == []
