"""Reading masks at points instead of everywhere.

Mask losses and matching costs look at P points of each mask (PointRend, Kirillov et al., CVPR 2020, section 3.2;
Mask2Former, Cheng et al., CVPR 2022, section 3.3). Points are (x, y) in [0, 1] x [0, 1], whatever the resolution of the
mask, so a prediction at stride 4 and a target in pixels are read at the same place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

CONVERTED_AT_ONCE = 2**24  # pixels
JOINED_AT_ONCE = 2**24  # pixels


def point_sample(maps: Tensor, points: Tensor) -> Tensor:
    """Read maps at points, bilinearly; zero outside.

    Args:
        maps: (N, C, H, W), of any type.
        points: (N, P, 2) as (x, y) in [0, 1].

    Returns:
        (N, C, P), as precise as the points: half precision cannot tell neighbouring pixels of a large map apart.
    """
    dtype = torch.promote_types(maps.dtype, points.dtype)
    grid = (2.0 * points - 1.0).to(dtype)[:, :, None]  # (N, P, 1, 2)
    if maps.numel() == 0:
        return maps.new_zeros((*maps.shape[:2], points.shape[1]), dtype=dtype)
    if maps.dtype == dtype:
        return _sample(maps, grid)
    # Annotations are bool or uint8: converted a few at a time, they never exist as a whole in float32.
    axis = 1 if len(maps) == 1 else 0
    part = max(1, CONVERTED_AT_ONCE * maps.shape[axis] // maps.numel())
    parts = maps.split(part, axis)
    grids = grid.split(part) if axis == 0 else [grid] * len(parts)
    return torch.cat([_sample(few.to(dtype), few_grid) for few, few_grid in zip(parts, grids, strict=True)], axis)


def sample_pixels(clips: Tensor | Sequence[Tensor], points: Tensor) -> Tensor:
    """Read clips at points as `point_sample` does, all channels of a pixel side by side, without gradients.

    On a CPU that is ten times as fast where pixels lie in memory like that: a point is a weighted sum of four rows.

    Args:
        clips: E times (T, H, W, C), as one tensor or not.
        points: (E, P, 2) as (x, y) in [0, 1], the same in all frames of a clip.

    Returns:
        (E, T*P, C), as precise as the points at least.
    """
    num_frames, height, width, channels = clips[0].shape
    if not _are_read_as_rows(points) or points.numel() * channels == 0:
        maps = (clips if isinstance(clips, Tensor) else torch.stack(list(clips))).flatten(0, 1).permute(0, 3, 1, 2)
        read = point_sample(maps, points.repeat_interleave(num_frames, dim=0))  # (E*T, C, P)
        return read.transpose(1, 2).reshape(len(points), num_frames * points.shape[1], channels)
    with torch.no_grad():
        rows, weights = _neighbours(points, height, width)  # (E, P, 4)
        frames = torch.arange(num_frames) * (height * width)
        rows = rows[:, None] + frames[:, None, None]
        weights = weights[:, None].expand_as(rows)
        if isinstance(clips, Tensor):  # one table
            rows = rows + (torch.arange(len(clips)) * clips[0, ..., 0].numel())[:, None, None, None]
            clips, rows, weights = [clips], rows[None], weights[None]
        sums = [
            F.embedding_bag(at.view(-1, 4), clip.reshape(-1, channels).float(), mode="sum", per_sample_weights=share)
            for clip, at, share in zip(clips, rows, weights.reshape(len(rows), -1, 4), strict=True)
        ]
        return (sums[0] if len(sums) == 1 else torch.cat(sums)).view(len(points), -1, channels)


def _are_read_as_rows(points: Tensor) -> bool:
    return points.device.type == "cpu" and points.dtype == torch.float32


def _neighbours(points: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The four pixels around points (E, P, 2), and their shares, 0 outside of the map: (E, P, 4) each."""
    position = points * points.new_tensor([width, height]) - 0.5
    before = position.floor()
    after = position - before
    cells = torch.stack((before, before + 1), dim=-1)  # (E, P, 2, 2): those on both sides, in x and in y
    inside = cells.clamp(min=0).minimum(points.new_tensor([[width - 1], [height - 1]]))
    shares = torch.stack((1 - after, after), dim=-1) * (cells == inside)
    (x, y), (x_share, y_share) = inside.long().unbind(2), shares.unbind(2)
    rows = y[..., :, None] * width + x[..., None, :]
    return rows.flatten(2), (y_share[..., :, None] * x_share[..., None, :]).flatten(2)


