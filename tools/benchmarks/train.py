"""Training: seconds of a step by stage, iterations, clips and frames per second, peak memory.

    python tools/benchmark.py train
    python tools/benchmark.py train --config-file configs/youtubevis_2019/lbvq_R50_bs8.yaml --synthetic 480 854 20 \\
        DATASETS.TRAIN "('synthetic_train',)" DATASETS.DATASET_RATIO "[1.0]" MODEL.SEM_SEG_HEAD.NUM_CLASSES 5

Videos of the built-in data set are written to a temporary folder, so nothing needs to be there; with --real the data
sets of the configuration are used. The step is the engine's own, with its mixed precision, clipping and optimizer.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import time
from typing import Any

import torch

import lbvq.modeling  # noqa: F401  registers the methods
from lbvq.data import build_train_loader
from lbvq.data.synthetic import SyntheticSettings, write_dataset
from lbvq.engine.activation_checkpointing import enable_activation_checkpointing
from lbvq.engine.defaults import training_amp_dtype
from lbvq.engine.memory import peak_memory_mib
from lbvq.engine.random_state import seed_all_rng
from lbvq.engine.solver import build_gradient_clipper, build_optimizer
from lbvq.engine.trainer import TrainStep
from lbvq.files.data_entries import data_options
from lbvq.zoo import load_config
from mask2former.registry import build_model


class StageTimer(TrainStep):
    """Measures the parts of each step; waiting for the GPU after each part makes the step a little slower."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.seconds = {"data": 0.0, "forward and losses": 0.0, "backward": 0.0, "clip and optimizer": 0.0}

    def __call__(self, iteration: int, after_backward: Any = None) -> Any:
        before = sum(self.seconds.values())
        start = self._now()
        losses = super().__call__(iteration, after_backward)
        self.seconds["backward"] += self._now() - start - (sum(self.seconds.values()) - before)
        return losses

    def next_batch(self) -> Any:
        return self._timed("data", super().next_batch)

    def _losses(self, part: Any) -> Any:
        return self._timed("forward and losses", super()._losses, part)

    def _optimizer_step(self) -> None:
        self._timed("clip and optimizer", super()._optimizer_step)

    def _timed(self, stage: str, function: Any, *args: Any) -> Any:
        start = self._now()
        result = function(*args)
        self.seconds[stage] += self._now() - start
        return result

    @staticmethod
    def _now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()


def run(args: argparse.Namespace) -> None:
    logging.basicConfig(level=logging.WARNING)
    cfg = load_config(args.config_file, [*data_options(args.data), *args.opts])
    seed_all_rng(max(cfg.SEED, 0))
    with tempfile.TemporaryDirectory() as folder:
        if not args.real:
            write_videos(folder, args)
        step = build_step(cfg)
        for iteration in range(args.warmup + args.iterations):
            if iteration == args.warmup:
                step.seconds = dict.fromkeys(step.seconds, 0.0)
            step(iteration)
        _print_table(cfg, step, args.iterations)


def write_videos(folder: str, args: argparse.Namespace) -> None:
    height, width, num_frames = args.synthetic
    scale = min(height / 96, width / 128)
    settings = SyntheticSettings.scaled(scale, height=height, width=width, num_frames=num_frames)
    write_dataset(folder, num_train=args.videos, num_val=1, settings=settings)
    os.environ["DETECTRON2_DATASETS"] = folder


def build_step(cfg: Any) -> StageTimer:
    model = build_model(cfg)
    if cfg.SOLVER.ACTIVATION_CHECKPOINTING:
        enable_activation_checkpointing(model)
    optimizer = build_optimizer(cfg, model)
    return StageTimer(
        model,
        build_train_loader(cfg),
        optimizer,
        clip_gradients=build_gradient_clipper(cfg, optimizer),
        amp_dtype=training_amp_dtype(cfg, next(model.parameters()).device),
        accumulate_steps=cfg.SOLVER.ACCUMULATE_STEPS,
    )


def _print_table(cfg: Any, step: StageTimer, iterations: int) -> None:
    total = sum(step.seconds.values())
    print(f"{'stage':<22}{'ms per iteration':>18}{'share':>8}")
    for stage, seconds in {**step.seconds, "total": total}.items():
        print(f"{stage:<22}{1000 * seconds / iterations:>18.1f}{seconds / total:>8.1%}")
    clips = cfg.SOLVER.IMS_PER_BATCH * iterations / total
    frames = clips * cfg.INPUT.SAMPLING_FRAME_NUM
    print(f"{iterations / total:.3f} iterations/s, {clips:.2f} clips/s, {frames:.2f} frames/s", end=", ")
    if step.device_type == "cuda":
        print(f"peak GPU memory {torch.cuda.max_memory_allocated() / 2**20:.0f} MiB")
    else:
        print(f"peak memory {peak_memory_mib():.0f} MiB, {torch.get_num_threads()} threads")
