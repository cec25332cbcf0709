"""tools/benchmark.py memory: three programs that do the same job, and the files of their peaks."""

from __future__ import annotations

import argparse
import json
import runpy
from pathlib import Path

import pytest
from helpers import CONFIGS, ROOT

from lbvq.video.reader import read_video
from lbvq.video.writer import write_video

TOOL = runpy.run_path(str(ROOT / "tools" / "benchmarks" / "memory.py"))
CONFIG = str(CONFIGS / "synthetic" / "minvis_R18_tiny.yaml")


def arguments(**changes: object) -> argparse.Namespace:
    values = {"config_file": CONFIG, "weights": "", "frames": [2, 4], "size": [48, 64], "opts": []}
    return argparse.Namespace(**{**values, "peak_of": None, "json": None, "plot": None, **changes})


@pytest.mark.parametrize("form", TOOL["FORMS"])
def test_every_program_draws_the_whole_video(form, tmp_path):
    video = tmp_path / "video.mp4"
    write_video(video, TOOL["moving_squares"](3, (48, 64)), 25)
    TOOL["FORMS"][form](arguments(), video)
    drawn, plain = read_video(tmp_path / "drawn.mp4"), read_video(video)
    assert len(drawn) == 3 and drawn.size == (48, 64)
    assert any((one != other).any() for one, other in zip(drawn, plain, strict=True))


def test_numbers_and_a_plot_are_written(tmp_path, monkeypatch, capsys):
    peaks = {"held": 30.0, "whole": 20.0, "stream": 10.0}
    monkeypatch.setitem(
        TOOL["run"].__globals__, "peak_of", lambda form, video, args: peaks[form] + len(read_video(video))
    )
    files = {"json": tmp_path / "memory.json", "plot": tmp_path / "memory.svg"}
    TOOL["run"](arguments(**files))
    content = json.loads(files["json"].read_text())
    assert content["frames"] == [2, 4] and content["unit"] == "MiB"
    assert content["peaks"] == {"held": [32, 34], "whole": [22, 24], "stream": [12, 14]}
    assert Path(files["plot"]).read_text().startswith("<?xml") and "<svg" in files["plot"].read_text()
    assert capsys.readouterr().out.splitlines()[-1].split() == ["4", "34", "24", "14"]
