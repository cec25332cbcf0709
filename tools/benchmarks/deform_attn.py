"""Deformable attention: milliseconds per call of every kernel and of the textbook form, and of what is no product.

    python tools/benchmark.py deform_attn --size 384 640 --frames 2 --threads 1

The second number leaves the linear maps out, the same for all kernels: what is left is sampling, and making points and
weights of the projected queries. Kernels take turns, and the best of their times counts. The textbook form projects
with `nn.Linear`, keeps locations in [0, 1] and stacks what `grid_sample` returns for every map before it is weighted.
The largest difference from its result is printed too.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mask2former.linear import linear_transposed
from mask2former.modeling.deform_attn import KERNELS, MSDeformAttn, Sizes
from mask2former.modeling.deform_attn_compiled import SAMPLING

STRIDES = (32, 16, 8)


def run(args: argparse.Namespace) -> None:
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    sizes = [(args.size[0] // stride, args.size[1] // stride) for stride in STRIDES]
    num_cells = sum(height * width for height, width in sizes)
    module = MSDeformAttn(256, len(sizes), 8, 4).to(args.device)
    torch.nn.init.normal_(module.sampling_offsets.weight, std=0.05)
    torch.nn.init.normal_(module.attention_weights.weight, std=0.05)
    tokens = torch.randn(args.frames, num_cells, 256, device=args.device, requires_grad=args.grad)
    centres = [torch.cartesian_prod(*((torch.arange(n) + 0.5) / n for n in size)).flip(1) for size in sizes]
    reference_points = torch.cat(centres).to(args.device)[None, :, None].expand(-1, -1, len(sizes), -1)

    def call(form: Callable[..., Tensor]) -> Tensor:
        with torch.set_grad_enabled(args.grad):
            out = form(tokens, reference_points, tokens, sizes)
            if args.grad:
                out.sum().backward()
        return out.detach()

    print(f"{args.frames} x {num_cells} queries, {torch.get_num_threads()} threads, {args.device}, ms per call")
    want = call(lambda *inputs: textbook(module, *inputs))
    rows = {"textbook": lambda *inputs: textbook(module, *inputs)}
    is_cpu = torch.device(args.device).type == "cpu"
    absent = {"triton" if is_cpu else "compiled"} | ({"compiled"} if SAMPLING.load() is None else set())
    rows |= {name: _with_kernel(module, name) for name in KERNELS if name not in absent}
    rows["linear maps"] = lambda query, _, value, sizes: linear_maps(module, query, value)
    differences = {name: (call(form) - want).abs().max().item() for name, form in rows.items()}
    clock = time.process_time if args.processor_time else time.perf_counter
    best = dict.fromkeys(rows, math.inf)
    for _ in range(args.repeats):
        for name, form in rows.items():
            best[name] = min(best[name], 1e3 * _seconds(lambda form=form: call(form), args.device, clock))
    for name in [*rows][:-1]:
        rest = best[name] - best["linear maps"]
        print(f"{name:16s}{best[name]:10.1f}{rest:10.1f}   largest difference {differences[name]:.1e}")


def linear_maps(module: MSDeformAttn, query: Tensor, value: Tensor) -> Tensor:
    """The products of the module: of values, offsets and logits, and outputs."""
    projected = linear_transposed(query, *module._projection())
    return module.output_proj(module.value_proj(value)) + projected[:, :1].transpose(1, 2)


def textbook(module: MSDeformAttn, query: Tensor, reference_points: Tensor, value: Tensor, sizes: Sizes) -> Tensor:
    """Deformable attention as its definition reads, with arguments as `MSDeformAttn.forward`."""
    batch, num_queries, _ = query.shape
    layout = (batch, num_queries, module.n_heads, module.n_levels, module.n_points)
    values = F.linear(value, module.value_proj.weight, module.value_proj.bias).unflatten(-1, (module.n_heads, -1))
    offsets = module.sampling_offsets(query).view(*layout, 2)
    weights = module.attention_weights(query).view(*layout[:3], -1).softmax(-1)  # (B, Q, M, L*P)
    scale = torch.tensor([(width, height) for height, width in sizes], device=query.device)
    locations = reference_points[:, :, None, :, None] + offsets / scale[:, None]  # (B, Q, M, L, P, 2)
    sampled = []
    for level, (size, part) in enumerate(zip(sizes, values.split([h * w for h, w in sizes], dim=1), strict=True)):
        maps = part.permute(0, 2, 3, 1).flatten(0, 1).unflatten(-1, size)  # (B*M, D, H, W)
        grid = 2 * locations[:, :, :, level].transpose(1, 2).flatten(0, 1) - 1  # (B*M, Q, P, 2)
        sampled.append(F.grid_sample(maps, grid, align_corners=False))
    joined = torch.stack(sampled, dim=-2).flatten(-2)  # (B*M, D, Q, L*P)
    summed = (joined * weights.transpose(1, 2).flatten(0, 1)[:, None]).sum(-1).view(batch, -1, num_queries)
    return F.linear(summed.transpose(1, 2), module.output_proj.weight, module.output_proj.bias)


def _with_kernel(module: MSDeformAttn, name: str) -> Callable[..., Tensor]:
    def form(*inputs: Tensor) -> Tensor:
        module.kernel = name
        return module(*inputs)

    return form


def _seconds(function: Callable[[], object], device: str, clock: Callable[[], float]) -> float:
    start = clock()
    function()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
    return clock() - start
