"""Behaviour of the whole VITA model that does not need recorded numbers, on a small configuration."""

from __future__ import annotations

import pytest
import torch
from golden_fill import frames
from golden_samples import training_sample
from synth_targets import clips
from video_models import small_cfg, small_model

from lbvq.masks.tubes import MaskTubes
from mask2former.registry import build_model

VIDEO = frames(9, 50, 70, seed=1)


def predict(model, video=VIDEO, **sample):
    return model([{"image": list(video), **sample}])


@pytest.fixture(scope="module")
def model():
    return small_model("vita", MODEL__VITA__ENC_WINDOW_SIZE=4, TEST__DETECTIONS_PER_IMAGE=10)


def test_the_output_is_the_published_dictionary(model):
    output = predict(model, height=100, width=140)
    assert output.keys() == {"image_size", "pred_scores", "pred_labels", "pred_masks"}
    assert output["image_size"] == (100, 140) and output["pred_masks"].shape == (10, 9, 100, 140)
    assert output["pred_masks"].any() and not output["pred_masks"].all()
    assert output["pred_scores"] == sorted(output["pred_scores"], reverse=True)


@pytest.mark.parametrize("run_chunk, mask_chunk, budget", [(1, 1, 0), (2, 3, 0.05), (18, 5, 512)])
def test_results_do_not_depend_on_chunks_and_memory(model, run_chunk, mask_chunk, budget, monkeypatch):
    want = predict(model)
    monkeypatch.setattr(model, "run_chunk_size", run_chunk)
    monkeypatch.setattr(model, "mask_chunk_size", mask_chunk)
    monkeypatch.setattr(model, "feature_budget_mib", budget)
    got = predict(model, dense_masks=False)
    assert isinstance(got["pred_masks"], MaskTubes)
    assert got["pred_scores"] == pytest.approx(want["pred_scores"], rel=1e-4)
    assert got["pred_labels"] == want["pred_labels"]
    assert (got["pred_masks"].to_dense() != want["pred_masks"]).float().mean() < 1e-4


@pytest.mark.parametrize("num_frames", [1, 2, 5])
@pytest.mark.parametrize("window", [0, 1, 3, 6])
def test_any_length_works_with_any_window(num_frames, window):
    model = small_model("vita", MODEL__VITA__ENC_WINDOW_SIZE=window, TEST__DETECTIONS_PER_IMAGE=3)
    assert predict(model, VIDEO[:num_frames])["pred_masks"].shape == (3, num_frames, 50, 70)


def test_there_may_be_more_frame_queries_than_clip_queries():
    settings = {"MODEL__MASK_FORMER__NUM_OBJECT_QUERIES": 11, "MODEL__VITA__NUM_OBJECT_QUERIES": 5}
    model = small_model("vita", **settings)
    assert len(predict(model, VIDEO[:2])["pred_scores"]) == 5 * 13
    losses = model.train()([training_sample(clip) for clip in clips(3)])
    assert all(loss.isfinite() for loss in losses.values())


def test_loss_names_follow_the_number_of_layers():
    losses = build_model(small_cfg("vita")).train()([training_sample(clip) for clip in clips(3)])
    frame = {f"loss_{kind}{suffix}" for kind in ("ce", "mask", "dice") for suffix in ("", "_0", "_1", "_2")}
    clip = {f"loss_vita_{kind}{suffix}" for kind in ("ce", "mask", "dice") for suffix in ("", "_0")}
    assert losses.keys() == frame | clip | {"loss_vita_sim"}


def test_all_losses_reach_every_trainable_parameter():
    model = build_model(small_cfg("vita", MODEL__VITA__ENC_WINDOW_SIZE=2)).train()
    sum(model([training_sample(clip) for clip in clips(3)]).values()).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_images_are_clips_of_one_frame():
    """Pre-training on COCO: T = 1."""
    cfg = small_cfg("vita", INPUT__SAMPLING_FRAME_NUM=1, MODEL__VITA__ENC_WINDOW_SIZE=0)
    samples = [training_sample(clip) for clip in clips(3)]
    samples = [{**sample, "image": sample["image"][:1], "instances": sample["instances"][:1]} for sample in samples]
    losses = build_model(cfg).train()(samples)
    assert all(loss.isfinite() for loss in losses.values())


def test_names_outside_the_clip_module_are_frozen_on_request():
    model = build_model(small_cfg("vita", MODEL__VITA__FREEZE_DETECTOR=True))
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == {name for name, _ in model.named_parameters() if name.startswith("vita_module.")}
    assert "loss_ce" in model.train()([training_sample(clip) for clip in clips(3)])  # still reported


def test_gradient_of_a_frozen_detector_is_not_computed():
    model = build_model(small_cfg("vita", MODEL__VITA__FREEZE_DETECTOR=True)).train()
    sum(model([training_sample(clip) for clip in clips(3)]).values()).backward()
    assert all(parameter.grad is None for parameter in model.backbone.parameters())
    assert isinstance(model.vita_module.query_feat.weight.grad, torch.Tensor)
