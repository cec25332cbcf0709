"""Multi-scale deformable attention: every query reads a few points of every feature map.

Zhu et al., "Deformable DETR: Deformable Transformers for End-to-End Object Detection", ICLR 2021, section 4.1.

The sampling itself is one function with several interchangeable forms, `KERNELS`. They take the same arguments and
return the same numbers up to rounding:

    kernel(value, sizes, points, weights) -> sampled

    value    (B, S, M, D)           values of all maps, one map after the other, row by row; may be less precise than
                                    points and weights, in whose precision the sums are taken
    sizes    [(H_1, W_1), ...]      of the L maps; S is the sum of their areas
    points   (B, 2, M, L, P, Q)     x and y in cells of map l; the centre of its first cell is (0, 0)
    weights  (B, M, L, P, Q)        attention weights
    sampled  (B, Q, M*D)            sums of weighted, bilinearly interpolated values; a map is 0 outside; as precise as
                                    the values at least

Queries come last in `points` and `weights` because all arithmetic on them then runs over long contiguous rows.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import math
import os
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..linear import Linear, compact, linear_transposed
from ..transfer import tensor_like
from . import deform_attn_compiled

logger = logging.getLogger(__name__)

Sizes = Sequence[tuple[int, int]]
Kernel = Callable[[Tensor, Sizes, Tensor, Tensor], Tensor]

QUERY_CHUNK = 1024  # queries sampled at once on the CPU: bounds memory, and the intermediate results stay in its caches
BORDER = 2  # cells of zeros around every map, so that no neighbour of a clamped point needs a test


def sample_by_grid(value: Tensor, sizes: Sizes, points: Tensor, weights: Tensor) -> Tensor:
    """Sample with `grid_sample`, one call per map."""
    value = value.to(points.dtype)
    batch, _, num_heads, head_dim = value.shape
    total = torch.zeros((), device=value.device, dtype=value.dtype)
    levels = value.split(_areas(sizes), dim=1)
    for level, (level_value, (height, width)) in enumerate(zip(levels, sizes, strict=True)):
        maps = level_value.permute(0, 2, 3, 1).reshape(-1, head_dim, height, width)  # (B*M, D, H, W)
        half_size = _tensor_of([width / 2, height / 2], points)
        grid = (points[:, :, :, level].permute(0, 2, 3, 4, 1) + 0.5) / half_size - 1  # (B, M, P, Q, 2)
        sampled = F.grid_sample(maps, grid.flatten(0, 1), mode="bilinear", padding_mode="zeros", align_corners=False)
        weight = weights[:, :, level].flatten(0, 1)[:, None]
        total = total + (sampled * weight).sum(2)  # (B*M, D, Q)
    return total.view(batch, num_heads * head_dim, -1).transpose(1, 2)


def sample_by_bags(value: Tensor, sizes: Sizes, points: Tensor, weights: Tensor) -> Tensor:
    """Sample with `embedding_bag`: cells are rows of a table, and every (head, query) is a weighted bag of 4*L*P rows.

    On the CPU five times faster than `grid_sample`, which interpolates channel by channel.
    """
    value = value.to(points.dtype)
    outputs = []
    for image_value, image_points, image_weights in zip(value, points, weights, strict=True):
        table = _padded_table(image_value, sizes)
        chunks = zip(image_points.split(QUERY_CHUNK, -1), image_weights.split(QUERY_CHUNK, -1), strict=True)
        bags = [_sum_bags(table, sizes, chunk_points, chunk_weights) for chunk_points, chunk_weights in chunks]
        outputs.append(torch.cat(bags, dim=1).transpose(0, 1).flatten(1))  # (Q, M*D)
    return torch.stack(outputs)


def sample_by_triton(value: Tensor, sizes: Sizes, points: Tensor, weights: Tensor) -> Tensor:
    """Sample with one kernel that keeps no samples in memory, on GPUs; see `deform_attn_triton`."""
    refusal = _why_not_triton(value.device, len(sizes), value.shape[-1])
    if refusal:
        raise ValueError(f"the Triton kernel of deformable attention cannot run: {refusal}; choose another kernel.")
    from .deform_attn_triton import sum_points

    return sum_points(value, _flat(sizes), points, weights)


def sample_compiled(value: Tensor, sizes: Sizes, points: Tensor, weights: Tensor) -> Tensor:
    """Sample in C, on CPUs; see `deform_attn_compiled`. Several times as fast as `sample_by_bags`."""
    _check_compiled(value, points.dtype, points.shape[3] * points.shape[4])
    return deform_attn_compiled.sum_points(value, _flat(sizes), points, weights)


KERNELS: dict[str, Kernel] = {
    "grid_sample": sample_by_grid,
    "embedding_bag": sample_by_bags,
    "compiled": sample_compiled,
    "triton": sample_by_triton,
}


def choose_kernel(value: Tensor, num_levels: int, num_points: int) -> str:
    """Name the fastest form for the device of `value` (B, S, M, D)."""
    if value.device.type == "cpu":
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return "embedding_bag"  # which is part of the graph
        dtype = torch.promote_types(value.dtype, torch.float32)
        return "embedding_bag" if deform_attn_compiled.why_not(value, dtype, num_levels * num_points) else "compiled"
    is_plain = value.device.type == "cuda" and value.dtype in (torch.float32, torch.bfloat16, torch.float16)
    if not is_plain or torch.are_deterministic_algorithms_enabled():
        return "grid_sample"
    layout = (num_levels, num_points, *value.shape[2:])
    return "triton" if triton_agrees(value.device, value.dtype, *layout) else "grid_sample"


@torch.compiler.assume_constant_result
def triton_agrees(
    device: torch.device, dtype: torch.dtype, num_levels: int, num_points: int, num_heads: int, head_dim: int
) -> bool:
    """Whether the Triton kernel runs on a device and gives what `grid_sample` gives there, sums and gradients.

    Triton compiles on the machine where it runs, which can fail for want of a C compiler or of support for the GPU.
    Tried once for every layout, with few queries; a warning says why not.
    """
    return _triton_agrees(device, dtype, num_levels, num_points, num_heads, head_dim)


@functools.cache
def _triton_agrees(device: torch.device, dtype: torch.dtype, num_levels: int, *layout: int) -> bool:
    try:
        refusal = _why_not_triton(device, num_levels, layout[-1])
        if refusal:
            logger.info("Deformable attention by grid_sample: %s.", refusal)
            return False
        difference = _difference_to_grid(device, dtype, num_levels, *layout)
    except Exception as error:  # of compilers and drivers, of any kind
        logger.warning("Deformable attention by grid_sample: its faster Triton kernel failed, %r.", error)
        return False
    # results are rounded to the type, and float32 sums may be taken in another order
    if not difference <= torch.finfo(dtype).eps + 1e-4:
        logger.warning("Deformable attention by grid_sample: its faster Triton kernel is off by %.1e.", difference)
        return False
    return True


@torch.compiler.assume_constant_result
def _why_not_triton(device: torch.device, num_levels: int, head_dim: int) -> str:
    """Why the Triton kernel cannot be tried, or an empty text."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed; on Linux it comes with PyTorch for CUDA"
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (7, 5):
        return "Triton needs a GPU of compute capability 7.5 or later"
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"Triton needs a GPU, the values are on {device} (its interpreter, TRITON_INTERPRET=1, is for tests)"
    from .deform_attn_triton import MAX_HEAD_DIM, MAX_LEVELS

    if num_levels > MAX_LEVELS or head_dim > MAX_HEAD_DIM:
        most = f"up to {MAX_LEVELS} maps and {MAX_HEAD_DIM} channels per head"
        return f"the Triton kernel takes {most}, got {num_levels} and {head_dim}"
    return ""


