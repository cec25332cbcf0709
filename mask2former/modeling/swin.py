"""Swin Transformer backbone.

Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", ICCV 2021: patches of 4 x 4
pixels become tokens, attention acts inside windows of w x w tokens (section 3.2), every second block shifts the
windows by half their size, and after each stage 2 x 2 tokens are merged into one of twice the width. Parameter names
are those of the published checkpoints.

Tokens stay on their grid here: a feature map is (B, h, w, C), B being any batch of images.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..linear import Linear, linear
from ..registry import BACKBONE_REGISTRY
from ..structures import ShapeSpec
from .backbone import Backbone, check_out_features

if TYPE_CHECKING:
    from ..cfg import Cfg

# Added to the attention of two tokens that are neighbours only because the shifted map wraps around.
SHIFT_PENALTY = -100.0


class Mlp(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, dim: int, hidden_dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden_dim)
        self.fc2 = Linear(hidden_dim, dim)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return self.drop(self.fc2(self.drop(linear(x, self.fc1.weight, self.fc1.bias, gelu=True))))


class DropPath(nn.Module):
    """Drop the whole residual branch of a random part of the samples, and rescale the rest, in training."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) -> (B, ...)."""
        if self.rate == 0.0 or not self.training:
            return x
        keep = 1.0 - self.rate
        sample_mask = x.new_empty((len(x),) + (1,) * (x.dim() - 1)).bernoulli_(keep)
        return x * sample_mask / max(keep, 1e-12)


class WindowAttention(nn.Module):
    """Multi-head self-attention inside windows, with a learned bias per relative position of two tokens."""

    relative_position_index: Tensor

    def __init__(
        self,
        dim: int,
        *,
        window_size: int,
        num_heads: int,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attention_dropout: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = qk_scale or (dim // num_heads) ** -0.5
        self.attention_dropout = attention_dropout
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window_size - 1) ** 2, num_heads))
        self.register_buffer("relative_position_index", relative_position_index(window_size))
        self.qkv = Linear(dim, dim * 3, bias=qkv_bias)
        self.proj = Linear(dim, dim)
        self.proj_drop = nn.Dropout(dropout)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, windows: Tensor, shift_mask: Tensor | None = None) -> Tensor:
        """Attend inside each window.

        Args:
            windows: (B * n, S, C), n windows of S = w * w tokens per image.
            shift_mask: (n, S, S) to be added to the attention, or None.
        """
        total, length, dim = windows.shape
        head_dim = dim // self.num_heads
        qkv = self.qkv(windows).view(total, length, 3, self.num_heads, head_dim)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B * n, heads, S, C / heads)
        bias = self.position_bias().to(query.dtype)  # (heads, S, S)
        if shift_mask is not None:
            # Windows and heads share one axis, so that one bias serves the whole batch.
            bias = (bias + shift_mask[:, None].to(query.dtype)).flatten(0, 1)  # (n * heads, S, S)
            shape = (total // len(shift_mask), len(bias), length, head_dim)
            query, key, value = (each.reshape(shape) for each in (query, key, value))
        dropout = self.attention_dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(query, key, value, bias[None], dropout, scale=self.scale)
        out = out.reshape(total, self.num_heads, length, head_dim).transpose(1, 2).reshape(total, length, dim)
        return self.proj_drop(self.proj(out))

    def position_bias(self) -> Tensor:
        """Look the bias of every token pair up: (heads, S, S)."""
        return self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)


class SwinBlock(nn.Module):
    """Window attention and an MLP, both residual and normalised first; odd blocks shift the windows."""

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        window_size: int,
        is_shifted: bool,
        mlp_ratio: float,
        qkv_bias: bool,
        qk_scale: float | None,
        dropout: float,
        attention_dropout: float,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.window_size = window_size
        self.shift = window_size // 2 if is_shifted else 0
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(
            dim,
            window_size=window_size,
            num_heads=num_heads,
            qkv_bias=qkv_bias,
            qk_scale=qk_scale,
            attention_dropout=attention_dropout,
            dropout=dropout,
        )
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), dropout)

    def forward(self, x: Tensor, shift_mask: Tensor | None) -> Tensor:
        """(B, h, w, C) -> (B, h, w, C); `shift_mask` as made by `window_shift_mask` for this grid."""
        x = x + self.drop_path(self._attend(self.norm1(x), shift_mask))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def _attend(self, x: Tensor, shift_mask: Tensor | None) -> Tensor:
        """Pad the grid to whole windows, shift, attend in each window, and undo both."""
        batch, height, width, _ = x.shape
        x = pad_grid(x, self.window_size)
        padded_size = x.shape[1:3]
        if self.shift:
            x = x.roll((-self.shift, -self.shift), dims=(1, 2))
        windows = split_windows(x, self.window_size)
        windows = self.attn(windows, shift_mask if self.shift else None)
        x = join_windows(windows, self.window_size, batch, padded_size)
        if self.shift:
            x = x.roll((self.shift, self.shift), dims=(1, 2))
        return x[:, :height, :width]


