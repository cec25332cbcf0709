"""Exported networks: CPU seconds per frame of the same network in PyTorch, ONNX Runtime and OpenVINO.

    python tools/benchmark.py export --folders minvis_onnx minvis_openvino --threads 1

The folders are those of `lbvq export`, all of one model for one size of frames, whose rest of weights does not matter.
The forms take turns frame by frame in one process, and the fastest frame of each counts. Tracking is the same for all
and is left out. PyTorch computes with random weights: time does not depend on them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from lbvq.inference.exported.listing import LIST_FILE, GraphList
from lbvq.inference.exported.runtimes import run_graphs
from lbvq.zoo import load_config
from mask2former.bfloat16 import Bfloat16Products, cpu_computes_in_bfloat16
from mask2former.registry import build_model

Step = Callable[[], object]


def run(args: argparse.Namespace) -> None:
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    folders = [Path(folder) for folder in args.folders]
    images = torch.randint(0, 256, (3, *args.size)).float()
    with torch.inference_mode():
        forms = {
            **eager_forms(folders[0], images),
            **{str(each): step_of(each, images, exported=True) for each in folders},
        }
        seconds = best_seconds(forms, args.repeats)
    print(f"{'CPU seconds per frame':40}{'s':>8}{'speed':>8}")
    for name, best in seconds.items():
        print(f"{name:40}{best:8.3f}{seconds['PyTorch, float32'] / best:8.2f}")


def eager_forms(folder: Path, images: Tensor) -> dict[str, Step]:
    """The network as it is, and with products in bfloat16 where the CPU computes in it."""
    step = step_of(folder, images, exported=False)
    products = Bfloat16Products()

    def rounded() -> object:
        with products.active():
            return step()

    return {"PyTorch, float32": step, **({"PyTorch, bfloat16": rounded} if cpu_computes_in_bfloat16() else {})}


def step_of(folder: Path, images: Tensor, *, exported: bool) -> Step:
    """What runs all graphs of a model on one frame, or what the graphs were made of."""
    cfg = load_config(folder, ["MODEL.DEVICE", "cpu"])
    size = GraphList.read(folder / LIST_FILE).size
    model = build_model(cfg).eval()
    if size is not None and model.batch_images([images]).padded_size != size:
        raise ValueError(f"{folder} is for frames of {size} (height, width); set --size.")
    if exported:
        run_graphs(model, cfg)
    batch = model.batch_images([images])
    if hasattr(model, "encode_frames"):
        return lambda: model.encode_frames(batch)
    return lambda: model.advance(model.start_stream(), model.observe(batch, 0))


def best_seconds(forms: dict[str, Step], repeats: int) -> dict[str, float]:
    """CPU seconds of the fastest call of each form; they take turns, after one call each that does not count."""
    seconds: dict[str, float] = dict.fromkeys(forms, float("inf"))
    for number in range(repeats + 1):
        for name, step in forms.items():
            start = time.process_time()
            step()
            if number:
                seconds[name] = min(seconds[name], time.process_time() - start)
    return seconds
