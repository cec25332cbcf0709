"""Optimizer, gradient clipping and learning rate schedules from `cfg.SOLVER`.

Groups, clipping and schedules give the published numbers. Parameters with equal learning rate and weight decay share
one group (the published code has one group per parameter), which is faster and changes nothing in the result.
"""

from __future__ import annotations

import bisect
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

NORM_LAYERS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.GroupNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.LayerNorm,
    nn.LocalResponseNorm,
)
NO_DECAY_NAMES = ("relative_position_bias_table", "absolute_pos_embed")

Factor = Callable[[int], float]  # iteration, counted from 0, to a multiplier of the learning rate

_EPSILON = 1e-6  # keeps an iteration from falling before its own step through rounding of i / N


# -- optimizer --------------------------------------------------------------------------------------------------------


def build_optimizer(cfg: Any, model: nn.Module) -> torch.optim.Optimizer:
    """Build AdamW or SGD over the trainable parameters of `model`, in groups as SOLVER.PARAMETER_GROUPS says.

    "modules": parameters of modules with "backbone" in their name learn BACKBONE_MULTIPLIER times as fast, all others
    but those of re-identification heads ("reid_embed") DETECTOR_MULTIPLIER times; normalisation layers, embeddings and
    Swin's position tables have weight decays of their own. "layers": a block of a plain ViT learns LLRD times as fast
    as the one above it, and everything has one weight decay.
    """
    solver = cfg.SOLVER
    if solver.PARAMETER_GROUPS == "layers":
        groups = layer_groups(
            model, base_lr=solver.BASE_LR, weight_decay=solver.WEIGHT_DECAY, layer_multiplier=solver.LLRD
        )
    elif solver.PARAMETER_GROUPS == "modules":
        if any(hasattr(module, "blocks_above") for module in model.modules()):
            logger.warning(
                "The published training of %s has one learning rate per block of its ViT and one weight decay for "
                "all: set SOLVER.PARAMETER_GROUPS layers, and LR_SCHEDULER_NAME TwoStagePolyLR.",
                type(model).__name__,
            )
        groups = parameter_groups(
            model,
            base_lr=solver.BASE_LR,
            weight_decay=solver.WEIGHT_DECAY,
            weight_decay_norm=solver.WEIGHT_DECAY_NORM,
            weight_decay_embed=solver.WEIGHT_DECAY_EMBED,
            backbone_multiplier=solver.BACKBONE_MULTIPLIER,
            detector_multiplier=solver.DETECTOR_MULTIPLIER,
        )
    else:
        raise ValueError(f"SOLVER.PARAMETER_GROUPS must be modules or layers, got {solver.PARAMETER_GROUPS!r}.")
    if not groups:
        raise ValueError("The model has no trainable parameter; see the FREEZE keys of its configuration.")
    if solver.OPTIMIZER == "ADAMW":
        return torch.optim.AdamW(groups, lr=solver.BASE_LR, fused=_can_fuse(groups))
    if solver.OPTIMIZER == "SGD":
        return torch.optim.SGD(groups, lr=solver.BASE_LR, momentum=solver.MOMENTUM)
    raise ValueError(f"SOLVER.OPTIMIZER must be ADAMW or SGD, got {solver.OPTIMIZER!r}.")


def _can_fuse(groups: list[dict[str, Any]]) -> bool:
    """Whether one kernel can do AdamW's whole step: on a CPU in little more than half the time."""
    parameters = [parameter for group in groups for parameter in group["params"]]
    return all(parameter.device.type in ("cpu", "cuda") and parameter.is_floating_point() for parameter in parameters)


