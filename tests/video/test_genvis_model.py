"""Behaviour of the whole GenVIS model that does not need recorded numbers, on a small configuration."""

from __future__ import annotations

import itertools
import logging

import pytest
import torch
from golden_fill import frames
from golden_samples import training_sample
from synth_targets import clips, empty_clips
from video_models import LazyFrames, load_cfg, small_cfg, small_model

from lbvq.engine.weights import load_weights
from lbvq.masks.tubes import MaskTubes
from lbvq.modeling.online.segmenter import evidence_length
from mask2former.registry import build_model

VIDEO = frames(8, 50, 70, seed=1)
OTHER = frames(8, 50, 70, seed=9)
LENGTHS = {"online": 1, "semi_online": 3}


def small(length: int = 1, **changes) -> torch.nn.Module:
    changes = {"INPUT__SAMPLING_FRAME_NUM": 6, "TEST__DETECTIONS_PER_IMAGE": 10, **changes}
    return small_model("genvis", MODEL__GENVIS__LEN_CLIP_WINDOW=length, **changes)


@pytest.fixture(scope="module", params=list(LENGTHS))
def model(request):
    return small(LENGTHS[request.param])


def predict(model, video=VIDEO, **sample):
    return model([{"image": list(video), **sample}])


def steps(model, video: torch.Tensor) -> list[tuple[dict, torch.Tensor]]:
    """State and mask logits after every step."""
    state, results = model.start_stream(), []
    with torch.inference_mode():
        for evidence, _ in model.steps(list(video)):
            state, masks = model.advance(state, evidence)
            results.append((state, masks.logits()))
    return results


