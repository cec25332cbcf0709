"""CTVIS against numbers recorded from the published code: a video (`ctvis_r50.npz`) and training (`..._train.npz`).

The published code itself moves by 3.4e-5 in logits, 6e-6 in vectors and 7e-7 in scores between numbers of threads and
in 64 bit; by 8e-6 in losses and 1.5e-4 in norms of gradients.
"""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import fixed_points
import numpy as np
import pytest
import torch
from fixed_points import fixed_rand
from frame_models import recorded_calls, sharp_model
from golden_fill import frames
from helpers import GOLDEN
from synth_targets import clips, empty_clips
from torch import Tensor
from tracking_models import CTVIS, padded, samples, training_model
from video_models import load_cfg

from lbvq.modeling.ctvis import contrast as plugin
from lbvq.modeling.ctvis.tracker import TrackRules
from mask2former.registry import META_ARCH_REGISTRY, build_from_cfg

VIDEO, TRAINING = np.load(GOLDEN / "ctvis_r50.npz"), np.load(GOLDEN / "ctvis_r50_train.npz")
NUM_FRAMES = 3


def close(got: Tensor, recorded: np.ndarray, atol: float) -> None:
    torch.testing.assert_close(got, torch.from_numpy(recorded), atol=atol, rtol=0)


# -- a video ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run() -> dict[str, Any]:
    """A video of 11 frames, 90 x 120 to 135 x 180, and what happened on the way."""
    model = sharp_model(CTVIS)
    video = {"image": list(frames(11, 90, 120, seed=3)), "height": 135, "width": 180}
    with pytest.MonkeyPatch.context() as patch:
        evidence = recorded_calls(model, "observe", patch)
        steps = recorded_calls(model, "advance", patch)
        decisions = recorded_calls(model, "decide", patch)
        output = model([video])
    evidence = {key: torch.cat([found[key] for _, found in evidence]) for key in evidence[0][1]}
    return {
        "output": output,
        "evidence": evidence,
        "steps": [masks for _, (_, masks) in steps],
        "state": decisions[0][0][0],
    }


def test_every_frame_is_segmented_as_recorded(run):
    close(run["evidence"]["logits"][:, ::4], VIDEO["det_logits_q4"], 5e-4)
    close(run["evidence"]["embeds"][:, ::4], VIDEO["det_embeds_q4"], 1e-4)
    close(run["evidence"]["masks"][:, ::10, ::3, ::4], VIDEO["det_masks_q10_s"], 1e-3)


def test_detections_and_tracks_are_the_recorded_ones(run):
    """No track that was dropped comes back here, so rows are the recorded numbers of tracks."""
    kept = run["evidence"]["kept"]
    assert (kept >= 0).sum(1).tolist() == VIDEO["n_after_nms"].tolist()
    recorded = VIDEO["track_ids"]
    assert run["state"]["num_rows"] == recorded.max() + 1 == 36
    for masks, detections, ids in zip(run["steps"], kept, recorded, strict=True):
        order = {query: place for place, query in enumerate(detections.tolist())}
        found = sorted(zip(masks.mixing.tolist(), masks.rows.tolist(), strict=True), key=lambda pair: order[pair[0]])
        assert [row for _, row in found] == [number for number in ids.tolist() if number >= 0]


def test_what_is_known_of_every_track(run):
    tracks = run["state"]["tracks"]
    assert len(tracks["rows"]) == len(VIDEO["track_logits"]) == 13
    close((tracks["logits"] / tracks["counts"][:, None]).float(), VIDEO["track_logits"], 5e-4)
    seen = [[row in masks.rows.tolist() for masks in run["steps"]] for row in tracks["rows"].tolist()]
    assert seen == VIDEO["track_seen"].tolist()


def test_scores_labels_and_masks(run):
    """The recorded list is in the order of the class scores, ours in that of the scores it is returned with."""
    order = np.argsort(-VIDEO["scores"], kind="stable")
    output = run["output"]
    np.testing.assert_allclose(output["pred_scores"], VIDEO["scores"][order], atol=1e-4)
    assert output["pred_labels"] == VIDEO["labels"][order].tolist()
    shape = tuple(VIDEO["masks_shape"])
    want = np.unpackbits(VIDEO["masks_packed"], axis=-1)[..., : shape[-1]].reshape(shape).astype(bool)
    place = {int(index): rank for rank, index in enumerate(order)}
    got = np.stack([output["pred_masks"][place[index]].numpy() for index in range(len(want))])
    assert (got != want).mean() <= 5e-4
    assert output["image_size"] == (135, 180)


# -- training ---------------------------------------------------------------------------------------------------------

