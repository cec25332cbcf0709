"""Behaviour of the whole LBVQ model that does not need recorded numbers, on a small configuration."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from fixed_points import fixed_rand
from golden_fill import frames
from golden_samples import training_sample
from synth_targets import clips
from video_models import LazyFrames, small_cfg, small_model

from lbvq.masks.tubes import MaskTubes
from lbvq.modeling import feature_store
from mask2former.registry import build_model

VIDEO = frames(7, 50, 70, seed=1)


def predict(model, video=VIDEO, **sample):
    return model([{"image": list(video), **sample}])


def same(one: dict, other: dict) -> None:
    """Two outputs agree: masks and labels exactly, scores up to rounding."""
    assert one["image_size"] == other["image_size"]
    assert one["pred_labels"] == other["pred_labels"]
    assert one["pred_scores"] == pytest.approx(other["pred_scores"], rel=1e-5)
    assert torch.equal(one["pred_masks"], other["pred_masks"])


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def reference(model):
    return predict(model)


def test_the_output_is_the_published_dictionary(reference):
    assert reference.keys() == {"image_size", "pred_scores", "pred_labels", "pred_masks"}
    count = len(reference["pred_scores"])
    assert count == min(100, 8 * 13)
    assert reference["pred_masks"].shape == (count, 7, 50, 70)
    assert reference["pred_masks"].dtype == torch.bool and reference["pred_masks"].device.type == "cpu"
    assert reference["pred_masks"].any() and not reference["pred_masks"].all()
    assert reference["pred_scores"] == sorted(reference["pred_scores"], reverse=True)
    assert all(0 <= label < 13 for label in reference["pred_labels"])


@pytest.mark.parametrize("run_chunk, mask_chunk", [(1, 1), (2, 3), (7, 7), (18, 5)])
def test_results_do_not_depend_on_chunk_sizes(reference, run_chunk, mask_chunk):
    model = small_model(MODEL__LBVQ__TEST_RUN_CHUNK_SIZE=run_chunk, MODEL__LBVQ__TEST_INTERPOLATE_CHUNK_SIZE=mask_chunk)
    output = predict(model)
    assert output["pred_scores"] == reference["pred_scores"]
    same(output, reference)


@pytest.mark.parametrize("device, run_chunk", [("cpu", 1), ("cuda", 18)])
def test_frames_are_encoded_one_by_one_on_a_cpu_and_together_elsewhere(model, monkeypatch, device, run_chunk):
    monkeypatch.setattr(type(model), "device", torch.device(device))
    assert model.frames_per_run == run_chunk


@pytest.mark.parametrize("budget", [0, 0.1, 512])
def test_results_do_not_depend_on_the_memory_budget(reference, budget):
    model = small_model(TEST__FEATURE_BUDGET_MB=0)
    assert model.feature_budget_mib == 0
    model.feature_budget_mib = budget
    output = predict(model)
    assert output["pred_scores"] == reference["pred_scores"]
    assert output["pred_labels"] == reference["pred_labels"]
    assert torch.equal(output["pred_masks"], reference["pred_masks"])


def test_the_temporary_file_is_gone_after_a_failure(model, monkeypatch, tmp_path):
    monkeypatch.setattr(feature_store.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(model, "feature_budget_mib", 0)
    monkeypatch.setattr(model.lbvq_module, "forward", lambda queries: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        predict(model)
    assert list(tmp_path.iterdir()) == []


def test_tubes_hold_the_masks_of_the_dense_output(model, reference):
    output = predict(model, dense_masks=False)
    assert isinstance(output["pred_masks"], MaskTubes)
    same({**output, "pred_masks": output["pred_masks"].to_dense()}, reference)


def test_frames_read_ahead_are_the_same_and_a_bad_one_is_found_where_it_is(model, reference, monkeypatch):
    monkeypatch.setattr(type(model), "reads_ahead", True)
    video = LazyFrames(VIDEO)
    output = model([{"image": video}])
    same(output, reference)
    assert output["pred_scores"] == reference["pred_scores"]
    assert video.reads == [1] * 7
    with pytest.raises(ValueError, match="frame 2 has"):
        predict(model, [*VIDEO[:2], VIDEO[2][:, :-1]])


def test_frames_are_read_once_and_may_be_decoded_when_indexed(model, reference):
    video = LazyFrames(VIDEO)
    same(model([{"image": video}]), reference)
    assert video.reads == [1] * 7


def test_float_frames_equal_integer_frames(model, reference):
    same(predict(model, VIDEO.float()), reference)


def test_masks_have_the_size_the_sample_asks_for(model):
    output = predict(model, height=101, width=139)
    assert output["image_size"] == (101, 139)
    assert output["pred_masks"].shape[-2:] == (101, 139)


@pytest.mark.parametrize("size", [(20, 25), (1, 1), (97, 33), (33, 97), (64, 64), (31, 160)])
@pytest.mark.parametrize("num_frames", [1, 2])
def test_any_frame_size_and_a_single_frame_work(model, size, num_frames):
    output = predict(model, frames(num_frames, *size, seed=2))
    assert output["pred_masks"].shape[1:] == (num_frames, *size)
    assert all(0 <= score <= 1 for score in output["pred_scores"])


def test_fewer_predictions_than_asked_for(model):
    assert len(predict(small_model(TEST__DETECTIONS_PER_IMAGE=3))["pred_scores"]) == 3


def test_frames_of_different_size_are_refused(model):
    video = [*VIDEO[:4], torch.zeros(3, 50, 60), *VIDEO[5:]]
    with pytest.raises(ValueError, match=r"frame 0 has \(3, 50, 70\), frame 4 has \(3, 50, 60\)"):
        model([{"image": video}])


def test_a_video_without_frames_is_refused(model):
    with pytest.raises(ValueError, match="no frames"):
        model([{"image": []}])


@pytest.mark.parametrize("frame", [torch.zeros(50, 70, 3), torch.zeros(50, 70)])
def test_frames_of_another_layout_are_refused(model, frame):
    with pytest.raises(ValueError, match=r"\(3, height, width\)"):
        model([{"image": [frame]}])


def test_a_video_can_be_encoded_in_pieces_of_exact_length(model):
    with torch.inference_mode():
        pieces = list(model.encode_video(list(VIDEO), chunk_size=3))
    assert [(piece.start, piece.frame_queries.shape[1]) for piece in pieces] == [(0, 3), (3, 3), (6, 1)]
    assert {(piece.image_size, piece.padded_size) for piece in pieces} == {((50, 70), (64, 96))}
    assert pieces[0].mask_features.shape == (3, 64, 16, 24)
    assert pieces[0].backbone_features["res5"].shape == (3, model.backbone.output_shape()["res5"].channels, 2, 3)


def test_two_videos_at_once_are_refused(model):
    with pytest.raises(ValueError, match="one video at a time, got a list of 2"):
        model([{"image": list(VIDEO)}] * 2)


def test_inference_changes_neither_the_model_nor_the_sample(model, reference):
    state = copy.deepcopy(model.state_dict())
    sample = {"image": list(VIDEO), "height": 60, "width": 80}
    before = {key: value for key, value in vars(model).items() if not key.startswith("_")}
    model([sample])
    assert sample.keys() == {"image", "height", "width"}
    assert before == {key: value for key, value in vars(model).items() if not key.startswith("_")}
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    same(predict(model), reference)


def test_half_precision_gives_nearly_the_same_scores(model, reference):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = predict(model)
    assert output["pred_scores"][:5] == pytest.approx(reference["pred_scores"][:5], rel=0.1)
    assert (output["pred_masks"].float().mean() - reference["pred_masks"].float().mean()).abs() < 0.05


def test_half_precision_training_gives_float32_losses_near_the_exact_ones():
    model = build_model(small_cfg()).train()
    samples = [training_sample(clip) for clip in clips(3)]
    with fixed_rand():
        exact = model(samples)
    with fixed_rand(), torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(samples)
    assert all(loss.dtype == torch.float32 for name, loss in losses.items() if "dice" not in name)
    assert sum(losses.values()).item() == pytest.approx(sum(exact.values()).item(), rel=0.05)


def test_a_compiled_model_has_the_same_names_and_masks(reference, monkeypatch, caplog):
    """Graph capture only; generating code takes minutes."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    with caplog.at_level("WARNING"):
        model = small_model(MODEL__COMPILE=True)
    assert "MODEL.COMPILE is for GPUs" in caplog.text
    assert model.state_dict().keys() == small_model().state_dict().keys()
    same(predict(model), reference)


