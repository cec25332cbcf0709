"""VMT's transformer over edge pixels: peak memory and time, ours against attention that returns its weights.

    python tools/benchmark.py vmt_points --points 12000 --threads 1

The published code asks `nn.MultiheadAttention` for its weights, 4 heads x points x points numbers per layer; ours uses
`scaled_dot_product_attention`. Every form runs in a process of its own, so that its peak is its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from multiprocessing.connection import Connection

import torch
from torch import Tensor

from lbvq.engine.memory import peak_memory_mib
from lbvq.modeling.vmt.edges import PointTransformer

MIB = 2**20


def run(args: argparse.Namespace) -> None:
    results = {form: _in_a_process(form, args) for form in ("ours", "with weights")}
    print(f"{args.points} points, {args.layers} layers, {args.threads} threads")
    for form, (mib, seconds, _) in results.items():
        print(f"{form:14s}{mib:10.0f} MiB{seconds:8.2f} s")
    difference = (results["ours"][2] - results["with weights"][2]).abs().max().item()
    print(f"memory: {results['ours'][0] / results['with weights'][0]:.3f}, largest difference {difference:.1e}")


def with_weights(model: PointTransformer, points: Tensor, position: Tensor) -> Tensor:
    """The same layers, with attention that returns its weights: (P, C) -> (P, C)."""
    x = points[:, None]
    for layer in model.layers:
        placed = x + position[:, None]
        x = layer.norm1(x + layer.self_attn(placed, placed, x, need_weights=True)[0])
        x = layer.norm2(x + layer.linear2(layer.linear1(x).relu()))
    return x[:, 0]


def _in_a_process(form: str, args: argparse.Namespace) -> tuple[float, float, Tensor]:
    """MiB by which the peak grew, seconds, and some of the numbers."""
    context = multiprocessing.get_context("fork")  # modules loaded by path cannot be spawned
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(form, args.points, args.layers, args.threads, sender))
    process.start()
    sender.close()
    try:
        mib, seconds, rows = receiver.recv()
    except EOFError as error:
        raise RuntimeError(f"the process of {form!r} ended early, probably for want of memory.") from error
    process.join()
    return mib, seconds, torch.tensor(rows)


def _measure(form: str, count: int, num_layers: int, threads: int, sender: Connection) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = PointTransformer(num_layers=num_layers).eval()
    points, position = torch.randn(2, count, 64)
    encode = model.encode if form == "ours" else lambda *inputs: with_weights(model, *inputs)
    with torch.inference_mode():
        encode(points[:8], position[:8])
        before, start = peak_memory_mib(), time.perf_counter()
        out = encode(points, position)
    sender.send((peak_memory_mib() - before, time.perf_counter() - start, out[:: max(1, count // 100)].tolist()))