def parameter_groups(
    model: nn.Module,
    *,
    base_lr: float,
    weight_decay: float,
    weight_decay_norm: float,
    weight_decay_embed: float,
    backbone_multiplier: float,
    detector_multiplier: float = 1.0,
) -> list[dict[str, Any]]:
    """Sort the trainable parameters into groups {"params", "lr", "weight_decay"}, in order of first appearance."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    seen: set[nn.Parameter] = set()
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            if "backbone" in module_name:
                lr = base_lr * backbone_multiplier
            else:
                lr = base_lr if "reid_embed" in module_name else base_lr * detector_multiplier
            decay = weight_decay
            if any(part in name for part in NO_DECAY_NAMES):
                decay = 0.0
            if isinstance(module, NORM_LAYERS):
                decay = weight_decay_norm
            if isinstance(module, nn.Embedding):
                decay = weight_decay_embed
            groups.setdefault((lr, decay), []).append(parameter)
    return [{"params": params, "lr": lr, "weight_decay": decay} for (lr, decay), params in groups.items()]


def layer_groups(
    model: nn.Module, *, base_lr: float, weight_decay: float, layer_multiplier: float
) -> list[dict[str, Any]]:
    """Sort the trainable parameters into groups {"params", "lr", "weight_decay", "stage"}.

    A module that offers `blocks_above(name)` is a ViT: its parameters learn `layer_multiplier` times more slowly for
    every block above them, and are of stage 1, which may start later. All others are of stage 0.
    """
    rules = ((module, getattr(module, "blocks_above", None)) for module in model.modules())
    above = {
        parameter: rule(name)
        for module, rule in rules
        if callable(rule)
        for name, parameter in module.named_parameters()
    }
    groups: dict[tuple[float, int], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            lr = base_lr * layer_multiplier ** above.get(parameter, 0)
            groups.setdefault((lr, int(parameter in above)), []).append(parameter)
    return [
        {"params": params, "lr": lr, "weight_decay": weight_decay, "stage": stage}
        for (lr, stage), params in groups.items()
    ]


# -- clipping ---------------------------------------------------------------------------------------------------------


def build_gradient_clipper(cfg: Any, optimizer: torch.optim.Optimizer) -> Callable[[], Tensor | None] | None:
    """Return a function to call between backward and step, or None when `SOLVER.CLIP_GRADIENTS` asks for nothing.

    "full_model" limits the 2-norm of all gradients together and returns what it was (as published: NORM_TYPE does not
    act on it); "value" and "norm" limit each parameter by itself and return None. Gradients must not be scaled.
    """
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if not clip.ENABLED:
        return None
    limit, norm_type = clip.CLIP_VALUE, clip.NORM_TYPE
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def clip_full_model() -> Tensor:
        return nn.utils.clip_grad_norm_(parameters, limit)

    def clip_values() -> None:
        nn.utils.clip_grad_value_(parameters, limit)

    def clip_norms() -> None:
        for parameter in parameters:
            nn.utils.clip_grad_norm_(parameter, limit, norm_type)

    if clip.CLIP_TYPE == "full_model":
        return clip_full_model if limit > 0 else None
    if clip.CLIP_TYPE == "value":
        return clip_values
    if clip.CLIP_TYPE == "norm":
        return clip_norms
    raise ValueError(f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE must be full_model, value or norm, got {clip.CLIP_TYPE!r}.")


# -- learning rate ----------------------------------------------------------------------------------------------------


class LearningRateSchedule:
    """Sets the learning rate of every group to its initial one times `factor(iteration)`.

    The first value is set at once; `step()` after each iteration moves on to the next.

    Args:
        optimizer: its groups' present "lr" (or "initial_lr") is the initial one.
        factor: iteration, counted from 0, to a multiplier; or one such function for each group.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, factor: Factor | Sequence[Factor]) -> None:
        self._optimizer = optimizer
        self._factors = [factor] * len(optimizer.param_groups) if callable(factor) else list(factor)
        self.base_lrs = [group.setdefault("initial_lr", group["lr"]) for group in optimizer.param_groups]
        self.last_epoch = 0  # the iteration that the rates are set for
        self._set()

    def get_lr(self) -> list[float]:
        """Learning rate of each group at the present iteration."""
        pairs = zip(self.base_lrs, self._factors, strict=True)
        return [base_lr * factor(self.last_epoch) for base_lr, factor in pairs]

    def step(self) -> None:
        """Move on to the next iteration."""
        self.last_epoch += 1
        self._set()

    def state_dict(self) -> dict[str, Any]:
        """Published content: {"base_lrs", "last_epoch"}."""
        return {"base_lrs": list(self.base_lrs), "last_epoch": self.last_epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue a saved schedule: initial rates are those of the file, the factor is that of the configuration."""
        if len(state["base_lrs"]) != len(self.base_lrs):
            raise ValueError(
                f"The saved schedule has {len(state['base_lrs'])} parameter groups, this optimizer has "
                f"{len(self.base_lrs)}: the run was made with another model, program, or weight decay. Start a new run "
                "from its weights instead (MODEL.WEIGHTS) of resuming it."
            )
        self.base_lrs = list(state["base_lrs"])
        self.last_epoch = state["last_epoch"]
        self._set()

    def _set(self) -> None:
        for group, lr in zip(self._optimizer.param_groups, self.get_lr(), strict=True):
            group["lr"] = lr


def build_lr_scheduler(cfg: Any, optimizer: torch.optim.Optimizer) -> LearningRateSchedule:
    """Build the schedule that `SOLVER.LR_SCHEDULER_NAME` names."""
    factors = [learning_rate_factor(cfg, group.get("stage", 0)) for group in optimizer.param_groups]
    return LearningRateSchedule(optimizer, factors)


def learning_rate_factor(cfg: Any, stage: int = 0) -> Factor:
    """Return the function from iteration to learning rate multiplier; iterations after MAX_ITER count as MAX_ITER.

    Args:
        cfg: whose SOLVER counts.
        stage: of the parameters, see `layer_groups`; it matters to TwoStagePolyLR only.
    """
    solver = cfg.SOLVER
    name = solver.LR_SCHEDULER_NAME
    if solver.MAX_ITER < 1:
        raise ValueError(f"SOLVER.MAX_ITER must be at least 1, got {solver.MAX_ITER}.")
    if solver.WARMUP_METHOD not in ("linear", "constant"):
        raise ValueError(f"SOLVER.WARMUP_METHOD must be linear or constant, got {solver.WARMUP_METHOD!r}.")
    if name == "WarmupPolyLR":
        return _polynomial(solver)
    if name == "TwoStagePolyLR":
        return _two_stage_polynomial(solver, stage)
    main_schedules = {
        "WarmupMultiStepLR": _multi_step,
        "WarmupCosineLR": _cosine,
        "WarmupStepWithFixedGammaLR": _fixed_gamma,
    }
    if name not in main_schedules:
        names = ", ".join([*main_schedules, "WarmupPolyLR", "TwoStagePolyLR"])
        raise ValueError(f"SOLVER.LR_SCHEDULER_NAME must be one of {names}, got {name!r}.")
    return _with_warmup(main_schedules[name](solver), solver)


def _with_warmup(main: Callable[[float], float], solver: Any) -> Callable[[int], float]:
    """Lay a warm-up over `main`, a function of the share of the training that is done."""
    last = solver.MAX_ITER
    warm_share = min(solver.WARMUP_ITERS / last, 1.0)
    rescale = solver.RESCALE_INTERVAL
    start = solver.WARMUP_FACTOR * main(0.0)
    end = main(0.0 if rescale else warm_share)

    def factor(iteration: int) -> float:
        share = min(iteration, last) / last
        if share + _EPSILON > warm_share:
            if rescale and warm_share < 1.0:
                return main(max(share - warm_share, 0.0) / (1.0 - warm_share))
            return main(share)
        if solver.WARMUP_METHOD == "constant":
            return start
        warm = share / warm_share
        return end * warm + start * (1.0 - warm)

    return factor


def _multi_step(solver: Any) -> Callable[[float], float]:
    steps = [step for step in solver.STEPS if step <= solver.MAX_ITER]
    if len(steps) < len(solver.STEPS):
        late = [step for step in solver.STEPS if step > solver.MAX_ITER]
        logger.warning("SOLVER.STEPS %s lie after SOLVER.MAX_ITER %d and never happen.", late, solver.MAX_ITER)
    increasing = all(a < b for a, b in zip([0, *steps], [*steps, solver.MAX_ITER], strict=True))
    if not increasing:
        raise ValueError(
            f"SOLVER.STEPS must increase between 0 and SOLVER.MAX_ITER {solver.MAX_ITER}, got {tuple(solver.STEPS)}."
        )

    def main(share: float) -> float:
        return solver.GAMMA ** bisect.bisect_right(steps, int((share + _EPSILON) * solver.MAX_ITER))

    return main


def _fixed_gamma(solver: Any) -> Callable[[float], float]:
    decays = solver.NUM_DECAYS
    if decays < 1:
        raise ValueError(f"SOLVER.NUM_DECAYS must be at least 1, got {decays}.")

    def main(share: float) -> float:
        return solver.GAMMA ** min(int((share + _EPSILON) * (decays + 1)), decays)

    return main


def _cosine(solver: Any) -> Callable[[float], float]:
    end = solver.BASE_LR_END / solver.BASE_LR
    if not 0.0 <= end <= 1.0:
        raise ValueError(
            f"SOLVER.BASE_LR_END must lie between 0 and BASE_LR {solver.BASE_LR}, got {solver.BASE_LR_END}."
        )

    def main(share: float) -> float:
        return end + 0.5 * (1.0 - end) * (1.0 + math.cos(math.pi * share))

    return main


def _polynomial(solver: Any) -> Callable[[int], float]:
    """DeepLab's schedule: (1 - i/N)^power under a warm-up, not below POLY_LR_CONSTANT_ENDING once warm."""
    last, warm_iterations, ending = solver.MAX_ITER, solver.WARMUP_ITERS, solver.POLY_LR_CONSTANT_ENDING

    def factor(iteration: int) -> float:
        iteration = min(iteration, last)
        warm = 1.0
        if iteration < warm_iterations:
            share = 0.0 if solver.WARMUP_METHOD == "constant" else iteration / warm_iterations
            warm = solver.WARMUP_FACTOR * (1.0 - share) + share
        decay = (1.0 - iteration / last) ** solver.POLY_LR_POWER
        return ending if ending > 0 and warm == 1.0 and decay < ending else warm * decay

    return factor


def _two_stage_polynomial(solver: Any, stage: int) -> Factor:
    """(1 - i/N)^power after a linear warm-up from 0; parameters of stage 1 wait until the others are warm."""
    steps, last = tuple(solver.WARMUP_STEPS), solver.MAX_ITER
    if not 1 <= len(steps) <= 2 or min(steps) < 0 or sum(steps) >= last:
        raise ValueError(
            f"SOLVER.WARMUP_STEPS must be one or two numbers of iterations that end before SOLVER.MAX_ITER {last}, got "
            f"{steps}."
        )
    start = steps[0] if stage and len(steps) == 2 else 0
    length = steps[1] if start else steps[0]

    def factor(iteration: int) -> float:
        passed = min(iteration, last) - start
        if passed < length:
            return max(passed, 0) / length
        return (1.0 - (passed - length) / (last - start - length)) ** solver.POLY_POWER

    return factor


def scale_to_world_size(cfg: Any, world_size: int) -> Any:
    """Return a copy of `cfg` whose batch, learning rate and iteration numbers suit `world_size` processes.

    `SOLVER.REFERENCE_WORLD_SIZE` is the number of processes the numbers were chosen for; 0 changes nothing.
    """
    reference = cfg.SOLVER.REFERENCE_WORLD_SIZE
    if reference == 0 or reference == world_size:
        return cfg
    cfg = cfg.clone()
    frozen = cfg.is_frozen()
    cfg.defrost()
    solver = cfg.SOLVER
    if solver.IMS_PER_BATCH % reference:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH {solver.IMS_PER_BATCH} must be a multiple of REFERENCE_WORLD_SIZE {reference}."
        )
    scale = world_size / reference
    solver.IMS_PER_BATCH = round(solver.IMS_PER_BATCH * scale)
    solver.BASE_LR = solver.BASE_LR * scale
    solver.MAX_ITER = round(solver.MAX_ITER / scale)
    solver.WARMUP_ITERS = round(solver.WARMUP_ITERS / scale)
    solver.STEPS = tuple(round(step / scale) for step in solver.STEPS)
    solver.WARMUP_STEPS = tuple(round(step / scale) for step in solver.WARMUP_STEPS)
    cfg.TEST.EVAL_PERIOD = round(cfg.TEST.EVAL_PERIOD / scale)
    solver.CHECKPOINT_PERIOD = round(solver.CHECKPOINT_PERIOD / scale)
    solver.REFERENCE_WORLD_SIZE = world_size
    logger.info(
        "The schedule for %d processes was fitted to %d: IMS_PER_BATCH %d, BASE_LR %g, MAX_ITER %d, STEPS %s.",
        reference,
        world_size,
        solver.IMS_PER_BATCH,
        solver.BASE_LR,
        solver.MAX_ITER,
        solver.STEPS,
    )
    if frozen:
        cfg.freeze()
    return cfg
