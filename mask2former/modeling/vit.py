"""Plain vision transformers: one stack of equal blocks over the patches of an image.

`VisionTransformer` is DINOv2 with register tokens (Oquab et al., 2023; Darcet et al., ICLR 2024) under timm's parameter
names, with a learned position table that is resized to any image. `RotaryVisionTransformer` is DINOv3 (Simeoni et al.,
2025) under the names of its published weights: instead of a table, queries and keys of patches are turned by angles
that depend on where a patch is.

An image of H x W pixels becomes S = P + h w tokens: P prefix tokens (one for the class, then the registers) and one per
patch, row by row. The blocks do not care how many tokens there are, so a caller may put tokens of its own in front.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention import attend_heads
from ..layers import ShapeCache
from ..linear import Linear, linear
from ..resize import size_of
from .swin import Mlp

ROPE_BASE = 100.0  # wave lengths of the rotation go from 1 to this, in half widths of the image
ROPE_RESCALE = 2.0  # in training coordinates are multiplied by a factor between 1 / this and this
SIZES: dict[str, tuple[int, int, int]] = {  # channels, blocks, attention heads
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
}

Rotation = tuple[Tensor, Tensor]  # cosines and sines of the angles of every patch, (h w, C / heads) each


class PlainViT(nn.Module):
    """What both kinds share; a subclass sets `blocks` and `norm` and writes `embed` and `rotation`.

    Attributes:
        embed_dim: C.
        patch_size: pixels per side of a patch.
        num_prefix_tokens: P.
    """

    blocks: nn.ModuleList
    norm: nn.LayerNorm

    def __init__(self, *, embed_dim: int, num_heads: int, depth: int, patch_size: int, num_registers: int) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"a ViT of {embed_dim} channels cannot have {num_heads} heads: they must divide equally.")
        if depth < 1:
            raise ValueError(f"a ViT needs at least one block, got {depth}.")
        self.embed_dim, self.num_heads, self.patch_size = embed_dim, num_heads, patch_size
        self.num_prefix_tokens = 1 + num_registers

    def embed(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised images -> (B, S, C) tokens before the first block."""
        raise NotImplementedError

    def rotation(self, grid: tuple[int, int], device: torch.device) -> Rotation | None:
        """What every block is given beside the tokens of a (h, w) grid; draws a random number in training."""
        raise NotImplementedError

    def blocks_above(self, name: str) -> int:
        """How many blocks stand between a parameter and the end; embeddings count as the first block."""
        first, *rest = name.split(".")
        if first == "norm":
            return 0
        return len(self.blocks) - 1 - (int(rest[0]) if first == "blocks" else 0)

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of patches of an image of (H, W) pixels; ValueError unless patches fill it."""
        height, width = size
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(f"the sides of an image must be multiples of {self.patch_size}, got {height} x {width}.")
        return height // self.patch_size, width // self.patch_size

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, S, C) tokens after all blocks and the last norm."""
        tokens = self.embed(images)
        rotation = self.rotation(self.grid(size_of(images)), images.device)
        for block in self.blocks:
            tokens = block(tokens, rotation)
        return self.norm(tokens)


# -- DINOv2 -----------------------------------------------------------------------------------------------------------