def _difference_to_grid(
    device: torch.device, dtype: torch.dtype, num_levels: int, num_points: int, num_heads: int, head_dim: int
) -> float:
    """Largest difference of sums and gradients from those of `grid_sample`, relative to the largest of each."""
    sizes = [(5 + level, 3 + 2 * level) for level in range(num_levels)]
    num_queries = 19
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):

        def numbers(*shape: int, scale: float = 1.0) -> Tensor:
            """Between -scale and scale, and the same everywhere: the random numbers of a training are not touched."""
            steps = torch.arange(math.prod(shape), dtype=torch.float32, device=device)
            return ((steps * 0.61803).frac() * 2 - 1).mul_(scale).view(shape)

        value = numbers(1, sum(_areas(sizes)), num_heads, head_dim).to(dtype)
        points = numbers(1, 2, num_heads, num_levels, num_points, num_queries, scale=4.0) + 2.25  # some outside
        points = points.floor() + 0.1 + 0.8 * points.frac().abs()  # rounding may put one on a border into either cell
        weights = numbers(1, num_heads, num_levels, num_points, num_queries)
        grad = numbers(1, num_queries, num_heads * head_dim).to(dtype)
        results = []
        for kernel in (sample_by_grid, sample_by_triton):
            inputs = [tensor.clone().requires_grad_() for tensor in (value, points, weights)]
            out = kernel(inputs[0], sizes, inputs[1], inputs[2])
            results.append([out, *torch.autograd.grad(out, inputs, grad.to(out.dtype))])
        pairs = [(a.detach().float(), b.detach().float()) for a, b in zip(*results, strict=True)]
        return max(((a - b).abs().max() / a.abs().max().clamp(min=1e-6)).item() for a, b in pairs)


