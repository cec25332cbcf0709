"""SeqFormer's deformable transformer: one content query per object of the video, one box query per object and frame.

Wu et al., "SeqFormer: Sequential Transformer for Video Instance Segmentation", ECCV 2022, section 3.2. The encoder
looks at every frame alone. In the decoder, the box query of an object reads every frame around the box it has there;
what was read is averaged over time, with learned weights, into the object's content query.

Attribute names are those of the published checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mask2former.layers import MLP
from mask2former.linear import Linear, linear
from mask2former.modeling.deform_attn import MSDeformAttn
from mask2former.transfer import tensor_like

# Frames of a clip in pieces, in order: values (B, t, S, C). Called once per decoder layer.
ReadMemory = Callable[[], Iterator[Tensor]]


@dataclass
class Layout:
    """How the feature maps of a frame lie in memory, and which part of them is padding.

    Attributes:
        sizes: (H, W) of the L maps; S is the sum of their areas.
        valid_ratios: (B, L, 2) share of each map's width and height that is not padding.
        padding_mask: (B, S) bool, True = padding, for all frames of a clip; None without padding.
    """

    sizes: Sequence[tuple[int, int]]
    valid_ratios: Tensor
    padding_mask: Tensor | None = None

    def frames_mask(self, num_frames: int) -> Tensor | None:
        """Padding of B*t frames, (B*t, S)."""
        return None if self.padding_mask is None else self.padding_mask.repeat_interleave(num_frames, dim=0)


@dataclass
class DecoderState:
    """What the decoder knows after a layer.

    Attributes:
        content: (B, N, C) content queries.
        boxes: (B, T, N, C) box queries.
        references: (B, T, N, 2 or 4) where the layer looked: (x, y) or (x, y, width, height), in [0, 1], no gradient.
        pred_boxes: (B, T, N, 4) boxes (centre x, y, width, height) in [0, 1].
    """

    content: Tensor
    boxes: Tensor
    references: Tensor
    pred_boxes: Tensor


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Logit of x in [0, 1], with both sides of the quotient at least `eps`."""
    x = x.clamp(0, 1)
    return (x.clamp(min=eps) / (1 - x).clamp(min=eps)).log()


class BoxDeformAttn(MSDeformAttn):
    """Deformable attention with two output projections, for content and for boxes; the encoder uses only the first."""

    def __init__(self, d_model: int, n_levels: int, n_heads: int, n_points: int) -> None:
        super().__init__(d_model, n_levels, n_heads, n_points)
        self.output_proj_box = Linear(d_model, d_model)
        nn.init.xavier_uniform_(self.output_proj_box.weight)
        nn.init.zeros_(self.output_proj_box.bias)


class EncoderLayer(nn.Module):
    """Deformable self-attention of the cells of one frame, then two linear layers."""

    def __init__(self, dim: int, hidden_dim: int, dropout: float, num_levels: int, num_heads: int, num_points: int):
        super().__init__()
        self.self_attn = BoxDeformAttn(dim, num_levels, num_heads, num_points)
        self.self_attn.output_proj_box.requires_grad_(False)  # as published: in every checkpoint, and never used
        self.norm1 = nn.LayerNorm(dim)
        self.linear1, self.linear2 = Linear(dim, hidden_dim), Linear(hidden_dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, cells: Tensor, position: Tensor, references: Tensor, sizes: Sequence, padding: Tensor | None
    ) -> Tensor:
        """(BT, S, C) -> (BT, S, C)."""
        read = self.self_attn(cells + position, references, cells, sizes, padding)
        cells = self.norm1(cells + self.dropout(read))
        return self.norm2(cells + self.dropout(feed_forward(cells, self.linear1, self.linear2, self.dropout)))


