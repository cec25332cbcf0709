"""Feature maps of a plain ViT that stays as it is: DINOv2 with the extractors of ViT-Adapter, the backbone of DVIS++.

"Vision Transformer Adapter for Dense Predictions" (Chen et al., ICLR 2023), section 3, without the injectors: a small
convolutional network makes maps of four sizes, which read the tokens of the ViT by deformable attention after every
quarter of its blocks. Nothing flows back into the ViT, so it need not be trained. At the end the tokens themselves are
added, resized to the size of each map.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import ShapeCache
from ..linear import Linear
from ..registry import BACKBONE_REGISTRY
from .backbone import Backbone, batch_norm
from .deform_attn import MSDeformAttn, Sizes
from .vit import SIZES, Block, PatchProjection

if TYPE_CHECKING:
    from ..cfg import Cfg

IMAGE_SIZE, PATCH_SIZE = 592, 16  # of the position table; as many patches as the 518 pixels of DINOv2 have with 14
STEM_CHANNELS = 64
NUM_QUARTERS = 4
STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}
NAMES = {f"vit{name[0]}": size for name, size in SIZES.items()}  # vitl: channels, blocks, heads of "large"


class DinoVisionTransformer(nn.Module):
    """DINOv2 without registers, under the names of its published weights; the class token has a position too."""

    fitted_weights = ("patch_embed.proj.weight",)  # what `fit_weight` can bring to another shape

    def __init__(self, *, embed_dim: int, depth: int, num_heads: int, start_file: str = "") -> None:
        """Args:
        embed_dim, depth, num_heads: channels C, blocks and attention heads.
        start_file: file of weights that a training from the beginning starts from; "": none. It is not read here.
        """
        super().__init__()
        self.embed_dim, self.start_file = embed_dim, start_file
        side = IMAGE_SIZE // PATCH_SIZE
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + side * side, embed_dim))
        self.mask_token = nn.Parameter(torch.zeros(1, embed_dim))  # in the published weights; nothing uses it
        projection = PatchProjection(3, embed_dim, kernel_size=PATCH_SIZE, stride=PATCH_SIZE)
        self.patch_embed = nn.ModuleDict({"proj": projection})
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)  # as well
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.normal_(self.cls_token, std=1e-6)

    def embed(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 1 + h w, C) tokens before the first block, the class token first."""
        patches = self.patch_embed["proj"](images)
        grid = tuple(patches.shape[-2:])
        tokens = torch.cat((self.cls_token.expand(len(images), -1, -1), patches.flatten(2).transpose(1, 2)), dim=1)
        return tokens + self.positions(grid).to(tokens.dtype)

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """The position table for (h, w) patches: (1, 1 + h w, C)."""
        side = math.isqrt(self.pos_embed.shape[1] - 1)
        if grid == (side, side):
            return self.pos_embed
        of_class, of_patches = self.pos_embed.float().split((1, side * side), dim=1)
        maps = of_patches.transpose(1, 2).unflatten(2, (side, side))
        scales = tuple((length + 0.1) / side for length in grid)  # the published weights expect a tenth more
        resized = F.interpolate(maps, scale_factor=scales, mode="bicubic").flatten(2).transpose(1, 2)
        return torch.cat((of_class, resized), dim=1)

    def fit_weight(self, name: str, weight: Tensor) -> Tensor | None:
        """Bring a kernel of patches of another size to 16 x 16, the way it was done for the published models."""
        if weight.dim() != 4 or weight.shape[:2] != (self.embed_dim, 3):
            return None
        return F.interpolate(weight.float(), (PATCH_SIZE, PATCH_SIZE), mode="bilinear", align_corners=True)


