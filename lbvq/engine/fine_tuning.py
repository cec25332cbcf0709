"""Hooks for training on few videos: a backbone that rests at first, and an end when nothing improves any more."""

from __future__ import annotations

import logging
import math
from typing import Any

from torch import nn

from . import comm
from .trainer import HookBase
from .weights import unwrap

logger = logging.getLogger(__name__)


class RestingBackbone(HookBase):
    """Keeps the backbone as it is for the first iterations, while a new classifier learns from what it gives.

    Its gradients are dropped before the optimizer sees them, so it works with any number of processes; a process that
    is alone does not compute them.

    Args:
        model: parameters of modules with "backbone" in their name rest, as with SOLVER.BACKBONE_MULTIPLIER.
        iterations: how many of the run; a resumed run goes on counting.
    """

    def __init__(self, model: nn.Module, iterations: int) -> None:
        named = unwrap(model).named_parameters()
        self._parameters = [each for name, each in named if "backbone" in name and each.requires_grad]
        self._iterations = iterations
        self._is_alone = comm.get_world_size() == 1
        if not self._parameters:
            logger.warning("SOLVER.REST_BACKBONE_ITERS has no effect: the model has no backbone that learns.")

    def before_step(self) -> None:
        if self._is_alone:
            self._let_learn(self.trainer.iter >= self._iterations)

    def after_backward(self) -> None:
        if self.trainer.iter < self._iterations:
            for parameter in self._parameters:
                parameter.grad = None

    def after_train(self) -> None:
        self._let_learn(True)

    def _let_learn(self, learns: bool) -> None:
        if self._parameters and self._parameters[0].requires_grad != learns:
            logger.info("Iteration %d: the backbone %s.", self.trainer.iter, "learns" if learns else "rests")
            for parameter in self._parameters:
                parameter.requires_grad_(learns)


class EarlyStop(HookBase):
    """Ends training when a metric has not improved for several evaluations. Must stand after `EvalHook`.

    Args:
        metric: name as in metrics.json, e.g. "segm/AP"; larger is better.
        period: iterations between evaluations.
        patience: evaluations without a new best value after which training ends, once there was one above 0.
    """

    def __init__(self, metric: str, period: int, patience: int) -> None:
        if not metric or period < 1:
            raise ValueError(
                f"SOLVER.EARLY_STOP needs SOLVER.BEST_METRIC and TEST.EVAL_PERIOD, got {metric!r} and {period}."
            )
        self._metric, self._period, self._patience = metric, period, patience
        self._best = -math.inf
        self._waited = 0

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self._period or done == self.trainer.max_iter:
            return
        value, _ = self.trainer.storage.latest().get(self._metric, (math.nan, None))
        if value > self._best:
            self._best, self._waited = value, 0
        elif self._best > 0:  # a model from scratch finds nothing for a while
            self._waited += 1
        has_waited = comm.is_main_process() and self._waited >= self._patience  # only it knows the results
        if comm.any_process(has_waited):
            logger.info("%s has not improved for %d evaluations: training ends.", self._metric, self._patience)
            self.trainer.stop()

    def state_dict(self) -> dict[str, Any]:
        return {"best": self._best, "waited": self._waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._best, self._waited = state["best"], state["waited"]