class PatchMerging(nn.Module):
    """Merge 2 x 2 tokens into one of twice the width."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction = Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, C) -> (B, ceil(h / 2), ceil(w / 2), 2 C)."""
        x = pad_grid(x, 2)
        corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(corners, dim=-1)))


class SwinStage(nn.Module):
    """The blocks at one resolution, then patch merging."""

    def __init__(self, dim: int, drop_paths: Sequence[float], *, has_downsample: bool, **block: Any) -> None:
        super().__init__()
        self.window_size = block["window_size"]
        self.blocks = nn.ModuleList(
            SwinBlock(dim, is_shifted=idx % 2 == 1, drop_path=rate, **block) for idx, rate in enumerate(drop_paths)
        )
        self.downsample = PatchMerging(dim) if has_downsample else None

    def forward(self, x: Tensor, use_checkpoint: bool) -> Tensor:
        """(B, h, w, C) -> (B, h, w, C), before the merging."""
        height, width = x.shape[1:3]
        shift_mask = window_shift_mask(height, width, self.window_size, x.device)
        for block in self.blocks:
            if use_checkpoint and self.training and torch.is_grad_enabled():
                x = checkpoint(block, x, shift_mask, use_reentrant=False)
            else:
                x = block(x, shift_mask)
        return x


class PatchEmbed(nn.Module):
    """Cut the image into patches and embed each."""

    def __init__(self, patch_size: int, in_channels: int, embed_dim: int, has_norm: bool) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_channels, embed_dim, patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(embed_dim) if has_norm else None

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, ceil(H / patch), ceil(W / patch), C)."""
        height, width = images.shape[-2:]
        images = F.pad(images, (0, -width % self.patch_size, 0, -height % self.patch_size))
        x = self.proj(images).permute(0, 2, 3, 1)
        return x if self.norm is None else self.norm(x)


@BACKBONE_REGISTRY.register()
class D2SwinTransformer(Backbone):
    """Swin backbone; feature maps res2 to res5 at strides 4 to 32."""

    def __init__(
        self,
        *,
        pretrain_img_size: int = 224,
        patch_size: int = 4,
        in_channels: int = 3,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.3,
        ape: bool = False,
        patch_norm: bool = True,
        out_features: Sequence[str] = ("res2", "res3", "res4", "res5"),
        use_checkpoint: bool = False,
    ) -> None:
        """Build the network.

        Args:
            pretrain_img_size: side of the images the position table was trained for; used with `ape` only.
            ape: add a learned position embedding, resized to the image, to the patches.
            drop_path_rate: stochastic depth of the last block; it grows linearly from 0 at the first.
            out_features: which of res2, res3, res4, res5 to return.
            use_checkpoint: in training, recompute every block in the backward pass instead of keeping its activations.
        """
        super().__init__()
        _check_stages(depths, num_heads, embed_dim)
        self.use_checkpoint = use_checkpoint
        self.patch_embed = PatchEmbed(patch_size, in_channels, embed_dim, patch_norm)
        self.absolute_pos_embed = None
        if ape:
            side = pretrain_img_size // patch_size
            self.absolute_pos_embed = nn.Parameter(torch.zeros(1, embed_dim, side, side))
            nn.init.trunc_normal_(self.absolute_pos_embed, std=0.02)
        self.pos_drop = nn.Dropout(drop_rate)

        block = {
            "window_size": window_size,
            "mlp_ratio": mlp_ratio,
            "qkv_bias": qkv_bias,
            "qk_scale": qk_scale,
            "dropout": drop_rate,
            "attention_dropout": attn_drop_rate,
        }
        rates = torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist()
        stages, dims = [], [embed_dim * 2**idx for idx in range(len(depths))]
        for idx, depth in enumerate(depths):
            start = sum(depths[:idx])
            stage_rates = rates[start : start + depth]
            has_downsample = idx < len(depths) - 1
            stage = SwinStage(dims[idx], stage_rates, has_downsample=has_downsample, num_heads=num_heads[idx], **block)
            stages.append(stage)
        self.layers = nn.ModuleList(stages)  # checkpoint name
        for idx, dim in enumerate(dims):
            self.add_module(f"norm{idx}", nn.LayerNorm(dim))

        names = [f"res{idx + 2}" for idx in range(len(depths))]
        check_out_features(out_features, names, "MODEL.SWIN.OUT_FEATURES")
        self._out_features = [name for name in names if name in out_features]
        self._out_feature_channels = dict(zip(names, dims, strict=True))
        self._out_feature_strides = {name: patch_size * 2**idx for idx, name in enumerate(names)}

    @classmethod
    def from_config(cls, cfg: Cfg, input_shape: ShapeSpec) -> dict[str, Any]:
        swin = cfg.MODEL.SWIN
        return {
            "pretrain_img_size": swin.PRETRAIN_IMG_SIZE,
            "patch_size": swin.PATCH_SIZE,
            "in_channels": input_shape.channels,
            "embed_dim": swin.EMBED_DIM,
            "depths": swin.DEPTHS,
            "num_heads": swin.NUM_HEADS,
            "window_size": swin.WINDOW_SIZE,
            "mlp_ratio": swin.MLP_RATIO,
            "qkv_bias": swin.QKV_BIAS,
            "qk_scale": swin.QK_SCALE,
            "drop_rate": swin.DROP_RATE,
            "attn_drop_rate": swin.ATTN_DROP_RATE,
            "drop_path_rate": swin.DROP_PATH_RATE,
            "ape": swin.APE,
            "patch_norm": swin.PATCH_NORM,
            "out_features": swin.OUT_FEATURES,
            "use_checkpoint": swin.USE_CHECKPOINT,
        }

    @property
    def size_divisibility(self) -> int:
        return 32

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) -> {name: (B, C, h, w)}; every stage pads its own grid, so H and W may be anything."""
        x = self.patch_embed(images)
        if self.absolute_pos_embed is not None:
            table = F.interpolate(self.absolute_pos_embed, size=x.shape[1:3], mode="bicubic")
            x = x + table.permute(0, 2, 3, 1)
        x = self.pos_drop(x)
        outputs = {}
        for idx, stage in enumerate(cast("Iterable[SwinStage]", self.layers)):
            x = stage(x, self.use_checkpoint)
            name = f"res{idx + 2}"
            if name in self._out_features:
                outputs[name] = getattr(self, f"norm{idx}")(x).permute(0, 3, 1, 2)
            if stage.downsample is not None:
                x = stage.downsample(x)
        return outputs


