"""Masks per second of the refinement stage, beside the published loop on the same model.

The published loop reads the frame from disk for every video pass, and calls the predictor once per component of every
object; ours decodes all prompts of a frame in one batch and refines equal masks once. Without `--checkpoint` the model
has random weights: its masks mean nothing, its cost is that of the real one.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch

from lbvq.refine import refine_tubes, split_components
from lbvq.refine.sam import CHECKPOINTS, SamRefiner, load_sam_weights
from lbvq.tubes import MaskTubes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--refiner", choices=sorted(CHECKPOINTS), default="hq_sam")
    parser.add_argument("--model-type", default="vit_b", help="vit_b, vit_l, vit_h; vit_tiny for hq_sam")
    parser.add_argument("--checkpoint", help="published file; default: random weights")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--frames", type=int, default=2)
    parser.add_argument("--objects", type=int, default=10, help="visible objects per frame")
    parser.add_argument("--size", type=int, nargs=2, default=(360, 640), metavar=("H", "W"))


def make_video(num_frames: int, num_objects: int, size_hw: tuple[int, int]) -> tuple[list[np.ndarray], np.ndarray]:
    """Frames (T, H, W, 3) uint8 and masks (N, T, H, W) bool; every object is two discs, so two components."""
    rng = np.random.RandomState(0)
    height, width = size_hw
    noise = rng.randint(0, 255, (height, width, 3)).astype(np.uint8)
    frames = [np.roll(cv2.GaussianBlur(noise, (0, 0), 5), 2 * t, axis=1) for t in range(num_frames)]
    masks = np.zeros((num_objects, num_frames, height, width), dtype=np.uint8)
    for n in range(num_objects):
        y, x = rng.randint(height // 8, height * 7 // 8), rng.randint(width // 8, width * 5 // 8)
        for t in range(num_frames):
            for shift in (0, width // 6):
                cv2.circle(masks[n, t], (x + 2 * t + shift, y), height // 16, 1, -1)
    return frames, masks.astype(bool)


def published_loop(predictor: object, paths: list[Path], masks: np.ndarray) -> None:
    """Frame by frame and object by object, one decoder call for each component, as published."""
    for t, path in enumerate(paths):
        image = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
        predictor.set_image(image)
        for mask in masks[:, t]:
            for component in split_components(mask):
                predictor.predict(box=np.array(component.box_xyxy), multimask_output=False)


class Stopwatch:
    """Seconds of a run, and how many of them went into the predictor's `set_image`."""

    def __init__(self, predictor: object) -> None:
        self.encoding = 0.0
        self._set_image = predictor.set_image
        predictor.set_image = self._timed_set_image

    def _timed_set_image(self, image: np.ndarray) -> None:
        start = time.perf_counter()
        self._set_image(image)
        _wait()
        self.encoding += time.perf_counter() - start

    def measure(self, run: Callable[[], object]) -> tuple[float, float]:
        """(seconds in all, seconds without encoding)."""
        self.encoding, start = 0.0, time.perf_counter()
        run()
        _wait()
        total = time.perf_counter() - start
        return total, total - self.encoding


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def run(args: argparse.Namespace) -> None:
    if args.refiner == "sam":
        import segment_anything as package
    else:
        import segment_anything_hq as package
    torch.manual_seed(0)
    model = package.sam_model_registry[args.model_type]()
    if args.checkpoint:
        load_sam_weights(model, args.checkpoint, CHECKPOINTS[args.refiner][args.model_type])
    predictor = package.SamPredictor(model.to(args.device).eval())
    frames, masks = make_video(args.frames, args.objects, tuple(args.size))
    tubes, refiner = MaskTubes.from_dense(masks), SamRefiner(predictor)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        paths = [Path(folder) / f"{t:05d}.png" for t in range(args.frames)]
        for path, frame in zip(paths, frames, strict=True):
            cv2.imwrite(str(path), cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        watch = Stopwatch(predictor)
        refine_tubes(MaskTubes.from_dense(masks[:1, :1]), frames[:1], refiner)  # warm up
        published = watch.measure(lambda: published_loop(predictor, paths, masks))
        ours = watch.measure(lambda: refine_tubes(tubes, frames, refiner))
    count = args.frames * args.objects
    print(f"{args.refiner} {args.model_type} on {args.device}: {args.frames} frames of {args.objects} objects")
    print(f"{'':12s}{'masks/s':>10s}{'seconds':>10s}{'decoding, s':>14s}")
    for name, (total, decoding) in (("published", published), ("ours", ours)):
        print(f"{name:12s}{count / total:10.2f}{total:10.2f}{decoding:14.2f}")
    print(f"ratio: {published[0] / ours[0]:.2f} in all, {published[1] / ours[1]:.2f} of the decoding")
