"""Optimizer groups, gradient clipping and learning rates against recorded published numbers and small cases."""

from __future__ import annotations

import copy
import gzip
import json
import logging
import math

import pytest
import torch
from helpers import GOLDEN
from torch import nn

from lbvq.config import get_cfg
from lbvq.engine.solver import (
    LearningRateSchedule,
    build_gradient_clipper,
    build_lr_scheduler,
    build_optimizer,
    learning_rate_factor,
    scale_to_world_size,
)

with gzip.open(GOLDEN / "solver.json.gz", "rt") as golden_file:
    RECORDED = json.load(golden_file)


def cfg_with(**solver):
    cfg = get_cfg()
    cfg.merge_from_other_cfg({"SOLVER": solver})
    return cfg


class Tiny(nn.Module):
    """One parameter of every kind that the groups tell apart."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.ModuleDict({"conv": nn.Conv2d(1, 2, 1), "norm": nn.GroupNorm(1, 2)})
        self.backbone.relative_position_bias_table = nn.Parameter(torch.zeros(3))
        self.head = nn.Linear(2, 2)
        self.query = nn.Embedding(4, 2)
        self.norm = nn.LayerNorm(2)
        self.level_embed = nn.Parameter(torch.zeros(3))
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.head_again = self.head  # shared: counted once


def settings_by_name(model, optimizer):
    found = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = next(name for name, other in model.named_parameters() if other is parameter)
            assert name not in found
            found[name] = (group["lr"], group["weight_decay"])
    return found


def test_every_kind_of_parameter_gets_its_rate_and_decay():
    model = Tiny()
    cfg = cfg_with(
        BASE_LR=1e-4, WEIGHT_DECAY=0.05, WEIGHT_DECAY_NORM=0.01, WEIGHT_DECAY_EMBED=0.02, BACKBONE_MULTIPLIER=0.5
    )
    optimizer = build_optimizer(cfg, model)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert settings_by_name(model, optimizer) == {
        "backbone.conv.weight": (5e-5, 0.05),
        "backbone.conv.bias": (5e-5, 0.05),
        "backbone.norm.weight": (5e-5, 0.01),
        "backbone.norm.bias": (5e-5, 0.01),
        "backbone.relative_position_bias_table": (5e-5, 0.0),
        "head.weight": (1e-4, 0.05),
        "head.bias": (1e-4, 0.05),
        "query.weight": (1e-4, 0.02),
        "norm.weight": (1e-4, 0.01),
        "norm.bias": (1e-4, 0.01),
        "level_embed": (1e-4, 0.05),
    }
    assert len(optimizer.param_groups) == 6


def test_all_but_the_backbone_and_the_head_of_re_identification_can_learn_at_another_rate():
    model = nn.ModuleDict({name: nn.Linear(1, 1, bias=False) for name in ("backbone", "head", "reid_embed")})
    optimizer = build_optimizer(cfg_with(BASE_LR=1e-4, BACKBONE_MULTIPLIER=0.5, DETECTOR_MULTIPLIER=0.1), model)
    rates = {name.split(".")[0]: rate for name, (rate, _) in settings_by_name(model, optimizer).items()}
    assert rates == pytest.approx({"backbone": 5e-5, "head": 1e-5, "reid_embed": 1e-4})


def test_sgd_has_momentum_and_other_names_are_refused():
    optimizer = build_optimizer(cfg_with(OPTIMIZER="SGD", MOMENTUM=0.8), Tiny())
    assert isinstance(optimizer, torch.optim.SGD) and optimizer.param_groups[0]["momentum"] == 0.8
    with pytest.raises(ValueError, match="ADAMW or SGD"):
        build_optimizer(cfg_with(OPTIMIZER="LION"), Tiny())


def test_a_model_without_trainable_parameters_is_refused():
    with pytest.raises(ValueError, match="no trainable parameter"):
        build_optimizer(get_cfg(), Tiny().requires_grad_(False))


def test_merged_groups_step_like_one_group_per_parameter():
    torch.manual_seed(0)
    model = Tiny()
    other = copy.deepcopy(model)
    cfg = cfg_with(BASE_LR=0.1, WEIGHT_DECAY=0.05)
    merged = build_optimizer(cfg, model)
    single = torch.optim.AdamW(
        [
            {"params": [dict(other.named_parameters())[name]], "lr": lr, "weight_decay": decay}
            for name, (lr, decay) in settings_by_name(model, merged).items()
        ]
    )
    for parameter, twin in zip(model.parameters(), other.parameters(), strict=True):
        if parameter.requires_grad:
            parameter.grad = torch.randn_like(parameter)
            twin.grad = parameter.grad.clone()
    merged.step()
    single.step()
    for parameter, twin in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(parameter, twin)


def model_with_gradients(*lengths):
    """One parameter per length, whose gradient is a vector of that 2-norm."""
    model = nn.ParameterList([nn.Parameter(torch.zeros(4)) for _ in lengths])
    for parameter, length in zip(model, lengths, strict=True):
        parameter.grad = torch.full((4,), length / 2)
    return model, torch.optim.SGD(model.parameters(), lr=1.0)


def norms(model):
    return [parameter.grad.norm().item() for parameter in model]


def clip(**settings):
    return cfg_with(CLIP_GRADIENTS={"ENABLED": True, **settings})


def test_full_model_clipping_limits_the_two_norm_of_everything_whatever_norm_type_says():
    model, optimizer = model_with_gradients(3.0, 4.0)
    cfg = clip(CLIP_TYPE="full_model", CLIP_VALUE=0.5, NORM_TYPE=1.0)
    total = build_gradient_clipper(cfg, optimizer)()
    assert total.item() == pytest.approx(5.0)
    assert norms(model) == pytest.approx([0.3, 0.4], rel=1e-5)


def test_norm_clipping_limits_each_parameter():
    model, optimizer = model_with_gradients(3.0, 0.5)
    build_gradient_clipper(clip(CLIP_TYPE="norm", CLIP_VALUE=1.0), optimizer)()
    assert norms(model) == pytest.approx([1.0, 0.5], rel=1e-5)


def test_value_clipping_limits_each_number():
    model, optimizer = model_with_gradients(3.0, 0.5)
    build_gradient_clipper(clip(CLIP_TYPE="value", CLIP_VALUE=0.3), optimizer)()
    assert model[0].grad.tolist() == pytest.approx([0.3] * 4) and model[1].grad.tolist() == pytest.approx([0.25] * 4)


def test_clipping_can_be_off():
    _, optimizer = model_with_gradients(3.0)
    assert build_gradient_clipper(cfg_with(CLIP_GRADIENTS={"ENABLED": False}), optimizer) is None
    assert build_gradient_clipper(clip(CLIP_TYPE="full_model", CLIP_VALUE=0.0), optimizer) is None
    with pytest.raises(ValueError, match="CLIP_TYPE"):
        build_gradient_clipper(clip(CLIP_TYPE="whole"), optimizer)


@pytest.mark.parametrize("row", RECORDED["lr"], ids=lambda row: f"{row['name']}-{row['solver']['MAX_ITER']}")
def test_learning_rates_equal_the_recorded_ones(row):
    """Published code, relative tolerance 1e-12; the schedule is stepped or asked directly."""
    cfg = cfg_with(**row["solver"])
    base = row["solver"]["BASE_LR"]
    rates = (base, base * row["solver"]["BACKBONE_MULTIPLIER"])
    optimizer = torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in rates])
    schedule = build_lr_scheduler(cfg, optimizer)
    factor = learning_rate_factor(cfg)
    for iteration, want in zip(row["iters"], row["lr"], strict=True):
        assert [lr * factor(iteration) for lr in rates] == pytest.approx(want, rel=1e-12, abs=0)
        if row["name"] != "shipped":
            assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(want, rel=1e-12, abs=0)
            schedule.step()


def test_fixed_gamma_drops_at_equal_distances():
    factor = learning_rate_factor(
        cfg_with(LR_SCHEDULER_NAME="WarmupStepWithFixedGammaLR", MAX_ITER=40, NUM_DECAYS=3, WARMUP_ITERS=0)
    )
    assert [factor(i) for i in (0, 9, 10, 20, 30, 39, 40)] == pytest.approx([1, 1, 0.1, 0.01, 1e-3, 1e-3, 1e-3])


def test_cosine_ends_at_base_lr_end():
    cfg = cfg_with(LR_SCHEDULER_NAME="WarmupCosineLR", BASE_LR=0.1, BASE_LR_END=0.02, MAX_ITER=10, WARMUP_ITERS=0)
    factor = learning_rate_factor(cfg)
    assert factor(10) == pytest.approx(0.2)
    assert factor(5) == pytest.approx(0.2 + 0.4 * (1 + math.cos(math.pi / 2)))
    assert factor(11) == factor(10)


def test_rescaled_schedules_start_after_the_warmup():
    settings = dict(LR_SCHEDULER_NAME="WarmupCosineLR", MAX_ITER=10, WARMUP_ITERS=4, RESCALE_INTERVAL=True)
    factor = learning_rate_factor(cfg_with(**settings))
    assert (
        factor(4) == pytest.approx(1.0) and factor(7) == pytest.approx(0.5) and factor(10) == pytest.approx(0, abs=1e-9)
    )
    all_warm = learning_rate_factor(cfg_with(**{**settings, "WARMUP_ITERS": 20}))
    assert all_warm(5) == pytest.approx(0.5, rel=1e-2)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"STEPS": (5, 5)}, "increase"),
        ({"STEPS": (7, 5)}, "increase"),
        ({"STEPS": (10,)}, "increase"),
        ({"STEPS": (0,)}, "increase"),
        ({"LR_SCHEDULER_NAME": "OneCycle"}, "WarmupMultiStepLR"),
        ({"WARMUP_METHOD": "cubic"}, "linear or constant"),
        ({"MAX_ITER": 0}, "at least 1"),
        ({"LR_SCHEDULER_NAME": "WarmupCosineLR", "BASE_LR_END": 7.0}, "BASE_LR_END"),
        ({"LR_SCHEDULER_NAME": "WarmupStepWithFixedGammaLR", "NUM_DECAYS": 0}, "NUM_DECAYS"),
    ],
)
def test_schedules_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        learning_rate_factor(cfg_with(**{"MAX_ITER": 10, "STEPS": (5,), **settings}))


def test_steps_after_the_end_are_dropped_with_a_warning(caplog):
    factor = learning_rate_factor(cfg_with(MAX_ITER=10, STEPS=(5, 20), WARMUP_ITERS=0))
    assert "SOLVER.STEPS [20]" in caplog.text
    assert factor(10) == pytest.approx(0.1)


def test_no_steps_keep_the_rate():
    factor = learning_rate_factor(cfg_with(MAX_ITER=10, STEPS=(), WARMUP_ITERS=0))
    assert factor(0) == factor(10) == 1.0


def test_a_resumed_schedule_goes_on_where_it_was_with_the_rates_of_the_file():
    def schedule(base_lr, steps):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=base_lr)
        return optimizer, build_lr_scheduler(cfg_with(MAX_ITER=10, STEPS=steps, WARMUP_ITERS=0), optimizer)

    _, first = schedule(0.5, (3,))
    for _ in range(4):
        first.step()
    assert first.state_dict() == {"base_lrs": [0.5], "last_epoch": 4}
    optimizer, second = schedule(9.0, (3, 5))  # a changed BASE_LR is ignored, changed STEPS act
    second.load_state_dict(first.state_dict())
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)
    second.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.005)


def test_a_state_of_other_groups_is_refused():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = LearningRateSchedule(optimizer, lambda iteration: 1.0)
    with pytest.raises(ValueError, match="2 parameter groups"):
        schedule.load_state_dict({"base_lrs": [1.0, 1.0], "last_epoch": 3})


def test_a_schedule_made_after_loading_an_optimizer_uses_its_initial_rate():
    optimizer = torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": 0.001, "initial_lr": 0.1}])
    LearningRateSchedule(optimizer, lambda iteration: 0.5)
    assert optimizer.param_groups[0]["lr"] == 0.05


def test_a_schedule_is_fitted_to_the_number_of_processes(caplog):
    cfg = cfg_with(REFERENCE_WORLD_SIZE=8, IMS_PER_BATCH=16, BASE_LR=0.1, MAX_ITER=100, STEPS=(60, 80), WARMUP_ITERS=10)
    cfg.merge_from_list(["SOLVER.CHECKPOINT_PERIOD", 50, "TEST.EVAL_PERIOD", 25])
    cfg.freeze()
    with caplog.at_level(logging.INFO):
        got = scale_to_world_size(cfg, 2)
    assert got.is_frozen() and cfg.SOLVER.IMS_PER_BATCH == 16
    solver = got.SOLVER
    assert (solver.IMS_PER_BATCH, solver.BASE_LR, solver.MAX_ITER, solver.STEPS) == (4, 0.025, 400, (240, 320))
    assert (solver.WARMUP_ITERS, solver.CHECKPOINT_PERIOD, got.TEST.EVAL_PERIOD) == (40, 200, 100)
    assert scale_to_world_size(got, 2) is got
    assert scale_to_world_size(get_cfg(), 3) == get_cfg()


def test_a_batch_that_the_reference_processes_cannot_share_is_refused():
    with pytest.raises(ValueError, match="multiple"):
        scale_to_world_size(cfg_with(REFERENCE_WORLD_SIZE=3, IMS_PER_BATCH=16), 1)


def test_norm_clipping_measures_with_the_norm_that_is_set():
    """Four equal numbers of length 3: their 1-norm is 6, their largest 1.5."""
    for norm_type, length in ((1.0, 0.5), (2.0, 1.0), (float("inf"), 2.0)):
        model, optimizer = model_with_gradients(3.0)
        build_gradient_clipper(clip(CLIP_TYPE="norm", CLIP_VALUE=1.0, NORM_TYPE=norm_type), optimizer)()
        assert norms(model) == pytest.approx([length], rel=1e-5)
