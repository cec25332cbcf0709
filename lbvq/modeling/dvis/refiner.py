"""The temporal refiner: every tracked object looks at itself in all frames of the video, then at the frames.

DVIS (ICCV 2023), section 3.3; the same in DVIS++. A layer is attention along time, two short convolutions along time,
attention among the objects of a frame, attention to the queries of the frame, and a feed-forward layer. An object has
one class in the whole video, from a weighted mean over time, and a mask in every frame.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mask2former.layers import MLP, CrossAttentionLayer, FFNLayer, SelfAttentionLayer
from mask2former.linear import Linear


class TemporalRefiner(nn.Module):
    """Refines Q objects of whole videos."""

    def __init__(
        self,
        *,
        hidden_dim: int,
        num_heads: int,
        dim_feedforward: int,
        num_layers: int,
        mask_dim: int,
        num_classes: int,
    ) -> None:
        """Args:
        hidden_dim: C.
        num_layers: L.
        mask_dim: channels of the mask features.
        num_classes: K, without "no object".
        """
        super().__init__()
        self.transformer_obj_self_attention_layers = nn.ModuleList(  # checkpoint names, here and below
            SelfAttentionLayer(hidden_dim, num_heads) for _ in range(num_layers)
        )
        self.transformer_time_self_attention_layers = nn.ModuleList(
            SelfAttentionLayer(hidden_dim, num_heads) for _ in range(num_layers)
        )
        self.transformer_cross_attention_layers = nn.ModuleList(
            CrossAttentionLayer(hidden_dim, num_heads) for _ in range(num_layers)
        )
        self.transformer_ffn_layers = nn.ModuleList(FFNLayer(hidden_dim, dim_feedforward) for _ in range(num_layers))
        self.conv_short_aggregate_layers = nn.ModuleList(short_convolutions(hidden_dim) for _ in range(num_layers))
        self.conv_norms = nn.ModuleList(nn.LayerNorm(hidden_dim) for _ in range(num_layers))
        self.decoder_norm = nn.LayerNorm(hidden_dim)
        self.class_embed = Linear(hidden_dim, num_classes + 1)
        self.mask_embed = MLP(hidden_dim, hidden_dim, mask_dim, 3)
        self.activation_proj = Linear(hidden_dim, 1)
        self.num_layers = num_layers

    def forward(self, objects: Tensor, frames: Tensor, *, only_last: bool = False) -> Tensor:
        """Refine the objects.

        Args:
            objects: (T, Q, B, C) tracked objects of all T frames.
            frames: (T, Q, B, C) queries of the frames.
            only_last: return the output of the last layer alone.

        Returns:
            (L or 1, B, T, Q, C) normalised outputs of every layer.
        """
        layers: list[Tensor] = []
        memory = frames.transpose(0, 1).flatten(1, 2)  # (Q, T*B, C)
        for index in range(self.num_layers):
            objects = self.along_time(index, objects)
            objects = self.in_frames(index, objects, memory)
            layers = [objects] if only_last else [*layers, objects]
        return self.decoder_norm(torch.stack(layers)).permute(0, 3, 1, 2, 4)

    def along_time(self, index: int, objects: Tensor) -> Tensor:
        """Let every object look at itself in all frames, and smooth it: (T, Q, B, C)."""
        tracks = self.transformer_time_self_attention_layers[index](objects.flatten(1, 2))  # (T, Q*B, C)
        smoothed = self.conv_short_aggregate_layers[index](tracks.permute(1, 2, 0)).permute(2, 0, 1)
        return self.conv_norms[index](smoothed + tracks).unflatten(1, objects.shape[1:3])

    def in_frames(self, index: int, objects: Tensor, memory: Tensor) -> Tensor:
        """Let the objects of a frame look at each other and at its queries (Q, T*B, C): (T, Q, B, C)."""
        shape = (objects.shape[0], objects.shape[2])
        together = self.transformer_obj_self_attention_layers[index](objects.transpose(0, 1).flatten(1, 2))
        together = self.transformer_cross_attention_layers[index](together, memory)
        return self.transformer_ffn_layers[index](together).unflatten(1, shape).transpose(0, 1)

    def classify(self, objects: Tensor) -> Tensor:
        """Class logits (..., Q, K+1) of outputs (..., T, Q, C): of their mean over time, with weights they give."""
        weights = self.activation_proj(objects).softmax(dim=-3)
        return self.class_embed((weights * objects).sum(dim=-3))


def short_convolutions(hidden_dim: int) -> nn.Sequential:
    """Two convolutions along time over 5 and 3 frames; the first and the last frame stand for those beyond."""
    return nn.Sequential(
        nn.Conv1d(hidden_dim, hidden_dim, 5, padding="same", padding_mode="replicate"),
        nn.ReLU(),
        nn.Conv1d(hidden_dim, hidden_dim, 3, padding="same", padding_mode="replicate"),
    )
