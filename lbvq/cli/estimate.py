"""What a training takes on this machine, by doing two steps of it."""

from __future__ import annotations

import datetime
import logging
import time
from pathlib import Path

import torch

from lbvq.cli.train import data_settings, recipe
from lbvq.cli.training import Trainer
from lbvq.engine.memory import peak_memory_mib
from lbvq.engine.random_state import preserve_random_state
from lbvq.zoo import load_config

STEPS = 2  # the first one is slower and not counted


def estimate(data: Path, model: str, steps: int) -> list[str]:
    """Lines that say how much memory and time a training with `lbvq train` takes.

    Args:
        data: data folder or annotation file.
        model: as `lbvq train --model`.
        steps: of the training.
    """
    cfg = load_config(model, [*data_settings(data), *recipe(load_config(model), steps, 1)])
    cfg.DATALOADER.NUM_WORKERS = 0  # waits for data are part of what is measured
    logging.getLogger("lbvq").setLevel(logging.WARNING)
    with preserve_random_state():
        network = Trainer.build_model(cfg).train()
        loader = Trainer.build_train_loader(cfg)
        step = Trainer.build_step(cfg, network, loader, Trainer.build_optimizer(cfg, network))
        seconds = 0.0
        for iteration in range(STEPS):
            started = time.perf_counter()
            losses = step(iteration, lambda: None)
            float(sum(losses.values()))  # waits for the device
            seconds = time.perf_counter() - started
    frames = cfg.SOLVER.IMS_PER_BATCH * cfg.INPUT.SAMPLING_FRAME_NUM
    parameters = sum(parameter.numel() for parameter in network.parameters())
    epochs = steps * cfg.SOLVER.IMS_PER_BATCH / max(1, len(loader.dataset.stores[0]))
    duration = datetime.timedelta(seconds=round(seconds * steps))
    return [
        f"training {model} on {cfg.MODEL.DEVICE}: {parameters / 1e6:.1f} million parameters, {frames} frames a step",
        f"  memory: {_peak_mib(cfg.MODEL.DEVICE) / 1024:.1f} GiB at the peak of a step",
        f"  time: {seconds:.2f} seconds a step, {duration} for {steps} steps (every video {epochs:.0f} times), "
        "evaluations not counted",
    ]


def _peak_mib(device: str) -> float:
    return torch.cuda.max_memory_allocated() / 2**20 if torch.device(device).type == "cuda" else peak_memory_mib()
