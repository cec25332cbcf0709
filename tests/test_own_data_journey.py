"""From the labelling tool to a trained, scored and drawn model: real 16-bit videos, and the page of the manual."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers import ROOT
from labelled_videos import TINY, write_labelled_videos

from lbvq.engine.launch import find_free_port
from lbvq.masks.rle import encode
from lbvq.video.reader import read_video

RUN_ALL = """
import shlex, sys
from lbvq.__main__ import main
for line in sys.argv[1:]:
    print("$ lbvq", line, flush=True)
    code = main(shlex.split(line))
    if code:
        sys.exit(f"exit code {code} of: lbvq {line}")
"""


def run(folder: Path, *lines: str) -> str:
    """Run commands of lbvq one after the other in one process; returns what they print."""
    process = subprocess.run(
        [sys.executable, "-c", RUN_ALL, *lines], cwd=folder, capture_output=True, text=True, timeout=600
    )
    assert process.returncode == 0, process.stdout[-3000:] + process.stderr[-3000:]
    return process.stdout


@pytest.fixture(scope="module")
def cells(tmp_path_factory) -> Path:
    """A folder in which the real colony, cut into four videos, was converted, split and trained on."""
    folder = tmp_path_factory.mktemp("cells")
    source = ROOT / "tests" / "real" / "bacteria_16bit"
    for part in ("Annotations", "JPEGImages"):
        for t in range(12):
            target = folder / "labelled" / part / f"clip{t // 3}"
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / part / "bacteria" / f"{t:05d}.png", target)
    out = run(
        folder,
        "convert labelled --classes cell --out data/cells",
        "doctor data/cells --jobs 1",
        "split data/cells --dev 0.25",
        f"train data/cells --model synthetic/minvis_R18_tiny --steps 4 {shlex.join(TINY)}",
        f"train data/cells --model runs/cells --output runs/more --steps 1 {shlex.join(TINY)}",
        "eval data/cells --weights runs/cells/model_best.pth",
        "predict labelled/JPEGImages/clip3 --weights runs/cells/model_best.pth --output found.mp4 found.json"
        " --score-threshold 0",
        "export found.json --to cvat",
        "convert found_cvat --frames labelled/JPEGImages --out data/corrected",
    )
    (folder / "log.txt").write_text(out)
    return folder


@pytest.mark.slow
def test_sixteen_bit_videos_become_a_scored_model_and_a_drawn_video(cells):
    out = (cells / "log.txt").read_text()
    assert "4 videos, 70 objects, 112 masks" in out
    assert len(re.findall(r"AP before training: \d+\.\d\n", out)) == 2  # of random values, and of a trained model
    assert out.count("of a model of which all of it still has random values") == 1
    assert re.search(r"AP after: best \d+\.\d \(step \d\), last", out)
    cfg = yaml.safe_load((cells / "runs/cells/config.yaml").read_text())
    assert cfg["MODEL"]["SEM_SEG_HEAD"]["NUM_CLASSES"] == 1
    assert cfg["DATASETS"]["TRAIN"] == ["cells_train"] and cfg["DATASETS"]["TEST"] == ["cells_dev"]
    assert [entry.split("=")[0] for entry in cfg["DATASETS"]["REGISTER"]] == ["cells_train", "cells_dev"]
    scores = json.loads((cells / "runs/cells/eval/inference/metrics.json").read_text())
    assert 0 <= scores["segm"]["AP"] <= 100
    assert read_video(cells / "found.mp4").size == (280, 200)


@pytest.mark.slow
def test_predictions_have_the_users_class_names_and_come_back_corrected(cells):
    found = json.loads((cells / "found.json").read_text())
    assert {entry["category_name"] for entry in found} == {"cell"}
    corrected = json.loads((cells / "data/corrected/annotations.json").read_text())
    assert corrected["videos"][0]["name"] == "clip3" and corrected["categories"] == [{"id": 1, "name": "cell"}]
    masks = {entry["object_id"]: entry["segmentations"] for entry in found}
    for entry in corrected["annotations"]:
        assert [mask for mask in entry["segmentations"] if mask] == [
            mask for mask in masks[entry["track_id"]] if mask["counts"] != encode(np.zeros((280, 200), bool))["counts"]
        ]


@pytest.mark.slow
def test_a_second_run_in_the_same_folder_is_refused(cells):
    command = [sys.executable, "-m", "lbvq", "train", "data/cells", "--model", "synthetic/minvis_R18_tiny", *TINY]
    process = subprocess.run(command, cwd=cells, capture_output=True, text=True, timeout=600)
    assert process.returncode == 2 and "runs/cells holds a training" in process.stderr, process.stderr[-3000:]
    assert "--resume" in process.stderr and "--overwrite" in process.stderr


@pytest.mark.slow
@pytest.mark.parametrize("starter", ["spawn", "torchrun"])
def test_data_by_path_reach_every_process_of_a_run(cells, tmp_path, starter):
    data = cells / "data" / "cells"
    command = [sys.executable, str(ROOT / "train_net.py"), "--num-gpus", "2"]
    if starter == "torchrun":
        port = str(find_free_port())
        run_module = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", port]
        command = [sys.executable, *run_module, str(ROOT / "train_net.py")]
    command += ["--config-file", str(ROOT / "configs/synthetic/minvis_R18_tiny.yaml")]
    for part in ("train", "dev"):
        command += ["--data", f"cells_{part}={data / part}.json:{data / 'frames'}"]
    command += ["OUTPUT_DIR", str(tmp_path), "SOLVER.MAX_ITER=2", *TINY]
    process = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert process.returncode == 0, process.stdout[-3000:] + process.stderr[-3000:]
    assert "AP" in json.loads((tmp_path / "inference/metrics.json").read_text())["segm"]
    assert (tmp_path / "log.txt.rank1").exists()


# ---- the page of the manual


@pytest.mark.slow
def test_the_commands_of_the_manual_run(tmp_path):
    text = (ROOT / "docs" / "own_data.md").read_text()
    block = text.partition("```\n")[2].partition("```")[0]
    lines = [line.removeprefix("lbvq ") for line in block.splitlines()]
    assert [line.split()[0] for line in lines] == ["convert", "doctor", "split", "train", "eval", "predict", "export"]
    write_labelled_videos(tmp_path)
    lines = [re.sub(r"--steps \d+", f"--steps 4 {shlex.join(TINY)}", line) for line in lines]
    out = run(tmp_path, *lines)
    assert "CVAT XML 1.1, 5 videos, 2 classes" in out and "AP before training" in out
    assert (tmp_path / "found.mp4").exists() and (tmp_path / "found_cvat").is_dir()
