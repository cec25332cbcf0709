"""Steps of training for tests of the engine: a small regression, and steps that learn nothing."""

from __future__ import annotations

import torch
from torch import nn

from lbvq.engine.trainer import TrainLoop, TrainStep


class Regression(nn.Module):
    """Two losses of a linear layer; a sample is a vector of 3."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 1)

    def forward(self, batch):
        error = self.layer(torch.stack(list(batch)))
        return {"loss_square": error.square().mean(), "loss_abs": 0.5 * error.abs().mean()}


def samples(seed=0):
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield [torch.randn(3, generator=generator) for _ in range(6)]


def make_step(model=None, learning_rate=0.1, **options):
    model = model or Regression()
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
    return TrainStep(model, samples(), optimizer, **options)


def make_trainer(**options):
    return TrainLoop(make_step(), **options)


class EmptyStep:
    """Learns nothing; writes down its calls."""

    data_time = 0.25

    def __init__(self):
        self.calls = []

    def __call__(self, iteration, after_backward):
        self.calls.append(("step", "", iteration))
        after_backward()
        return {"loss": torch.tensor(float(iteration))}


class FailingStep(EmptyStep):
    def __call__(self, iteration, after_backward):
        raise ZeroDivisionError
