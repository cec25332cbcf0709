"""Mask2Former's decoder on a clip as one volume: a query looks at all frames at once and is one object in all of them.

"Mask2Former for Video Instance Segmentation", Cheng et al., arXiv 2112.10764, section 2.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mask2former.layers import PositionEmbeddingSine3D
from mask2former.modeling.transformer_decoder import MultiScaleMaskedTransformerDecoder
from mask2former.registry import TRANSFORMER_MODULE_REGISTRY
from mask2former.resize import size_of


class ClipVolume(MultiScaleMaskedTransformerDecoder):
    """Q queries per clip of T frames; masks are (B, Q, T, h, w), and there is nothing to learn beyond an image's."""

    def __init__(self, in_channels: int, *, hidden_dim: int, **decoder: Any) -> None:
        """Args: see `MultiScaleMaskedTransformerDecoder`."""
        super().__init__(in_channels, hidden_dim=hidden_dim, **decoder)
        self.pe_layer = PositionEmbeddingSine3D(hidden_dim // 2, normalize=True)

    def forward(
        self,
        multi_scale: Sequence[Tensor],
        mask_features: Tensor,
        clip_mask_features: Tensor | None = None,
        *,
        num_frames: int | None = None,
        **context: Any,
    ) -> tuple[dict[str, Any], Tensor, Tensor | None]:
        """Decode B clips of T = `num_frames` frames given as B*T images, clip by clip; queries are (L, B, Q, C).

        Without `num_frames` every image is a clip by itself, and masks have no axis of time, as an image model's.
        """
        sizes = [size_of(level) for level in multi_scale]
        states, queries = self.decode(multi_scale, self.resize_features(mask_features.detach(), sizes), num_frames or 1)
        stacked = stack_frames(mask_features, num_frames or 1)
        return (*self.predict(states, queries, stacked, num_frames=num_frames, **context), clip_mask_features)

    def decode(
        self, multi_scale: Sequence[Tensor], small_features: Sequence[Tensor], num_frames: int
    ) -> tuple[list[Tensor], Tensor]:
        """What `run_layers` returns, (B, Q, C) each.

        Args:
            multi_scale: three maps (B*T, c, h_l, w_l), coarse to fine.
            small_features: mask features at the size of every map, (B*T, mask_dim, h_l, w_l).
            num_frames: T.
        """
        memories, positions = self.flatten_clips(multi_scale, num_frames)
        return self.run_layers(memories, positions, [stack_frames(level, num_frames) for level in small_features])

    def flatten_clips(self, multi_scale: Sequence[Tensor], num_frames: int) -> tuple[list[Tensor], list[Tensor]]:
        """Three maps (B*T, c, h, w) -> memories (T*h*w, B, C) and their position codes, frame after frame."""
        memories, positions = [], []
        for index, level in enumerate(multi_scale):
            clips = self.input_proj[index](level).unflatten(0, (-1, num_frames))  # (B, T, C, h, w)
            code = self.pe_layer(clips)
            memory = clips.permute(1, 3, 4, 0, 2).flatten(0, 2)
            memories.append(memory + self.level_embed.weight[index])
            positions.append(code.permute(1, 3, 4, 0, 2).flatten(0, 2).to(memory.dtype))
        return memories, positions

    def prediction_heads(
        self, state: Tensor, mask_features: Tensor, *, num_frames: int | None = None, **context: Any
    ) -> dict[str, Any]:
        """As for images, with pred_masks (B, Q, T, h, w)."""
        predictions = super().prediction_heads(state, mask_features, **context)
        if num_frames is None:
            return predictions
        return {**predictions, "pred_masks": predictions["pred_masks"].unflatten(2, (num_frames, -1))}


@TRANSFORMER_MODULE_REGISTRY.register()
class ClipVolumeTransformerDecoder(ClipVolume):
    """Decoder of Mask2Former-VIS, whose published name is also that of another method's; see `VideoMaskFormer`."""


def stack_frames(maps: Tensor, num_frames: int) -> Tensor:
    """Maps of the frames of clips, (B*T, C, h, w), one below the other: (B, C, T*h, w)."""
    if num_frames == 1:
        return maps
    return torch.cat(maps.unflatten(0, (-1, num_frames)).unbind(1), dim=2)
