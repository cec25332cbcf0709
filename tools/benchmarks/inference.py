"""Inference: seconds per frame by stage, against the published arithmetic in the same run; peak memory by video length.

    python tools/benchmark.py inference --frames 36 --size 360 640
    python tools/benchmark.py inference --memory [--memory-frames 100 1000] [--stream]

The first form prints a column for this code in float32, one for products in bfloat16 where the CPU computes in it, one
for the published forms of the same computation, and their quotients. The published forms are: deformable
attention by grid_sample, batch normalisation and ReLU by themselves, attention weights kept, masks at full size after
every frame decoder layer, and one attention call per frame in the clip module. The second form segments a short and a
long video in fresh processes and prints the ratio of their peak resident memory. Weights are random unless given, which
changes no time but that of the run lengths.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lbvq.modeling.lbvq as lbvq_module
import mask2former.layers as layers
import mask2former.linear as linear
import mask2former.modeling.folding as folding
import mask2former.modeling.transformer_decoder as decoder
from lbvq.engine.checkpoint import load_weights
from lbvq.engine.memory import peak_memory_mib
from lbvq.inference.frames import Resize, ResizedFrames, open_frames
from lbvq.inference.stream import StreamPredictor
from lbvq.modeling.clips.segmenter import ClipSegmenter
from lbvq.modeling.dvis.offline import DVIS_offline
from lbvq.modeling.online.segmenter import OnlineSegmenter
from lbvq.modeling.ovformer.model import OpenVocabularyVideoModel
from lbvq.modeling.postprocess import MaskStream
from lbvq.zoo import load_config
from mask2former.abilities import has_ability
from mask2former.bfloat16 import Bfloat16Products, cpu_computes_in_bfloat16
from mask2former.modeling.deform_attn import MSDeformAttn
from mask2former.registry import build_model

MAX_RATIO = 1.25  # of the peak memory of the long video to that of the short one
MAX_STREAM_RATIO = 1.1  # of streams that keep no masks
DISTINCT_FRAMES = 12  # written to disk; longer videos repeat them


def run(args: argparse.Namespace) -> None:
    if args.memory:
        compare_memory(args)
        return
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = build(args)  # as everywhere: what is made in inference mode has no version, so nothing of it can be kept
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        video = RepeatedFrames(write_frames(Path(folder), args.size), args.size, args.frames)
        if args.peak_only:
            (segment_stream if args.stream else segment)(model, video)
            print(f"{peak_memory_mib():.0f}")
        else:
            compare_time(model, video, args)


def build(args: argparse.Namespace) -> nn.Module:
    cfg = load_config(args.config_file, ["MODEL.DEVICE", args.device, "MODEL.COMPILE", args.compile, *args.opts])
    model = build_model(cfg).eval()
    if args.weights:
        load_weights(model, args.weights)
    return model


# -- the video --------------------------------------------------------------------------------------------------------


def write_frames(folder: Path, size_hw: Sequence[int]) -> Path:
    """Write JPEG files of moving blobs, twice as large as the network input, as a video usually is."""
    height, width = 2 * size_hw[0], 2 * size_hw[1]
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    for t in range(DISTINCT_FRAMES):
        image = np.full((height, width, 3), 90, np.float32)
        for blob in range(6):
            centre_y = height * (0.15 + 0.14 * blob) + 6 * t
            centre_x = width * (0.85 - 0.14 * blob) - 9 * t
            radius = height * (0.05 + 0.02 * blob)
            weight = np.exp(-((y - centre_y) ** 2 + (x - centre_x) ** 2) / (2 * radius**2))
            image += weight[..., None] * np.array([(53 * blob) % 160, (97 * blob) % 160, 120], np.float32)
        cv2.imwrite(str(folder / f"{t:05d}.jpg"), image.clip(0, 255).astype(np.uint8))
    return folder


class RepeatedFrames(Sequence):
    """A video of any length from a few files, each decoded and resized when it is asked for."""

    def __init__(self, folder: Path, size_hw: Sequence[int], length: int) -> None:
        self.frames = ResizedFrames(open_frames(str(folder)), min_size=min(size_hw), max_size=max(size_hw))
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, t: int) -> Tensor:
        return self.frames[t % len(self.frames)]


def segment(model: nn.Module, video: Sequence[Tensor]) -> dict[str, Any]:
    sample: dict[str, Any] = {"image": video, "dense_masks": False}
    if has_ability(model, "open_vocabulary"):  # what CLIP says of the frames, which takes no time of the network
        sample["clip_features"] = torch.ones(len(video), model.sem_seg_head.predictor.class_embed.text_dim)
    return model([sample])


def segment_stream(model: nn.Module, video: Sequence[Tensor]) -> None:
    stream = StreamPredictor(model, resize=Resize(min_size=0), keep_masks=False)  # they have the network's size
    for t in range(len(video)):
        stream.step(video[t])


# -- time -------------------------------------------------------------------------------------------------------------


class Stopwatch:
    """Seconds spent in named stages; a stage inside another one counts for itself only."""

    def __init__(self, device: str, clock: Callable[[], float]) -> None:
        self.device, self.clock, self.seconds, self._inside = torch.device(device), clock, {}, []

    def wrap(self, function: Any, stage: str) -> Any:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = self._now()
            self._inside.append(0.0)
            result = function(*args, **kwargs)
            elapsed = self._now() - start
            self.seconds[stage] = self.seconds.get(stage, 0.0) + elapsed - self._inside.pop()
            if self._inside:
                self._inside[-1] += elapsed
            return result

        return timed

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return self.clock()


def method_stages(model: nn.Module) -> list[tuple[Any, str, str]]:
    """What a method does with encoded frames: (owner of the function, its name, stage)."""
    if isinstance(model, ClipSegmenter):
        return [(model.clip_module, name, "clip module") for name in ("mask_features", "forward")]
    if isinstance(model, DVIS_offline):
        return [(model.tracker, "forward", "tracking"), (model.refiner, "forward", "refinement")]
    if isinstance(model, OpenVocabularyVideoModel):
        return [(model.sem_seg_head.predictor.class_embed, "forward", "comparison with texts")]
    return [(model, name, "tracking") for name in ("observe", "advance")]


@contextlib.contextmanager
def stages_timed(model: nn.Module, device: str, clock: Callable[[], float]) -> Iterator[dict[str, float]]:
    """Time the stages of `model` inside the block."""
    watch = Stopwatch(device, clock)
    head = model.sem_seg_head
    if getattr(head, "_compiled_call_impl", None) is not None:  # a graph has no stages inside
        encoder = [
            (model.backbone, "_compiled_call_impl", "backbone"),
            (head, "_compiled_call_impl", "pixel and frame decoder"),
        ]
    else:
        encoder = [
            (model.backbone, "forward", "backbone"),
            (head.pixel_decoder, "forward_features", "pixel decoder"),
            (head.predictor, "forward", "frame decoder"),
        ]
    places = [
        (RepeatedFrames, "__getitem__", "decode and resize"),
        *encoder,
        *method_stages(model),
        (MaskStream, "add", "mask up-sampling"),
        (MaskStream, "_keep", "run lengths"),
    ]
    with contextlib.ExitStack() as stack:
        for owner, name, stage in places:
            stack.enter_context(patch.object(owner, name, watch.wrap(getattr(owner, name), stage)))
        yield watch.seconds


@contextlib.contextmanager
def published_arithmetic(model: nn.Module) -> Iterator[None]:
    """Compute as the published code does inside the block; results are the same up to rounding."""
    predictor = model.sem_seg_head.predictor
    with contextlib.ExitStack() as stack:
        stack.enter_context(patch.object(linear, "_HAS_ONEDNN", False))
        stack.enter_context(patch.object(folding, "_can_fold", lambda conv, norm: False))
        stack.enter_context(patch.object(layers, "attend", attend_with_weights))
        stack.enter_context(
            patch.object(predictor, "resize_features", lambda features, sizes: [(features, size) for size in sizes])
        )
        stack.enter_context(patch.object(decoder, "mask_logits", full_size_mask_logits))
        stack.enter_context(patch.object(lbvq_module, "FRAMES_AT_ONCE", 1))
        stack.enter_context(patch.object(type(model), "frames_per_run", model.run_chunk_size))
        stack.enter_context(patch.object(OnlineSegmenter, "encode_step", None))
        stack.enter_context(patch.object(model, "feature_budget_mib", float("inf")))
        for module in model.modules():
            if isinstance(module, MSDeformAttn):
                stack.enter_context(patch.object(module, "kernel", "grid_sample"))
        handle = model.backbone.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
        stack.callback(handle.remove)
        yield


def full_size_mask_logits(embeddings: Tensor, features: Tensor | tuple[Tensor, tuple[int, int]]) -> Tensor:
    """`linear.mask_logits`; for (features, size) the masks are made at full size and resized afterwards."""
    if isinstance(features, Tensor):
        return torch.einsum("bqc,bchw->bqhw", embeddings, features)
    masks = full_size_mask_logits(embeddings, features[0])
    return F.interpolate(masks, size=features[1], mode="bilinear", align_corners=False)


def attend_with_weights(
    attention: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    key_padding_mask: Tensor | None = None,
) -> Tensor:
    """`attention.attend` by PyTorch's module, with one mask per head and the weights as a second result."""
    if mask is not None and mask.dim() == 4:
        mask = mask.expand(-1, attention.num_heads, -1, -1).flatten(0, 1)
    return attention(query, key, value, attn_mask=mask, key_padding_mask=key_padding_mask)[0]