class MSDeformAttn(nn.Module):
    """Deformable attention with M heads over L maps, P points per head and map."""

    def __init__(
        self, d_model: int = 256, n_levels: int = 4, n_heads: int = 8, n_points: int = 4, kernel: str | None = None
    ) -> None:
        """Args:
        d_model: C, width of queries and values.
        kernel: a name in `KERNELS`; None chooses by device in every call.
        """
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model must be a multiple of n_heads, got {d_model} and {n_heads}.")
        if kernel is not None and kernel not in KERNELS:
            raise ValueError(f"kernel must be one of {sorted(KERNELS)}, got {kernel!r}.")
        self.d_model, self.n_levels, self.n_heads, self.n_points = d_model, n_levels, n_heads, n_points
        self.kernel = kernel
        self.sampling_offsets = nn.Linear(d_model, n_heads * n_levels * n_points * 2)
        self.attention_weights = nn.Linear(d_model, n_heads * n_levels * n_points)
        self.value_proj = Linear(d_model, d_model)
        self.output_proj = Linear(d_model, d_model)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Let head m look in direction m, at 1, 2, ... P cells from the reference point, all weighted equally."""
        angles = torch.arange(self.n_heads) * (2 * math.pi / self.n_heads)
        directions = torch.stack((angles.cos(), angles.sin()), dim=-1)
        directions = directions / directions.abs().amax(-1, keepdim=True)  # onto a square
        steps = torch.arange(1, self.n_points + 1)[:, None]
        offsets = (directions[:, None, None] * steps).expand(-1, self.n_levels, -1, -1)  # (M, L, P, 2)
        self.sampling_offsets.bias.copy_(offsets.flatten())
        for parameter in (self.sampling_offsets.weight, *self.attention_weights.parameters()):
            nn.init.zeros_(parameter)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        value: Tensor,
        sizes: Sizes,
        padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Read `value` around the reference points; arguments as in `sample`. Returns (B, Q, C)."""
        return self.output_proj(self.sample(query, reference_points, value, sizes, padding_mask))

    def sample(
        self,
        query: Tensor,
        reference_points: Tensor,
        value: Tensor,
        sizes: Sizes,
        padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Do everything but the output projection.

        Args:
            query: (B, Q, C).
            reference_points: (B or 1, Q, L, 2) as (x, y) in [0, 1], where offsets are in cells of the map; or
                (B or 1, Q, L, 4) with width and height added, where P offsets of 1 reach half of them.
            value: (B, S, C), the L maps flattened row by row and joined.
            sizes: (H, W) of every map, also as an (L, 2) tensor.
            padding_mask: (B, S) bool, True = read as 0.

        Returns:
            (B, Q, C).
        """
        sizes = _check_sizes(sizes, self.n_levels, value.shape[1])
        if query.numel() == 0:
            return torch.zeros_like(query)
        value = self.value_proj(compact(value))
        if padding_mask is not None:
            value = value.masked_fill(padding_mask[..., None], 0.0)
        # Half precision could not tell neighbouring cells of a large map apart.
        dtype = torch.promote_types(value.dtype, torch.float32)
        references = reference_points.to(dtype)
        values = value.unflatten(-1, (self.n_heads, -1))
        name = self.kernel or choose_kernel(values, self.n_levels, self.n_points)
        if name == "compiled" and not torch.is_grad_enabled():
            return self._sample_projected(query, references, values, sizes)
        points, weights = self._points_and_weights(query, references, sizes)
        return KERNELS[name](values, sizes, points, weights).to(value.dtype)

    def _sample_projected(self, query: Tensor, references: Tensor, values: Tensor, sizes: Sizes) -> Tensor:
        """Sample in C, which then also makes points of what queries are projected to."""
        _check_compiled(values, references.dtype, self.n_levels * self.n_points)
        weight, bias = self._projection()
        projected, bias = linear_transposed(query, weight).to(references.dtype), bias.to(references.dtype)
        first = self.sampling_offsets.out_features  # of the logits
        weights = self._weights(projected[:, first:] + bias[first:, None])
        given = (projected, bias, *self._starts_and_reach(references, sizes), weights)
        return deform_attn_compiled.sum_projected(values, _flat(sizes), *given)

    def _points_and_weights(self, query: Tensor, reference_points: Tensor, sizes: Sizes) -> tuple[Tensor, Tensor]:
        """Where every query looks and how much each point counts, as kernels take it, as precise as the references."""
        starts, reach = self._starts_and_reach(reference_points, sizes)
        layout = (self.n_heads, self.n_levels, self.n_points)
        projected = linear_transposed(query, *self._projection()).to(reference_points.dtype)
        offsets = projected[:, : self.sampling_offsets.out_features].unflatten(1, (2, *layout))
        weights = self._weights(projected[:, self.sampling_offsets.out_features :])
        if reach is not None:
            offsets = offsets * reach[:, :, None, :, None]
        return offsets + starts[:, :, None, :, None], weights

    def _weights(self, logits: Tensor) -> Tensor:
        """Attention weights (B, M, L, P, Q) of logits (B, M*L*P, Q)."""
        weights = logits.unflatten(1, (self.n_heads, -1)).softmax(dim=2)
        return weights.unflatten(2, (self.n_levels, self.n_points))

    def _starts_and_reach(self, reference_points: Tensor, sizes: Sizes) -> tuple[Tensor, Tensor | None]:
        """Reference points in cells of each map, and of what boxes offsets are shares: (B or 1, 2, L, Q) each."""
        if reference_points.shape[-1] not in (2, 4):
            raise ValueError(f"reference_points must end in 2 or 4 numbers, got shape {tuple(reference_points.shape)}.")
        size_xy = _tensor_of([side for height, width in sizes for side in (width, height)], reference_points)
        size_xy = size_xy.view(-1, 2)  # (L, 2)
        references = reference_points.unflatten(-1, (-1, 2)) * size_xy[:, None]  # (B, Q, L, 1 or 2, 2)
        references = references.permute(3, 0, 4, 2, 1)  # (1 or 2, B, 2, L, Q)
        return references[0] - 0.5, references[1] * (0.5 / self.n_points) if len(references) == 2 else None

    def _projection(self) -> tuple[Tensor, Tensor]:
        """Weight (3*M*L*P, C) and bias of offsets and logits: x of all points, then y, then the logits."""
        pairs = (2, self.sampling_offsets.out_features // 2)
        weight = torch.cat((_x_then_y(self.sampling_offsets.weight, pairs), self.attention_weights.weight))
        bias = torch.cat((_x_then_y(self.sampling_offsets.bias, pairs), self.attention_weights.bias))
        return weight, bias


def _x_then_y(tensor: Tensor, pairs: tuple[int, int]) -> Tensor:
    """Reorder rows (x, y, x, y, ...) to (x, x, ..., y, y, ...)."""
    return tensor.unflatten(0, pairs[::-1]).transpose(0, 1).flatten(0, 1)


def _check_compiled(value: Tensor, dtype: torch.dtype, num_points: int) -> None:
    refusal = deform_attn_compiled.why_not(value, dtype, num_points)
    if refusal:
        raise ValueError(f"the compiled kernel of deformable attention cannot run: {refusal}; choose another kernel.")


def _check_sizes(sizes: Sizes | Tensor, num_levels: int, num_cells: int) -> list[tuple[int, int]]:
    """Return plain (H, W) pairs after checking that they describe `num_cells` cells."""
    pairs = sizes.tolist() if isinstance(sizes, Tensor) else sizes
    is_symbolic = torch.compiler.is_compiling()  # graphs may be for all sizes at once
    checked = [(height, width) if is_symbolic else (int(height), int(width)) for height, width in pairs]
    if len(checked) != num_levels or sum(_areas(checked)) != num_cells:
        raise ValueError(f"expected the sizes of {num_levels} maps with {num_cells} cells together, got {checked}.")
    return checked


def _tensor_of(numbers: Sequence[float], like: Tensor) -> Tensor:
    """A tensor of numbers, which may be symbols for sizes while a graph is made."""
    if torch.compiler.is_compiling():
        return torch.stack([torch.full((), number, dtype=like.dtype, device=like.device) for number in numbers])
    return tensor_like(numbers, like)


def _flat(sizes: Sizes) -> list[int]:
    """H_1, W_1, H_2, ..., as operators take them."""
    return [side for size in sizes for side in size]


def _areas(sizes: Sizes) -> list[int]:
    return [height * width for height, width in sizes]


def _padded_table(value: Tensor, sizes: Sizes) -> Tensor:
    """(S, M, D) -> (M*R, D): heads one after the other, each with all maps, framed by `BORDER` cells of zeros."""
    frame = (0, 0, 0, 0, BORDER, BORDER, BORDER, BORDER)
    levels = value.split(_areas(sizes))
    maps = [F.pad(level.unflatten(0, size), frame) for level, size in zip(levels, sizes, strict=True)]
    return torch.cat([padded.flatten(0, 1) for padded in maps]).transpose(0, 1).flatten(0, 1)


def _sum_bags(table: Tensor, sizes: Sizes, points: Tensor, weights: Tensor) -> Tensor:
    """Sum the bags of some queries of one image.

    Args:
        table: (M*R, D), see `_padded_table`.
        points: (2, M, L, P, q).
        weights: (M, L, P, q).

    Returns:
        (M, q, D).
    """
    num_heads, num_queries = weights.shape[0], weights.shape[-1]
    points = points + BORDER
    x_part, y_part = points.frac()
    right = weights * x_part
    left = weights - right
    right_below, left_below = right * y_part, left * y_part
    corner_weights = torch.stack((left - left_below, right - right_below, left_below, right_below), dim=1)
    rows = _corner_rows(points.detach(), sizes, len(table) // num_heads)
    # Bags must be contiguous: (M, 4, L, P, q) -> (M*q, 4*L*P).
    rows, corner_weights = (_queries_first(x.flatten(1, 3)).flatten(0, 1) for x in (rows, corner_weights))
    sums = F.embedding_bag(rows, table, mode="sum", per_sample_weights=corner_weights)
    return sums.unflatten(0, (num_heads, num_queries))


def _queries_first(x: Tensor) -> Tensor:
    """(M, K, q) -> (M, q, K), contiguous."""
    if x.requires_grad or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return x.transpose(1, 2).contiguous()
    out = x.new_empty(len(x), x.shape[2], x.shape[1])
    for turned, head in zip(out, x, strict=True):  # a matrix by itself is copied in blocks, three axes are not
        turned.copy_(head.T)
    return out


def _corner_rows(points: Tensor, sizes: Sizes, rows_per_head: int) -> Tensor:
    """Rows of the padded table that hold the four neighbours of every point.

    Args:
        points: (2, M, L, P, q), counted from the corner of the frame.
        rows_per_head: R.

    Returns:
        (M, 4, L, P, q) int32: top left, top right, bottom left, bottom right.
    """
    num_heads, device = points.shape[1], points.device
    strides = [width + 2 * BORDER for _, width in sizes]
    areas = [(height + 2 * BORDER) * stride for (height, _), stride in zip(sizes, strides, strict=True)]
    starts = torch.tensor([sum(areas[:level]) for level in range(len(areas))], dtype=torch.int32, device=device)
    # The last cell that has a right and a lower neighbour; points beyond it, or not finite, end in the frame.
    last = [[width + BORDER for _, width in sizes], [height + BORDER for height, _ in sizes]]
    limits = torch.tensor(last, dtype=torch.int32, device=device)[:, None, :, None, None]
    cells = points.to(torch.int32).clamp_(min=0).minimum(limits)  # truncation is the floor from 0 on
    stride = torch.tensor(strides, dtype=torch.int32, device=device)
    heads = torch.arange(num_heads, dtype=torch.int32, device=device)[:, None] * rows_per_head
    corner = torch.addcmul(cells[0], cells[1], stride[:, None, None]) + (heads + starts)[:, :, None, None]
    neighbours = torch.stack((torch.zeros_like(stride), torch.ones_like(stride), stride, stride + 1))
    return corner[:, None] + neighbours[None, :, :, None, None]