class SpatialPrior(nn.Module):
    """Convolutions that make C channels at strides 4, 8, 16 and 32."""

    def __init__(self, dim: int, norm: type[nn.Module]) -> None:
        super().__init__()
        width = STEM_CHANNELS
        stem = [layer for step in range(3) for layer in _convolution(3 if step == 0 else width, width, norm, step == 0)]
        self.stem = nn.Sequential(*stem, nn.MaxPool2d(kernel_size=3, stride=2, padding=1))  # checkpoint names
        self.conv2 = nn.Sequential(*_convolution(width, 2 * width, norm))
        self.conv3 = nn.Sequential(*_convolution(2 * width, 4 * width, norm))
        self.conv4 = nn.Sequential(*_convolution(4 * width, 4 * width, norm))
        self.fc1 = nn.Conv2d(width, dim, kernel_size=1)
        self.fc2 = nn.Conv2d(2 * width, dim, kernel_size=1)
        self.fc3 = nn.Conv2d(4 * width, dim, kernel_size=1)
        self.fc4 = nn.Conv2d(4 * width, dim, kernel_size=1)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> four maps (B, C, H / stride, W / stride), fine to coarse."""
        first = self.stem(images)
        second = self.conv2(first)
        third = self.conv3(second)
        return [self.fc1(first), self.fc2(second), self.fc3(third), self.fc4(self.conv4(third))]


def _convolution(in_channels: int, channels: int, norm: type[nn.Module], halves: bool = True) -> list[nn.Module]:
    conv = nn.Conv2d(in_channels, channels, kernel_size=3, stride=2 if halves else 1, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return [conv, norm(channels), nn.ReLU(inplace=True)]


class MapNetwork(nn.Module):
    """Two linear layers on every cell of three maps, with a convolution of each channel on each map between them."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden_dim)
        depthwise = nn.Conv2d(hidden_dim, hidden_dim, kernel_size=3, padding=1, groups=hidden_dim)
        self.dwconv = nn.ModuleDict({"dwconv": depthwise})  # checkpoint name
        self.fc2 = Linear(hidden_dim, dim)

    def forward(self, x: Tensor, sizes: Sizes) -> Tensor:
        """(B, S, C) of maps of the given sizes, one after the other -> the same shape."""
        maps = split_maps(self.fc1(x).transpose(1, 2), sizes)
        hidden = torch.cat([self.dwconv["dwconv"](each).flatten(2) for each in maps], dim=2)
        return self.fc2(F.gelu(hidden.transpose(1, 2)))


