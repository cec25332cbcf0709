"""A training step of LBVQ and of VITA against numbers recorded from the published code, weights by `golden_fill`.

`lbvq_r50_train.npz`, `vita_r50_train.npz`: two clips of three frames; between one and two threads the published losses
move by 2e-6 of themselves, the gradients by 2e-4.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fixed_points import fixed_rand
from frame_models import recorded_calls
from golden_samples import training_sample
from helpers import GOLDEN
from synth_targets import clips, empty_clips
from video_models import damp_, golden_model, load_cfg

from lbvq.engine.solver import build_gradient_clipper, build_optimizer
from lbvq.modeling.targets import prepare_targets

ZERO_GRADIENT = {"lbvq_module.time_attention_weights.bias"}  # exactly zero but for rounding


def close(got: torch.Tensor, want: torch.Tensor, atol: float) -> None:
    torch.testing.assert_close(got, want, atol=atol, rtol=0)


class TrainingRun:
    """Losses, matches and gradients of the two recorded clips."""

    def __init__(self, prefix: str) -> None:
        self.prefix, self.recorded = prefix, np.load(GOLDEN / f"{prefix}_r50_train.npz")
        config_file = f"youtubevis_2019/{prefix}_R50_bs8.yaml"
        changes = {"INPUT__SAMPLING_FRAME_NUM": 3, "MODEL__MASK_FORMER__TRAIN_NUM_POINTS": 1024}
        self.cfg = load_cfg(config_file, **changes)
        self.model = golden_model(config_file, **changes).train()
        if prefix == "vita":
            damp_(self.model)
        self.raw, self.clip = [], []
        hooks = [
            self.model.criterion.register_forward_hook(lambda _, inputs, output: self.raw.append(output)),
            self.model.clip_module.register_forward_hook(lambda _, inputs, output: self.clip.append((inputs, output))),
        ]
        with pytest.MonkeyPatch.context() as patch:
            found = recorded_calls(self.model.clip_criterion.matcher, "assign", patch)
            self.losses = self.loss()
        self.clip_matches = [entries for _, entries in found]
        sum(self.losses.values()).backward()
        self.gradients = {name: p.grad.norm() for name, p in self.model.named_parameters() if p.grad is not None}
        for hook in hooks:
            hook.remove()

    def loss(self) -> dict[str, torch.Tensor]:
        with fixed_rand():
            return self.model([training_sample(clip) for clip in clips(3)])

    def group(self, name: str) -> dict[str, float]:
        prefix = f"{name}/"
        return {k.removeprefix(prefix): self.recorded[k] for k in self.recorded.files if k.startswith(prefix)}


@pytest.fixture(scope="module", params=["lbvq", "vita"])
def training(request) -> TrainingRun:
    return TrainingRun(request.param)


@pytest.mark.slow
def test_weighted_losses(training):
    want = training.group("loss")
    assert len(want) == {"lbvq": 49, "vita": 40}[training.prefix]
    assert training.losses.keys() == want.keys()
    for name, loss in training.losses.items():
        assert loss.item() == pytest.approx(want[name].item(), rel=1e-4), name
    assert sum(training.losses.values()).item() == pytest.approx(training.recorded["total"].item(), rel=1e-4)


@pytest.mark.slow
def test_unweighted_frame_losses_and_matches(training):
    losses, matches = training.raw[0]
    for name, want in training.group("raw").items():
        assert losses[name].item() == pytest.approx(want.item(), rel=1e-4), name
    for layer, images in enumerate(matches):
        for image, (queries, objects) in enumerate(images):
            assert queries.tolist() == training.recorded[f"frame_match/{layer}_{image}_q"].tolist()
            assert objects.tolist() == training.recorded[f"frame_match/{layer}_{image}_t"].tolist()


@pytest.mark.slow
def test_clip_matches_of_every_decoder_layer(training):
    assert len(training.clip_matches) == {"lbvq": 6, "vita": 3}[training.prefix]
    for layer, entries in enumerate(training.clip_matches):
        for entry, (queries, objects) in enumerate(entries):
            assert queries.tolist() == training.recorded[f"clip_match/{layer}_{entry}_q"].tolist()
            assert objects.tolist() == training.recorded[f"clip_match/{layer}_{entry}_t"].tolist()


@pytest.mark.slow
def test_clip_outputs(training):
    (inputs, outputs) = training.clip[0]
    want = {name: torch.from_numpy(array) for name, array in training.group("clip").items()}
    close(inputs[0][:, :, ::10, ::4], want["frame_queries"], 1e-3)
    close(outputs["pred_logits"][:, :, ::4], want["pred_logits"], 1e-3)
    close(outputs["pred_mask_embed"][:, :, ::4, ::4], want["pred_mask_embed"], 1e-3)
    close(outputs["pred_masks"].dense()[:, :, ::25], want["pred_masks"], 5e-3)


@pytest.mark.slow
def test_gradients(training):
    want = dict(zip(training.recorded["grad/names"].tolist(), training.recorded["grad/norms"].tolist(), strict=True))
    assert training.gradients.keys() == want.keys()
    for name, norm in training.gradients.items():
        if name not in ZERO_GRADIENT:
            assert norm.item() == pytest.approx(want[name], rel=1e-2), name
    total = torch.stack(list(training.gradients.values())).norm().item()
    assert total == pytest.approx(training.recorded["grad/total"].item(), rel=1e-2)


@pytest.mark.slow
def test_a_batch_without_any_object(training):
    with fixed_rand(), torch.no_grad():
        losses = training.model([training_sample(clip) for clip in empty_clips(3)])
    want = training.group("empty")
    assert losses.keys() == want.keys()
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(want[name].item(), rel=1e-4, abs=1e-6), name


@pytest.mark.slow
def test_one_step_of_the_optimizer(training):
    model = training.model
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = build_optimizer(training.cfg, model)
    build_gradient_clipper(training.cfg, optimizer)()
    clipped = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm().item()
    assert clipped == pytest.approx(training.recorded["step/grad_total_after_clip"].item(), rel=1e-4)
    optimizer.step()
    deltas = {name: (p.detach() - before[name]).norm().item() for name, p in model.named_parameters()}
    names, want = training.recorded["step/names"].tolist(), training.recorded["step/delta_norms"].tolist()
    assert deltas.keys() == set(names)
    for name, delta in zip(names, want, strict=True):
        if name not in ZERO_GRADIENT:
            assert deltas[name] == pytest.approx(delta, rel=1e-2), name


def test_targets_of_the_recorded_batch_are_prepared_at_the_padded_size():
    _, targets = prepare_targets([training_sample(clip) for clip in clips(3)], (96, 128), torch.device("cpu"))
    assert [tuple(target["masks"].shape) for target in targets] == [(3, 3, 96, 128), (2, 3, 96, 128)]
