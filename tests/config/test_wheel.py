"""What a wheel holds. `make wheel-check` installs one and works with it."""

from __future__ import annotations

import runpy
import zipfile

import pytest
from helpers import ROOT

TOOL = runpy.run_path(str(ROOT / "tools" / "wheel_check.py"))
missing_files, missing_metadata = TOOL["missing_files"], TOOL["missing_metadata"]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return TOOL["build"](ROOT, tmp_path_factory.mktemp("built"))


def rewritten(wheel, target, change):
    """A wheel with the content of another one, each file as `change(name, content)` returns it; None leaves it out."""
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = change(name, old.read(name))
            if content is not None:
                new.writestr(name, content)
    return target


@pytest.mark.slow
def test_the_wheel_holds_all_that_is_read_at_run_time_and_nothing_else(built):
    _, wheel = built
    assert missing_files(ROOT, wheel) == [] and missing_metadata(wheel) == []
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names} == {"lbvq", "mask2former", "lbvq-0.1.0.dist-info"}
    for name in ("lbvq/configs/synthetic/minvis_R18_tiny.yaml", "lbvq/metadata/ovis.json", "lbvq/py.typed"):
        assert name in names
    assert "lbvq/video/fonts/DejaVuSans.ttf" in names and "lbvq/video/fonts/LICENSE" in names


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lbvq/configs/_base_/minvis.yaml", "lbvq/metadata/ovis.json", "mask2former/py.typed"])
def test_a_file_that_is_left_out_or_changed_is_told(built, tmp_path, name):
    without = rewritten(built[1], tmp_path / "without.whl", lambda each, content: None if each == name else content)
    changed = rewritten(built[1], tmp_path / "changed.whl", lambda each, old: b"old" if each == name else old)
    assert missing_files(ROOT, without) == [name] == missing_files(ROOT, changed)


@pytest.mark.slow
def test_metadata_that_is_left_out_is_told(built, tmp_path):
    def change(name, content):
        if name.endswith("entry_points.txt"):
            return None
        return content.replace(b"Author: ", b"Nobody: ") if name.endswith("METADATA") else content

    assert missing_metadata(rewritten(built[1], tmp_path / "other.whl", change)) == ["Author", "the command lbvq"]
