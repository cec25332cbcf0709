"""Queries among the tokens of a ViT, and what is read off them: the network part that VidEoMT and PMT share.

The queries stand in front of the tokens of a frame and go with them through a few blocks. Afterwards each gives class
scores and a vector that is multiplied with the features of every pixel, which are the patch tokens enlarged to stride
4 (EoMT, "Your ViT is Secretly an Image Segmentation Model", CVPR 2025). The queries of the next frame are made from
those of this one, so query n means one object from the first frame to the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mask2former.linear import Linear
from mask2former.modeling.vit import PlainViT, Rotation


@dataclass
class FrameTokens:
    """Tokens of t frames of one size before the queries join them.

    Attributes:
        prefix: (t, P, C).
        patches: (t, h, w, C).
        rotation: what the blocks of the queries are given beside the tokens; one for all frames of a clip.
    """

    prefix: Tensor
    patches: Tensor
    rotation: Rotation | None

    @property
    def grid(self) -> tuple[int, int]:
        return self.patches.shape[-3], self.patches.shape[-2]


@dataclass
class Readings:
    """What the heads read off one set of tokens.

    Attributes:
        logits: (B, N, K+1) class logits.
        embeddings: (B, N, C), to be multiplied with the features of pixels.
        patches: (B, h, w, C), to be enlarged to those features.
    """

    logits: Tensor
    embeddings: Tensor
    patches: Tensor


class QueryBackbone(nn.Module):
    """An encoder and the network that takes its tokens: what checkpoints have under `backbone`."""

    @property
    def network(self) -> QueryNetwork:
        """The part that the queries go through."""
        raise NotImplementedError

    @property
    def compiled_parts(self) -> Sequence[nn.Module]:
        """What is worth compiling."""
        raise NotImplementedError

    def encode(self, images: Tensor) -> FrameTokens:
        """(t, 3, H, W) normalised images -> their tokens, each frame by itself."""
        raise NotImplementedError


class Encoder(nn.Module):
    """Where checkpoints have the ViT: `encoder.backbone`."""

    def __init__(self, vit: PlainViT) -> None:
        super().__init__()
        self.backbone = vit


class QueryNetwork(nn.Module):
    """Queries, blocks that they go through, and heads. A subclass brings the blocks and the last norm.

    Names of parameters are those of published checkpoints.
    """

    def __init__(self, *, dim: int, num_queries: int, num_classes: int, norm_queries: bool = False) -> None:
        """Args:
        dim: C.
        num_queries: N.
        num_classes: K, without "no object".
        norm_queries: carry the queries on as they are after the last norm, and not before it.
        """
        super().__init__()
        self.num_classes, self.norm_queries = num_classes, norm_queries
        self.q = nn.Embedding(num_queries, dim)  # of the first frame of a video
        self.query_updater = nn.Linear(dim, dim)
        self.class_head = nn.Linear(dim, num_classes + 1)
        self.mask_head = nn.Sequential(Linear(dim, dim), nn.GELU(), Linear(dim, dim), nn.GELU(), Linear(dim, dim))
        self.upscale = nn.Sequential(Enlarge(dim), Enlarge(dim))

    def rotation(self, grid: tuple[int, int]) -> Rotation | None:
        """What the blocks of the queries are given beside the tokens of a (h, w) grid; may be random in training."""
        raise NotImplementedError

    @property
    def query_blocks(self) -> nn.ModuleList:
        """The blocks that the queries go through."""
        raise NotImplementedError

    @property
    def last_norm(self) -> nn.Module:
        """Applied to all tokens before the heads read them for the last time."""
        raise NotImplementedError

    @property
    def num_queries(self) -> int:
        return self.q.num_embeddings

    def queries_after(self, carried: Tensor | None, batch: int = 1) -> Tensor:
        """Queries (B, N, C) of the next frame from what is `carried` on of this one; None before the first frame."""
        if carried is None:
            return self.q.weight.expand(batch, -1, -1)
        return self.query_updater(carried) + self.q.weight

    def carried(self, tokens: Tensor) -> Tensor:
        """What the next frame gets of the tokens (B, N + S, C) after the last block: (B, N, C)."""
        queries = tokens[:, : self.num_queries]
        return self.last_norm(queries) if self.norm_queries else queries

    def run_blocks(self, queries: Tensor, frames: FrameTokens) -> list[Tensor]:
        """Let queries (B, N, C) and the tokens of B frames go through the blocks.

        Returns:
            Tokens (B, N + S, C), queries first, as they enter each block, and as they leave the last one.
        """
        patches = frames.patches.flatten(1, 2)
        stages = [torch.cat((queries.to(patches.dtype), frames.prefix, patches), dim=1)]
        for block in self.query_blocks:
            stages.append(block(stages[-1], frames.rotation))
        return stages

    def read(self, tokens: Tensor, grid: tuple[int, int]) -> Readings:
        """Let the heads read tokens (B, N + S, C)."""
        queries = tokens[:, : self.num_queries]
        patches = tokens[:, -grid[0] * grid[1] :].unflatten(1, grid)
        return Readings(self.class_head(queries), self.mask_head(queries), patches)

    def step(self, queries: Tensor, frames: FrameTokens) -> tuple[Readings, Tensor]:
        """Take queries (B, N, C) through B frames: what the heads read in the end, and what the next frame gets."""
        tokens = self.run_blocks(queries, frames)[-1]
        return self.read(self.last_norm(tokens), frames.grid), self.carried(tokens)

    def enlarged(self, patches: Tensor) -> Tensor:
        """(t, C, h, w) patch tokens that the heads read -> (t, C, 4 h, 4 w) features of pixels."""
        return self.upscale(patches.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Enlarge(nn.Module):
    """Twice as many pixels in each direction."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.ConvTranspose2d(dim, dim, kernel_size=2, stride=2)
        self.conv2 = nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim, bias=False)
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, C) -> (B, 2 h, 2 w, C)."""
        pixels = F.gelu(self.conv1(x.permute(0, 3, 1, 2)))  # channels last throughout, twice as fast on a CPU
        return self.norm(self.conv2(pixels).permute(0, 2, 3, 1))
