"""A backbone that rests at first, and an end when nothing improves."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lbvq.engine.fine_tuning import EarlyStop, RestingBackbone
from lbvq.engine.hooks import EvalHook
from lbvq.engine.trainer import TrainLoop, TrainStep


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = nn.Linear(2, 2), nn.Linear(2, 1)

    def forward(self, batch: list[torch.Tensor]) -> torch.Tensor:
        return self.head(self.backbone(torch.stack(batch))).square().mean()


def loop(model: nn.Module) -> TrainLoop:
    batches = iter(lambda: [torch.ones(2), torch.zeros(2)], None)
    return TrainLoop(TrainStep(model, batches, torch.optim.AdamW(model.parameters(), lr=0.1)))


@pytest.mark.parametrize("is_alone", [True, False])
def test_the_backbone_rests_for_the_first_iterations_and_learns_then(is_alone):
    torch.manual_seed(0)
    model = Model()
    start = {name: value.clone() for name, value in model.state_dict().items()}
    training = loop(model)
    hook = RestingBackbone(model, 3)
    hook._is_alone = is_alone  # with several processes gradients are computed, and dropped
    training.register_hooks([hook])
    training.train(0, 3)
    assert torch.equal(model.backbone.weight, start["backbone.weight"])
    assert not torch.equal(model.head.weight, start["head.weight"])
    training.train(3, 4)
    assert not torch.equal(model.backbone.weight, start["backbone.weight"])
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_model_without_a_backbone_is_told(caplog):
    caplog.set_level("WARNING", logger="lbvq")
    RestingBackbone(nn.Linear(1, 1), 5)
    assert "REST_BACKBONE_ITERS has no effect" in caplog.text


def run(scores: list[float], patience: int, num_iterations: int = 20) -> int:
    """Number of iterations that a run does whose evaluations, one every two iterations, give these scores."""
    remaining = iter([*scores, *[0.0] * num_iterations])
    training = loop(Model())
    evaluate = EvalHook(2, lambda: {"segm": {"AP": next(remaining)}})
    training.register_hooks([evaluate, EarlyStop("segm/AP", 2, patience)])
    training.train(0, num_iterations)
    return training.iter + training.stopped


def test_training_ends_when_several_evaluations_bring_nothing_new():
    assert run([10, 12, 11, 12, 12], patience=3) == 10
    assert run([10, 12, 11, 13, 12], patience=3) == 14  # 13 at iteration 8, then 12, 0, 0


def test_a_model_that_finds_nothing_yet_goes_on():
    assert run([0, 0, 0, 0, 0, 0, 0, 0, 0], patience=2) == 20
    assert run([0, 0, 0, 5, 4, 3], patience=2) == 12


def test_waiting_goes_on_after_a_resume():
    first, second = EarlyStop("segm/AP", 2, 3), EarlyStop("segm/AP", 2, 3)
    first._best, first._waited = 40.0, 2
    second.load_state_dict(first.state_dict())
    assert (second._best, second._waited) == (40.0, 2)


def test_early_stop_needs_a_metric_and_evaluations():
    with pytest.raises(ValueError, match=r"SOLVER.EARLY_STOP needs SOLVER.BEST_METRIC and TEST.EVAL_PERIOD"):
        EarlyStop("", 10, 3)
