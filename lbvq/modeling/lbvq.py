"""LBVQ, "Learning Better Video Query with SAM for Video Instance Segmentation" (IEEE TCSVT 2024).

The query of an object in the video starts as a weighted mean over time of the frame queries with the same index, so it
already knows what it looks for. In every decoder layer it then attends to each frame separately and adds up what the
frames say. Published AP with ResNet-50: 52.2 on YouTube-VIS 2019, 44.8 on YouTube-VIS 2021, 22.2 on OVIS.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mask2former.linear import exact
from mask2former.registry import META_ARCH_REGISTRY

from .clips.decoder import ClipDecoder, clip_mask_conv
from .clips.segmenter import ClipSegmenter

if TYPE_CHECKING:
    from mask2former.cfg import Cfg

FRAMES_AT_ONCE = 32  # frames in one cross-attention call; bounds memory for long videos


@META_ARCH_REGISTRY.register()
class Lbvq(ClipSegmenter):
    """The video model: frame segmenter and `LBVQ`."""

    prefix = "lbvq"

    @classmethod
    def build_clip_module(cls, cfg: Cfg) -> LBVQ:
        return LBVQ(**LBVQ.from_config(cfg, "LBVQ"))


class LBVQ(ClipDecoder):
    """Object decoder that starts from averaged frame queries and attends to the frames one by one."""

    def __init__(self, in_channels: int, *, conv_dim: int, mask_dim: int, **decoder: Any) -> None:
        """Args: see `ClipDecoder`; there must be as many clip queries as frame queries."""
        super().__init__(in_channels, mask_dim=mask_dim, **decoder)
        num_queries, num_frame_queries = self.query_embed.num_embeddings, self.fq_pos.num_embeddings
        if num_queries != num_frame_queries:
            raise ValueError(
                "LBVQ starts each clip query from the frame queries of the same index, so "
                "MODEL.LBVQ.NUM_OBJECT_QUERIES must equal MODEL.MASK_FORMER.NUM_OBJECT_QUERIES; "
                f"got {num_queries} and {num_frame_queries}."
            )
        self.time_attention_weights = nn.Linear(self.query_embed.embedding_dim, 1)
        self.lbvq_mask_features = clip_mask_conv(conv_dim, mask_dim)  # checkpoint name

    def mask_features(self, finest_map: Tensor) -> Tensor:
        """(BT, conv_dim, h, w) finest map of the pixel decoder -> (BT, mask_dim, h, w)."""
        return exact(self.lbvq_mask_features(finest_map))

    def forward(self, frame_queries: Tensor) -> dict[str, Any]:
        """Find the objects of clips.

        Args:
            frame_queries: (L, B*T, Q, C). At test the frames are one clip and only the last of L is used.

        Returns:
            See `ClipDecoder.predict`; `aux_outputs` is empty at test.
        """
        memory, num_outputs = self.arrange(frame_queries)  # (T, Q, LB, C)
        query_pos = self.query_embed.weight[:, None]  # (N, 1, C)
        state = self.average_over_time(memory)
        states: list[Tensor] = []
        for self_attention, cross_attention, ffn in zip(
            self.transformer_self_attention_layers,
            self.transformer_cross_attention_layers,
            self.transformer_ffn_layers,
            strict=True,
        ):
            state = self_attention(state, query_pos=query_pos)
            state = ffn(state + self.attend_to_frames(cross_attention, state, memory, query_pos))
            states = self.keep_state(states, state)
        return self.predict(states, num_outputs, self.frame_similarity(memory, num_outputs))

    def average_over_time(self, memory: Tensor) -> Tensor:
        """Mean of the frame queries with learned weights that sum to 1 over time: (T, Q, LB, C) -> (Q, LB, C)."""
        weights = self.time_attention_weights(memory).softmax(dim=0)  # (T, Q, LB, 1)
        return (weights * memory).sum(dim=0)

    def attend_to_frames(self, cross_attention: nn.Module, state: Tensor, memory: Tensor, query_pos: Tensor) -> Tensor:
        """Let each query attend to every frame separately and sum the results.

        As published it is a sum, not a mean, so its size grows with T; weights are trained with it.

        Args:
            cross_attention: a full layer, residual and norm inside.
            state: (N, LB, C).
            memory: (T, Q, LB, C).
            query_pos: (N, 1, C).

        Returns:
            (N, LB, C).
        """
        memory_pos = self.fq_pos.weight[:, None]  # (Q, 1, C)

        def attend(frames: Tensor) -> Tensor:
            num_frames = len(frames)
            # frames become part of the batch, (Q, t*LB, C): one call instead of t
            attended = cross_attention(
                state.repeat(1, num_frames, 1),
                frames.transpose(0, 1).flatten(1, 2),
                pos=memory_pos,
                query_pos=query_pos,
            )
            return attended.unflatten(1, (num_frames, -1)).sum(dim=1)

        return functools.reduce(torch.add, map(attend, memory.split(FRAMES_AT_ONCE)))
