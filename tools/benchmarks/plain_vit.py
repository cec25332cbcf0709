"""Plain ViTs: VidEoMT S, B and L, beside transformers' class in the same run; GFLOP, seconds per frame, peak memory.

    python tools/benchmark.py plain_vit --sizes S B L --frames 3
    python tools/benchmark.py plain_vit --memory --sizes S --memory-frames 60
    python tools/benchmark.py plain_vit --device cuda --compile

The first form prints a row for each network and input, in float32 and in bfloat16. transformers' class takes squares of
640 pixels only, so it is in that row. The second segments a video in one process each and prints peak resident memory:
this code frame by frame, the other in one call, which is its only way. Weights are random, which changes no time.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import lbvq.modeling  # noqa: F401  # registers the methods
from lbvq.config import get_cfg
from lbvq.engine.memory import peak_memory_mib
from mask2former.registry import build_model
from mask2former.structures import ImageList

FOLDER = Path(__file__).parents[2] / "configs" / "youtubevis_2019" / "videomt" / "dinov2"
SQUARE = (640, 640)  # what transformers' class takes
INPUTS = ((448, 800), (544, 960), SQUARE)
SHAPES = {"S": (384, 12, 6, 3), "B": (768, 12, 12, 3), "L": (1024, 24, 16, 4)}  # channels, blocks, heads, with queries


def run(args: argparse.Namespace) -> None:
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    if args.peak_of:
        print_peak(args)
    elif args.memory:
        compare_memory(args)
    else:
        compare_time(args)


def ours(size: str, args: argparse.Namespace, device: str | None = None) -> nn.Module:
    cfg = get_cfg()
    cfg.merge_from_file(str(FOLDER / f"videomt_online_ViT{size}.yaml"))
    cfg.merge_from_list(["MODEL.DEVICE", device or args.device, "MODEL.COMPILE", args.compile])
    with torch.device(cfg.MODEL.DEVICE):
        return build_model(cfg).eval()


def theirs(size: str, args: argparse.Namespace) -> nn.Module:
    from transformers import VideomtConfig, VideomtForUniversalSegmentation

    channels, blocks, heads, query_blocks = SHAPES[size]
    config = VideomtConfig(
        hidden_size=channels,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        num_blocks=query_blocks,
        num_queries=200,
        num_labels=40,
        image_size=SQUARE[0],
    )
    return VideomtForUniversalSegmentation(config).eval().to(args.device)


# -- time -------------------------------------------------------------------------------------------------------------


def compare_time(args: argparse.Namespace) -> None:
    unit = "seconds" if args.device.startswith("cuda") else f"CPU seconds ({torch.get_num_threads()} threads)"
    print(f"{unit} per frame, with the mask logits of all 200 queries")
    head = f"{'network':8}{'input':>10}{'GFLOP':>8}{'float32':>10}{'bfloat16':>10}"
    print(head + ("" if args.only_ours else f"{'transformers float32':>22}{'bfloat16':>10}{'speed-up':>10}"))
    for size in args.sizes:
        model = ours(size, args)
        peer = None if args.only_ours else theirs(size, args)
        for shape in INPUTS:
            frame = torch.randn(1, 3, *shape, device=args.device)
            works = [partial(step, model, frame)]
            if peer is not None and shape == SQUARE:
                works.append(partial(peer, pixel_values_videos=frame[None]))
            float32, bfloat16 = (seconds(works, args, is_half) for is_half in (False, True))
            row = f"{size:8}{f'{shape[0]}x{shape[1]}':>10}{gflop(size, shape, args):8.0f}"
            row += f"{float32[0]:10.3f}{bfloat16[0]:10.3f}"
            if len(works) > 1:
                row += f"{float32[1]:22.3f}{bfloat16[1]:10.3f}{float32[1] / float32[0]:10.2f}"
            print(row, flush=True)


def step(model: Any, frame: Tensor) -> Tensor:
    """What a video takes per frame: first blocks, last blocks, heads, and the mask logits of all queries."""
    evidence = model.observe(ImageList(frame, [tuple(frame.shape[-2:])]), 0)
    _, masks = model.advance(model.start_stream(), evidence)
    return masks.logits()


def seconds(works: Sequence[Callable[[], Any]], args: argparse.Namespace, is_half: bool) -> list[float]:
    """The fastest of some runs of each, after one that warms up; they take turns, so that they share the weather."""
    times: list[list[float]] = [[] for _ in works]
    with torch.inference_mode(), torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled=is_half):
        for _ in range(args.frames + 1):
            for work, mine in zip(works, times, strict=True):
                start = now(args.device)
                work()
                mine.append(now(args.device) - start)
    return [min(mine[1:]) for mine in times]


def now(device: str) -> float:
    """Seconds; on a CPU those that this process computed for, so that other programs matter little."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def gflop(size: str, shape: tuple[int, int], args: argparse.Namespace) -> float:
    """Operations of a frame, an addition and a multiplication each, counted without computing anything."""
    model = ours(size, argparse.Namespace(**{**vars(args), "compile": False}), "meta")
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        frames = model.backbone.encode(torch.zeros(1, 3, *shape, device="meta"))
        network = model.network
        tokens = network.run_blocks(network.queries_after(None), frames)[-1]
        readings = network.read(network.last_norm(tokens), frames.grid)
        torch.einsum("bnc,bchw->bnhw", readings.embeddings, network.enlarged(readings.patches.permute(0, 3, 1, 2)))
    return counter.get_total_flops() / 1e9


# -- memory -----------------------------------------------------------------------------------------------------------


def compare_memory(args: argparse.Namespace) -> None:
    print(f"peak resident memory of a process that segments {args.memory_frames} frames of 640x640, MiB")
    for size in args.sizes:
        peaks = [peak_of(size, who, args) for who in ("ours", *([] if args.only_ours else ["transformers"]))]
        print(f"{size:8}ours {peaks[0]:8.0f}" + "".join(f"    transformers {peak:8.0f}" for peak in peaks[1:]))


def peak_of(size: str, who: str, args: argparse.Namespace) -> float:
    """Peak memory of a fresh process."""
    words = ["plain_vit", "--sizes", size, "--peak-of", who, "--memory-frames", args.memory_frames]
    words += ["--threads", args.threads, "--device", args.device]
    command = [sys.executable, str(Path(__file__).parents[1] / "benchmark.py"), *map(str, words)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_peak(args: argparse.Namespace) -> None:
    size, count = args.sizes[0], args.memory_frames
    frame = (torch.rand(3, *SQUARE) * 255).byte()
    with torch.inference_mode():
        if args.peak_of == "ours":
            ours(size, args)([{"image": [frame] * count, "dense_masks": False}])
        else:
            theirs(size, args)(pixel_values_videos=frame.float().expand(1, count, -1, -1, -1).contiguous())
    print(f"{peak_memory_mib():.0f}")