def test_names_outside_the_clip_module_are_frozen_on_request():
    model = build_model(small_cfg(MODEL__LBVQ__FREEZE_DETECTOR=True))
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == {name for name, _ in model.named_parameters() if name.startswith("lbvq_module.")}
    model.train()
    losses = model([training_sample(clip) for clip in clips(3)])
    assert "loss_ce" in losses and "loss_lbvq_ce" in losses  # frame losses are still reported
    sum(losses.values()).backward()
    assert model.lbvq_module.class_embed.weight.grad is not None
    assert model.sem_seg_head.predictor.class_embed.weight.grad is None


def test_loss_names_follow_the_number_of_layers():
    losses = build_model(small_cfg()).train()([training_sample(clip) for clip in clips(3)])
    frame = {f"loss_{kind}{suffix}" for kind in ("ce", "mask", "dice") for suffix in ("", "_0", "_1", "_2")}
    clip = {f"loss_lbvq_{kind}{suffix}" for kind in ("ce", "mask", "dice") for suffix in ("", "_0")}
    assert losses.keys() == frame | clip | {"loss_lbvq_sim"}
    assert all(loss.dim() == 0 and loss.isfinite() for loss in losses.values())


@pytest.mark.parametrize("group, kept", [("MASK_FORMER", "loss_lbvq_ce_0"), ("LBVQ", "loss_ce_0")])
def test_without_deep_supervision_auxiliary_losses_are_left_out(group, kept):
    model = build_model(small_cfg(**{f"MODEL__{group}__DEEP_SUPERVISION": False})).train()
    losses = model([training_sample(clip) for clip in clips(3)])
    dropped = "loss_lbvq_ce_0" if group == "LBVQ" else "loss_ce_0"
    assert kept in losses and dropped not in losses


