"""Pixel decoder: deformable attention over three feature maps, then one finer map for masks.

Cheng et al., "Masked-attention Mask Transformer for Universal Image Segmentation", CVPR 2022, section 4.1, with the
encoder of Deformable DETR. Everything runs in float32, also under autocast.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..group_norm import GroupNorm
from ..layers import Conv2d, PositionEmbeddingSine, ShapeCache, c2_xavier_fill, get_norm, xavier_fill
from ..linear import Linear, compact, exact, feed_forward
from ..registry import SEM_SEG_HEADS_REGISTRY
from ..resize import resize_bilinear, size_of
from ..structures import ShapeSpec, known_shapes
from .deform_attn import MSDeformAttn, Sizes

if TYPE_CHECKING:
    from ..cfg import Cfg

NUM_POINTS = 4  # as published: sampling points per head and map
DIM_FEEDFORWARD = 1024  # as published: not MASK_FORMER.DIM_FEEDFORWARD, which is the decoder's
NUM_OUTPUT_LEVELS = 3  # maps handed to the transformer decoder


class DeformableEncoderLayer(nn.Module):
    """Deformable self-attention and a feed-forward network, each with residual sum and norm after it."""

    def __init__(
        self, d_model: int, *, dim_feedforward: int, dropout: float, num_levels: int, num_heads: int, num_points: int
    ) -> None:
        super().__init__()
        self.self_attn = MSDeformAttn(d_model, num_levels, num_heads, num_points)
        self.norm1 = nn.LayerNorm(d_model)
        self.linear1 = Linear(d_model, dim_feedforward)
        self.linear2 = Linear(dim_feedforward, d_model)
        self.norm2 = nn.LayerNorm(d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, position: Tensor, reference_points: Tensor, sizes: Sizes) -> Tensor:
        """tokens (B, S, C), position (1 or B, S, C), reference_points (1, S, L, 2) -> (B, S, C)."""
        update = self.self_attn(tokens + position, reference_points, tokens, sizes)
        tokens = self.norm1(tokens + self.dropout(update))
        return self.norm2(tokens + self.dropout(feed_forward(tokens, self.linear1, self.linear2, self.dropout)))


class DeformableEncoder(nn.Module):
    """Layers over the cells of several maps together."""

    def __init__(
        self,
        d_model: int = 256,
        *,
        num_heads: int = 8,
        num_layers: int = 6,
        dim_feedforward: int = DIM_FEEDFORWARD,
        dropout: float = 0.1,
        num_levels: int = 4,
        num_points: int = NUM_POINTS,
    ) -> None:
        """Args:
        d_model: C.
        num_levels: L maps.
        num_points: sampling points per head and map.
        """
        super().__init__()
        counts = {"num_levels": num_levels, "num_heads": num_heads, "num_points": num_points}
        layers = [
            DeformableEncoderLayer(d_model, dim_feedforward=dim_feedforward, dropout=dropout, **counts)
            for _ in range(num_layers)
        ]
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(layers)})  # checkpoint name encoder.layers
        self.level_embed = nn.Parameter(torch.empty(num_levels, d_model))
        self._reference_points = ShapeCache()
        self.reset_parameters()

    @property
    def layers(self) -> list[DeformableEncoderLayer]:
        return list(cast("Iterable[DeformableEncoderLayer]", self.encoder["layers"]))

    def reset_parameters(self) -> None:
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        for layer in self.layers:
            layer.self_attn.reset_parameters()
        nn.init.normal_(self.level_embed)

    def forward(self, maps: Sequence[Tensor], positions: Sequence[Tensor]) -> list[Tensor]:
        """Let the cells of all maps look at each other.

        Args:
            maps: L maps (B, C, H_l, W_l).
            positions: their position codes, (1 or B, C, H_l, W_l).

        Returns:
            L maps of the same shapes.
        """
        sizes = [size_of(level) for level in maps]
        tokens = torch.cat([_to_tokens(level) for level in maps], dim=1)
        codes = [_to_tokens(code) + embed for code, embed in zip(positions, self.level_embed, strict=True)]
        position = torch.cat(codes, dim=1)
        reference_points = self.reference_points(sizes, tokens.device)
        for layer in self.layers:
            tokens = layer(tokens, position, reference_points, sizes)
        parts = tokens.split([height * width for height, width in sizes], dim=1)
        return [part.transpose(1, 2).unflatten(2, size) for part, size in zip(parts, sizes, strict=True)]

    def reference_points(self, sizes: Sizes, device: torch.device) -> Tensor:
        """Centre of every cell as (x, y) in [0, 1], the same on all maps: (1, S, L, 2)."""
        make = lambda: torch.cat([_cell_centres(*size, device) for size in sizes])  # noqa: E731
        centres = self._reference_points.get((*sizes, device), make)
        return centres[None, :, None].expand(-1, -1, len(sizes), -1)


@SEM_SEG_HEADS_REGISTRY.register()
class MSDeformAttnPixelDecoder(nn.Module):
    """Backbone features -> mask features at stride COMMON_STRIDE and three maps for the transformer decoder."""

    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        *,
        transformer_dropout: float,
        transformer_nheads: int,
        transformer_dim_feedforward: int,
        transformer_enc_layers: int,
        conv_dim: int,
        mask_dim: int,
        norm: str,
        transformer_in_features: Sequence[str],
        common_stride: int,
    ) -> None:
        """Args:
        input_shape: channels and stride of every backbone feature that may be used.
        conv_dim: C, width of everything inside.
        mask_dim: channels of the mask features.
        norm: norm of the convolutions that make the finer maps, for `get_norm`.
        transformer_in_features: names of the features in the encoder; at least three.
        common_stride: stride of the mask features, at most the finest of those features.
        """
        super().__init__()
        channels, strides = ({name: each[k] for name, each in known_shapes(input_shape).items()} for k in (0, 1))
        by_stride = sorted(strides.items(), key=lambda item: item[1])
        self.in_features = [name for name, _ in by_stride]
        self.transformer_in_features = [name for name, _ in reversed(by_stride) if name in transformer_in_features]
        _check_features(self.transformer_in_features, transformer_in_features, self.in_features)
        self.conv_dim, self.mask_dim, self.common_stride = conv_dim, mask_dim, common_stride

        encoded = self.transformer_in_features  # coarse to fine
        self.input_proj = nn.ModuleList(_input_projection(channels[name], conv_dim) for name in encoded)
        self.transformer = DeformableEncoder(
            conv_dim,
            num_heads=transformer_nheads,
            num_layers=transformer_enc_layers,
            dim_feedforward=transformer_dim_feedforward,
            dropout=transformer_dropout,
            num_levels=len(encoded),
        )
        self.pe_layer = PositionEmbeddingSine(conv_dim // 2, normalize=True)
        self.mask_features = Conv2d(conv_dim, mask_dim, kernel_size=1)
        c2_xavier_fill(self.mask_features)
        num_finer = int(math.log2(strides[encoded[-1]]) - math.log2(common_stride))
        self.finer_features = self.in_features[:num_finer]
        for number, name in enumerate(self.finer_features, start=1):
            self.add_module(f"adapter_{number}", _convolution(channels[name], conv_dim, 1, norm))
            self.add_module(f"layer_{number}", _convolution(conv_dim, conv_dim, 3, norm, activation=F.relu))

    @classmethod
    def from_config(cls, cfg: Cfg, input_shape: Mapping[str, ShapeSpec]) -> dict[str, Any]:
        head, mask_former = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.MASK_FORMER
        return {
            "input_shape": {name: input_shape[name] for name in head.IN_FEATURES},
            "transformer_dropout": mask_former.DROPOUT,
            "transformer_nheads": mask_former.NHEADS,
            "transformer_dim_feedforward": DIM_FEEDFORWARD,
            "transformer_enc_layers": head.TRANSFORMER_ENC_LAYERS,
            "conv_dim": head.CONVS_DIM,
            "mask_dim": head.MASK_DIM,
            "norm": head.NORM,
            "transformer_in_features": head.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES,
            "common_stride": head.COMMON_STRIDE,
        }

    def forward_features(self, features: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """Decode the backbone features of BT images.

        Args:
            features: (BT, C_i, H / stride_i, W / stride_i) by name.

        Returns:
            mask_features (BT, mask_dim, H/4, W/4); the map they are made of (BT, C, H/4, W/4), from which clip
            modules make their own (`linear.compact`, so theirs must be `exact`); the coarsest map (BT, C, H/32, W/32);
            and the three coarsest maps, coarse to fine.
        """
        device_type = features[self.in_features[0]].device.type
        with torch.autocast(device_type, enabled=False):
            maps = self._encode([_at_least_float32(features[name]) for name in self.transformer_in_features])
            finest = maps[-1]
            for number in range(len(self.finer_features), 0, -1):
                finest = self._refine(finest, features[self.finer_features[number - 1]], number)
            return exact(self.mask_features(finest)), finest, maps[0], maps[:NUM_OUTPUT_LEVELS]

    def _encode(self, features: list[Tensor]) -> list[Tensor]:
        """Project features, coarse to fine, and run the encoder: L maps (BT, C, H_l, W_l)."""
        projected = [project(feature) for project, feature in zip(self.input_proj, features, strict=True)]
        return self.transformer(projected, [self.pe_layer(level[:1]) for level in projected])

    def _refine(self, coarse: Tensor, feature: Tensor, number: int) -> Tensor:
        """Add a finer backbone feature to a map resized to its size, and smooth the sum."""
        resized = resize_bilinear(compact(coarse), size_of(feature))
        total = getattr(self, f"adapter_{number}")(compact(_at_least_float32(feature))) + resized
        return getattr(self, f"layer_{number}")(total)


def _input_projection(in_channels: int, conv_dim: int) -> nn.Sequential:
    conv = Conv2d(in_channels, conv_dim, kernel_size=1)
    xavier_fill(conv)
    return nn.Sequential(conv, GroupNorm(32, conv_dim))


def _convolution(in_channels: int, out_channels: int, kernel_size: int, norm: str, **options: Any) -> Conv2d:
    """A convolution that keeps the size, without bias if a norm follows."""
    conv = Conv2d(
        in_channels,
        out_channels,
        kernel_size,
        padding=kernel_size // 2,
        bias=not norm,
        norm=get_norm(norm, out_channels),
        **options,
    )
    c2_xavier_fill(conv)
    return conv


def _check_features(found: list[str], wanted: Sequence[str], available: list[str]) -> None:
    """Raise ValueError unless all wanted features exist and are enough for the transformer decoder."""
    if len(found) != len(wanted) or len(found) < NUM_OUTPUT_LEVELS:
        raise ValueError(
            "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES must name at least "
            f"{NUM_OUTPUT_LEVELS} of MODEL.SEM_SEG_HEAD.IN_FEATURES {available}, got {list(wanted)}."
        )


def _to_tokens(maps: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H*W, C)."""
    return maps.flatten(2).transpose(1, 2)


def _cell_centres(height: int, width: int, device: torch.device) -> Tensor:
    """Centres of the cells of a map, row by row, as (x, y) in [0, 1]: (H*W, 2)."""
    y = (torch.arange(height, dtype=torch.float32, device=device) + 0.5) / height
    x = (torch.arange(width, dtype=torch.float32, device=device) + 0.5) / width
    return torch.stack((x.expand(height, -1), y[:, None].expand(-1, width)), dim=-1).flatten(0, 1)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
