"""VidEoMT and PMT over videos and in training: what follows from carrying the queries on."""

from __future__ import annotations

import argparse
import io
import runpy
from functools import partialmethod
from typing import Any

import numpy as np
import pytest
import torch
from golden_fill import frames
from golden_samples import training_sample
from helpers import ROOT
from synth_targets import clips
from torch import Tensor
from vit_models import PMT, TINY, VIDEOMT, cfg_of, tiny, video

from lbvq.engine.activation_checkpointing import enable_activation_checkpointing
from lbvq.inference.predictor import VideoPredictor
from lbvq.inference.results import FramePrediction
from lbvq.inference.stream import StreamPredictor
from lbvq.modeling.online.segmenter import OnlineSegmenter
from mask2former.registry import build_model

VIDEO = frames(7, 50, 70, seed=1).permute(0, 2, 3, 1).numpy()  # (T, H, W, 3)
DINOV3 = {**VIDEOMT, "MODEL.BACKBONE.MODEL_NAME": "facebook/dinov3-vits16-pretrain-lvd1689m"}
METHODS = {"videomt": VIDEOMT, "videomt_dinov3": DINOV3, "pmt": PMT}


@pytest.fixture(scope="module", params=list(METHODS))
def pair(request):
    """A model and its configuration; frames keep their size, which patches do not fill."""
    method = METHODS[request.param]
    return tiny(method), cfg_of({**method, **TINY}, INPUT__MIN_SIZE_TEST=0)


