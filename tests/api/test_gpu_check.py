"""The check of a GPU works on a CPU with small sizes, and says what fails."""

from __future__ import annotations

import json
import re
import runpy

import pytest
from helpers import ROOT


@pytest.fixture
def script():
    return runpy.run_path(str(ROOT / "tools" / "gpu_check.py"))


@pytest.mark.slow
def test_every_part_passes_with_small_sizes(script, tmp_path, capsys):
    output = tmp_path / "table.json"
    assert script["main"](["--small", "--device", "cpu", "--output", str(output)]) == 0
    rows, said = json.loads(output.read_text()), capsys.readouterr().out
    assert [row["part"] for row in rows if row["name"] == "whole part"] == list(script["PARTS"])
    assert all(row["name"] in said for row in rows)
    assert all({"fps", "TFLOP/s", "MiB"} <= set(row) for row in rows if "eager" in row["name"])


def test_the_check_of_the_device_passes_here(script):
    rows = list(script["check_device"](script["Setup"](small=True, device="cpu")))
    assert [row["ok"] for row in rows] == [None, True, True, True, True]


def test_the_numbers_that_the_kernel_says_of_itself_are_right(script):
    text = (ROOT / "mask2former/modeling/deform_attn_triton.py").read_text()
    layout = (1, 5040, 5040, 8, 32, 3, 4)
    moved, operations = script["least_work"](*layout, 4)
    half, _ = script["least_work"](*layout, 2)
    said = re.search(r"([\d.]+) MB and ([\d.]+) GFLOP per layer\nand frame in float32, ([\d.]+) MB", text)
    assert said.groups() == (f"{moved / 1e6:.1f}", f"{operations / 1e9:.2f}", f"{half / 1e6:.1f}")


def test_a_part_that_takes_too_long_or_fails_is_a_row(script):
    (late,) = script["run_part"]("device", ["--small"], budget=0.05)
    assert (late["ok"], late["failure"]) == (False, "took longer than 0 s")
    (broken,) = script["run_part"]("device", ["--unknown"], budget=300)
    assert broken["ok"] is False
    assert "exit code 2" in broken["failure"]


@pytest.mark.parametrize("ok, want", [(True, 0), (None, 0), (False, 1)])
def test_the_exit_code_tells_of_failed_checks_and_later_parts_run_all_the_same(
    script, monkeypatch, tmp_path, capsys, ok, want
):
    inside = script["main"].__wrapped__.__globals__
    monkeypatch.setitem(inside, "run_part", lambda part, *_: [{"part": part, "name": "x", "ok": ok, "fps": 1.23456}])
    output = tmp_path / "table.json"
    assert script["main"](["--small", "--parts", "device", "kernel", "--output", str(output)]) == want
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["device", "kernel"]
    assert all("fps 1.235" in line and ("FAILED" in line) == (ok is False) for line in lines)
    assert len(json.loads(output.read_text())) == 2


def test_without_a_gpu_the_whole_check_is_refused_in_a_sentence(script, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert script["main"]([]) != 0
    assert "--small checks this script on the CPU" in capsys.readouterr().err