class Encoder(nn.Module):
    """A stack of encoder layers."""

    def __init__(self, layers: Sequence[EncoderLayer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, cells: Tensor, position: Tensor, layout: Layout) -> Tensor:
        """Let the cells of every frame exchange what they see.

        Args:
            cells: (B*T, S, C).
            position: (B*T, S, C).
            layout: of the B clips.
        """
        num_frames = len(cells) // len(layout.valid_ratios)
        references = cell_centres(layout).repeat_interleave(num_frames, dim=0)
        padding = layout.frames_mask(num_frames)
        for layer in self.layers:
            cells = layer(cells, position, references, layout.sizes, padding)
        return cells


class DecoderLayer(nn.Module):
    """Self-attention of both kinds of queries, deformable attention to every frame, average over time."""

    def __init__(self, dim: int, hidden_dim: int, dropout: float, num_levels: int, num_heads: int, num_points: int):
        super().__init__()
        self.cross_attn = BoxDeformAttn(dim, num_levels, num_heads, num_points)
        self.norm1, self.norm1_box = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.self_attn = nn.MultiheadAttention(dim, num_heads, dropout)
        self.self_attn_box = nn.MultiheadAttention(dim, num_heads, dropout)
        self.norm2, self.norm2_box = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.linear1, self.linear2 = Linear(dim, hidden_dim), Linear(hidden_dim, dim)
        self.linear1_box, self.linear2_box = Linear(dim, hidden_dim), Linear(hidden_dim, dim)
        self.norm3, self.norm3_box = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.time_attention_weights = Linear(dim, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        content: Tensor,
        boxes: Tensor,
        position: Tensor,
        references: Tensor,
        memory: ReadMemory,
        layout: Layout,
    ) -> tuple[Tensor, Tensor]:
        """Move both kinds of queries on.

        Args:
            content: (B, N, C).
            boxes: (B, N, C) before the first layer, then (B, T, N, C).
            position: (N, C).
            references: (B, T, N, 2 or 4).
            memory: gives the frames, piece by piece.
            layout: of the feature maps.

        Returns:
            content (B, N, C) and boxes (B, T, N, C).
        """
        content = self.norm2(content + self.dropout(attend_among(self.self_attn, content, position)))
        if boxes.dim() == 3:  # not yet different from frame to frame
            boxes = self._exchange_boxes(boxes, position)[:, None].expand(-1, references.shape[1], -1, -1)
            exchange = False
        else:
            exchange = True
        start, updated, reads = 0, [], []
        for values in memory():
            frames = slice(start, start + values.shape[1])
            chunk = boxes[:, frames]
            if exchange:
                chunk = self._exchange_boxes(chunk.flatten(0, 1), position).unflatten(0, chunk.shape[:2])
            sampled = self._sample(chunk + position, references[:, frames], values, layout)  # (B, t, N, C)
            chunk = self.norm1_box(chunk + self.dropout(self.cross_attn.output_proj_box(sampled)))
            update = feed_forward(chunk, self.linear1_box, self.linear2_box, self.dropout)
            updated.append(self.norm3_box(chunk + self.dropout(update)))
            reads.append(self.cross_attn.output_proj(sampled))
            start = frames.stop
        boxes, read = torch.cat(updated, dim=1), torch.cat(reads, dim=1)
        weights = self.time_attention_weights(boxes).softmax(dim=1)  # (B, T, N, 1)
        content = self.norm1(content + self.dropout((weights * read).sum(dim=1)))
        update = feed_forward(content, self.linear1, self.linear2, self.dropout)
        return self.norm3(content + self.dropout(update)), boxes

    def _exchange_boxes(self, boxes: Tensor, position: Tensor) -> Tensor:
        """Self-attention among the box queries of each frame: (B, N, C) -> (B, N, C)."""
        return self.norm2_box(boxes + self.dropout(attend_among(self.self_attn_box, boxes, position)))

    def _sample(self, query: Tensor, references: Tensor, values: Tensor, layout: Layout) -> Tensor:
        """Read frames around the references, without output projection; all (B, t, N, ...)."""
        ratios = layout.valid_ratios[:, None, None]  # (B, 1, 1, L, 2)
        ratios = torch.cat((ratios, ratios), dim=-1) if references.shape[-1] == 4 else ratios
        places = (references[:, :, :, None] * ratios).flatten(0, 1)  # (B*t, N, L, 2 or 4)
        padding = layout.frames_mask(values.shape[1])
        sampled = self.cross_attn.sample(query.flatten(0, 1), places, values.flatten(0, 1), layout.sizes, padding)
        return sampled.unflatten(0, values.shape[:2])


class Decoder(nn.Module):
    """A stack of decoder layers, each of which refines the boxes."""

    def __init__(self, layers: Sequence[DecoderLayer], bbox_embed: nn.ModuleList) -> None:
        """Args: bbox_embed: one MLP per layer, shared with the detector, whose checkpoints name it twice."""
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.bbox_embed = bbox_embed

    def forward(
        self, content: Tensor, position: Tensor, references: Tensor, memory: ReadMemory, layout: Layout
    ) -> Iterator[DecoderState]:
        """Yield the state after each layer.

        Args:
            content: (B, N, C), where both kinds of queries start.
            position: (N, C).
            references: (B, T, N, 2) first guess of the centres.
            memory, layout: the encoded frames.
        """
        boxes = content
        for layer, box_head in zip(self.layers, self.bbox_embed, strict=True):
            content, boxes = layer(content, boxes, position, references, memory, layout)
            known = inverse_sigmoid(references)
            shift = F.pad(known, (0, 4 - known.shape[-1]))  # a centre alone says nothing about width and height
            pred_boxes = (box_head(boxes) + shift).sigmoid()
            yield DecoderState(content, boxes, references, pred_boxes)
            references = pred_boxes.detach()


class ClipTransformer(nn.Module):
    """Encoder and decoder with the parameters they share."""

    def __init__(
        self,
        *,
        dim: int = 256,
        num_heads: int = 8,
        hidden_dim: int = 1024,
        dropout: float = 0.1,
        num_levels: int = 4,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        encoder_points: int = 4,
        decoder_points: int = 4,
    ) -> None:
        """Args:
        dim: C.
        hidden_dim: width inside the feed-forward layers.
        num_levels: L feature maps.
        encoder_points, decoder_points: places that a head reads per map.
        """
        super().__init__()
        self.level_embed = nn.Parameter(torch.empty(num_levels, dim))
        shared = (dim, hidden_dim, dropout, num_levels, num_heads)
        self.encoder = Encoder([EncoderLayer(*shared, encoder_points) for _ in range(num_encoder_layers)])
        box_heads = nn.ModuleList(MLP(dim, dim, 4, 3) for _ in range(num_decoder_layers))
        self.decoder = Decoder([DecoderLayer(*shared, decoder_points) for _ in range(num_decoder_layers)], box_heads)
        self.reference_points = nn.Linear(dim, 2)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw matrices xavier-uniformly; attention and box heads have their own start."""
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        for module in self.modules():
            if isinstance(module, MSDeformAttn):
                module.reset_parameters()
        nn.init.zeros_(self.reference_points.bias)
        nn.init.normal_(self.level_embed)
        for number, head in enumerate(cast("Iterable[MLP]", self.decoder.bbox_embed)):
            nn.init.zeros_(head.last.weight)
            nn.init.zeros_(head.last.bias)
            if number == 0:
                head.last.bias[2:] = -2.0  # first boxes are small

    def encode(self, maps: Sequence[Tensor], positions: Sequence[Tensor], layout: Layout) -> Tensor:
        """L maps and their position codes (BT, C, h, w) -> memory (BT, S, C)."""
        cells = torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1)
        codes = [x.flatten(2).transpose(1, 2) + level for x, level in zip(positions, self.level_embed, strict=True)]
        return self.encoder(cells, torch.cat(codes, dim=1), layout)

    def decode(self, queries: Tensor, num_frames: int, memory: ReadMemory, layout: Layout) -> Iterator[DecoderState]:
        """Find objects in clips of T frames; queries (N, 2C) are position and content. One state per layer."""
        position, content = queries.chunk(2, dim=-1)
        batch = len(layout.valid_ratios)
        references = self.reference_points(position).sigmoid().expand(batch, num_frames, -1, -1)
        return self.decoder(content.expand(batch, -1, -1), position, references, memory, layout)


def feed_forward(x: Tensor, first: nn.Linear, second: nn.Linear, dropout: nn.Module) -> Tensor:
    """Two linear layers with a ReLU between them: (..., C) -> (..., C)."""
    return second(dropout(linear(x, first.weight, first.bias, relu=True)))


def attend_among(attention: nn.MultiheadAttention, queries: Tensor, position: Tensor) -> Tensor:
    """Self-attention of queries (B, N, C) with position (N, C) added to what is compared; returns (B, N, C)."""
    placed = (queries + position).transpose(0, 1)
    # PyTorch's own attention: its sums are half as far from the exact ones as oneDNN's, and every mask logit is a
    # product of what comes out here with pixel coordinates of a hundred and more.
    return attention(placed, placed, queries.transpose(0, 1), need_weights=False)[0].transpose(0, 1)


def cell_centres(layout: Layout) -> Tensor:
    """Centre of every cell of every map as seen by each map, (B, S, L, 2): 0 to 1 spans the part without padding."""
    ratios = layout.valid_ratios
    centres = []
    for level, (height, width) in enumerate(layout.sizes):
        rows = torch.arange(height, device=ratios.device, dtype=ratios.dtype) + 0.5
        columns = torch.arange(width, device=ratios.device, dtype=ratios.dtype) + 0.5
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        size = ratios[:, level] * tensor_like([width, height], ratios)  # (B, 2)
        centres.append(torch.stack((x, y), dim=-1).flatten(0, 1) / size[:, None])
    return torch.cat(centres, dim=1)[:, :, None] * ratios[:, None]
