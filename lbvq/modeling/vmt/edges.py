"""Which pixels are refined, the box of an object as a map, and the transformer over the chosen pixels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mask2former.attention import attend
from mask2former.layers import PositionEmbeddingSine
from mask2former.linear import Linear, linear
from mask2former.transfer import tensor_like

SUBSETS = ("even", "random", "all")


def find_edges(mask: Tensor) -> Tensor:
    """Mark the pixels near the outline of a mask.

    As published: a Laplacian with dilation 3 is applied twice, the second time to the outline. Outside the frame is
    background, so a mask at the border has edges there, and on wide edges the second pass clears the interior.

    Args:
        mask: (T, h, w) bool.

    Returns:
        (T, h, w) bool.
    """
    kernel = torch.full((1, 1, 3, 3), -1.0, device=mask.device)
    kernel[..., 1, 1] = 8.0
    edges = mask[:, None].float()
    for _ in range(2):
        edges = (F.conv2d(edges, kernel, padding=3, dilation=3).abs() > 0.5).float()
    return edges[:, 0] > 0.5


def box_corners(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes (..., 4) as centre, width and height in [0, 1] -> (..., 4) int64 corners, truncated towards zero."""
    height, width = size
    centre_x, centre_y, box_width, box_height = (boxes * tensor_like([width, height, width, height], boxes)).unbind(-1)
    left, top = centre_x - box_width / 2, centre_y - box_height / 2
    return torch.stack((left, top, box_width + left, box_height + top), dim=-1).long()


def box_maps(boxes: Tensor, size: tuple[int, int], *, wrap: bool) -> Tensor:
    """Draw boxes as maps of ones.

    Args:
        boxes: (..., 4), see `box_corners`.
        size: (h, w).
        wrap: as published, negative corners count from the far side, as in Python slices. The map of an object that
            reaches over the top or left border is then usually empty; the weights were trained with it.

    Returns:
        (..., h, w) of 0 and 1.
    """
    left, top, right, bottom = box_corners(boxes, size).unbind(-1)
    rows = _span(top, bottom, size[0], wrap)
    columns = _span(left, right, size[1], wrap)
    return (rows[..., :, None] & columns[..., None, :]).to(boxes.dtype)


def _span(start: Tensor, stop: Tensor, length: int, wrap: bool) -> Tensor:
    """(...) ends -> (..., length) bool, whether start <= i < stop."""
    if wrap:
        start, stop = (torch.where(end < 0, (end + length).clamp(min=0), end) for end in (start, stop))  # as published
    ticks = torch.arange(length, device=start.device)
    return (ticks >= start[..., None]) & (ticks < stop[..., None])


class PointLayer(nn.Module):
    """Self-attention of points, then two linear layers."""

    def __init__(self, dim: int, num_heads: int, hidden_dim: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(dim, num_heads, dropout)
        self.linear1, self.linear2 = Linear(dim, hidden_dim), Linear(hidden_dim, dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, points: Tensor, position: Tensor) -> Tensor:
        """(P, 1, C) -> (P, 1, C)."""
        placed = points + position
        points = self.norm1(points + self.dropout(attend(self.self_attn, placed, placed, points)))
        hidden = linear(points, self.linear1.weight, self.linear1.bias, relu=True)
        return self.norm2(points + self.dropout(self.linear2(self.dropout(hidden))))


class PointTransformer(nn.Module):
    """Let the pixels near the outlines of a frame, of all objects together, look at each other.

    Ke et al., "Video Mask Transfiner for High-Quality Video Instance Segmentation", ECCV 2022, section 3.3, in the form
    of the published code: one sequence per frame, no tree and no attention across frames.
    """

    def __init__(
        self,
        dim: int = 64,
        num_heads: int = 4,
        hidden_dim: int = 2048,
        dropout: float = 0.1,
        num_layers: int = 3,
        max_points: int = 12000,
        subset: str = "even",
    ) -> None:
        """Args:
        max_points: longest sequence.
        subset: which pixels of a frame that has more are refined: "even" takes every so-many-th, "random" draws, as
            published, and "all" refines every pixel, in several interleaved sequences.
        """
        super().__init__()
        if subset not in SUBSETS:
            raise ValueError(f"MODEL.VMT.POINT_SUBSET must be one of {', '.join(SUBSETS)}, got {subset!r}.")
        if max_points < 1:
            raise ValueError(f"MODEL.VMT.MAX_REFINED_POINTS must be at least 1, got {max_points}.")
        self.layers = nn.ModuleList(PointLayer(dim, num_heads, hidden_dim, dropout) for _ in range(num_layers))
        self.max_points, self.subset = max_points, subset
        self.position = PositionEmbeddingSine(dim // 2, normalize=True)  # no parameters
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, features: Tensor, edges: Tensor) -> Tensor:
        """Add to the pixels on edges what they learn from each other; the others stay.

        Args:
            features: (T, C, h, w).
            edges: (T, h, w) bool; a frame without edges comes back as it is.

        Returns:
            (T, C, h, w).
        """
        position = self.position(features[:1])[0].flatten(1).T  # (h*w, C)
        frames = []
        for frame, frame_edges in zip(features.flatten(2), edges.flatten(1), strict=True):
            for places in self.sequences(frame_edges):
                points = self.encode(frame[:, places].T, position[places])
                frame = frame.index_add(1, places, points.T)
            frames.append(frame)
        return torch.stack(frames).unflatten(2, features.shape[-2:])

    def encode(self, points: Tensor, position: Tensor) -> Tensor:
        """One sequence of points and their position codes, (P, C) each -> (P, C)."""
        points, position = points[:, None], position[:, None]
        for layer in self.layers:
            points = layer(points, position)
        return points[:, 0]

    def sequences(self, edges: Tensor) -> list[Tensor]:
        """Pixels (h*w,) bool -> the sequences of pixel numbers to be refined, each of at most `max_points`."""
        places = edges.nonzero().flatten()
        count = len(places)
        if count == 0:
            return []
        if count <= self.max_points:
            return [places]
        if self.subset == "all":
            num_parts = -(-count // self.max_points)
            return [places[part::num_parts] for part in range(num_parts)]
        if self.subset == "random":
            return [places[torch.randperm(count, device=places.device)[: self.max_points]]]  # as published
        chosen = torch.arange(self.max_points, device=places.device) * count // self.max_points
        return [places[chosen]]
