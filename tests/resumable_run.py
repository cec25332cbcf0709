"""A small run that can be killed and resumed, as script and module: `python resumable_run.py FOLDER [KEY VALUE]`.

The model draws random numbers, the data are random, and a schedule and AdamW have states: if anything were not restored
exactly, the losses after a resume would differ.
"""

from __future__ import annotations

import os
import random
import signal
import sys

import numpy as np
import torch
from torch import nn

from lbvq.config import get_cfg
from lbvq.engine.defaults import DefaultTrainer
from lbvq.engine.random_state import seed_all_rng
from lbvq.engine.trainer import HookBase


class NoisyNet(nn.Module):
    """Draws from torch, numpy and python in every step."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 1))

    def forward(self, batch):
        x = torch.stack(list(batch))
        if not self.training:
            return {"mean": self.layers(x).mean().item()}
        noise = np.random.normal() + random.random() + torch.rand(len(x), 1)
        error = self.layers(x) - noise
        return {"loss_square": error.square().mean(), "loss_abs": error.abs().mean()}


class CountingLoader:
    """Batch number i is always the same; remembers how many were taken."""

    def __init__(self):
        self.position = 0

    def __iter__(self):
        while True:
            generator = torch.Generator().manual_seed(self.position)
            self.position += 1
            yield list(torch.randn(6, 4, generator=generator))

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]


class Evaluator:
    def reset(self):
        self.values = []

    def process(self, inputs, outputs):
        self.values.append(outputs["mean"] + random.random())  # an evaluation that draws must not disturb training

    def evaluate(self):
        return {"segm": {"AP": float(np.mean(self.values))}}


class Trainer(DefaultTrainer):
    @classmethod
    def build_model(cls, cfg):
        return NoisyNet()

    @classmethod
    def build_train_loader(cls, cfg):
        return CountingLoader()

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        return [list(torch.randn(6, 4)) for _ in range(2)]

    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        if dataset_name == "without_evaluator":
            raise NotImplementedError("there is none")
        return Evaluator()


class KillAt(HookBase):
    """Sends a signal to this process in the middle of an iteration."""

    def __init__(self, iteration: int, number: signal.Signals) -> None:
        self.iteration, self.number = iteration, number

    def after_backward(self):
        if self.trainer.iter == self.iteration:
            os.kill(os.getpid(), self.number)


def make_cfg(folder, *opts):
    cfg = get_cfg()
    cfg.OUTPUT_DIR, cfg.SEED, cfg.MODEL.DEVICE = str(folder), 3, "cpu"
    solver = cfg.SOLVER
    solver.MAX_ITER, solver.STEPS, solver.WARMUP_ITERS, solver.CHECKPOINT_PERIOD = 30, (20,), 5, 6
    solver.BASE_LR, solver.CLIP_GRADIENTS.ENABLED, solver.CLIP_GRADIENTS.CLIP_TYPE = 0.01, True, "full_model"
    cfg.TEST.EVAL_PERIOD, cfg.DATASETS.TEST = 4, ("fake",)
    cfg.merge_from_list(list(opts))
    cfg.freeze()
    return cfg


def make_trainer(cfg, resume=False, *more_hooks):
    seed_all_rng(cfg.SEED)
    trainer = Trainer(cfg)
    trainer.register_hooks(more_hooks)
    trainer.resume_or_load(resume=resume)
    return trainer


if __name__ == "__main__":
    kill_at = KillAt(int(os.environ.get("KILL_AT", -1)), signal.Signals[os.environ.get("KILL_WITH", "SIGKILL")])
    make_trainer(make_cfg(*sys.argv[1:]), True, kill_at).train()