def compare_time(model: nn.Module, video: RepeatedFrames, args: argparse.Namespace) -> None:
    """Print the table of stages."""
    short = RepeatedFrames.__new__(RepeatedFrames)
    short.frames, short.length = video.frames, 2
    columns, outputs = {}, {}
    clock = time.process_time if args.processor_time else time.perf_counter
    modes = {"ours": contextlib.nullcontext()}
    if cpu_computes_in_bfloat16() and args.device == "cpu":
        modes["bfloat16"] = Bfloat16Products().active()
    if not args.only_ours:
        modes["published"] = published_arithmetic(model)
    for name, mode in modes.items():
        with mode:
            segment(model, short)  # compilation, caches
            with stages_timed(model, args.device, clock) as seconds:
                start = clock()
                outputs[name] = segment(model, video)
                total = clock() - start
        columns[name] = {**seconds, "everything else": total - sum(seconds.values()), "total": total}
        peak = peak_memory_mib()
        print(f"{name}: {len(video) / total:.2f} frames per second, peak resident memory so far {peak:.0f} MiB")
    print_table(columns, len(video))
    for name in list(columns)[1:]:
        print_agreement(name, outputs["ours"], outputs[name])


def print_table(columns: dict[str, dict[str, float]], num_frames: int) -> None:
    """Print seconds per frame by stage, and the quotients of every two columns: how many times as fast."""
    pairs = list(itertools.combinations(sorted(columns, key=lambda name: columns[name]["total"]), 2))  # fast, slow
    titles = [*columns, *("{}/{}".format(*(name[:4] for name in pair[::-1])) for pair in pairs)]
    print(f"\n{'seconds per frame':20s}" + "".join(f"{title:>12s}" for title in titles))
    for stage in columns["ours"]:
        seconds = {name: column.get(stage, 0.0) / num_frames for name, column in columns.items()}
        ratios = [seconds[slow] / seconds[fast] if seconds[fast] > 0 else float("nan") for fast, slow in pairs]
        print(f"{stage:20s}" + "".join(f"{value:12.4f}" for value in [*seconds.values(), *ratios]))


