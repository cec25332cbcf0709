"""MinVIS against numbers recorded from the published code (`minvis_r50.npz`): two videos, and the losses of two clips.

The published code itself moves by 6e-6 in queries, 2e-5 in logits and 4e-5 in masks between one and two threads.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fixed_points import fixed_rand
from frame_models import MINVIS, frame_instances, recorded_calls, sharp_model
from golden_fill import frames
from helpers import GOLDEN

from lbvq.modeling.online import frame_matching
from mask2former.modeling import matcher

RECORDED = np.load(GOLDEN / "minvis_r50.npz")


def want(name: str) -> torch.Tensor:
    return torch.from_numpy(RECORDED[name])


def close(got: torch.Tensor, wanted: torch.Tensor, atol: float) -> None:
    torch.testing.assert_close(got, wanted, atol=atol, rtol=0)


class Run:
    """One video with everything that happened on the way."""

    def __init__(self, model, video: torch.Tensor, height: int, width: int) -> None:
        with pytest.MonkeyPatch.context() as patch:
            evidence = recorded_calls(model, "observe", patch)
            similarities = recorded_calls(frame_matching, "assign_queries", patch)
            decisions = recorded_calls(model, "decide", patch)
            pixel = recorded_calls(model.sem_seg_head.pixel_decoder, "forward_features", patch)
            self.output = model([{"image": list(video), "height": height, "width": width}])
        self.evidence = {key: torch.cat([found[key] for _, found in evidence]) for key in evidence[0][1]}
        self.features = {key: torch.cat([inputs[0][key] for inputs, _ in pixel]) for key in pixel[0][0][0]}
        self.mask_features = torch.cat([output[0] for _, output in pixel])
        self.multi_scale = [torch.cat([output[3][level] for _, output in pixel]) for level in range(3)]
        self.similarities = torch.stack([inputs[0] for inputs, _ in similarities])
        self.orders = torch.stack([order for _, order in similarities])
        ((self.state,), (_, _, self.queries)) = decisions[0]

    def mean_logits(self) -> torch.Tensor:
        return (self.state["logits_sum"] / self.state["num_logits"]).float()

    def equals(self, prefix: str) -> None:
        """The result of the video is the recorded one."""
        close(self.mean_logits(), want(f"{prefix}logits_mean"), 5e-4)
        close(torch.tensor(self.output["pred_scores"]), want(f"{prefix}scores"), 1e-4)
        assert self.output["pred_labels"] == RECORDED[f"{prefix}labels"].tolist()
        assert self.queries.tolist() == RECORDED[f"{prefix}query"].tolist()
        masks = self.output["pred_masks"].numpy()
        packed = np.unpackbits(RECORDED[f"{prefix}masks_packed"])[: masks.size].reshape(masks.shape).astype(bool)
        assert (masks != packed).mean() <= 5e-4


@pytest.fixture(scope="module")
def model():
    return sharp_model(MINVIS)


@pytest.fixture(scope="module")
def run(model) -> Run:
    return Run(model, frames(4, 96, 128), 96, 128)


def test_backbone_and_pixel_decoder(run):
    for name, features in run.features.items():
        close(features[::3, :: features.shape[1] // 16, ::2, ::2], want(f"feat_{name}_s"), 1e-5)
    close(run.mask_features[:, ::16, ::3, ::4], want("mask_features_s"), 1e-5)
    for level, features in enumerate(run.multi_scale):
        close(features[:, ::16], want(f"ms{level}_s"), 1e-5)


def test_queries_classes_and_masks_of_every_frame(run):
    close(run.evidence["queries"], want("embds"), 1e-4)
    close(run.evidence["logits"], want("logits"), 5e-4)
    close(run.evidence["masks"][:, :, ::3, ::4], want("masks_s"), 1e-3)


def test_predictions_before_the_last_layer(model):
    """They exist in training only, where all layers predict; nothing here depends on the mode besides."""
    images = model.batch_images(list(frames(4, 96, 128)))
    with torch.no_grad():
        decoder = model.sem_seg_head.predictor.train()
        auxiliary = model.encode_frames(images).outputs["aux_outputs"]
        decoder.eval()
    close(torch.stack([layer["pred_logits"][0, ::5] for layer in auxiliary]), want("aux_logits_f0_s"), 5e-4)


def test_frames_are_matched_as_recorded(run):
    close(1 - run.similarities[:, ::5, ::5], want("cost_s"), 1e-5)
    assert torch.equal(run.orders, want("perm"))
    num_fixed = (run.orders == torch.arange(100)).sum(1)
    assert num_fixed.tolist() == [65, 34, 29]  # the recorded case is no identity


def test_scores_labels_and_masks(run):
    run.equals("")
    assert run.output["pred_masks"].shape == (10, 4, 96, 128)


def test_padded_frames_and_another_output_size(model):
    run = Run(model, frames(3, 90, 120, seed=3), 135, 180)
    close(run.evidence["queries"][:, ::5], want("pad_embds_s"), 1e-4)
    assert torch.equal(run.orders, want("pad_perm"))
    run.equals("pad_")
    assert run.output["image_size"] == (135, 180)


def training_clips() -> list[dict]:
    first = [(0, 3, (30, 40, 18, 25)), (-1, 40, None), (2, 17, (60, 90, 22, 30)), (3, 17, (80, 20, 10, 14))]
    second = [(7, 0, (40, 56, 30, 40)), (9, 25, (12, 100, 9, 9))]
    return [
        {"image": list(frames(1, 96, 128, seed=11)), "instances": [frame_instances(96, 128, first)]},
        {"image": list(frames(1, 80, 112, seed=12)), "instances": [frame_instances(80, 112, second)]},
    ]


def test_training_losses_matches_and_gradients(monkeypatch):
    model = sharp_model(MINVIS).train()
    assigned = recorded_calls(matcher, "linear_sum_assignment", monkeypatch)
    with fixed_rand():
        losses = model(training_clips())
    assert sorted(losses) == RECORDED["loss_names"].tolist()
    got = torch.stack([losses[name] for name in sorted(losses)]).detach()
    torch.testing.assert_close(got, want("losses"), rtol=1e-4, atol=0)
    pairs = [np.stack(result) for _, result in assigned]
    assert np.concatenate(pairs[:2], axis=1).tolist() == RECORDED["match_last"].tolist()
    assert np.concatenate([queries for queries, _ in pairs]).tolist() == RECORDED["match_all_q"].tolist()
    sum(losses.values()).backward()
    parameters = dict(model.named_parameters())
    norms = torch.stack([parameters[name].grad.double().norm() for name in RECORDED["grad_names"]]).float()
    torch.testing.assert_close(norms, want("grad_norms"), rtol=1e-3, atol=0)