def sample_lists(lists: Sequence[Tensor], points: Tensor) -> Tensor:
    """Read the maps of several lists at points of their own.

    Small lists are joined, because many small calls take longer than what they do.

    Args:
        lists: maps (n_i, H_i, W_i), of any type; they may be on another device than the points.
        points: (sum n_i, P, 2) as (x, y) in [0, 1].

    Returns:
        (sum n_i, P).
    """
    sampled, start = [points.new_zeros(0, points.shape[1])], 0
    for maps in _joined(lists):
        here = points[start : start + len(maps)]
        sampled.append(point_sample(maps[:, None].to(points.device), here)[:, 0])
        start += len(maps)
    return torch.cat(sampled)


def _joined(lists: Sequence[Tensor]) -> Iterator[Tensor]:
    """Join neighbours of one size, as far as their pixels are few."""
    waiting: list[Tensor] = []
    for maps in lists:
        pixels = sum(map(Tensor.numel, waiting)) + maps.numel()
        if waiting and (pixels > JOINED_AT_ONCE or maps.shape[1:] != waiting[0].shape[1:]):
            yield torch.cat(waiting) if len(waiting) > 1 else waiting[0]
            waiting = []
        waiting.append(maps)
    if waiting:
        yield torch.cat(waiting) if len(waiting) > 1 else waiting[0]


class Draws(NamedTuple):
    """What is drawn for n masks before their points are chosen."""

    candidates: Tensor  # (n, P * ratio, 2)
    anywhere: Tensor  # (n, P minus the important ones, 2)


def draw_points(
    num_masks: int,
    num_points: int,
    oversample_ratio: float = 3.0,
    importance_sample_ratio: float = 0.75,
    device: torch.device | None = None,
) -> Draws:
    """Draw what `choose_points` chooses from; see `uncertain_points`."""
    if oversample_ratio < 1 or not 0 <= importance_sample_ratio <= 1:
        raise ValueError(
            f"oversample_ratio must be at least 1 and importance_sample_ratio in [0, 1], got {oversample_ratio} and "
            f"{importance_sample_ratio}; set MODEL.MASK_FORMER.OVERSAMPLE_RATIO and IMPORTANCE_SAMPLE_RATIO."
        )
    num_anywhere = num_points - int(importance_sample_ratio * num_points)
    candidates = torch.rand(num_masks, int(num_points * oversample_ratio), 2, device=device)
    if num_anywhere == 0:
        return Draws(candidates, candidates[:, :0])
    return Draws(candidates, torch.rand(num_masks, num_anywhere, 2, device=device))


@torch.no_grad()
def choose_points(logits: Tensor, draws: Draws, num_points: int, in_order: bool = False) -> Tensor:
    """The candidates at which the logits (n, 1, h, w) are closest to 0, and what was drawn anywhere: (n, P, 2).

    Args:
        in_order: the closest first, which takes twice as long.
    """
    uncertainty = -point_sample(logits, draws.candidates)[:, 0].abs()  # (n, P * ratio)
    chosen = uncertainty.topk(num_points - draws.anywhere.shape[1], dim=1, sorted=in_order).indices
    points = draws.candidates.gather(1, chosen[:, :, None].expand(-1, -1, 2))
    return torch.cat((points, draws.anywhere), dim=1)


def uncertain_points(
    logits: Tensor, num_points: int, oversample_ratio: float = 3.0, importance_sample_ratio: float = 0.75
) -> Tensor:
    """Draw points of which most lie where the logit is close to 0.

    Args:
        logits: (N, 1, h, w) mask logits.
        num_points: P.
        oversample_ratio: candidates per point, at least 1.
        importance_sample_ratio: share of the P points taken from the most uncertain candidates, in [0, 1]; the others
            are drawn anywhere.

    Returns:
        (N, P, 2), the most important ones first.
    """
    draws = draw_points(len(logits), num_points, oversample_ratio, importance_sample_ratio, logits.device)
    return choose_points(logits, draws, num_points, in_order=True)


def _sample(maps: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False).squeeze(3)
