"""The whole GenVIS model against numbers recorded from the published code, weights by `golden_fill` and `golden_tame`.

`genvis_r50_online.npz` (seven clips of a frame) and `genvis_r50_semi_online.npz` (3 + 3 + 1 frames): inference; between
one and two threads the published code moves by 3e-5 and a few pixels. `genvis_r50_train_*.npz`: a training step with
two videos; losses move by 3e-5, gradient norms by 2e-3 of themselves.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fixed_points import fixed_rand
from golden_fill import frames
from golden_tame import tame_
from helpers import GOLDEN
from video_models import golden_model

from lbvq.modeling import vita
from mask2former.structures import BitMasks, Boxes, Instances

INFERENCE = {
    "online": "youtubevis_2019/genvis_R50_bs8_online.yaml",
    "semi_online": "ovis/genvis_R50_bs8_semi_online.yaml",
}
TRAINING = {  # configuration, presence of every object of both videos frame by frame, further settings
    "online": (INFERENCE["online"], ["11111", "00111", "11001", "10000"], ["11111", "01110"], {}),
    "semi_online": (INFERENCE["semi_online"], ["111111", "000111", "110000", "101010"], ["111111", "000001"], {}),
    "joint": (
        INFERENCE["online"],
        ["11", "01", "10", "11"],
        ["11", "01"],
        {"MODEL__VITA__FREEZE_DETECTOR": False},
    ),
}


def tamed_model(config_file: str, **changes) -> torch.nn.Module:
    return tame_(golden_model(config_file, **changes), ("vita_module.", "sem_seg_head.predictor."))


def close(got: torch.Tensor, want: np.ndarray, atol: float = 3e-4) -> None:
    torch.testing.assert_close(got, torch.from_numpy(want), atol=atol, rtol=0)


class InferenceRun:
    """One run of the recorded video with everything that was recorded on the way."""

    def __init__(self, case: str) -> None:
        self.recorded = np.load(GOLDEN / f"genvis_r50_{case}.npz")
        model = tamed_model(INFERENCE[case])
        self.calls, self.features, self.encoded = [], [], []
        module = model.vita_module
        module.register_forward_hook(lambda module, inputs, output: self.calls.append((inputs, *output)))
        module.vita_mask_features.register_forward_hook(lambda module, inputs, output: self.features.append(output))
        self.module = module
        video = frames(7, 90, 120, seed=0)
        assert np.array_equal(video.float().sum((1, 2, 3)).numpy(), self.recorded["input_sum_per_frame"])
        encode = vita.encode_frame_queries

        def recorded_encode(*args, **settings):
            self.encoded.append(encode(*args, **settings)[:, :, 0])
            return self.encoded[-1][:, :, None]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(vita, "encode_frame_queries", recorded_encode)
            self.output = model([{"image": list(video), "height": 135, "width": 180}])

    def stack(self, read) -> torch.Tensor:
        return torch.stack([read(outputs, state) for _, outputs, state in self.calls])


@pytest.fixture(scope="module", params=list(INFERENCE))
def run(request) -> InferenceRun:
    return InferenceRun(request.param)


def test_frame_queries_and_mask_features(run):
    queries = torch.cat([inputs[0][-1] for inputs, *_ in run.calls])
    close(queries[:, ::10], run.recorded["frame_queries_s10"])
    close(torch.cat(run.encoded)[:, ::10], run.recorded["frame_enc_s10"])
    close(torch.cat(run.features)[:, ::16, ::8, ::8], run.recorded["clip_mask_features_s16_8_8"])


def test_every_clip(run):
    close(run.stack(lambda outputs, state: outputs["pred_logits"][0, 0]), run.recorded["logits"])
    close(run.stack(lambda outputs, state: outputs["pred_mask_embed"][0, 0, ::5]), run.recorded["mask_embed_s5"])


def test_what_is_carried_and_remembered(run):
    objects = run.stack(lambda outputs, state: outputs["objects"][0, 0])  # published are the keys and values of them
    with torch.no_grad():
        close(run.module.pre_memory_embed_k(objects)[:, ::5], run.recorded["mem_k_s5"])
        close(run.module.pre_memory_embed_v(objects)[:, ::5], run.recorded["mem_v_s5"])
    close(run.stack(lambda outputs, state: state[::5, 0]), run.recorded["out_q_s5"])
    _, memory, state = run.calls[-1][0]
    close(state[::5, 0], run.recorded["in_q_last_s5"])
    with torch.no_grad():
        keys = run.module.pre_memory_embed_k(torch.cat(memory)[:, 0, 0])  # (M, N, C)
        attention = torch.einsum("nc,mnc->nm", run.module.pre_query_embed_k(state[:, 0]), keys).softmax(1)
    close(attention, run.recorded["mem_attn_last"])


def test_final_scores_labels_and_masks(run):
    order = run.recorded["pred_scores"].argsort()[::-1]  # recorded in no order
    close(torch.tensor(run.output["pred_scores"], dtype=torch.float64), run.recorded["pred_scores"][order])
    assert run.output["pred_labels"] == run.recorded["pred_labels"][order].tolist()
    shape = tuple(run.recorded["pred_masks_shape"])
    want = np.unpackbits(run.recorded["pred_masks_packed"], axis=-1)[..., : shape[-1]].astype(bool)[order]
    assert tuple(run.output["pred_masks"].shape) == shape == want.shape
    assert (run.output["pred_masks"].numpy() != want).mean() <= 1e-4
    assert run.output["image_size"] == (135, 180)


def moving_ellipses(presence: list[str], classes: list[int], seed: int) -> list[Instances]:
    """Annotated frames 90 x 120 of the recorded video: an ellipse for each string, there where it has a 1."""
    rows, columns = np.mgrid[0:90, 0:120]
    rng = np.random.RandomState(seed)
    ellipses = [  # centre, radii, velocity; y before x
        (
            rng.uniform(0.2, 0.8) * 90,
            rng.uniform(0.2, 0.8) * 120,
            rng.uniform(8, 22),
            rng.uniform(8, 30),
            rng.uniform(-3, 3),
            rng.uniform(-3, 3),
        )
        for _ in presence
    ]
    annotated = []
    for t in range(len(presence[0])):
        there = [string[t] == "1" for string in presence]
        masks = [
            (((rows - y - vy * t) / ry) ** 2 + ((columns - x - vx * t) / rx) ** 2 < 1) & on
            for on, (y, x, ry, rx, vy, vx) in zip(there, ellipses, strict=True)
        ]
        frame = Instances((90, 120))
        frame.gt_boxes = Boxes(torch.zeros(len(there), 4))
        frame.gt_classes = torch.tensor([classes[n] if on else -1 for n, on in enumerate(there)])
        frame.gt_ids = torch.tensor([n + 3 if on else -1 for n, on in enumerate(there)])
        frame.gt_masks = BitMasks(torch.from_numpy(np.stack(masks)))
        annotated.append(frame)
    return annotated


class TrainingRun:
    """Losses, owners and gradients of the two recorded videos."""

    def __init__(self, case: str) -> None:
        config_file, first, second, changes = TRAINING[case]
        self.case, self.recorded = case, np.load(GOLDEN / f"genvis_r50_train_{case}.npz")
        length = len(first[0])
        model = tamed_model(
            config_file,
            INPUT__SAMPLING_FRAME_NUM=length,
            MODEL__MASK_FORMER__TRAIN_NUM_POINTS=1024,
            **changes,
        ).train()
        objects = [moving_ellipses(first, [3, 0, 17, 3], 11), moving_ellipses(second, [5, 9], 12)]
        videos = [
            {"image": list(frames(length, 90, 120, seed=seed)), "instances": instances, "height": 90, "width": 120}
            for seed, instances in enumerate(objects, start=1)
        ]
        self.calls = []  # (targets, frame matches, owners) of every clip
        model.genvis_criterion.register_forward_hook(
            lambda module, inputs, output: self.calls.extend(
                (clip.targets, clip.frame_matches, owners) for clip, (_, owners) in zip(*inputs, output, strict=True)
            )
        )
        with fixed_rand():
            self.losses = model(videos)
        sum(self.losses.values()).backward()
        self.gradients = {name: p.grad.norm().item() for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture(scope="module", params=list(TRAINING))
def training(request) -> TrainingRun:
    return TrainingRun(request.param)


@pytest.mark.slow
def test_weighted_losses(training):
    names, values = training.recorded["loss_names"].tolist(), training.recorded["loss_values"].tolist()
    assert training.losses.keys() == set(names)
    for name, value in zip(names, values, strict=True):
        assert training.losses[name].item() == pytest.approx(value, rel=1e-3), name
    assert sum(training.losses.values()).item() == pytest.approx(sum(values), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("video", [0, 1])
def test_owners_of_the_objects_that_have_appeared(training, video):
    seen = 0
    for clip, (targets, _, owners) in enumerate(training.calls):
        valid, new = targets[video]["valid"], targets[video]["new"]
        assert valid.tolist() == training.recorded[f"valid_v{video}"][clip].tolist()
        assert new.tolist() == training.recorded[f"new_v{video}"][clip].tolist()
        seen = seen | new
        last, *auxiliary = [torch.stack(queries[video::2]) for queries in owners]  # (L, N) each
        want = torch.from_numpy(training.recorded[f"match_v{video}"][clip])
        assert torch.equal(last[:, seen], want[:, seen])
        want = torch.from_numpy(training.recorded[f"match_aux_v{video}"][clip])  # (D-1, L, N)
        assert torch.equal(torch.stack(auxiliary)[:, :, seen], want[:, :, seen])


@pytest.mark.slow
def test_frame_matches_of_the_first_clip(training):
    last_layer = training.calls[0][1][-1]
    pairs = [
        (frame, query, target) for frame, match in enumerate(last_layer) for query, target in zip(*match, strict=True)
    ]
    assert [[int(value) for value in pair] for pair in pairs] == training.recorded["fg_last_layer_clip0"].T.tolist()


@pytest.mark.slow
def test_gradients(training):
    want = dict(zip(training.recorded["grad_names"].tolist(), training.recorded["grad_norms"].tolist(), strict=True))
    assert training.gradients.keys() == want.keys()
    for name, norm in training.gradients.items():
        assert norm == pytest.approx(want[name], rel=1e-2, abs=1e-4), name