def same_frame(one: FramePrediction, other: FramePrediction) -> None:
    for name in ("masks", "scores", "labels", "ids"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name


# -- streams


def test_a_stream_is_the_whole_video_bit_for_bit(pair):
    model, cfg = pair
    want = VideoPredictor(model, cfg=cfg)(VIDEO)
    stream = StreamPredictor(model, cfg=cfg)
    stream.steps(VIDEO)
    got = stream.finish()
    assert got.masks == want.masks
    assert np.array_equal(got.scores, want.scores) and np.array_equal(got.labels, want.labels)
    assert 0 < want.masks.areas().sum() < want.masks.areas().size * 50 * 70


def test_on_a_cpu_a_whole_video_is_encoded_frame_by_frame_as_a_stream_is(pair, monkeypatch):
    """Products of several frames at once may be rounded otherwise, so that nothing would be equal bit for bit."""
    model, _ = pair
    observe, lengths = model.observe, []

    def counted(images, start):
        lengths.append(len(images.tensor))
        return observe(images, start)

    monkeypatch.setattr(model, "observe", counted)
    model([video(torch.from_numpy(VIDEO).permute(0, 3, 1, 2))])
    assert lengths == [1] * 7


def test_answers_to_the_first_frames_do_not_depend_on_what_follows(pair):
    model, cfg = pair
    answers = StreamPredictor(model, cfg=cfg).steps(VIDEO)
    others = StreamPredictor(model, cfg=cfg).steps([*VIDEO[:4], *VIDEO[:3]])
    for one, other in zip(answers[:4], others[:4], strict=True):
        same_frame(one, other)
    assert not np.array_equal(answers[4].scores, others[4].scores)


def test_a_stream_goes_on_elsewhere_from_a_saved_state(pair):
    model, cfg = pair
    first, second = StreamPredictor(model, cfg=cfg), StreamPredictor(model, cfg=cfg)
    first.steps(VIDEO[:3])
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    for frame in VIDEO[3:]:
        same_frame(first.step(frame), second.step(frame))
    one, other = first.finish(), second.finish()
    assert one.masks == other.masks and np.array_equal(one.scores, other.scores)


def test_a_stream_remembers_as_much_after_many_frames_as_after_one(pair):
    """One (N, C) tensor, the sums of class logits and their number; identities are at most N, whatever the classes."""
    model, cfg = pair
    stream = StreamPredictor(model, cfg=cfg, keep_masks=False)
    shapes, identities, classes = [], set(), set()
    for _ in range(5):
        for answer in stream.steps(VIDEO):
            identities |= set(answer.ids.tolist())
            classes |= set(zip(answer.ids.tolist(), answer.labels.tolist(), strict=True))
        state = stream.state_dict()["state"]
        shapes.append({name: tuple(tensor.shape) for name, tensor in state.items()})
    assert shapes == [{"carried": (1, 8, 48), "logits_sum": (8, 14), "num_logits": (8, 1)}] * 5
    assert identities == set(range(1, 9)) and len(classes) > 8  # some object's best class changed


def test_what_was_seen_before_decides_what_is_seen_now(pair):
    """The queries of a frame are made from those of the frame before; without them it is an image model."""
    model, _ = pair
    clip = [torch.from_numpy(frame).permute(2, 0, 1) for frame in VIDEO]
    with torch.inference_mode():
        state, steps = model.start_stream(), [step for step, _ in model.steps(clip)]
        for step in steps:
            state, masks = model.advance(state, step)
        _, alone = model.advance(model.start_stream(), steps[-1])
    assert not torch.allclose(masks.mixing, alone.mixing, atol=1e-3)
    single = model([video(torch.stack(clip[-1:]))])
    assert single["pred_masks"].shape[1] == 1


@pytest.mark.parametrize("step", [2, 7])
def test_results_do_not_depend_on_the_number_of_frames_encoded_at_once(pair, monkeypatch, step):
    """Up to rounding, which libraries do otherwise for other batch sizes."""
    model, _ = pair
    clip = video(torch.from_numpy(VIDEO).permute(0, 3, 1, 2))
    want = model([clip])
    monkeypatch.setattr(OnlineSegmenter, "encode_step", step)
    got = model([clip])
    assert got["pred_labels"] == want["pred_labels"]
    assert got["pred_scores"] == pytest.approx(want["pred_scores"], rel=1e-4)
    assert (got["pred_masks"] != want["pred_masks"]).float().mean() < 1e-3


def test_a_frame_whose_outputs_are_not_finite_is_left_out(pair, caplog):
    """The frames before and after it are as if it had not been there, but for its own place in the video."""
    model, _ = pair
    clip = [torch.from_numpy(frame).permute(2, 0, 1) for frame in VIDEO[:3]]
    with torch.inference_mode():
        first, second, third = (step for step, _ in model.steps(clip))
        broken = {name: torch.full_like(tensor, float("nan")) for name, tensor in second.items()}
        state, _ = model.advance(model.start_stream(), first)
        after, masks = model.advance(state, broken)
        assert (masks.logits() > 0).sum() == 0
        assert torch.equal(after["carried"], state["carried"])
        assert torch.equal(after["logits_sum"], state["logits_sum"])
        _, one = model.advance(after, third)
        _, other = model.advance(state, third)
        assert torch.equal(one.logits(), other.logits())
    assert "not finite" in caplog.text


def test_masks_are_kept_before_they_are_enlarged(pair):
    """What a video keeps of a frame is its patch tokens, a sixteenth of the features of its pixels."""
    model, _ = pair
    with torch.inference_mode():
        step, _ = next(model.steps([torch.from_numpy(VIDEO[0]).permute(2, 0, 1)]))
        _, masks = model.advance(model.start_stream(), step)
        assert masks.features.shape == (1, 48, 4, 6)
        assert masks.maps.shape == (1, 48, 16, 24)
        want = torch.einsum("nc,tchw->nthw", masks.mixing, masks.maps)
        torch.testing.assert_close(masks.logits(torch.tensor([3, 1])), want[[3, 1]])


# -- training


def samples(count: int = 1) -> list[dict[str, Any]]:
    chosen = clips(3)[:count]
    for clip in chosen:
        clip["classes"][clip["classes"] > 12] = 12
    return [training_sample(clip) for clip in chosen]


def gradients(model: torch.nn.Module, seed: int = 0, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    model.train().zero_grad()
    torch.manual_seed(seed)
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        losses = model(samples())
    sum(losses.values()).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("method", METHODS)
def test_recomputed_activations_give_the_same_gradients(method):
    """With DINOv3 the random stretch of coordinates must be that of the first pass."""
    model = tiny(METHODS[method])
    want = gradients(model)
    names = enable_activation_checkpointing(model)
    got = gradients(model)
    assert any("blocks.3" in name for name in names) or method == "pmt"
    assert set(got) == set(want)
    for name, gradient in got.items():
        torch.testing.assert_close(gradient, want[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("method", METHODS)
def test_a_step_in_bfloat16_is_near_the_one_in_float32(method):
    model = tiny(METHODS[method])
    exact, rough = gradients(model), gradients(model, dtype=torch.bfloat16)
    flat = [torch.cat([each[name].flatten() for name in sorted(each)]) for each in (exact, rough)]
    assert torch.cosine_similarity(*flat, dim=0) > 0.9


def test_the_gradient_goes_back_through_all_frames():
    """The first frame's queries are trained by what the last frame says alone."""
    model = tiny().train()
    images = model.batch_clips(samples()).tensor
    outputs = model.clip_outputs(images, 1)
    outputs["pred_logits"][-1].square().sum().backward()
    assert model.backbone.q.weight.grad.abs().sum() > 0
    assert model.backbone.query_updater.weight.grad.abs().sum() > 0
    model.zero_grad()
    model.clip_outputs(images, 1)["pred_logits"][0].square().sum().backward()
    assert model.backbone.query_updater.weight.grad.abs().sum() == 0


def test_trained_on_single_images_it_has_nothing_to_carry_on():
    """Several processes of training want a gradient of everything that is trained."""
    model = tiny(INPUT__SAMPLING_FRAME_NUM=1).train()
    sample = samples()[0]
    sample["image"], sample["instances"] = sample["image"][:1], sample["instances"][:1]
    sum(model([sample]).values()).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert not model.backbone.query_updater.weight.requires_grad


@torch.no_grad()
def test_the_losses_of_two_clips_are_those_of_both(monkeypatch):
    """Class losses are means over queries, mask losses over objects: 3 of the first clip, 2 of the second."""
    monkeypatch.setattr(torch, "rand", lambda *size, **options: torch.full(size, 0.5))
    model = tiny().train()
    first, second = samples(2)
    second["image"] = [image[:, :90] for image in second["image"]]  # one padded size for both
    for frame in second["instances"]:
        frame._image_size = (90, frame.image_size[1])
        frame.gt_masks = frame.gt_masks[:, :90]
    both = model([first, second])
    alone = [model([sample]) for sample in (first, second)]
    if model.batch_clips([first]).tensor.shape != model.batch_clips([second]).tensor.shape:
        pytest.fail("the clips must be padded to one size")
    want = (3 * alone[0]["loss_dice"] + 2 * alone[1]["loss_dice"]) / 5
    torch.testing.assert_close(both["loss_dice"], want, rtol=1e-4, atol=1e-5)


def test_the_random_stretch_of_dinov3_is_one_for_a_whole_clip(monkeypatch):
    drawn = []
    original = torch.rand

    def counted(*size: Any, **options: Any) -> Tensor:
        if size == (1,):
            drawn.append(size)
        return original(*size, **options)

    monkeypatch.setattr(torch, "rand", counted)
    model = tiny(DINOV3).train()
    model.clip_outputs(model.batch_clips(samples()).tensor, 1)
    assert len(drawn) == 1


# -- settings


@pytest.mark.parametrize("blocks", [[], [1, 2], [3, 2], [0, 3]])
def test_blocks_of_the_queries_that_are_not_the_last_are_refused(blocks):
    with pytest.raises(ValueError, match=r"SEGMENTER_BLOCKS must be the last of the 4 blocks, such as \[2, 3\]"):
        build_model(cfg_of({**VIDEOMT, **TINY}, MODEL__BACKBONE__SEGMENTER_BLOCKS=blocks))


def test_all_blocks_may_take_queries():
    model = tiny(MODEL__BACKBONE__SEGMENTER_BLOCKS=[0, 1, 2, 3])
    assert model.num_auxiliary == 3
    assert len(model([video(torch.from_numpy(VIDEO[:2]).permute(0, 3, 1, 2))])["pred_scores"]) == 10


def test_without_deep_supervision_only_the_last_output_is_trained():
    model = tiny(MODEL__BACKBONE__DEEP_SUPERVISION=False).train()
    assert set(model(samples())) == {"loss_ce", "loss_mask", "loss_dice"}


def test_queries_may_be_carried_on_after_the_last_norm():
    """As the published DINOv3 models of panoptic segmentation do."""
    model = tiny(MODEL__BACKBONE__NORM_QUERIES=True)
    tokens = torch.randn(1, 20, 48)
    assert torch.equal(model.network.carried(tokens), model.network.last_norm(tokens[:, :8]))
    assert torch.equal(tiny().network.carried(tokens), tokens[:, :8])


def test_frames_are_not_matched():
    with pytest.raises(ValueError, match="has no queries of single frames that could be matched"):
        build_model(cfg_of({**VIDEOMT, **TINY}, TEST__MATCH_FRAMES=True))


def test_names_of_the_data_set_fit_the_classes_of_the_network(caplog):
    """The published files leave MODEL.SEM_SEG_HEAD.NUM_CLASSES at a number that means nothing here."""
    settings = {**VIDEOMT, **TINY, "MODEL.BACKBONE.NUM_CLASSES": 40, "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 54}
    cfg = cfg_of(settings)
    cfg.DATASETS.TEST = ("ytvis_2019_val",)
    predictor = VideoPredictor(build_model(cfg).eval(), cfg=cfg)
    assert predictor.names is not None and len(predictor.names) == 40
    with pytest.raises(ValueError, match="the model has 40 classes, got 2 names"):
        VideoPredictor(build_model(cfg).eval(), ["cat", "dog"], cfg=cfg)


def test_compiled_blocks_give_the_same_objects(monkeypatch):
    """MODEL.COMPILE with a backend that only traces: every block can be made a graph, and names stay as they are."""
    plain = tiny()
    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(torch.nn.Module.compile, backend="eager"))
    compiled = tiny(MODEL__COMPILE=True)
    assert list(compiled.state_dict()) == list(plain.state_dict())
    clip = video(torch.from_numpy(VIDEO[:2]).permute(0, 3, 1, 2))
    torch._dynamo.reset()
    got, want = compiled([clip]), plain([clip])
    assert got["pred_labels"] == want["pred_labels"]
    assert got["pred_scores"] == pytest.approx(want["pred_scores"], rel=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0


def test_the_benchmark_counts_the_operations_of_a_frame():
    """What torch's counter found for the published network, without the sums of the matching that follows."""
    tool = runpy.run_path(str(ROOT / "tools" / "benchmarks" / "plain_vit.py"))
    args = argparse.Namespace(device="cpu", compile=False)
    assert tool["gflop"]("S", (448, 800), args) == pytest.approx(114, abs=1)
    assert tool["gflop"]("S", (544, 960), args) == pytest.approx(189, abs=1)
