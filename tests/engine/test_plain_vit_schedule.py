"""Layer-wise rates and the two-stage schedule of plain ViTs: equal to the published functions, and by hand."""

from __future__ import annotations

import gzip
import json

import pytest
import torch
from helpers import CONFIGS, GOLDEN
from torch import nn
from vit_models import PMT, TINY, VIDEOMT, cfg_of

from lbvq.config import get_cfg
from lbvq.engine.solver import (
    build_gradient_clipper,
    build_lr_scheduler,
    build_optimizer,
    layer_groups,
    learning_rate_factor,
    scale_to_world_size,
)
from mask2former.modeling.vit import RotaryVisionTransformer
from mask2former.registry import build_model

RECORDED = json.loads(gzip.decompress((GOLDEN / "videomt_optim.json.gz").read_bytes()))
OURS = {"small": "videomt_online_ViTS.yaml", "large": "videomt_online_ViTL.yaml"}
TWO_STAGES = {
    "SOLVER.PARAMETER_GROUPS": "layers",
    "SOLVER.LR_SCHEDULER_NAME": "TwoStagePolyLR",
    "SOLVER.BASE_LR": 1e-4,
    "SOLVER.WEIGHT_DECAY": 0.05,
    "SOLVER.LLRD": 0.5,
    "SOLVER.MAX_ITER": 100,
    "SOLVER.WARMUP_STEPS": (10, 20),
}


@pytest.mark.parametrize("size", OURS)
def test_every_rate_at_every_time_is_the_published_one(size):
    """Groups of all tensors, and the recorded curve of nine of them over 40,000 and 60,000 iterations."""
    (recorded,) = (row for name, row in RECORDED.items() if f"vit-{size}" in name)
    cfg = get_cfg()
    cfg.merge_from_file(str(CONFIGS / "youtubevis_2019" / "videomt" / "dinov2" / OURS[size]))
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_model(cfg)
    names = {parameter: name for name, parameter in model.named_parameters()}
    optimizer = build_optimizer(cfg, model)
    groups = {names[p]: group for group in optimizer.param_groups for p in group["params"]}
    assert {name: [group["lr"], group["weight_decay"]] for name, group in groups.items()} == {
        name: pytest.approx(want, rel=1e-12) for name, want in recorded["groups"].items()
    }
    assert isinstance(optimizer, torch.optim.AdamW)
    assert [list(optimizer.defaults["betas"]), optimizer.defaults["eps"]] == recorded["betas_eps"]
    assert cfg.SOLVER.MAX_ITER == recorded["max_iter"]
    for name, rates in recorded["lr"].items():
        base, factor = recorded["groups"][name][0], learning_rate_factor(cfg, groups[name]["stage"])
        assert [base * factor(step) for step in recorded["steps"]] == pytest.approx(rates, rel=1e-9, abs=1e-20)


def test_both_stages_by_hand():
    cfg = cfg_of(TWO_STAGES, SOLVER__POLY_POWER=1.0)
    first, second = learning_rate_factor(cfg), learning_rate_factor(cfg, 1)
    assert [first(i) for i in (0, 5, 10, 55, 100, 200)] == pytest.approx([0, 0.5, 1, 0.5, 0, 0])
    assert [second(i) for i in (0, 9, 10, 20, 30, 65, 100)] == pytest.approx([0, 0, 0, 0.5, 1, 0.5, 0])


def test_one_warm_up_is_for_everything():
    """PMT: 6,000 iterations up, then down."""
    cfg = cfg_of(TWO_STAGES, SOLVER__WARMUP_STEPS=(6000,), SOLVER__MAX_ITER=60000)
    for stage in (0, 1):
        factor = learning_rate_factor(cfg, stage)
        assert [factor(i) for i in (0, 3000, 6000, 33000)] == pytest.approx([0, 0.5, 1, 0.5**0.9])


