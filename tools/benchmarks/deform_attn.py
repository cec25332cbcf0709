"""Deformable attention: milliseconds per call of every kernel, and of the textbook form.

    python tools/benchmark.py deform_attn --size 384 640 --frames 2 --threads 1

The textbook form projects with `nn.Linear`, keeps locations in [0, 1] and stacks what `grid_sample` returns for every
map before it is weighted. The largest difference from its result is printed too.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mask2former.modeling.deform_attn import KERNELS, MSDeformAttn, Sizes

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
    names = [name for name in KERNELS if name != "triton" or torch.device(args.device).type == "cuda"]
    rows |= {name: _with_kernel(module, name) for name in names}
    for name, form in rows.items():
        difference = (call(form) - want).abs().max().item()
        milliseconds = min(_seconds(lambda form=form: call(form), args.device) for _ in range(args.repeats)) * 1e3
        print(f"{name:16s}{milliseconds:10.1f}   largest difference {difference:.1e}")


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


def _seconds(function: Callable[[], object], device: str) -> float:
    start = time.perf_counter()
    function()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start
