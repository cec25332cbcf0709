"""Masks per second of the refinement stage, beside the published loop on the same model.

The published loop reads the frame from disk for every video pass, and calls the predictor once per component of every
object; ours computes what the prompts of a frame share once and refines equal masks once. Without `--checkpoint` the
model has random weights: its masks mean nothing, its cost is that of the real one. "Decoding" is everything but the
encoder, which is the same on both sides; `--decoder-only` puts random numbers in the place of the encoder's output, so
that large models can be measured in seconds. The sides take turns, and the best of `--repeats` counts.
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

from lbvq.files.images import read_image
from lbvq.masks.tubes import MaskTubes
from lbvq.refine import refine_tubes, split_components
from lbvq.refine.sam import CHECKPOINTS, SamRefiner, load_sam_weights


def make_video(
    num_frames: int, num_objects: int, num_components: int, size_hw: tuple[int, int]
) -> tuple[list[np.ndarray], np.ndarray]:
    """Frames (T, H, W, 3) uint8 and masks (N, T, H, W) bool; every object is some discs, its components."""
    rng = np.random.RandomState(0)
    height, width = size_hw
    noise = rng.randint(0, 255, (height, width, 3)).astype(np.uint8)
    frames = [np.roll(cv2.GaussianBlur(noise, (0, 0), 5), 2 * t, axis=1) for t in range(num_frames)]
    masks = np.zeros((num_objects, num_frames, height, width), dtype=np.uint8)
    for n in range(num_objects):
        y, x = rng.randint(height // 8, height * 7 // 8), rng.randint(width // 8, width * 5 // 8)
        for t in range(num_frames):
            for part in range(num_components):
                cv2.circle(masks[n, t], (x + 2 * t + part * width // 6, y), height // 16, 1, -1)
    return frames, masks.astype(bool)


def published_loop(predictor: object, paths: list[Path], masks: np.ndarray) -> None:
    """Frame by frame and object by object, one decoder call for each component, as published."""
    for t, path in enumerate(paths):
        predictor.set_image(read_image(path))
        for mask in masks[:, t]:
            for component in split_components(mask):
                predictor.predict(box=np.array(component.box_xyxy), multimask_output=False)


def skip_encoder(predictor: object) -> None:
    """Let `set_image` keep random numbers in the shape of the encoder's output, other ones for every frame."""
    model = predictor.model
    size = model.prompt_encoder.image_embedding_size

    def set_image(image: np.ndarray) -> None:
        predictor.reset_image()
        predictor.original_size = image.shape[:2]
        predictor.input_size = predictor.transform.get_preprocess_shape(*image.shape[:2], model.image_encoder.img_size)
        channels = model.mask_decoder.transformer_dim
        predictor.features = torch.randn(1, channels, *size, device=predictor.device)
        if hasattr(model.mask_decoder, "compress_vit_feat"):
            channels = model.mask_decoder.compress_vit_feat[0].in_channels
            predictor.interm_features = [torch.randn(1, *size, channels, device=predictor.device)]
        predictor.is_image_set = True

    predictor.set_image = set_image


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


def build_predictor(args: argparse.Namespace) -> object:
    if args.refiner == "sam":
        import segment_anything as package
    else:
        import segment_anything_hq as package
    torch.manual_seed(0)
    model = package.sam_model_registry[args.model_type]()
    if args.checkpoint:
        load_sam_weights(model, args.checkpoint, CHECKPOINTS[args.refiner][args.model_type])
    predictor = package.SamPredictor(model.to(args.device).eval())
    if args.decoder_only:
        skip_encoder(predictor)
    return predictor


def measure(args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """(seconds in all, seconds without encoding) of the published loop and of ours, each the best of all repeats."""
    predictor = build_predictor(args)
    frames, masks = make_video(args.frames, args.objects, args.components, tuple(args.size))
    tubes, refiner = MaskTubes.from_dense(masks), SamRefiner(predictor)
    published, ours = [], []
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        paths = [Path(folder) / f"{t:05d}.png" for t in range(args.frames)]
        for path, frame in zip(paths, frames, strict=True):
            cv2.imwrite(str(path), cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        watch = Stopwatch(predictor)
        published_loop(predictor, paths[:1], masks[:1])  # warm up, as the next line
        refine_tubes(MaskTubes.from_dense(masks[:1, :1]), frames[:1], refiner)
        for _ in range(args.repeats):
            published.append(watch.measure(lambda: published_loop(predictor, paths, masks)))
            ours.append(watch.measure(lambda: refine_tubes(tubes, frames, refiner)))
    return np.min(published, axis=0), np.min(ours, axis=0)


def run(args: argparse.Namespace) -> None:
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    published, ours = measure(args)
    count = args.frames * args.objects
    encoder = ", without encoder" if args.decoder_only else ""
    print(f"{args.refiner} {args.model_type} on {args.device}{encoder}: {args.frames} frames of {args.objects} objects")
    print(f"{'':12s}{'masks/s':>10s}{'seconds':>10s}{'decoding, s':>14s}{'ratio':>10s}")
    for name, (total, decoding) in (("published", published), ("ours", ours)):
        print(f"{name:12s}{count / total:10.2f}{total:10.2f}{decoding:14.2f}{published[1] / decoding:10.2f}")
    print(f"ratio: {published[0] / ours[0]:.2f} in all, {published[1] / ours[1]:.2f} of the decoding")