CHANGES = {"INPUT__SAMPLING_FRAME_NUM": NUM_FRAMES, "MODEL__MASK_FORMER__TRAIN_NUM_POINTS": 1024}
FULL = [padded(clip, 96, 128) for clip in clips(NUM_FRAMES)]
NOTHING = [padded(clip, 96, 128) for clip in empty_clips(NUM_FRAMES)]


@pytest.fixture(scope="module")
def published() -> torch.nn.Module:
    """The model that compares at wrong places and skips appearances, as the recorded one does."""
    faults = {"MODEL__CL_PLUGIN__PAD_TARGETS": False, "MODEL__CL_PLUGIN__SKIP_FIRST_APPEARANCE": True}
    return training_model(CTVIS, **CHANGES, **faults)


class Step:
    """One training step with what was matched and compared."""

    def __init__(self, model: torch.nn.Module, batch: list[dict[str, Any]]) -> None:
        draws = np.random.RandomState(3)
        self.num_items = 0
        original = plugin.contrast

        def counted(*inputs: Tensor) -> Any:
            self.num_items += len(inputs[0])
            return original(*inputs)

        with pytest.MonkeyPatch.context() as patch, fixed_rand():
            patch.setattr(plugin, "draw_shares", lambda count: torch.tensor([draws.rand() for _ in range(count)]))
            patch.setattr(plugin, "contrast", counted)
            matches = recorded_calls(model.criterion.matcher, "match_layers", patch)
            encoded = recorded_calls(model, "encode_frames", patch)
            self.losses = model(samples(batch))
        self.frame_matches, self.all_matches = matches[0][1][0], matches[-1]
        self.outputs = encoded[0][1].outputs

    def equals(self, tag: str, names: list[str]) -> None:
        for name in names:
            want = float(TRAINING[f"{tag}/{name}"])
            assert self.losses[name].item() == pytest.approx(want, rel=1e-4, abs=1e-6), name
        assert self.num_items == int(TRAINING[f"{tag}_items"])
        for image, (queries, objects) in enumerate(self.frame_matches):
            order = TRAINING[f"{tag}_frame_match/{image}_t"]
            assert objects.tolist() == order.tolist()
            assert queries.tolist() == TRAINING[f"{tag}_frame_match/{image}_q"].tolist()
        (_, targets, _), (matches,) = self.all_matches
        num_clips = len(matches) // NUM_FRAMES
        for clip, queries in enumerate(plugin.queries_of_clips(matches, targets, NUM_FRAMES)):
            for frame, chosen in enumerate(queries.tolist()):
                assert chosen == TRAINING[f"{tag}_reid_match/{num_clips * frame + clip}"].tolist()


LOSSES = [name.removeprefix("loss/") for name in TRAINING.files if name.startswith("loss/")]


def test_training_losses_matches_and_gradients(published):
    step = Step(published, FULL)
    assert sorted(step.losses) == sorted(LOSSES) and len(LOSSES) == 32
    step.equals("loss", LOSSES)
    close(step.outputs["pred_embeds"][:, ::10].detach(), TRAINING["out/embeds_q10"], 1e-4)
    close(step.outputs["pred_logits"][:, ::10].detach(), TRAINING["out/logits_q10"], 5e-4)
    sum(step.losses.values()).backward()
    parameters = dict(published.named_parameters())
    assert {name for name, value in parameters.items() if value.grad is not None} == set(TRAINING["grad/names"])
    norms = torch.stack([parameters[name].grad.norm() for name in TRAINING["grad/names"]])
    published.zero_grad()
    torch.testing.assert_close(norms, torch.from_numpy(TRAINING["grad/norms"]), rtol=1e-3, atol=1e-5)


@torch.no_grad()
def test_clips_that_need_padding_are_compared_as_published(published, monkeypatch):
    """In 64 bit: in 32 one value of an attention mask is so near to its threshold that other sums move it across."""
    uniform = fixed_points.uniform
    monkeypatch.setattr(fixed_points, "uniform", lambda shape: uniform(shape).double())
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    Step(copy.deepcopy(published).double(), clips(NUM_FRAMES)).equals("unpadded", LOSSES)


@torch.no_grad()
def test_clips_without_objects(published):
    Step(published, NOTHING).equals("empty", LOSSES)


@pytest.mark.parametrize("pads", [True, False])
def test_targets_are_padded_unless_as_published(pads):
    with torch.device("meta"):
        model = build_from_cfg(META_ARCH_REGISTRY, "CTVISModel", load_cfg(CTVIS, MODEL__CL_PLUGIN__PAD_TARGETS=pads))
    model.pixel_mean = torch.zeros(3, 1, 1)
    targets = model.contrast_targets(samples(clips(NUM_FRAMES))[0], SimpleNamespace(padded_size=(96, 128)))
    assert targets[0]["masks"].shape == ((4, 96, 128) if pads else (4, 90, 120))
    assert model.rules == TrackRules()  # the published ones are the defaults
