"""SeqFormer's detector: backbone, deformable transformer, and the classes and boxes of 300 queries.

Attribute names, and the order in which parts are registered, are those of the published checkpoints.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mask2former.layers import PositionEmbeddingSine, xavier_fill
from mask2former.linear import Linear
from mask2former.resize import size_of

from .backbone import BackboneBody
from .transformer import ClipTransformer, DecoderState, Layout, ReadMemory

NORM_GROUPS = 32


class ClipDetector(nn.Module):
    """Find the objects of a clip and their boxes in every frame."""

    def __init__(self, *, body: BackboneBody, transformer: ClipTransformer, num_classes: int, num_queries: int) -> None:
        """Args:
        num_classes: outputs of the classifier; index c is the data set's category id c.
        num_queries: N.
        """
        super().__init__()
        num_levels, dim = transformer.level_embed.shape
        num_layers = len(transformer.decoder.layers)
        self.transformer = transformer
        classifier = Linear(dim, num_classes)
        nn.init.constant_(classifier.bias, -math.log(99))  # every class starts with probability 0.01
        self.class_embed = nn.ModuleList(copy.deepcopy(classifier) for _ in range(num_layers))
        self.bbox_embed = transformer.decoder.bbox_embed  # checkpoints name these parameters twice
        self.query_embed = nn.Embedding(num_queries, 2 * dim)
        self.input_proj = nn.ModuleList(_projections(body.channels[1:], dim, num_levels))
        self.backbone = nn.ModuleList([body, PositionEmbeddingSine(dim // 2, normalize=True, offset=-0.5)])

    @property
    def body(self) -> BackboneBody:
        return cast(BackboneBody, self.backbone[0])

    @property
    def num_levels(self) -> int:
        return len(self.input_proj)

    def encode(self, images: Tensor, padding: Tensor | None = None) -> tuple[Tensor, list[Tensor], Layout]:
        """Encode the frames of B clips, each by itself.

        Args:
            images: (B*T, 3, H, W), normalised.
            padding: (B, H, W) bool, True = padding; None without padding, B is 1 then.

        Returns:
            memory (B*T, S, C), the four maps of the backbone, and the layout of the memory.
        """
        taps = self.body(images)
        maps = self.project(taps)
        sizes = [size_of(x) for x in maps]
        if padding is None:
            layout = Layout(sizes, images.new_ones(1, len(maps), 2))
            positions = [self.backbone[1](x) for x in maps]
        else:
            masks = [resize_mask(padding, size) for size in sizes]
            ratios = torch.stack([valid_ratio(mask) for mask in masks], dim=1)
            layout = Layout(sizes, ratios, torch.cat([mask.flatten(1) for mask in masks], dim=1))
            num_frames = len(images) // len(padding)
            codes = [self.backbone[1](x[: len(padding)], mask) for x, mask in zip(maps, masks, strict=True)]
            positions = [code.repeat_interleave(num_frames, dim=0) for code in codes]
        return self.transformer.encode(maps, positions, layout), taps, layout

    def project(self, taps: Sequence[Tensor]) -> list[Tensor]:
        """Bring the backbone's maps at strides 8, 16, 32 to C channels and add coarser ones."""
        maps = [projection(x) for projection, x in zip(self.input_proj, taps[1:], strict=False)]
        for number, projection in enumerate(self.input_proj[len(maps) :]):
            maps.append(projection(taps[-1] if number == 0 else maps[-1]))
        return maps

    def decode(self, num_frames: int, memory: ReadMemory, layout: Layout) -> Iterator[DecoderState]:
        """Run the decoder over B clips of T encoded frames; one state per layer."""
        return self.transformer.decode(self.query_embed.weight, num_frames, memory, layout)

    def split_levels(self, memory: Tensor, layout: Layout) -> list[Tensor]:
        """Memory (BT, S, C) -> L maps (BT, C, h, w)."""
        parts = memory.split([height * width for height, width in layout.sizes], dim=1)
        return [part.transpose(1, 2).unflatten(2, size) for part, size in zip(parts, layout.sizes, strict=True)]


def resize_mask(padding: Tensor, size: tuple[int, int]) -> Tensor:
    """Nearest cells of a (B, H, W) bool mask at another size."""
    return F.interpolate(padding[:, None].float(), size=size)[:, 0] > 0.5


def valid_ratio(padding: Tensor) -> Tensor:
    """(B, h, w) bool -> (B, 2) share of the width and of the height that is not padding."""
    valid = ~padding
    width = valid[:, 0].float().mean(dim=1)
    height = valid[:, :, 0].float().mean(dim=1)
    return torch.stack((width, height), dim=1)


def _projections(channels: Sequence[int], dim: int, num_levels: int) -> Iterator[nn.Sequential]:
    """Projections of the three backbone maps, then of ever coarser maps that start from the last of them."""
    if num_levels < len(channels):
        raise ValueError(f"MODEL.VMT.NUM_FEATURE_LEVELS must be at least {len(channels)}, got {num_levels}.")
    for level in range(num_levels):
        if level < len(channels):
            conv = nn.Conv2d(channels[level], dim, 1)
        else:
            conv = nn.Conv2d(channels[-1] if level == len(channels) else dim, dim, 3, stride=2, padding=1)
        xavier_fill(conv)
        yield nn.Sequential(conv, nn.GroupNorm(NORM_GROUPS, dim))
