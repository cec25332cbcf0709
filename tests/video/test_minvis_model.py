"""Behaviour of MinVIS and VISAGE that does not need recorded numbers, on small models."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from frame_models import SMALL, frame_instances, sharp_model
from golden_fill import frames
from helpers import CONFIGS
from video_models import LazyFrames, small_cfg

from lbvq.config import get_cfg
from lbvq.masks.tubes import MaskTubes
from lbvq.modeling.online.frame_matching import MatchedFrames, as_tested, online_form
from mask2former.registry import build_model

FILES = {"minvis": "synthetic/minvis_R18_tiny.yaml", "visage": "synthetic/visage_R18_tiny.yaml"}
VIDEO = frames(8, 50, 70, seed=1)


def small_model(method: str, **changes):
    return sharp_model(FILES[method], **{**SMALL, **changes})


@pytest.fixture(scope="module", params=sorted(FILES))
def method(request):
    return request.param


@pytest.fixture(scope="module")
def model(method):
    return small_model(method)


@pytest.fixture(scope="module")
def reference(model):
    return predict(model)


def predict(model, video=VIDEO, **sample):
    return model([{"image": list(video), **sample}])


def same(one: dict, other: dict) -> None:
    assert one["image_size"] == other["image_size"]
    assert one["pred_labels"] == other["pred_labels"]
    assert one["pred_scores"] == other["pred_scores"]
    assert torch.equal(torch.as_tensor(one["pred_masks"]), torch.as_tensor(other["pred_masks"]))


def stream(model, video, state=None):
    """Run a video frame by frame through what an online method offers: the states and all masks after every frame."""
    state = model.start_stream() if state is None else state
    states, masks = [state], []
    with torch.inference_mode():
        for frame in video:
            state, step = model.advance(state, model.observe(model.batch_images([frame]), len(masks)))
            states.append(state)
            masks.append(step.logits())
    return states, masks


def test_the_output_is_the_published_dictionary(method, model, reference):
    assert reference.keys() == {"image_size", "pred_scores", "pred_labels", "pred_masks"}
    count = {"minvis": 10, "visage": 13}[method]  # literal ten, and as many as there are classes
    assert len(reference["pred_scores"]) == len(reference["pred_labels"]) == count
    assert reference["pred_masks"].shape == (count, 8, 50, 70) and reference["pred_masks"].dtype == torch.bool
    assert reference["pred_masks"].any() and not reference["pred_masks"].all()
    assert reference["pred_scores"] == sorted(reference["pred_scores"], reverse=True)


@pytest.mark.parametrize("count, want", [(3, 3), (10_000, 8 * 13)])
def test_the_number_of_predictions_is_a_setting(method, count, want):
    key = f"MODEL__{method.upper()}__NUM_PREDICTIONS"
    assert len(predict(small_model(method, **{key: count}), VIDEO[:2])["pred_scores"]) == want


@pytest.mark.parametrize("budget", [0, 0.05])
def test_results_do_not_depend_on_the_memory_budget(model, reference, monkeypatch, budget):
    monkeypatch.setattr(model, "feature_budget_mib", budget)
    same(predict(model), reference)


def test_tubes_hold_the_masks_of_the_dense_output(model, reference):
    output = predict(model, dense_masks=False)
    assert isinstance(output["pred_masks"], MaskTubes)
    same({**output, "pred_masks": output["pred_masks"].to_dense()}, reference)


def test_frames_are_read_once(model, reference):
    video = LazyFrames(VIDEO)
    same(model([{"image": video}]), reference)
    assert video.reads == [1] * 8


def test_a_stream_decides_what_inference_reports(model, reference):
    states, _ = stream(model, VIDEO)
    scores, labels, rows = model.decide(states[-1])
    if not model.use_quality:
        assert scores.tolist() == reference["pred_scores"]
        assert labels.tolist() == reference["pred_labels"]
    assert len(set(rows.tolist())) <= 8 and sorted(labels.tolist()) == sorted(reference["pred_labels"])


def test_masks_of_the_first_frames_do_not_depend_on_what_follows(model):
    _, masks = stream(model, VIDEO)
    other = frames(8, 50, 70, seed=9)
    other[:5] = VIDEO[:5]
    _, other_masks = stream(model, other)
    assert all(torch.equal(masks[t], other_masks[t]) for t in range(5))
    assert not torch.equal(masks[5], other_masks[5])


def test_objects_change_places_between_frames(model):
    """Otherwise the tests here could not tell matching from doing nothing."""
    with torch.inference_mode():
        state, orders = model.start_stream(), []
        for t, frame in enumerate(VIDEO):
            state, step = model.advance(state, model.observe(model.batch_images([frame]), t))
            orders.append(step.mixing.tolist())
    assert orders[0] == list(range(8)) and any(order != orders[0] for order in orders[1:])
    assert all(sorted(order) == orders[0] for order in orders)


def test_a_stream_can_be_saved_and_gone_on_with(model):
    states, masks = stream(model, VIDEO)
    file = io.BytesIO()
    torch.save(states[4], file)
    file.seek(0)
    later_states, later_masks = stream(model, VIDEO[4:], torch.load(file, weights_only=True))
    assert all(torch.equal(one, other) for one, other in zip(masks[4:], later_masks, strict=True))
    assert torch.equal(model.decide(states[-1])[0], model.decide(later_states[-1])[0])


def test_a_step_leaves_the_state_before_it_alone(model):
    states, _ = stream(model, VIDEO[:3])
    before = copy.deepcopy(states[-1])
    stream(model, VIDEO[3:5], states[-1])
    assert str(before) == str(states[-1])


def test_what_a_stream_remembers_does_not_grow(model):
    def count(value) -> int:
        if isinstance(value, torch.Tensor):
            return value.numel()
        return sum(count(each) for each in (value.values() if isinstance(value, dict) else value))

    states, _ = stream(model, frames(12, 32, 32))
    assert count(states[12]) == count(states[6])


def test_before_the_first_frame_nothing_is_reported(model):
    assert [len(part) for part in model.decide(model.start_stream())] == [0, 0, 0]


@pytest.mark.parametrize("num_frames", [1, 2])
def test_one_object_query_works(method, num_frames):
    output = predict(small_model(method, MODEL__MASK_FORMER__NUM_OBJECT_QUERIES=1), VIDEO[:num_frames])
    assert output["pred_masks"].shape[1:] == (num_frames, 50, 70)


def test_objects_without_any_pixel_work(method):
    model = small_model(method)
    with torch.no_grad():
        model.sem_seg_head.predictor.mask_embed.layers[2].weight.zero_()
        model.sem_seg_head.predictor.mask_embed.layers[2].bias.zero_()  # logits are 0, which is outside
    output = predict(model)
    assert not output["pred_masks"].any()
    assert all(score == 0 for score in output["pred_scores"]) == (method == "visage")  # mask quality 0


@pytest.mark.parametrize("bad", [0, 3, 7])
def test_a_frame_with_overflow_changes_neither_order_nor_scores_of_the_others(model, bad, monkeypatch, caplog):
    """In half precision a network may overflow in one frame; the other frames are tracked as if it were not there."""
    normal = model.encode_frames

    def overflowing(images, start=0):
        encoded = normal(images, start)
        if start == bad:
            encoded.frame_queries = torch.full_like(encoded.frame_queries, float("nan"))
            for name in ("pred_logits", "pred_masks"):
                encoded.outputs[name] = torch.full_like(encoded.outputs[name], float("nan"))
        return encoded

    monkeypatch.setattr(model, "encode_frames", overflowing)
    output = predict(model)
    assert "not finite" in caplog.text
    assert not output["pred_masks"][:, bad].any()
    assert all(0 < score < 1 for score in output["pred_scores"])
    rest = [t for t in range(8) if t != bad]
    monkeypatch.setattr(model, "encode_frames", normal)
    without = predict(model, VIDEO[rest])
    if bad == 0:  # there the objects get another order
        assert output["pred_scores"] == pytest.approx(without["pred_scores"], rel=0.2)
    elif not model.use_quality:
        assert output["pred_scores"] == pytest.approx(without["pred_scores"])
        assert torch.equal(output["pred_masks"][:, rest], without["pred_masks"])


# -- training


def clip(num_frames: int, *objects, seed: int = 5) -> dict:
    """A training clip; an object is (id, class, ellipse) in all frames, or a list of these with None where absent."""
    rows = [list(each) if isinstance(each, list) else [each] * num_frames for each in objects]
    rows = [[row[t] or (-1, -1, None) for row in rows] for t in range(num_frames)]
    return {
        "image": list(frames(num_frames, 48, 64, seed=seed)),
        "instances": [frame_instances(48, 64, row) for row in rows],
    }


A, B = (4, 3, (20, 20, 12, 14)), (9, 7, (30, 44, 10, 12))


def losses_of(method: str, *samples, **changes):
    model = small_model(method, **changes).train()
    return model, model(list(samples))


def num_frames_of(method: str) -> int:
    return {"minvis": 1, "visage": 3}[method]


def test_loss_names_follow_the_number_of_layers(method):
    _, losses = losses_of(method, clip(num_frames_of(method), A, B))
    want = {f"loss_{kind}{suffix}" for kind in ("ce", "mask", "dice") for suffix in ("", "_0", "_1", "_2")}
    if method == "visage":
        want |= {"loss_reid", "loss_aux_reid", "loss_reid_app", "loss_aux_reid_app"}
    assert losses.keys() == want
    assert all(loss.dim() == 0 and loss.isfinite() for loss in losses.values())


def test_all_losses_reach_every_trainable_parameter(method):
    model, losses = losses_of(method, clip(num_frames_of(method), A, B))
    sum(losses.values()).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_a_clip_without_objects_trains(method):
    model, losses = losses_of(method, clip(num_frames_of(method)))
    assert losses["loss_mask"] == losses["loss_dice"] == 0 and losses["loss_ce"] > 0
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():  # all of them, as training on several processes needs
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_a_clip_of_several_frames_trains_minvis():
    _, losses = losses_of("minvis", clip(2, A, [B, None]), INPUT__SAMPLING_FRAME_NUM=2)
    assert all(loss.isfinite() for loss in losses.values())


# -- matching as a setting


def test_matching_can_be_switched_on_for_a_method_with_a_clip_module():
    """The frame segmenter of LBVQ is tracked as MinVIS tracks the same weights."""
    changes = {"TEST__MATCH_FRAMES": True, "TEST__DETECTIONS_PER_IMAGE": 10, "MODEL__SEM_SEG_HEAD__NUM_CLASSES": 13}
    cfg = small_cfg(**changes)
    lbvq = build_model(cfg).eval()
    minvis = small_model("minvis")
    missing = lbvq.load_state_dict(minvis.state_dict(), strict=False).missing_keys
    assert all(name.startswith("lbvq_") for name in missing)
    same(predict(as_tested(lbvq)), predict(minvis))
    assert isinstance(online_form(lbvq), MatchedFrames)
    lbvq.train()
    assert "loss_lbvq_ce" in lbvq([clip(cfg.INPUT.SAMPLING_FRAME_NUM, A, B)])  # training is the method's own


def test_matching_of_frames_replaces_the_memory_of_visage():
    visage, minvis = small_model("visage", TEST__MATCH_FRAMES=True), small_model("minvis")
    minvis.load_state_dict(visage.state_dict(), strict=False)
    minvis.num_predictions = visage.num_predictions
    same(predict(as_tested(visage)), predict(minvis))


def test_an_online_method_is_its_own_online_form(model):
    assert online_form(model) is model


def test_an_offline_method_has_no_online_form_and_says_what_to_do():
    with pytest.raises(ValueError, match=r"Lbvq needs all frames .* TEST.MATCH_FRAMES True"):
        online_form(build_model(small_cfg()))


def test_small_models_of_all_methods_see_as_many_frames_per_step():
    names = ["minvis", "lbvq", "vita", "visage", "ctvis"]
    recipes = {name: get_cfg() for name in names}
    for name, recipe in recipes.items():
        recipe.merge_from_file(str(CONFIGS / "synthetic" / f"{name}_R18_tiny.yaml"))
    assert {cfg.SOLVER.IMS_PER_BATCH * cfg.INPUT.SAMPLING_FRAME_NUM for cfg in recipes.values()} == {12}
    start = f"{recipes['minvis'].OUTPUT_DIR}/model_final.pth"
    for name in ("vita", "visage", "ctvis"):
        solver = recipes[name].SOLVER
        assert (recipes[name].MODEL.WEIGHTS, solver.BASE_LR, solver.MAX_ITER) == (start, 0.0005, 1500), name
