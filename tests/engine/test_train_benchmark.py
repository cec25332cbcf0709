"""tools/benchmark.py train: what it prints, and that the published arithmetic is the same computation."""

from __future__ import annotations

import re
import sys

import pytest
from helpers import CONFIGS, ROOT, run_as_command

TINY = [
    *("MODEL.WEIGHTS", "", "INPUT.MIN_SIZE_TRAIN", "(48,)", "INPUT.SAMPLING_FRAME_NUM", "2"),
    *("SOLVER.IMS_PER_BATCH", "2", "MODEL.MASK_FORMER.TRAIN_NUM_POINTS", "32"),
]
SIZES = ["--iterations", "2", "--warmup", "1", "--videos", "3", "--synthetic", "48", "64", "3"]


@pytest.fixture
def benchmark(monkeypatch, capsys):
    """Run the benchmark with arguments; returns what it printed."""

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["benchmark.py", "train", *arguments])
        monkeypatch.setenv("DETECTRON2_DATASETS", "")  # set by the benchmark, taken back here
        run_as_command(ROOT / "tools" / "benchmark.py")
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("name", ["lbvq_R18_tiny", "vita_R18_tiny", "minvis_R18_tiny"])
def test_steps_beside_the_published_arithmetic_have_the_same_losses_and_gradients(benchmark, name):
    out = benchmark("--published", *SIZES, "--config-file", str(CONFIGS / "synthetic" / f"{name}.yaml"), *TINY)
    for stage in ("data", "forward and losses", "backward", "clip and optimizer", "whole step"):
        assert re.search(rf"^{stage} +\d+\.\d +\d+\.\d +\d+\.\d\d$", out, re.MULTILINE)
    losses, gradients = (float(re.search(rf"{what} differ by (\S+)", out)[1]) for what in ("losses", "gradients"))
    assert losses < 1e-5
    assert gradients < 0.05  # points on the border of a cell have two, and rounding chooses


@pytest.mark.parametrize("name, model", [("genvis_R18_tiny_online", "Genvis"), ("videomt_tiny", "videomt_online")])
def test_methods_with_criteria_of_their_own_are_refused(benchmark, name, model):
    with pytest.raises(ValueError, match=f"not those of {model}"):
        benchmark("--published", *SIZES, "--config-file", str(CONFIGS / "synthetic" / f"{name}.yaml"), *TINY)