def relative_position_index(window_size: int) -> Tensor:
    """(S, S) int64 row of the bias table for tokens a, b: (ya - yb + w - 1) (2w - 1) + (xa - xb + w - 1)."""
    ticks = torch.arange(window_size)
    y, x = torch.meshgrid(ticks, ticks, indexing="ij")
    y, x = y.flatten(), x.flatten()
    rows = y[:, None] - y[None] + window_size - 1
    columns = x[:, None] - x[None] + window_size - 1
    return rows * (2 * window_size - 1) + columns


def window_shift_mask(height: int, width: int, window_size: int, device: torch.device) -> Tensor:
    """(n, S, S): 0 where two tokens of a shifted window are neighbours on the map, SHIFT_PENALTY where they are not.

    Along each axis the padded, shifted grid falls into three runs: all but the last window, the part of the last
    window that is in place, and the part that wrapped around. Tokens attend only within one pair of runs.
    """
    runs = [_shift_runs(size + -size % window_size, window_size, device) for size in (height, width)]
    regions = (3 * runs[0][:, None] + runs[1][None])[None, :, :, None]  # (1, h, w, 1)
    regions = split_windows(regions, window_size).squeeze(-1)  # (n, S)
    is_apart = regions[:, :, None] != regions[:, None]
    return is_apart.to(torch.float32) * SHIFT_PENALTY


def _shift_runs(size: int, window_size: int, device: torch.device) -> Tensor:
    """(size,) run number 0, 1 or 2 of every row (or column)."""
    position = torch.arange(size, device=device)
    return (position >= size - window_size).long() + (position >= size - window_size // 2).long()


def pad_grid(x: Tensor, multiple: int) -> Tensor:
    """Pad (B, h, w, C) with zeros at the bottom and right to a multiple in both directions."""
    _, height, width, _ = x.shape
    return F.pad(x, (0, 0, 0, -width % multiple, 0, -height % multiple))


def split_windows(x: Tensor, window_size: int) -> Tensor:
    """(B, h, w, C) -> (B * n, S, C), images outermost, then windows row by row."""
    batch, height, width, dim = x.shape
    rows, columns = height // window_size, width // window_size
    x = x.view(batch, rows, window_size, columns, window_size, dim)
    return x.transpose(2, 3).reshape(batch * rows * columns, window_size * window_size, dim)


def join_windows(windows: Tensor, window_size: int, batch: int, size_hw: Sequence[int]) -> Tensor:
    """Undo `split_windows`: (B * n, S, C) -> (B, h, w, C)."""
    height, width = size_hw
    dim = windows.shape[-1]
    windows = windows.view(batch, height // window_size, width // window_size, window_size, window_size, dim)
    return windows.transpose(2, 3).reshape(batch, height, width, dim)


def _check_stages(depths: Sequence[int], num_heads: Sequence[int], embed_dim: int) -> None:
    """Raise ValueError for stage lists that do not fit together."""
    if len(depths) != len(num_heads) or not depths:
        raise ValueError(
            f"MODEL.SWIN.DEPTHS and MODEL.SWIN.NUM_HEADS need one entry per stage, got {depths} and {num_heads}."
        )
    for idx, heads in enumerate(num_heads):
        if (embed_dim * 2**idx) % heads:
            raise ValueError(
                f"Stage {idx} has {embed_dim * 2**idx} channels, which {heads} heads cannot share evenly; "
                "change MODEL.SWIN.EMBED_DIM or MODEL.SWIN.NUM_HEADS."
            )