class VisionTransformer(PlainViT):
    """DINOv2 with registers; prefix tokens have no position."""

    fitted_weights = ("pos_embed", "patch_embed.proj.weight")  # what `fit_weight` can bring to another shape

    def __init__(
        self,
        *,
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        patch_size: int = 16,
        image_size: int = 640,
        num_registers: int = 4,
        in_channels: int = 3,
    ) -> None:
        """Args:
        embed_dim, depth, num_heads: channels, blocks, attention heads of each.
        patch_size: pixels per side of a patch.
        image_size: pixels per side of the square that the position table is for; any other size works.
        num_registers: tokens without meaning of their own, beside the class token.
        in_channels: of the images.
        """
        super().__init__(
            embed_dim=embed_dim, num_heads=num_heads, depth=depth, patch_size=patch_size, num_registers=num_registers
        )
        side, _ = self.grid((image_size, image_size))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.reg_token = nn.Parameter(torch.zeros(1, num_registers, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, side * side, embed_dim))
        self.patch_embed = PatchEmbedding(in_channels, embed_dim, patch_size)
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        _initialise(self)

    def embed(self, images: Tensor) -> Tensor:
        grid = self.grid(size_of(images))
        patches = self.patch_embed.proj(images).flatten(2).transpose(1, 2)
        patches = patches + self.positions(grid).to(patches.dtype)
        return _with_prefix(patches, self.cls_token, self.reg_token)

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """The position table resized to (h, w) patches: (1, h w, C)."""
        side = math.isqrt(self.pos_embed.shape[1])
        return resize_positions(self.pos_embed, (side, side), grid)

    def rotation(self, grid: tuple[int, int], device: torch.device) -> Rotation | None:
        return None

    def fit_weight(self, name: str, weight: Tensor) -> Tensor | None:
        """Bring a tensor of a file, of a network with other patches or another image size, to the shape it has here.

        Args:
            name: of the tensor in this module.
            weight: as the file has it.

        Returns:
            The tensor in the shape of ours, or None where there is no way.
        """
        if name == "pos_embed" and weight.dim() == 3 and weight.shape[-1] == self.embed_dim:
            old, new = math.isqrt(weight.shape[1]), math.isqrt(self.pos_embed.shape[1])
            return resize_positions(weight, (old, old), (new, new)) if old * old == weight.shape[1] else None
        kernel = self.patch_embed.proj.weight
        if name == "patch_embed.proj.weight" and weight.dim() == 4 and weight.shape[:2] == kernel.shape[:2]:
            return resize_patch_kernel(weight, (self.patch_size, self.patch_size))
        return None


class PatchEmbedding(nn.Module):
    """Where checkpoints have the projection of patches."""

    def __init__(self, in_channels: int, dim: int, patch_size: int) -> None:
        super().__init__()
        self.proj = _patch_projection(in_channels, dim, patch_size)


class Block(nn.Module):
    """Attention and a small network over every token, each added to what comes in; timm's names."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads)
        self.ls1 = LayerScale(dim, "gamma")
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, 4 * dim)
        self.ls2 = LayerScale(dim, "gamma")

    def forward(self, x: Tensor, rotation: Rotation | None = None) -> Tensor:
        """(B, S, C) -> (B, S, C)."""
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class Attention(nn.Module):
    """Self-attention of all tokens, with one product for queries, keys and values."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = Linear(dim, 3 * dim)
        self.proj = Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, C) -> (B, S, C)."""
        return self.proj(_attend(*self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)))


class LayerScale(nn.Module):
    """Multiply every channel by a number of its own, which has the name it has in checkpoints."""

    def __init__(self, dim: int, name: str) -> None:
        super().__init__()
        self.name = name
        self.register_parameter(name, nn.Parameter(torch.ones(dim)))

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return x * getattr(self, self.name)


# -- DINOv3 -----------------------------------------------------------------------------------------------------------


class RotaryVisionTransformer(PlainViT):
    """DINOv3: no position table, the attention of patches is rotated."""

    def __init__(
        self,
        *,
        embed_dim: int = 1024,
        depth: int = 24,
        num_heads: int = 16,
        hidden_dim: int | None = None,
        patch_size: int = 16,
        num_registers: int = 4,
        in_channels: int = 3,
    ) -> None:
        """As `VisionTransformer`; `hidden_dim` is the width of the small networks, 4 C unless given."""
        super().__init__(
            embed_dim=embed_dim, num_heads=num_heads, depth=depth, patch_size=patch_size, num_registers=num_registers
        )
        self.norm = nn.LayerNorm(embed_dim, eps=1e-5)
        self.patch_embed = RotaryEmbeddings(in_channels, embed_dim, patch_size, num_registers)
        hidden_dim = 4 * embed_dim if hidden_dim is None else hidden_dim
        self.blocks = nn.ModuleList(RotaryBlock(embed_dim, num_heads, hidden_dim) for _ in range(depth))
        self.rotations = Rotations(embed_dim // num_heads)
        _initialise(self)

    def embed(self, images: Tensor) -> Tensor:
        self.grid(size_of(images))
        return self.patch_embed(images)

    def rotation(self, grid: tuple[int, int], device: torch.device) -> Rotation | None:
        return self.rotations(grid, device)


class RotaryEmbeddings(nn.Module):
    """From an image to tokens."""

    def __init__(self, in_channels: int, dim: int, patch_size: int, num_registers: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.register_tokens = nn.Parameter(torch.zeros(1, num_registers, dim))
        self.patch_embeddings = _patch_projection(in_channels, dim, patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, S, C)."""
        patches = self.patch_embeddings(images).flatten(2).transpose(1, 2)
        return _with_prefix(patches, self.cls_token, self.register_tokens)


