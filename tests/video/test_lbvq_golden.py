"""The whole LBVQ model against numbers recorded from the published code, weights by `golden_fill`.

`lbvq_r50.npz` and `lbvq_r101.npz`: inference in chunks of 3 frames, then of 2; the published code itself moves by 3e-5
in frame masks between one and two threads. `lbvq_r50_train.npz`: two clips of three frames, losses move by 2e-6.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fixed_points import fixed_rand
from golden_fill import frames
from golden_samples import training_sample
from helpers import GOLDEN
from synth_targets import clips, empty_clips
from video_models import golden_model, load_cfg

from lbvq.engine.solver import build_gradient_clipper, build_optimizer
from lbvq.modeling.targets import prepare_targets

INFERENCE = {
    "r50": ("youtubevis_2019/lbvq_R50_bs8.yaml", {"num_frames": 5, "height": 90, "width": 120, "seed": 3}, (135, 181)),
    "r101": ("youtubevis_2019/lbvq_R101_bs8.yaml", {"num_frames": 3, "height": 64, "width": 96, "seed": 4}, None),
}


def record(module: torch.nn.Module, calls: list) -> None:
    module.register_forward_hook(lambda _, inputs, output: calls.append(output))


class InferenceRun:
    """One run of the recorded video with everything that was recorded on the way."""

    def __init__(self, case: str) -> None:
        config_file, video, size = INFERENCE[case]
        self.recorded = np.load(GOLDEN / f"lbvq_{case}.npz")
        model = golden_model(
            config_file, MODEL__LBVQ__TEST_RUN_CHUNK_SIZE=3, MODEL__LBVQ__TEST_INTERPOLATE_CHUNK_SIZE=2
        )
        with torch.no_grad():
            model.lbvq_module.class_embed.weight *= float(self.recorded["class_embed_weight_scale"])
            model.lbvq_module.class_embed.bias.copy_(torch.from_numpy(self.recorded["class_embed_bias"]))
        self.backbone, self.pixel, self.frame, self.clip_features, self.clip = [], [], [], [], []
        record(model.backbone, self.backbone)
        record(model.sem_seg_head, self.frame)
        record(model.lbvq_module.lbvq_mask_features, self.clip_features)
        record(model.lbvq_module, self.clip)
        forward_features = model.sem_seg_head.pixel_decoder.forward_features

        def recorded_features(features):
            self.pixel.append(forward_features(features))
            return self.pixel[-1]

        model.sem_seg_head.pixel_decoder.forward_features = recorded_features
        self.sample = {"image": list(frames(**video))}
        if size is not None:
            self.sample |= {"height": size[0], "width": size[1]}
        self.output = model([self.sample])
        self.model = model

    def want(self, name: str) -> torch.Tensor:
        return torch.from_numpy(self.recorded[name])


@pytest.fixture(scope="module", params=["r50", "r101"])
def run(request) -> InferenceRun:
    return InferenceRun(request.param)


def close(got: torch.Tensor, want: torch.Tensor, atol: float) -> None:
    torch.testing.assert_close(got, want, atol=atol, rtol=0)


def test_backbone_and_pixel_decoder(run):
    for name, features in run.backbone[0].items():
        close(features[0, ::16], run.want(f"backbone/{name}"), 1e-4)
    mask_features, clip_mask_features, _, multi_scale = run.pixel[0]
    close(mask_features[0, ::8], run.want("pixel/mask_features"), 1e-4)
    close(clip_mask_features[0, ::8], run.want("pixel/clip_mask_features"), 1e-4)
    for level, features in enumerate(multi_scale):
        close(features[0, ::8], run.want(f"pixel/multi_scale{level}"), 1e-4)


def test_frame_decoder(run):
    outputs = [output for output, *_ in run.frame]
    close(torch.cat([output["pred_logits"] for output in outputs]), run.want("frame/pred_logits"), 1e-3)
    close(torch.cat([output["pred_masks"] for output in outputs])[:, ::20], run.want("frame/pred_masks"), 1e-3)
    queries = torch.cat([frame_queries[-1] for _, frame_queries, _ in run.frame])
    close(queries[:, ::5], run.want("frame/queries"), 1e-4)


def test_clip_module(run):
    close(torch.cat(run.clip_features)[::2, ::16], run.want("clip/mask_features"), 1e-4)
    (clip,) = run.clip
    close(clip["pred_logits"], run.want("clip/pred_logits"), 1e-3)
    close(clip["pred_mask_embed"], run.want("clip/pred_mask_embed"), 1e-4)
    close(clip["pred_cq_embed"][..., ::4], run.want("clip/pred_cq_embed"), 1e-4)
    close(clip["pred_fq_embed"][:, :, :, ::10, ::4], run.want("clip/pred_fq_embed"), 1e-4)


def test_final_scores_labels_and_masks(run):
    close(torch.tensor(run.output["pred_scores"]), run.want("final/scores"), 1e-4)
    assert run.output["pred_labels"] == run.recorded["final/labels"].tolist()
    shape = run.recorded["final/masks_shape"]
    want = np.unpackbits(run.recorded["final/masks_packed"])[: np.prod(shape)].reshape(shape).astype(bool)
    assert tuple(run.output["pred_masks"].shape) == tuple(shape)
    assert (run.output["pred_masks"].numpy() != want).mean() <= 1e-3
    assert run.output["image_size"] == (run.sample.get("height", 64), run.sample.get("width", 96))


class TrainingRun:
    """Losses, matches and gradients of the two recorded clips."""

    def __init__(self) -> None:
        self.recorded = np.load(GOLDEN / "lbvq_r50_train.npz")
        changes = {"INPUT__SAMPLING_FRAME_NUM": 3, "MODEL__MASK_FORMER__TRAIN_NUM_POINTS": 1024}
        self.cfg = load_cfg("youtubevis_2019/lbvq_R50_bs8.yaml", **changes)
        self.model = golden_model("youtubevis_2019/lbvq_R50_bs8.yaml", **changes).train()
        self.raw, self.clip_matches, self.clip = [], [], []
        hooks = [
            self.model.criterion.register_forward_hook(lambda _, inputs, output: self.raw.append(output)),
            self.model.lbvq_criterion.matcher.register_forward_hook(
                lambda _, inputs, output: self.clip_matches.append(output)
            ),
            self.model.lbvq_module.register_forward_hook(lambda _, inputs, output: self.clip.append((inputs, output))),
        ]
        self.losses = self.loss()
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


@pytest.fixture(scope="module")
def training() -> TrainingRun:
    return TrainingRun()


@pytest.mark.slow
def test_weighted_losses(training):
    want = training.group("loss")
    assert len(want) == 49 and training.losses.keys() == want.keys()
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
    assert len(training.clip_matches) == 6
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
        if name != "lbvq_module.time_attention_weights.bias":  # exactly zero but for rounding
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
        if name != "lbvq_module.time_attention_weights.bias":
            assert deltas[name] == pytest.approx(delta, rel=1e-2), name


def test_targets_of_the_recorded_batch_are_prepared_at_the_padded_size():
    _, targets = prepare_targets([training_sample(clip) for clip in clips(3)], (96, 128), torch.device("cpu"))
    assert [tuple(target["masks"].shape) for target in targets] == [(3, 3, 96, 128), (2, 3, 96, 128)]