class Extractor(nn.Module):
    """Lets the cells of three maps read the tokens of the ViT."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.query_norm = nn.LayerNorm(dim, eps=1e-6)
        self.feat_norm = nn.LayerNorm(dim, eps=1e-6)
        self.attn = MSDeformAttn(dim, n_levels=1, n_heads=num_heads, n_points=4)
        self.ffn = MapNetwork(dim, dim // 4)
        self.ffn_norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, cells: Tensor, places: Tensor, tokens: Tensor, grid: tuple[int, int], sizes: Sizes) -> Tensor:
        """Update the cells.

        Args:
            cells: (B, S, C) of three maps.
            places: (1, S, 1, 2) centres of the cells, (x, y) in [0, 1].
            tokens: (B, h w, C) of the ViT.
            grid: (h, w).
            sizes: (height, width) of the three maps.
        """
        cells = cells + self.attn(self.query_norm(cells), places, self.feat_norm(tokens), [grid])
        return cells + self.ffn(self.ffn_norm(cells), sizes)


class Interaction(nn.Module):
    """One extractor after a quarter of the blocks; two more after the last quarter."""

    def __init__(self, dim: int, num_heads: int, num_extra: int) -> None:
        super().__init__()
        self.extractor = Extractor(dim, num_heads)
        if num_extra:
            self.extra_extractors = nn.ModuleList(Extractor(dim, num_heads) for _ in range(num_extra))

    def forward(self, cells: Tensor, *context: Any) -> Tensor:
        """Run the extractors; `context` is as of `Extractor.forward`."""
        cells = self.extractor(cells, *context)
        for extractor in getattr(self, "extra_extractors", ()):
            cells = extractor(cells, *context)
        return cells


@BACKBONE_REGISTRY.register()
class D2VitAdapterDinoV2(Backbone):  # published name
    """The backbone: four maps of C channels."""

    def __init__(
        self, vit: DinoVisionTransformer, *, num_heads: int, trained_quarters: Sequence[int], norm: type[nn.Module]
    ) -> None:
        """Args:
        vit: the plain ViT.
        num_heads: of the extractors' attention.
        trained_quarters: quarters of the blocks of the ViT, 0 to 3, that are trained; its embeddings are with any.
        norm: class of the norms of maps.
        """
        super().__init__()
        unknown = sorted(set(trained_quarters) - set(range(NUM_QUARTERS)))
        if unknown:
            raise ValueError(f"MODEL.VIT_ADAPTER.FINETUNE_INDEXES must be in 0..{NUM_QUARTERS - 1}, got {unknown}.")
        dim = vit.embed_dim
        self.level_embed = nn.Parameter(torch.zeros(3, dim))
        self.spm = SpatialPrior(dim, norm)
        extra = (*[0] * (NUM_QUARTERS - 1), 2)
        self.interactions = nn.ModuleList(Interaction(dim, num_heads, count) for count in extra)
        self.up = nn.ConvTranspose2d(dim, dim, kernel_size=2, stride=2)
        self.norm1, self.norm2, self.norm3, self.norm4 = (norm(dim) for _ in STRIDES)
        self.vit_module = vit
        self.trained_quarters = frozenset(trained_quarters)
        nn.init.normal_(self.level_embed)
        self._freeze()
        self._places = ShapeCache()
        self._out_features = tuple(STRIDES)
        self._out_feature_strides = dict(STRIDES)
        self._out_feature_channels = dict.fromkeys(STRIDES, dim)

    @classmethod
    def from_config(cls, cfg: Cfg, input_shape: Any = None) -> dict[str, Any]:
        adapter = cfg.MODEL.VIT_ADAPTER
        if adapter.NAME not in NAMES:
            raise ValueError(f"MODEL.VIT_ADAPTER.NAME must be one of {sorted(NAMES)}, got {adapter.NAME!r}.")
        dim, depth, num_heads = NAMES[adapter.NAME]
        vit = DinoVisionTransformer(embed_dim=dim, depth=depth, num_heads=num_heads, start_file=adapter.VIT_WEIGHT)
        quarters = range(NUM_QUARTERS) if not adapter.FREEZE_VIT else ()
        if adapter.FREEZE_VIT and adapter.FINETUNE:
            quarters = adapter.FINETUNE_INDEXES
        return {
            "vit": vit,
            "num_heads": num_heads,
            "trained_quarters": tuple(quarters),
            "norm": batch_norm(cfg.MODEL.DEVICE, nn.BatchNorm2d),
        }

    @property
    def size_divisibility(self) -> int:
        return max(STRIDES.values())

    def train(self, mode: bool = True) -> D2VitAdapterDinoV2:
        """Set the mode; what is frozen of the ViT stays in evaluation mode."""
        super().train(mode)
        for quarter in range(NUM_QUARTERS):
            for block in self.blocks(quarter):
                block.train(mode and quarter in self.trained_quarters)
        return self

    def blocks(self, quarter: int) -> Sequence[nn.Module]:
        """Blocks of a quarter of the ViT."""
        count = len(self.vit_module.blocks) // NUM_QUARTERS
        return list(self.vit_module.blocks[quarter * count : (quarter + 1) * count])

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        sizes = [(images.shape[-2] // stride, images.shape[-1] // stride) for stride in STRIDES.values()]
        grid = sizes[2]  # patches are as large as cells at stride 16
        finest, *maps = self.spm(images)
        cells = torch.cat(
            [each.flatten(2) + code[:, None] for each, code in zip(maps, self.level_embed, strict=True)], 2
        )
        cells = cells.transpose(1, 2)  # (B, S, C)
        places = self._places.get((*images.shape[-2:], images.device), lambda: centres(sizes[1:], images.device))
        with torch.set_grad_enabled(torch.is_grad_enabled() and bool(self.trained_quarters)):
            tokens = self.vit_module.embed(images)
        token_maps = []
        for quarter, interaction in enumerate(self.interactions):
            tokens = self.run_blocks(quarter, tokens)
            patches = tokens[:, 1:]
            cells = interaction(cells, places, patches, grid, sizes[1:])
            token_maps.append(patches.transpose(1, 2).unflatten(2, grid))
        maps = split_maps(cells.transpose(1, 2), sizes[1:])
        maps = [self.up(maps[0]) + finest, *maps]
        norms = (self.norm1, self.norm2, self.norm3, self.norm4)
        return {
            name: norm(each + F.interpolate(of_vit, size=size, mode="bilinear", align_corners=False))
            for name, norm, each, of_vit, size in zip(STRIDES, norms, maps, token_maps, sizes, strict=True)
        }

    def run_blocks(self, quarter: int, tokens: Tensor) -> Tensor:
        """Run a quarter of the ViT; as published, no gradient passes through a quarter that is not trained."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and quarter in self.trained_quarters):
            for block in self.blocks(quarter):
                tokens = block(tokens)
        return tokens

    def _freeze(self) -> None:
        self.vit_module.requires_grad_(bool(self.trained_quarters))
        for part in (self.vit_module.norm, self.vit_module.mask_token):  # nothing uses them
            part.requires_grad_(False)
        for quarter in set(range(NUM_QUARTERS)) - self.trained_quarters:
            for block in self.blocks(quarter):
                block.requires_grad_(False)


def centres(sizes: Sizes, device: torch.device) -> Tensor:
    """Centres of the cells of maps, one map after the other: (1, S, 1, 2) as (x, y) in [0, 1]."""
    grids = []
    for size in sizes:
        y, x = ((torch.arange(length, device=device) + 0.5) / length for length in size)
        grids.append(torch.cartesian_prod(y, x).flip(1))
    return torch.cat(grids)[None, :, None]


def split_maps(joined: Tensor, sizes: Sizes) -> list[Tensor]:
    """(B, C, S) of maps of the given sizes, one after the other -> the maps, (B, C, height, width) each."""
    parts = joined.split([height * width for height, width in sizes], dim=2)
    return [part.unflatten(2, size) for part, size in zip(parts, sizes, strict=True)]
