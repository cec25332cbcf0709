"""The whole LBVQ model against numbers recorded from the published code, weights by `golden_fill`.

`lbvq_r50.npz` and `lbvq_r101.npz`: inference in chunks of 3 frames, then of 2; the published code itself moves by 3e-5
in frame masks between one and two threads. Training: `test_clip_training_golden.py`.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden_fill import frames
from helpers import GOLDEN
from video_models import golden_model

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


def test_frame_decoder_after_its_first_layers(run):
    """Evaluation leaves these out; in training mode, which changes nothing else, they are there."""
    mask_features, _, _, multi_scale = run.pixel[0]
    predictor = run.model.sem_seg_head.predictor.train()
    with torch.inference_mode():
        outputs, *_ = predictor([level[:1] for level in multi_scale], mask_features[:1])
    predictor.eval()
    close(outputs["aux_outputs"][0]["pred_masks"][0, ::20], run.want("frame/aux0_pred_masks"), 1e-3)
    close(outputs["aux_outputs"][4]["pred_logits"][0], run.want("frame/aux4_pred_logits"), 1e-3)


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
