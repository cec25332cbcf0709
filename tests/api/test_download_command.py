"""`lbvq download` brings published weights to where every command finds them."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

from lbvq.__main__ import main
from lbvq.cli import download as command
from lbvq.engine import weight_files
from lbvq.engine.weight_files import find_weights


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("VIS_WEIGHTS_DIR", str(tmp_path))
    return tmp_path


def gdown_that_writes(content: bytes | None) -> types.ModuleType:
    """A stand-in for gdown: the real one asks Google Drive, which a test must not."""
    module = types.ModuleType("gdown")

    def download(*, id, output, resume):
        module.asked = id
        if content is not None:
            Path(output).write_bytes(content)

    module.download = download
    return module


def test_a_model_that_downloads_by_itself_is_fetched(folder, monkeypatch, capsys):
    def fetch(address, target, *, checksum=None):
        target.parent.mkdir(parents=True)
        target.write_text(address)

    monkeypatch.setattr(weight_files, "download", fetch)
    assert main(["download", "minvis_r50_ytvis19"]) == 0
    path = Path(capsys.readouterr().out.split(": ")[1].strip())
    assert path.is_relative_to(folder) and path.read_text().endswith("minvis_ytvis19_R50.pth")


def test_a_file_of_google_drive_is_fetched_by_gdown_and_then_found_by_name(folder, monkeypatch, capsys):
    module = gdown_that_writes(b"weights")
    monkeypatch.setitem(sys.modules, "gdown", module)
    assert main(["download", "lbvq_r50_ovis"]) == 0
    assert module.asked == "1-QoQ6BWreWZVl6sReu30-rN5TeO2IRSv"
    assert find_weights("lbvq_r50_ovis.pth")[0] == folder / "lbvq_r50_ovis.pth"
    assert [path.name for path in folder.iterdir()] == ["lbvq_r50_ovis.pth"]


@pytest.mark.parametrize(
    "content, message", [(b"<!DOCTYPE html><title>Quota exceeded", "web page"), (None, "did not fetch")]
)
def test_what_drive_says_instead_of_the_file_is_no_file(folder, monkeypatch, capsys, content, message):
    monkeypatch.setitem(sys.modules, "gdown", gdown_that_writes(content))
    assert main(["download", "lbvq_r50_ovis"]) == 2
    assert message in capsys.readouterr().err
    assert list(folder.iterdir()) == []


def test_without_gdown_the_package_and_the_other_way_are_named(folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gdown", None)
    assert main(["download", "lbvq_r50_ovis"]) == 2
    text = capsys.readouterr().err
    assert "pip install gdown" in text and "https://drive.google.com/file/d/1-QoQ6" in text and str(folder) in text


def test_a_wrong_name_is_found_before_anything_is_fetched(folder, monkeypatch):
    monkeypatch.setattr(command, "fetch", lambda name: pytest.fail("fetched"))
    with pytest.raises(ValueError, match=r"lbvq_r50_ytvis2019.*near it: .*lbvq_r50_ytvis19"):
        command.run(types.SimpleNamespace(names=["minvis_r50_ytvis19", "lbvq_r50_ytvis2019"]))
