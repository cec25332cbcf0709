"""PMT (CVPR 2026 workshops, arXiv 2603.25398): VidEoMT's sister, which never trains its ViT.

What four blocks of the frozen encoder give is normalised, projected and added up, and six blocks of PMT's own take the
sum together with the queries. Training touches 15 % of the parameters and never goes back through the encoder.
Published AP with DINOv3 ViT-L: 69.2 on YouTube-VIS 2019, 64.3 on YouTube-VIS 2021, 52.0 on OVIS; with DINOv2 ViT-L 68.8
and 63.8 on the first two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mask2former.linear import Linear
from mask2former.modeling.backbone import batch_norm
from mask2former.modeling.vit import PlainViT, RotaryBlock, Rotation, Rotations
from mask2former.registry import META_ARCH_REGISTRY
from mask2former.resize import size_of

from .propagation import PropagatedQueries, vit_from_config
from .query_network import Encoder, FrameTokens, QueryBackbone, QueryNetwork

if TYPE_CHECKING:
    from mask2former.cfg import Cfg


@META_ARCH_REGISTRY.register()
class pmt_online(PropagatedQueries):  # published name
    """PMT over videos."""

    @classmethod
    def build_backbone(cls, cfg: Cfg) -> QueryBackbone:
        settings = cfg.MODEL.BACKBONE
        check_form(settings)
        vit = vit_from_config(cfg)
        decoder = PmtDecoder(
            dim=vit.embed_dim,
            num_heads=vit.num_heads,
            hidden_dim=settings.HIDDEN_DIM,
            num_blocks=settings.NUM_BLOCKS,
            num_levels=len(settings.INTERACTION_INDICES),
            num_queries=settings.NUM_OBJECT_QUERIES,
            num_classes=settings.NUM_CLASSES,
        )
        norm = batch_norm(cfg.MODEL.DEVICE, nn.BatchNorm1d) if settings.EXTRA_BN else nn.Identity
        return PMT(vit, decoder, levels=settings.INTERACTION_INDICES, norm=norm, is_frozen=settings.FROZEN_ENCODER)


def check_form(settings: Cfg) -> None:
    """Refuse values of MODEL.BACKBONE that no published video model has; there is one form here."""
    for key, value, only in (
        ("DECODER_TYPE", settings.DECODER_TYPE, "online"),
        ("DECODER_PE", settings.DECODER_PE, "rope"),
        ("LATERAL_PROJECTION", settings.LATERAL_PROJECTION, "mlp"),
        ("LEVEL_SCALERS", settings.LEVEL_SCALERS, True),
        ("RESIDUAL_PATH", settings.RESIDUAL_PATH, True),
        ("RESIDUAL_PROJECTION", settings.RESIDUAL_PROJECTION, True),
        ("MASKED_ATTN_ENABLED", settings.MASKED_ATTN_ENABLED, False),
    ):
        if value != only:
            raise ValueError(f"MODEL.BACKBONE.{key} must be {only!r}, got {value!r}.")


class PMT(QueryBackbone):
    """The frozen encoder, the norms of its levels, and the decoder."""

    def __init__(
        self, vit: PlainViT, decoder: PmtDecoder, *, levels: Sequence[int], norm: type[nn.Module], is_frozen: bool
    ) -> None:
        """Args:
        vit: the encoder.
        decoder: the rest.
        levels: numbers of the blocks whose outputs are used, in rising order.
        norm: class of the norm of each level.
        is_frozen: never train the encoder; it then stays in evaluation mode.
        """
        super().__init__()
        if list(levels) != sorted(set(levels)) or not levels or not 0 <= levels[0] <= levels[-1] < len(vit.blocks):
            raise ValueError(
                f"MODEL.BACKBONE.INTERACTION_INDICES must be rising numbers of the {len(vit.blocks)} blocks, got "
                f"{list(levels)}."
            )
        self.levels, self.is_frozen = tuple(levels), is_frozen
        self.encoder = Encoder(vit)
        for name in ("pixel_mean", "pixel_std"):  # checkpoint names; frames come normalised
            self.encoder.register_buffer(name, torch.zeros(1, 3, 1, 1))
        self.bn = nn.ModuleList(norm(vit.embed_dim) for _ in levels)
        self.decoder = decoder
        if is_frozen:
            vit.requires_grad_(False)

    @property
    def vit(self) -> PlainViT:
        return self.encoder.backbone

    @property
    def network(self) -> QueryNetwork:
        return self.decoder

    @property
    def compiled_parts(self) -> Sequence[nn.Module]:
        return [*self.vit.blocks, *self.decoder.blocks, self.decoder.upscale]

    def train(self, mode: bool = True) -> PMT:
        super().train(mode)
        if self.is_frozen:
            self.vit.eval()
        return self

    def encode(self, images: Tensor) -> FrameTokens:
        grid = self.vit.grid(size_of(images))
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.is_frozen):
            levels = self.encoder_levels(images, grid)
        normed = [norm(level.flatten(0, 1)).view_as(level) for norm, level in zip(self.bn, levels, strict=True)]
        tokens, num_prefix = self.decoder.join(normed), self.vit.num_prefix_tokens
        patches = tokens[:, num_prefix:].unflatten(1, grid)
        return FrameTokens(tokens[:, :num_prefix], patches, self.decoder.rotation(grid))

    def encoder_levels(self, images: Tensor, grid: tuple[int, int]) -> list[Tensor]:
        """What the chosen blocks give, after the encoder's last norm: (t, S, C) each."""
        tokens, rotation = self.vit.embed(images), self.vit.rotation(grid, images.device)
        levels = []
        for number, block in enumerate(self.vit.blocks[: self.levels[-1] + 1]):
            tokens = block(tokens, rotation)
            if number in self.levels:
                levels.append(self.vit.norm(tokens))
        return levels


class PmtDecoder(QueryNetwork):
    """Adds up the levels of the encoder, and takes the sum through blocks of its own together with the queries."""

    def __init__(
        self,
        *,
        dim: int,
        num_heads: int,
        hidden_dim: int,
        num_blocks: int,
        num_levels: int,
        **heads: Any,
    ) -> None:
        """Args:
        dim: C.
        num_heads: attention heads.
        hidden_dim: width of the small networks of the blocks.
        num_blocks: blocks that the queries go through.
        num_levels: levels of the encoder.
        heads: arguments of `QueryNetwork`.
        """
        super().__init__(dim=dim, **heads)
        self.lateral_projections = nn.ModuleList(
            nn.Sequential(Linear(dim, dim // 2), nn.GELU(), Linear(dim // 2, dim)) for _ in range(num_levels)
        )
        self.scalers = nn.ParameterList(torch.ones(dim) for _ in range(num_levels))
        self.blocks = nn.ModuleList(RotaryBlock(dim, num_heads, hidden_dim) for _ in range(num_blocks))
        self.decoder_norm = nn.LayerNorm(dim)
        self.rotations = Rotations(dim // num_heads)
        self.register_buffer("attn_mask_probs", torch.ones(num_blocks))  # checkpoint name; nothing reads it

    @property
    def query_blocks(self) -> nn.ModuleList:
        return self.blocks

    @property
    def last_norm(self) -> nn.Module:
        return self.decoder_norm

    def rotation(self, grid: tuple[int, int]) -> Rotation | None:
        return self.rotations(grid, self.q.weight.device)

    def join(self, levels: Sequence[Tensor]) -> Tensor:
        """Levels (t, S, C) -> one (t, S, C)."""
        parts = zip(levels, self.lateral_projections, self.scalers, strict=True)
        return torch.stack([(level + project(level)) * scale for level, project, scale in parts]).sum(0)