class RotaryBlock(nn.Module):
    """A block whose attention is rotated."""

    def __init__(self, dim: int, num_heads: int, hidden_dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-5)
        self.attention = RotaryAttention(dim, num_heads)
        self.layer_scale1 = LayerScale(dim, "lambda1")
        self.norm2 = nn.LayerNorm(dim, eps=1e-5)
        self.mlp = RotaryMlp(dim, hidden_dim)
        self.layer_scale2 = LayerScale(dim, "lambda1")

    def forward(self, x: Tensor, rotation: Rotation | None = None) -> Tensor:
        """(B, S, C) -> (B, S, C); the last h w tokens are turned."""
        x = x + self.layer_scale1(self.attention(self.norm1(x), rotation))
        return x + self.layer_scale2(self.mlp(self.norm2(x)))


class RotaryAttention(nn.Module):
    """Self-attention of all tokens; keys have no bias, which could not change anything."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.k_proj = Linear(dim, dim, bias=False)
        self.v_proj = Linear(dim, dim)
        self.q_proj = Linear(dim, dim)
        self.o_proj = Linear(dim, dim)

    def forward(self, x: Tensor, rotation: Rotation | None) -> Tensor:
        """(B, S, C) -> (B, S, C)."""
        projected = (part(x) for part in (self.q_proj, self.k_proj, self.v_proj))
        queries, keys, values = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in projected)
        if rotation is not None:
            queries, keys = rotate(queries, rotation), rotate(keys, rotation)
        return self.o_proj(_attend(queries, keys, values))


class RotaryMlp(nn.Module):
    """Two linear layers with a GELU between them, under DINOv3's names."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.up_proj = Linear(dim, hidden_dim)
        self.down_proj = Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return self.down_proj(linear(x, self.up_proj.weight, self.up_proj.bias, gelu=True))


class Rotations(nn.Module):
    """Angles of the patches of a grid; nothing is learned."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        if head_dim % 4:
            raise ValueError(f"rotated attention needs heads of a multiple of 4 channels, got {head_dim}.")
        self.head_dim = head_dim
        self._cache = ShapeCache()

    def forward(self, grid: tuple[int, int], device: torch.device) -> Rotation:
        """Cosines and sines, (h w, head_dim) each; in training all coordinates are stretched by one random factor."""
        if self.training:
            exponent = 2 * torch.rand(1, device=device) - 1
            return _turned(self._angles(grid, device) * ROPE_RESCALE**exponent)
        both = self._cache.get((*grid, device), lambda: torch.stack(_turned(self._angles(grid, device))))
        return both[0], both[1]

    def _angles(self, grid: tuple[int, int], device: torch.device) -> Tensor:
        """(h w, head_dim): two equal halves, each with the angles of the row and then those of the column."""
        axes = [2 * (torch.arange(length, device=device) + 0.5) / length - 1 for length in grid]  # centres, in [-1, 1]
        places = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 1)  # (h w, 2)
        step = torch.arange(self.head_dim // 4, device=device) * (4 / self.head_dim)
        angles = 2 * math.pi * places[:, :, None] / ROPE_BASE**step
        return angles.flatten(1).tile(2)


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn the last h w of (B, heads, S, c) tokens; a channel is paired with the one c / 2 further on."""
    cosine, sine = (part.to(x.dtype) for part in rotation)
    others, patches = x[..., : -cosine.shape[0], :], x[..., -cosine.shape[0] :, :]
    first, second = patches.chunk(2, dim=-1)
    return torch.cat((others, patches * cosine + torch.cat((-second, first), dim=-1) * sine), dim=-2)