def test_without_similarity_weight_there_is_no_similarity_loss():
    losses = build_model(small_cfg(MODEL__LBVQ__SIM_WEIGHT=0.0)).train()([training_sample(clips(3)[0])])
    assert "loss_lbvq_sim" not in losses


def test_all_losses_reach_every_trainable_parameter():
    model = build_model(small_cfg()).train()
    sum(model([training_sample(clip) for clip in clips(3)]).values()).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_a_training_clip_of_the_wrong_length_is_refused():
    model = build_model(small_cfg()).train()
    with pytest.raises(ValueError, match=r"INPUT.SAMPLING_FRAME_NUM = 3 frames, got 4 images"):
        model([training_sample(clips(4)[0])])


def test_unequal_numbers_of_queries_are_refused():
    with pytest.raises(ValueError, match=r"MODEL.LBVQ.NUM_OBJECT_QUERIES must equal"):
        build_model(small_cfg(MODEL__LBVQ__NUM_OBJECT_QUERIES=9))


@pytest.mark.parametrize("key", ["TEST_RUN_CHUNK_SIZE", "TEST_INTERPOLATE_CHUNK_SIZE"])
def test_chunk_sizes_must_be_positive(key):
    with pytest.raises(ValueError, match=rf"{key} must be at least 1, got 0"):
        build_model(small_cfg(**{f"MODEL__LBVQ__{key}": 0}))


def test_pixel_statistics_and_weights_of_losses_are_not_in_checkpoints():
    keys = build_model(small_cfg()).state_dict().keys()
    assert not [key for key in keys if "pixel_mean" in key or "pixel_std" in key or "weight_dict" in key]
    assert {"criterion.empty_weight", "lbvq_criterion.empty_weight"} <= set(keys)
