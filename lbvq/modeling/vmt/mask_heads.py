"""The three masks of VMT, each from the one before: coarse at stride 8, second at stride 4, refined at stride 2.

Ke et al., "Video Mask Transfiner for High-Quality Video Instance Segmentation", ECCV 2022, in the form of the published
inference code, which the published weights belong to. Attribute names are those of the checkpoints. What a later mask
reads of an earlier one carries no gradient, as published.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mask2former.layers import MLP, c2_xavier_fill
from mask2former.resize import size_of

from .dynamic_masks import WIDTH, double_size, dynamic_masks, num_parameters, relative_coordinates
from .edges import PointTransformer, box_maps, find_edges

POINT_DIM = 64  # channels at strides 4 and 2
FUSED_DIM = 11  # channels that refined masks are made from
PRIVATE_DIM = 5  # channels of one object: second mask, coarse mask, box, relative x and y
DILATIONS = (3, 5, 7, 1)  # of conv_norm_relus_fuse_all_1 to _4


@dataclass
class FrameMaps:
    """What masks of T frames are made from, before any object is known.

    Attributes:
        coarse: (T, 8, h, w) at stride 8.
        fine: (T, 8, h, w) at stride 4.
        high: (T, 64, h, w) at stride 4.
        shallow: (T, 64, h, w) at stride 4; None where a ResNet's first convolution takes its place.
        images: (T, 3, H, W), normalised.
    """

    coarse: Tensor
    fine: Tensor
    high: Tensor
    shallow: Tensor | None
    images: Tensor


@dataclass
class ObjectParameters:
    """Networks of n objects: for coarse (n, 169), second (n, 177) and refined masks (n, 177)."""

    coarse: Tensor
    second: Tensor
    refined: Tensor


@dataclass
class ObjectMasks:
    """Mask logits of n objects in T frames, and the pixels that were refined.

    Attributes:
        coarse: (T, n, h, w) at stride 8.
        second: (T, n, h, w) at stride 4.
        refined: (T, n, h, w) at stride 2.
        edges: (T, h, w) bool at stride 2.
    """

    coarse: Tensor
    second: Tensor
    refined: Tensor
    edges: Tensor


class MaskBranch(nn.Module):
    """Join the transformer's maps at strides 32, 16 and 8."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.lay1, self.lay2 = _conv3(dim, POINT_DIM), _conv3(POINT_DIM, WIDTH)
        self.lay3, self.lay4 = _conv3(dim, dim), _conv3(dim, dim)
        self.dcn = _conv3(dim, dim)  # checkpoint name of an ordinary convolution
        for conv in (self.lay1, self.lay2, self.lay3, self.lay4, self.dcn):
            c2_xavier_fill(conv)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Maps (T, C, h, w) at strides 8, 16, 32 -> mask features (T, 8, h, w) and joined map (T, C, h, w)."""
        fine, middle, coarse = maps
        x = self.lay3(coarse).relu()
        x = self.lay4(middle + resize_nearest(x, middle.shape[-2:])).relu()
        joined = fine + resize_nearest(x, fine.shape[-2:])
        x = self.lay1(self.dcn(joined).relu()).relu()
        return self.lay2(x).relu(), joined


class VideoMaskHeads(nn.Module):
    """Everything between the detector and the masks."""

    def __init__(
        self,
        *,
        dim: int,
        tap_channels: int,
        has_stem: bool,
        point_transformer: PointTransformer,
        wrap_boxes: bool,
        **video_model: Any,
    ) -> None:
        """Args:
        dim: C, channels of the detector.
        tap_channels: of the backbone's map at stride 4.
        has_stem: the backbone has a map at stride 2, with 64 channels; otherwise the one at stride 4 is enlarged.
        point_transformer: refines pixels near outlines.
        wrap_boxes: see `box_maps`.
        video_model: arguments of `VideoModel`.
        """
        super().__init__(**video_model)
        self.controller = _controller(dim, 2 + WIDTH)
        self.mask_head = MaskBranch(dim)
        self.controller_inc = _controller(dim, FUSED_DIM)
        self.controller_refine = _controller(dim, FUSED_DIM)
        self.lay_hr1, self.lay1_h = _conv3(dim, tap_channels), _conv3(tap_channels, POINT_DIM)
        self.lay2_h = _conv3(POINT_DIM, WIDTH)
        self.lay_hr1_c = nn.Conv2d(POINT_DIM, POINT_DIM, 1)
        self.lay_compress = None if has_stem else nn.Conv2d(tap_channels, POINT_DIM, 1)
        self.conv_norm_relus_fuse_img = nn.Sequential(
            _conv3(3, 32), nn.ReLU(), nn.Conv2d(32, 64, 1), nn.ReLU(), nn.Conv2d(64, POINT_DIM, 1), nn.ReLU()
        )
        for number, dilation in enumerate(DILATIONS, start=1):
            self.add_module(f"conv_norm_relus_fuse_all_{number}", _fusion(dilation))
        self.encoder = point_transformer
        self.wrap_boxes = wrap_boxes

    @property
    def fusions(self) -> list[nn.Sequential]:
        return [getattr(self, f"conv_norm_relus_fuse_all_{number}") for number in range(1, len(DILATIONS) + 1)]

    def frame_maps(self, memory: Sequence[Tensor], tap: Tensor, images: Tensor) -> FrameMaps:
        """Prepare T frames.

        Args:
            memory: maps (T, C, h, w) of the transformer at strides 8, 16, 32.
            tap: (T, c, h, w) the backbone's map at stride 4.
            images: (T, 3, H, W), normalised.
        """
        coarse, joined = self.mask_head(memory)
        tap = tap.detach()
        x = self.lay_hr1(joined).relu()
        x = self.lay1_h(tap + resize_nearest(x, tap.shape[-2:])).relu()
        shallow = None if self.lay_compress is None else self.lay_compress(tap)
        return FrameMaps(coarse, self.lay2_h(x).relu(), self.lay_hr1_c(x).relu(), shallow, images)

    def parameters_of(self, content: Tensor) -> ObjectParameters:
        """Content queries (n, C) -> the networks of the objects."""
        return ObjectParameters(self.controller(content), self.controller_inc(content), self.controller_refine(content))

    def coarse_masks(self, maps: FrameMaps, parameters: Tensor, centres: Tensor) -> Tensor:
        """Masks at stride 8: parameters (n, 169), centres (T, n, 2) in input pixels -> (T, n, h, w) logits."""
        size = size_of(maps.coarse)
        places = relative_coordinates(centres, size, 8)
        shared = maps.coarse[:, None].expand(-1, places.shape[1], -1, -1, -1)
        return dynamic_masks(torch.cat((places, shared), dim=2), parameters)

    def second_masks(self, maps: FrameMaps, parameters: Tensor, centres: Tensor, coarse: Tensor) -> Tensor:
        """Masks at stride 4, which also read the coarse logits (T, n, h, w): parameters (n, 177) -> (T, n, h, w)."""
        size = size_of(maps.fine)
        places = relative_coordinates(centres.detach(), size, 4)
        before = resize_nearest(coarse.detach().sigmoid(), size)[:, :, None]
        shared = maps.fine[:, None].expand(-1, places.shape[1], -1, -1, -1)
        return dynamic_masks(torch.cat((places, before, shared), dim=2), parameters)

    def refined_masks(
        self, maps: FrameMaps, stem: Tensor | None, parameters: Tensor, geometry: tuple[Tensor, Tensor], *masks: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Masks at stride 2.

        Args:
            maps: of the T frames.
            stem: (T, 64, h, w) the backbone's first convolution; None without one.
            parameters: (n, 177).
            geometry: centres (T, n, 2) in input pixels and boxes (T, n, 4) in [0, 1].
            masks: coarse and second logits.

        Returns:
            (T, n, h, w) logits and the edges (T, h, w) bool.
        """
        centres, boxes = (x.detach() for x in geometry)
        coarse, second = (x.detach().sigmoid() for x in masks)
        shallow = self.shallow_map(maps, stem)
        size = size_of(shallow)
        image = self.conv_norm_relus_fuse_img(resize_nearest(maps.images, size))
        edges = find_edges(resize_nearest((second > 0.5).any(dim=1, keepdim=True).float(), size)[:, 0] > 0.5)
        pixels = resize_nearest(maps.high, size) + edges[:, None] * (shallow + image)
        pixels = self.encoder(pixels, edges)
        private = torch.cat(
            (
                resize_nearest(second, size)[:, :, None],
                resize_nearest(coarse, size)[:, :, None],
                box_maps(boxes, size, wrap=self.wrap_boxes)[:, :, None],
                relative_coordinates(centres, size, 2),
            ),
            dim=2,
        )  # (T, n, 5, h, w)
        return dynamic_masks(self.fuse(pixels, private), parameters), edges

    def shallow_map(self, maps: FrameMaps, stem: Tensor | None) -> Tensor:
        """The backbone's finest map at stride 2, (T, 64, h, w)."""
        if stem is not None:
            return stem.detach()
        if maps.shallow is None:
            raise ValueError("refined masks need a backbone's first convolution or its map at stride 4.")
        # As published the map is enlarged before its 1 x 1 convolution; the other way round is equal and cheaper.
        return resize_nearest(maps.shallow, [2 * length for length in maps.shallow.shape[-2:]])

    def fuse(self, pixels: Tensor, private: Tensor) -> Tensor:
        """Join the channels of all objects with those of each.

        The first convolutions are linear, so what the objects share is convolved once and added.

        Args:
            pixels: (T, 64, h, w).
            private: (T, n, 5, h, w).

        Returns:
            (T, n, 11, h, w), the sum of the four branches.
        """
        num_frames, num_objects = private.shape[:2]

        def branch(fusion: nn.Sequential) -> Tensor:
            first = cast(nn.Conv2d, fusion[0])
            shared_weight, own_weight = first.weight.split([POINT_DIM, PRIVATE_DIM], dim=1)
            shared = F.conv2d(pixels, shared_weight, first.bias, padding=first.padding, dilation=first.dilation)
            own = F.conv2d(private.flatten(0, 1), own_weight, padding=first.padding, dilation=first.dilation)
            x = own.unflatten(0, (num_frames, num_objects)) + shared[:, None]
            return fusion[1:](x.flatten(0, 1))

        return functools.reduce(torch.add, map(branch, self.fusions)).unflatten(0, (num_frames, num_objects))


def output_logits(logits: Tensor) -> Tensor:
    """Logits of any of the three kinds as they are reported, at twice their size: (T, n, h, w) -> (n, T, 2h, 2w)."""
    return double_size(logits).transpose(0, 1)


def resize_nearest(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resize (T, C, h, w) by taking the nearest cell."""
    if x.shape[1] == 0:
        return x.new_zeros(*x.shape[:2], *size)
    return x if tuple(x.shape[-2:]) == tuple(size) else F.interpolate(x, size=tuple(size))


def _conv3(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1)


def _fusion(dilation: int) -> nn.Sequential:
    first = nn.Conv2d(POINT_DIM + PRIVATE_DIM, 32, 3, padding=dilation, dilation=dilation)
    return nn.Sequential(first, nn.ReLU(), nn.Conv2d(32, 32, 1), nn.ReLU(), nn.Conv2d(32, FUSED_DIM, 1), nn.ReLU())


def _controller(dim: int, in_channels: int) -> MLP:
    """Network that writes the parameters of one kind of mask."""
    mlp = MLP(dim, dim, num_parameters(in_channels), 3)
    for layer in cast("Iterable[nn.Linear]", mlp.layers):
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
    return mlp
