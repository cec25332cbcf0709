"""The predictor and the demo with the real network: LBVQ with ResNet-18 and random weights."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import ROOT

from lbvq import VideoPredictor
from lbvq.data.categories import class_names
from lbvq.data.synthetic import SyntheticSettings, make_video
from lbvq.engine.checkpoint import save_checkpoint
from lbvq.inference.frames import ResizedFrames
from lbvq.video.reader import read_video
from lbvq.video.writer import write_video

CONFIG = "youtubevis_2019/lbvq_R50_bs8"
SMALL = """MODEL.DEVICE cpu MODEL.RESNETS.DEPTH 18 MODEL.RESNETS.RES2_OUT_CHANNELS 64 MODEL.SEM_SEG_HEAD.CONVS_DIM 64
MODEL.SEM_SEG_HEAD.MASK_DIM 64 MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS 1 MODEL.MASK_FORMER.HIDDEN_DIM 64
MODEL.MASK_FORMER.NUM_OBJECT_QUERIES 12 MODEL.MASK_FORMER.DIM_FEEDFORWARD 128 MODEL.MASK_FORMER.DEC_LAYERS 4
MODEL.LBVQ.HIDDEN_DIM 64 MODEL.LBVQ.DIM_FEEDFORWARD 128 MODEL.LBVQ.NUM_OBJECT_QUERIES 12 MODEL.LBVQ.DEC_LAYERS 2
INPUT.MIN_SIZE_TEST 96 INPUT.MAX_SIZE_TEST 128""".split()


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return make_video(3, SyntheticSettings(num_frames=5, height=72, width=100)).frames


@pytest.fixture(scope="module")
def predictor() -> VideoPredictor:
    torch.manual_seed(0)
    return VideoPredictor(CONFIG, weights="", opts=SMALL)


def test_the_prediction_is_what_the_model_returns_for_the_same_frames(predictor, frames):
    prediction = predictor(frames)
    images = list(ResizedFrames(frames, min_size=96, max_size=128))
    assert images[0].shape == (3, 92, 128)
    output = predictor.model([{"image": images, "height": 72, "width": 100}])
    assert prediction.masks.shape == (len(output["pred_scores"]), 5, 72, 100)
    order = np.argsort(-np.array(output["pred_scores"]), kind="stable")
    assert prediction.scores == pytest.approx(np.array(output["pred_scores"])[order], abs=1e-6)
    assert torch.equal(prediction.masks.to_dense(), output["pred_masks"][order.tolist()])
    assert prediction[0].name == class_names("ytvis_2019")[output["pred_labels"][order[0]]]


def test_saved_weights_give_the_same_prediction(predictor, frames, tmp_path):
    path = save_checkpoint(tmp_path / "model.pth", {"model": predictor.model.state_dict()})
    again = VideoPredictor(CONFIG, weights=path, opts=SMALL)
    assert again.is_trained and again(frames) == predictor(frames)


@pytest.mark.parametrize("size", [(1, 1), (20, 31), (150, 40)])
def test_frames_of_any_size_and_a_single_frame_work(predictor, size):
    prediction = predictor(np.full((1, *size, 3), 90, dtype=np.uint8))
    assert prediction.masks.shape[1:] == (1, *size) and len(prediction) > 0


def test_weights_of_another_model_are_refused(predictor, tmp_path):
    path = save_checkpoint(tmp_path / "model.pth", {"model": {"backbone.stem.conv1.weight": torch.zeros(1)}})
    with pytest.raises(ValueError, match=r"model\.pth"):
        VideoPredictor(CONFIG, weights=path, opts=SMALL)


def test_the_demo_script_segments_a_video(frames, tmp_path):
    write_video(tmp_path / "in.mp4", frames, 12)
    command = [sys.executable, str(ROOT / "demo" / "demo.py"), "--config-file", CONFIG, "--input", "in.mp4"]
    command += ["--output", "out.mp4", "out.json", "--opts", *SMALL]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "UNTRAINED" in done.stdout and "UNTRAINED" in done.stderr
    video = read_video(tmp_path / "out.mp4")
    assert len(video) == 5 and video.size == (72, 100) and video.frame_rate == pytest.approx(12)
    entries = json.loads((tmp_path / "out.json").read_text())
    assert len(entries) == 5 and all(len(entry["segmentations"]) == 5 for entry in entries)