def _attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention of (B, heads, S, c) -> (B, S, C)."""
    if queries.device.type == "cpu":  # whose kernel gains more from rows that lie together than the copy takes
        queries, keys, values = (part.contiguous() for part in (queries, keys, values))
    return attend_heads(queries, keys, values).transpose(1, 2).flatten(2)


def _turned(angles: Tensor) -> Rotation:
    return angles.cos(), angles.sin()


# -- both -------------------------------------------------------------------------------------------------------------


def build_vit(name: str, *, image_size: int, patch_size: int, in_channels: int = 3, **size: int) -> PlainViT:
    """Build the network of a published name, without weights.

    Args:
        name: timm's name of DINOv2 with registers, "vit_small_patch14_reg4_dinov2", or the Hub's of DINOv3,
            "facebook/dinov3-vitl16-pretrain-lvd1689m".
        image_size: pixels per side of the square that a position table is for.
        patch_size: pixels per side of a patch, whatever the name says: files are fitted when they are loaded.
        in_channels: of the images.
        size: embed_dim, depth or num_heads, where they differ from those of the name; 0 is the name's.
    """
    words = name.rpartition("/")[2].replace("-", "_").split("_")
    is_dinov3 = "dinov3" in words
    short_names = {f"vit{scale[0]}16": scale for scale in SIZES}
    scale = next((word for word in (short_names.get(word, word) for word in words) if word in SIZES), None)
    if scale is None or not (is_dinov3 or "reg4" in words):
        raise ValueError(
            f"MODEL.BACKBONE.MODEL_NAME must be vit_<size>_patch14_reg4_dinov2, with a size of {', '.join(SIZES)}, or "
            f"facebook/dinov3-vit<s, b or l>16-...; got {name!r}."
        )
    arguments: dict[str, Any] = dict(zip(("embed_dim", "depth", "num_heads"), SIZES[scale], strict=True))
    arguments |= {key: value for key, value in size.items() if value}
    arguments |= {"patch_size": patch_size, "in_channels": in_channels}
    return RotaryVisionTransformer(**arguments) if is_dinov3 else VisionTransformer(image_size=image_size, **arguments)


def resize_positions(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Resize a position table (1, h w, C) from one grid to another, bicubically and without aliasing."""
    if old == new:
        return table
    maps = table.float().unflatten(1, old).permute(0, 3, 1, 2)
    resized = F.interpolate(maps, size=new, mode="bicubic", antialias=True, align_corners=False)
    return resized.permute(0, 2, 3, 1).flatten(1, 2).to(table.dtype)


def resize_patch_kernel(kernel: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring the projection of patches to another patch size so that resized patches give what they gave before.

    FlexiViT (Beyer et al., CVPR 2023), section 3.4: the pseudo-inverse of the resizing of patches, seen as a matrix, is
    applied to the weights.

    Args:
        kernel: (C, 3, p, p).
        size: of the new patches.
    """
    old = tuple(kernel.shape[-2:])
    if old == size:
        return kernel
    pixels = old[0] * old[1]
    basis = torch.eye(pixels, dtype=torch.float64).view(pixels, 1, *old)
    resizing = F.interpolate(basis, size=size, mode="bicubic", antialias=True, align_corners=False).flatten(1)
    inverse = torch.linalg.pinv(resizing)  # (new pixels, old pixels)
    return (kernel.double().flatten(2) @ inverse.T).unflatten(2, size).to(kernel.dtype)


def _patch_projection(in_channels: int, dim: int, patch_size: int) -> PatchProjection:
    return PatchProjection(in_channels, dim, kernel_size=patch_size, stride=patch_size)


class PatchProjection(nn.Conv2d):
    """A convolution whose windows do not overlap: one product over the pixels of every patch."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, h, w)."""
        size = self.kernel_size[0]
        patches = x.unflatten(3, (-1, size)).unflatten(2, (-1, size))  # (B, 3, h, p, w, p)
        pixels = patches.permute(0, 2, 4, 1, 3, 5).flatten(3)
        return linear(pixels, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


def _with_prefix(patches: Tensor, *prefix: Tensor) -> Tensor:
    """Put tokens (1, n, C) in front of patches (B, h w, C)."""
    return torch.cat([*(token.to(patches.dtype).expand(patches.shape[0], -1, -1) for token in prefix), patches], dim=1)


def _initialise(model: nn.Module) -> None:
    """Draw what is learned as ViTs do: narrow normal matrices and tokens, biases 0."""
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            nn.init.trunc_normal_(parameter, std=0.02)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
