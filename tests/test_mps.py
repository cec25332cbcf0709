"""What the methods need of MPS, without a Mac: every operator of a prediction and of a step of training is one that
PyTorch has for MPS, or is named below as one that PYTORCH_ENABLE_MPS_FALLBACK=1 computes on the CPU.

The methods run on a CPU in the forms that are chosen on other devices. What PyTorch has for MPS is read from the
declarations that come with it, so the test is one of the PyTorch that is installed.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import pytest
import torch
from frame_models import SMALL
from golden_fill import frames
from golden_samples import training_sample
from mps_operators import OnMps, runs_on_mps
from ovformer_models import CLIP, FRAME, IMAGE, clip_cfg
from synth_targets import clips
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from video_models import load_cfg, small_cfg
from vit_models import PMT, TINY, VIDEOMT, cfg_of

from lbvq.modeling.online import tracking
from mask2former import linear, points
from mask2former.modeling.deform_attn import MSDeformAttn
from mask2former.registry import build_model
from mask2former.transfer import most_precise

FALLBACK = {  # of PyTorch 2.6, and what for; 2.15 has all of them
    "aten::grid_sampler_2d_backward": "deformable attention and points of masks, in training",
    "aten::native_group_norm_backward": "pixel decoder, in training",
    "aten::index_copy_": "annotated masks at points, in training",
    "aten::_upsample_bicubic2d_aa": "position embeddings of plain ViTs, at other sizes",
    "aten::_upsample_bicubic2d_aa_backward": "the same, in training",
}
R18 = "synthetic/{}_R18_tiny{}.yaml"
CONFIGS: dict[str, Any] = {
    "lbvq": lambda: small_cfg("lbvq"),
    "vita": lambda: small_cfg("vita"),
    "genvis": lambda: small_cfg("genvis"),
    "minvis": lambda: load_cfg(R18.format("minvis", ""), **SMALL),
    "visage": lambda: load_cfg(R18.format("visage", ""), **SMALL),
    "ctvis": lambda: load_cfg(R18.format("ctvis", ""), **SMALL),
    "dvis_online": lambda: load_cfg(R18.format("dvis", "_online"), **SMALL, INPUT__SAMPLING_FRAME_NUM=3),
    "dvis_offline": lambda: load_cfg(R18.format("dvis", "_offline"), **SMALL, INPUT__SAMPLING_FRAME_NUM=3),
    "vmt": lambda: load_cfg(R18.format("vmt", ""), INPUT__SAMPLING_FRAME_NUM=3),
    "mask2former_vis": lambda: load_cfg(
        "youtubevis_2019/video_maskformer2_R50_bs16_8ep.yaml",
        **SMALL,
        MODEL__MASK_FORMER__DEC_LAYERS=3,
        MODEL__SEM_SEG_HEAD__TRANSFORMER_ENC_LAYERS=1,
    ),
    "videomt": lambda: cfg_of({**VIDEOMT, **TINY}),
    "pmt": lambda: cfg_of({**PMT, **TINY}),
}


def as_elsewhere(model: nn.Module) -> ExitStack:
    """Compute in the forms of devices other than CPU and CUDA."""
    stack = ExitStack()
    stack.enter_context(patch.object(linear, "_HAS_ONEDNN", False))
    stack.enter_context(patch.object(points, "_are_read_as_rows", lambda _: False))
    stack.enter_context(patch.object(tracking, "most_precise", lambda device: most_precise(torch.device("mps"))))
    stack.enter_context(sdpa_kernel(SDPBackend.MATH))
    for module in model.modules():
        if isinstance(module, MSDeformAttn):
            stack.enter_context(patch.object(module, "kernel", "grid_sample"))
    return stack


def training_clip(num_frames: int) -> dict[str, Any]:
    clip = clips(max(num_frames, 3))[0]
    clip["classes"].clamp_(max=4)
    sample = training_sample(clip)
    for name in ("image", "instances", "file_names"):
        sample[name] = sample[name][:num_frames]
    return sample


def used_by(model: nn.Module, test: dict[str, Any] | None, training: dict[str, Any] | None) -> OnMps:
    """Run the model on a sample for tests, and do a step of training on another."""
    optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
    with as_elsewhere(model), OnMps() as used:
        if test is not None:
            with torch.inference_mode():
                model.eval()([test])
        if training is not None:
            sum(model.train()([training]).values()).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.01)
            optimizer.step()
    return used


def assert_runs_on_mps(used: OnMps, *, trained: bool = True) -> None:
    assert len(used.operators) > 60 and any("backward" in name for name in used.operators) is trained
    assert {name for name in used.operators if not runs_on_mps(name)} <= set(FALLBACK)
    assert used.doubles == set()


@pytest.mark.parametrize("method", CONFIGS)
def test_every_operator_of_a_method_runs_on_mps_or_is_one_that_falls_back(method):
    cfg = CONFIGS[method]()
    torch.manual_seed(0)
    video = {"image": list(frames(5, 64, 96, seed=1)), "dense_masks": False}
    assert_runs_on_mps(used_by(build_model(cfg), video, training_clip(cfg.INPUT.SAMPLING_FRAME_NUM)))


# OVFormer predicts videos with one model, and trains another one on images or a third one on clips.
SLIM = {
    "MODEL__SEM_SEG_HEAD__TRANSFORMER_ENC_LAYERS": 1,
    "MODEL__MASK_FORMER__DEC_LAYERS": 3,
    "MODEL__MASK_FORMER__TRAIN_NUM_POINTS": 112,
}
SEEN_BY_CLIP = torch.ones(3, 512)


def test_every_operator_of_a_prediction_of_ovformer_does(tmp_path):
    model = build_model(clip_cfg(FRAME, tmp_path, **SLIM))
    video = {"image": list(frames(3, 64, 96, seed=1)), "dense_masks": False, "clip_features": SEEN_BY_CLIP}
    assert_runs_on_mps(used_by(model, video, None), trained=False)


def test_every_operator_of_a_training_of_ovformer_on_images_does(tmp_path):
    clip = training_clip(1)
    shown = clip["instances"][0][clip["instances"][0].gt_ids >= 0]
    image = {"image": clip["image"][0], "instances": shown, "clip_features": SEEN_BY_CLIP[0]}
    assert_runs_on_mps(used_by(build_model(clip_cfg(IMAGE, tmp_path, **SLIM)), None, image))


def test_every_operator_of_a_training_of_ovformer_on_clips_does(tmp_path):
    clip = {**training_clip(2), "clip_features": SEEN_BY_CLIP[:2]}
    video = {"image": list(frames(3, 64, 96, seed=1)), "dense_masks": False, "clip_features": SEEN_BY_CLIP}
    cfg = clip_cfg(CLIP, tmp_path, MODEL__MASK_FORMER__CLASS_COUNTS_PATH="", **SLIM)  # a file that is not ours to ship
    assert_runs_on_mps(used_by(build_model(cfg), video, clip))


@pytest.mark.parametrize(
    "operator, there",
    [
        ("aten::add.Tensor", True),  # leaves the work to add.out
        ("aten::upsample_bilinear2d", True),
        ("aten::matmul", True),  # made of others
        ("aten::_scaled_dot_product_flash_attention_for_cpu", False),
        ("aten::mkldnn_linear", False),
        ("mkldnn::_linear_pointwise", False),
        ("aten::no_such_operator", False),
    ],
)
def test_what_pytorch_has_for_mps_is_read_from_its_declarations(operator, there):
    assert runs_on_mps(operator) is there


def test_double_precision_is_noticed_unless_a_tensor_was_moved_to_the_cpu_first():
    given = torch.ones(3)
    with OnMps() as used:
        torch.zeros(2, dtype=torch.float64) + given.cpu().sum().double()
    assert used.doubles == set() and "aten::_to_copy" in used.operators
    for make in (given.double, lambda: given.to(given.device).to(torch.float64), lambda: given + given.cpu().double()):
        with OnMps() as used:
            make()
        assert used.doubles


def test_sums_over_a_video_are_as_precise_as_the_device_allows():
    assert most_precise(torch.device("mps")) == torch.float32
    assert {most_precise(torch.device(kind)) for kind in ("cpu", "cuda")} == {torch.float64}
    assert tracking.add_logits({}, torch.ones(2, 3))["logits_sum"].dtype == torch.float64
