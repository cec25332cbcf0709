"""tools/refine_json.py as a user runs it: HQ-SAM's light model with random weights on the built-in data set."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import segment_anything_hq
import torch
from helpers import ROOT

from lbvq.data.synthetic import write_dataset
from lbvq.masks import rle


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data set of one video, its ground truth as results, and a checkpoint."""
    folder = tmp_path_factory.mktemp("refine")
    write_dataset(folder, num_train=0, num_val=1)
    content = json.loads((folder / "synthetic" / "val.json").read_text())
    size = content["videos"][0]["height"], content["videos"][0]["width"]
    empty = rle.to_rle([], *size)
    results = [
        {
            "video_id": annotation["video_id"],
            "category_id": annotation["category_id"],
            "score": 0.9,
            "segmentations": [mask or empty for mask in annotation["segmentations"]],
        }
        for annotation in content["annotations"]
    ]
    (folder / "results.json").write_text(json.dumps(results))
    torch.manual_seed(0)
    torch.save(segment_anything_hq.sam_model_registry["vit_tiny"]().state_dict(), folder / "tiny.pth")
    return folder


def refine(folder, *arguments):
    command = [sys.executable, str(ROOT / "tools" / "refine_json.py"), str(folder / "results.json"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


@pytest.mark.slow
def test_a_results_file_is_refined_and_scored_before_and_after(folder):
    data = folder / "synthetic"
    arguments = ["--frames", str(data / "val" / "JPEGImages"), "--annotations", str(data / "val.json")]
    settings = ["--opts", "REFINE.NAME", "hq_sam", "REFINE.MODEL_TYPE", "vit_tiny", "MODEL.DEVICE", "cpu"]
    settings += ["REFINE.CHECKPOINT", str(folder / "tiny.pth")]
    done = refine(folder, *arguments, *settings)
    assert done.returncode == 0, done.stderr
    assert "masks accepted" in done.stdout and "boundary AP" in done.stdout
    before, after = (json.loads((folder / name).read_text()) for name in ("results.json", "results.refined.json"))
    assert [entry["score"] for entry in after] == [entry["score"] for entry in before]
    line = next(line for line in done.stdout.splitlines() if line.startswith("before"))
    assert line.split()[1:] == ["100.00", "100.00"]  # the results are the ground truth


@pytest.mark.parametrize(
    "settings, message",
    [
        ((), "no refiner chosen"),
        (("--opts", "REFINE.NAME", "sam", "REFINE.CHECKPOINT", "no.pth"), "curl -L -o no.pth"),
    ],
)
def test_what_is_missing_is_said_in_one_line(folder, settings, message):
    done = refine(folder, "--frames", str(folder), *settings)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