@pytest.mark.parametrize("steps", [(), (1, 2, 3), (-1, 2), (50, 50)])
def test_warm_ups_that_make_no_sense_are_refused(steps):
    with pytest.raises(ValueError, match="WARMUP_STEPS"):
        learning_rate_factor(cfg_of(TWO_STAGES, SOLVER__WARMUP_STEPS=steps))


def test_the_schedule_sets_the_rate_of_every_group():
    cfg = cfg_of({**VIDEOMT, **TINY, **TWO_STAGES})
    optimizer = build_optimizer(cfg, build_model(cfg))
    scheduler = build_lr_scheduler(cfg, optimizer)
    for _ in range(15):
        scheduler.step()
    by_stage = {stage: [] for stage in (0, 1)}
    for group in optimizer.param_groups:
        by_stage[group["stage"]].append(group["lr"])
    assert by_stage[0] == pytest.approx([1e-4 * (85 / 90) ** 0.9])
    assert sorted(by_stage[1]) == pytest.approx([1e-4 * 0.25 * 0.5**n for n in (3, 2, 1, 0)])


def test_a_frozen_encoder_has_no_group():
    cfg = cfg_of({**PMT, **TINY, **TWO_STAGES})
    model = build_model(cfg)
    (group,) = build_optimizer(cfg, model).param_groups
    assert (group["lr"], group["weight_decay"], group["stage"]) == (1e-4, 0.05, 0)
    assert len(group["params"]) == sum(parameter.requires_grad for parameter in model.parameters())


def test_the_last_norm_of_dinov3_learns_at_the_full_rate():
    """The published loop gives it the rate of the first block, because the norm stands first among its parameters."""
    model = nn.ModuleDict({"vit": RotaryVisionTransformer(embed_dim=16, num_heads=2, depth=3), "head": nn.Linear(2, 2)})
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = layer_groups(model, base_lr=1.0, weight_decay=0.1, layer_multiplier=0.5)
    rates = {names[p]: (group["lr"], group["stage"]) for group in groups for p in group["params"]}
    assert rates["vit.norm.weight"] == (1.0, 1)
    assert rates["vit.patch_embed.cls_token"] == rates["vit.blocks.0.norm1.bias"] == (0.25, 1)
    assert rates["vit.blocks.2.mlp.up_proj.weight"] == (1.0, 1)
    assert rates["head.weight"] == (1.0, 0)


def test_groups_by_modules_are_announced_as_unlike_the_published_training(caplog):
    cfg = cfg_of({**VIDEOMT, **TINY})
    build_optimizer(cfg, build_model(cfg))
    assert "SOLVER.PARAMETER_GROUPS layers" in caplog.text


def test_unknown_groups_are_refused():
    cfg = cfg_of({**VIDEOMT, **TINY}, SOLVER__PARAMETER_GROUPS="heads")
    with pytest.raises(ValueError, match="modules or layers, got 'heads'"):
        build_optimizer(cfg, build_model(cfg))


def test_the_files_ask_for_clipping_and_get_it():
    """The published code reads the same lines and never clips."""
    cfg = get_cfg()
    cfg.merge_from_file(str(CONFIGS / "youtubevis_2019" / "videomt" / "dinov2" / OURS["small"]))
    parameter = nn.Parameter(torch.zeros(4))
    parameter.grad = torch.full((4,), 3.0)
    clip = build_gradient_clipper(cfg, torch.optim.SGD([parameter], lr=1.0))
    assert clip() == 6.0
    assert parameter.grad.norm().item() == pytest.approx(0.01, rel=1e-4)
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = False
    assert build_gradient_clipper(cfg, torch.optim.SGD([parameter], lr=1.0)) is None


def test_warm_ups_are_fitted_to_the_number_of_processes():
    cfg = cfg_of(TWO_STAGES, SOLVER__REFERENCE_WORLD_SIZE=4, SOLVER__IMS_PER_BATCH=8)
    assert scale_to_world_size(cfg, 2).SOLVER.WARMUP_STEPS == (20, 40)