def print_agreement(name: str, ours: dict[str, Any], published: dict[str, Any]) -> None:
    """Print how far the two results are apart, pairing predictions by rank."""
    pairs = list(zip(ours["pred_scores"], published["pred_scores"], strict=True))
    num_different = sum(
        int((ours["pred_masks"].frame(t) != published["pred_masks"].frame(t)).sum())
        for t in range(ours["pred_masks"].num_frames)
    )
    num_pixels = max(int(np.prod(ours["pred_masks"].shape)), 1)
    print(f"\n{name}: largest difference of scores {max((abs(a - b) for a, b in pairs), default=0):.1e}, ", end="")
    print(f"labels {'equal' if ours['pred_labels'] == published['pred_labels'] else 'differ'}, ", end="")
    print(f"{num_different / num_pixels:.1e} of the mask pixels differ")


# -- memory -----------------------------------------------------------------------------------------------------------


def compare_memory(args: argparse.Namespace) -> None:
    """Segment a short and a long video in fresh processes and print the ratio of their peaks."""
    peaks = []
    for num_frames in args.memory_frames:
        command = [sys.executable, sys.argv[0], "inference", "--peak-only", "--frames", str(num_frames)]
        command += ["--config-file", args.config_file, "--weights", args.weights, "--threads", str(args.threads)]
        command += ["--device", args.device, "--size", *map(str, args.size), *["--stream"] * args.stream, *args.opts]
        start = time.perf_counter()
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        peaks.append(float(output.splitlines()[-1]))
        print(f"{num_frames:4d} frames: peak {peaks[-1]:6.0f} MiB, {time.perf_counter() - start:.0f} s", flush=True)
    ratio, limit = peaks[1] / peaks[0], MAX_STREAM_RATIO if args.stream else MAX_RATIO
    print(f"ratio {ratio:.2f}, which should be at most {limit}: {'yes' if ratio <= limit else 'NO'}")
