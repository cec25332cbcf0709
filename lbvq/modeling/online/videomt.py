"""VidEoMT, "Your ViT is Secretly Also a Video Segmentation Model" (CVPR 2026).

A plain ViT does everything: its first blocks see the frames one by one, its last blocks see the queries too, and the
queries of a frame are made from those of the frame before. There is no pixel decoder and no matching. Published AP with
DINOv2 S / B / L: 52.8 / 58.2 / 68.6 on YouTube-VIS 2019; with L 63.1 on YouTube-VIS 2021 and 52.5 on OVIS. On a video
of one frame it is the image model EoMT (CVPR 2025).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mask2former.modeling.vit import PlainViT, Rotation
from mask2former.registry import META_ARCH_REGISTRY
from mask2former.resize import size_of

from .propagation import PropagatedQueries, vit_from_config
from .query_network import Encoder, FrameTokens, QueryBackbone, QueryNetwork

if TYPE_CHECKING:
    from mask2former.cfg import Cfg


@META_ARCH_REGISTRY.register()
class videomt_online(PropagatedQueries):  # published name
    """VidEoMT over videos."""

    @classmethod
    def build_backbone(cls, cfg: Cfg) -> QueryBackbone:
        settings = cfg.MODEL.BACKBONE
        return VidEoMT(
            vit_from_config(cfg),
            query_blocks=settings.SEGMENTER_BLOCKS,
            num_queries=settings.NUM_OBJECT_QUERIES,
            num_classes=settings.NUM_CLASSES,
            norm_queries=settings.NORM_QUERIES,
        )


class VidEoMT(QueryNetwork, QueryBackbone):
    """A ViT whose last blocks also take queries."""

    def __init__(self, vit: PlainViT, *, query_blocks: Sequence[int], **heads: Any) -> None:
        """Args:
        vit: the encoder.
        query_blocks: numbers of the blocks that the queries go through; the last ones, in rising order.
        heads: arguments of `QueryNetwork` but for `dim`.
        """
        super().__init__(dim=vit.embed_dim, **heads)
        depth = len(vit.blocks)
        if not query_blocks or list(query_blocks) != list(range(depth - len(query_blocks), depth)):
            raise ValueError(
                f"MODEL.BACKBONE.SEGMENTER_BLOCKS must be the last of the {depth} blocks, such as "
                f"{[depth - 2, depth - 1]}; got {list(query_blocks)}."
            )
        self.num_frame_blocks = depth - len(query_blocks)
        self.encoder = Encoder(vit)
        self.register_buffer("attn_mask_probs", torch.ones(len(query_blocks)))  # checkpoint name; nothing reads it

    @property
    def vit(self) -> PlainViT:
        return self.encoder.backbone

    @property
    def network(self) -> QueryNetwork:
        return self

    @property
    def query_blocks(self) -> nn.ModuleList:
        return self.vit.blocks[self.num_frame_blocks :]

    @property
    def last_norm(self) -> nn.Module:
        return self.vit.norm

    @property
    def compiled_parts(self) -> Sequence[nn.Module]:
        return [*self.vit.blocks, self.upscale]

    def rotation(self, grid: tuple[int, int]) -> Rotation | None:
        return self.vit.rotation(grid, self.q.weight.device)

    def encode(self, images: Tensor) -> FrameTokens:
        grid = self.vit.grid(size_of(images))
        tokens, rotation = self.vit.embed(images), self.rotation(grid)
        for block in self.vit.blocks[: self.num_frame_blocks]:
            tokens = block(tokens, rotation)
        num_prefix = self.vit.num_prefix_tokens
        return FrameTokens(tokens[:, :num_prefix], tokens[:, num_prefix:].unflatten(1, grid), rotation)