def leaves(tree) -> list[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        return [tree]
    return [leaf for value in (tree.values() if isinstance(tree, dict) else tree) for leaf in leaves(value)]


def equal(one, other) -> bool:
    return all(torch.equal(*pair) for pair in zip(leaves(one), leaves(other), strict=True))


@pytest.mark.parametrize("count", [1, 2, 5, 7])
def test_what_follows_does_not_change_what_was_found(count):
    """The prefix property of the online method: bit for bit, whatever the frames after the first `count` are."""
    model = small(1)
    ends = [VIDEO[:count], VIDEO, torch.cat((VIDEO[:count], OTHER[count:]))]
    runs = [steps(model, video) for video in ends]
    for t in range(count):
        for run in runs[1:]:
            assert equal(run[t], runs[0][t])
    if count < 7:
        assert not equal(runs[1][-1], runs[2][-1])


def test_a_step_leaves_the_state_before_as_it_is(model):
    with torch.inference_mode():
        evidence = [step for step, _ in model.steps(list(VIDEO))]
        state, _ = model.advance(model.start_stream(), evidence[0])
        copies = [leaf.clone() for leaf in leaves(state)]
        first = model.advance(state, evidence[1])
        assert equal(copies, leaves(state))
        second = model.advance(state, evidence[1])
    assert equal((first[0], first[1].logits()), (second[0], second[1].logits()))


def test_a_video_is_cut_into_steps_of_which_the_last_may_be_shorter(model):
    with torch.inference_mode():
        lengths = [evidence_length(step) for step, _ in model.steps(list(VIDEO))]
    assert lengths == ([1] * 8 if model.clip_length == 1 else [3, 3, 2])


def test_earlier_clips_matter(model):
    """The same last frames after another beginning give other results, through the carried queries and the memory."""
    start = model.clip_length
    other = torch.cat((OTHER[:start], VIDEO[start:]))
    assert not equal(steps(model, VIDEO)[-1][0]["query"], steps(model, other)[-1][0]["query"])


def test_the_output_is_the_published_dictionary(model):
    output = predict(model, height=100, width=140)
    assert output.keys() == {"image_size", "pred_scores", "pred_labels", "pred_masks"}
    assert output["image_size"] == (100, 140) and output["pred_masks"].shape == (10, 8, 100, 140)
    assert output["pred_masks"].dtype == torch.bool and output["pred_masks"].any()
    assert output["pred_scores"] == sorted(output["pred_scores"], reverse=True)


def test_tubes_hold_the_masks_of_the_dense_output(model):
    dense, tubes = predict(model), predict(model, dense_masks=False)
    assert isinstance(tubes["pred_masks"], MaskTubes)
    assert tubes["pred_scores"] == dense["pred_scores"]
    assert torch.equal(tubes["pred_masks"].to_dense(), dense["pred_masks"])


@pytest.mark.parametrize("budget", [0, 0.05])
def test_results_do_not_depend_on_the_memory_budget(model, budget, monkeypatch):
    want = predict(model)
    monkeypatch.setattr(model, "feature_budget_mib", budget)
    got = predict(model)
    assert got["pred_scores"] == want["pred_scores"]
    assert torch.equal(got["pred_masks"], want["pred_masks"])


def test_frames_are_read_once(model):
    video = LazyFrames(VIDEO)
    model([{"image": video}])
    assert set(video.reads) <= {1, 2} and video.reads[1:] == [1] * 7  # the first also says how large frames are


def test_the_score_of_a_pair_is_its_best_over_the_clips(model):
    (state, _) = steps(model, VIDEO)[-1]
    scores, labels, rows = model.decide(state)
    assert torch.equal(scores, state["probabilities"][rows, labels])
    before = steps(model, VIDEO)[0][0]["probabilities"]
    assert (state["probabilities"] >= before).all() and (state["probabilities"] > before).any()


def test_the_state_grows_by_one_vector_per_query_and_clip(model):
    sizes = [sum(leaf.numel() for leaf in leaves(state)) for state, _ in steps(model, torch.cat((VIDEO, OTHER)))]
    growth = {later - earlier for earlier, later in itertools.pairwise(sizes)}
    assert growth == {8 * 64}


@pytest.mark.parametrize("num_frames", [1, 2, 4])
def test_short_videos_work(model, num_frames):
    assert predict(model, VIDEO[:num_frames])["pred_masks"].shape == (10, num_frames, 50, 70)


def test_a_video_without_frames_is_refused(model):
    with pytest.raises(ValueError, match="no frames"):
        predict(model, [])


def losses_of(model, samples) -> dict[str, torch.Tensor]:
    return model.train()([training_sample(sample) for sample in samples])


def test_loss_names_follow_the_clips_and_the_layers():
    losses = losses_of(small(3), clips(6))
    kinds = ["ce", "mask", "dice", "ce_0", "mask_0", "dice_0", "sim"]
    assert losses.keys() == {f"loss_genvis_{kind}_clip{clip}" for kind in kinds for clip in (0, 1)}
    assert all(loss.dim() == 0 and loss.isfinite() for loss in losses.values())


def test_only_the_clip_module_learns_and_all_of_it():
    model = small(2)
    sum(losses_of(model, clips(6)).values()).backward()
    with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert with_gradient == {name for name, _ in model.named_parameters() if name.startswith("vita_module.")}


def test_the_detector_can_be_trained_as_well():
    model = small(3, MODEL__VITA__FREEZE_DETECTOR=False)
    losses = losses_of(model, clips(6))
    assert {"loss_ce", "loss_mask_0", "loss_genvis_ce_clip1"} <= losses.keys()
    sum(losses.values()).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_a_batch_without_any_object_trains_the_classes_only():
    losses = losses_of(small(3), empty_clips(6))
    assert all((loss > 0) == ("_ce" in name) for name, loss in losses.items())
    sum(losses.values()).backward()


def test_left_over_frames_are_announced(caplog):
    with caplog.at_level(logging.WARNING):
        model = small(4)
    assert "SAMPLING_FRAME_NUM 6 is no multiple of MODEL.GENVIS.LEN_CLIP_WINDOW 4" in caplog.text
    assert {name.rsplit("_", 1)[1] for name in losses_of(model, clips(6))} == {"clip0"}


def test_training_clips_shorter_than_a_window_are_refused():
    with pytest.raises(ValueError, match="LEN_CLIP_WINDOW is 7"):
        losses_of(small(7), clips(6))


def test_a_window_without_frames_is_refused():
    with pytest.raises(ValueError, match=r"at least 1, got 0; set MODEL.GENVIS.LEN_CLIP_WINDOW"):
        build_model(small_cfg("genvis", MODEL__GENVIS__LEN_CLIP_WINDOW=0))


def test_training_starts_from_vita_and_only_the_memory_is_new(tmp_path):
    vita = small_model("vita")
    torch.save({"model": vita.state_dict()}, tmp_path / "vita.pth")
    model = build_model(small_cfg("genvis"))
    report = load_weights(model, tmp_path / "vita.pth", allow_missing="new_modules")
    new = {
        f"vita_module.pre_{of}_embed_{kind}.{part}"
        for of in ("memory", "query")
        for kind in "kv"
        for part in ("weight", "bias")
    }
    assert set(report.missing) == new | {"genvis_criterion.empty_weight"}
    assert torch.equal(model.vita_module.query_feat.weight, vita.vita_module.query_feat.weight)


def test_published_configurations_differ_in_the_length_of_a_clip():
    for length, mode in ((1, "online"), (3, "semi_online")):
        cfg = load_cfg(f"ovis/genvis_SWIN_bs8_{mode}.yaml")
        assert cfg.MODEL.GENVIS.LEN_CLIP_WINDOW == length
