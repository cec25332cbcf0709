"""VITA, "Video Instance Segmentation via Object Token Association" (NeurIPS 2022).

Every frame is condensed to the queries the frame segmenter found in it. An encoder lets the queries of different frames
see each other, and a decoder reads the objects of the whole video from all of them at once: no pixel of any frame is
looked at again before the masks are made. Published AP with ResNet-50: 49.8 on YouTube-VIS 2019, 45.7 on YouTube-VIS
2021, 19.6 on OVIS.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from mask2former.layers import FFNLayer, SelfAttentionLayer
from mask2former.linear import exact
from mask2former.registry import META_ARCH_REGISTRY

from .clips.decoder import ClipDecoder, clip_mask_conv
from .clips.encoder import encode_frame_queries
from .clips.segmenter import ClipSegmenter

if TYPE_CHECKING:
    from mask2former.cfg import Cfg


@META_ARCH_REGISTRY.register()
class Vita(ClipSegmenter):
    """The video model: frame segmenter and `VITA`."""

    prefix = "vita"

    @classmethod
    def build_clip_module(cls, cfg: Cfg) -> VITA:
        return VITA(**VITA.from_config(cfg, "VITA"))


class VITA(ClipDecoder):
    """Encoder over the frame queries of a clip, and object decoder that starts from learned queries."""

    def __init__(
        self,
        in_channels: int,
        *,
        conv_dim: int,
        mask_dim: int,
        num_encoder_layers: int,
        window_size: int,
        **decoder: Any,
    ) -> None:
        """Args: see `ClipDecoder`, and
        num_encoder_layers: 0 leaves the encoder out.
        window_size: W frames that see each other in the encoder; 0 means all.
        """
        super().__init__(in_channels, mask_dim=mask_dim, **decoder)
        if window_size < 0:
            raise ValueError(f"MODEL.VITA.ENC_WINDOW_SIZE must be at least 0 (0: all frames), got {window_size}.")
        hidden_dim, layer = decoder["hidden_dim"], {"normalize_before": decoder["pre_norm"]}
        self.window_size = window_size
        if num_encoder_layers:  # checkpoint names
            self.enc_self_attn = nn.ModuleList(
                SelfAttentionLayer(hidden_dim, decoder["num_heads"], **layer) for _ in range(num_encoder_layers)
            )
            self.enc_ffn = nn.ModuleList(
                FFNLayer(hidden_dim, decoder["dim_feedforward"], **layer) for _ in range(num_encoder_layers)
            )
        self.query_feat = nn.Embedding(decoder["num_queries"], hidden_dim)
        self.vita_mask_features = clip_mask_conv(conv_dim, mask_dim)

    @classmethod
    def from_config(cls, cfg: Cfg, group: str) -> dict[str, Any]:
        clip = cfg.MODEL.VITA  # GenVIS' too
        return {
            **super().from_config(cfg, group),
            "num_encoder_layers": clip.ENC_LAYERS,
            "window_size": clip.ENC_WINDOW_SIZE,
        }

    def mask_features(self, finest_map: Tensor) -> Tensor:
        """(BT, conv_dim, h, w) finest map of the pixel decoder -> (BT, mask_dim, h, w)."""
        return exact(self.vita_mask_features(finest_map))

    def forward(self, frame_queries: Tensor) -> dict[str, Any]:
        """Find the objects of clips.

        Args:
            frame_queries: (L, B*T, Q, C). At test the frames are one clip and only the last of L is used.

        Returns:
            See `ClipDecoder.predict`; `aux_outputs` is empty at test.
        """
        encoded, num_outputs = self.encode(frame_queries)
        states = self.decode(self.first_state(encoded.shape[2]), encoded)
        return self.predict(states, num_outputs, self.frame_similarity(encoded, num_outputs))

    def first_state(self, batch: int) -> Tensor:
        """Learned clip queries from which decoding starts: (N, L*B, C)."""
        return self.query_feat.weight[:, None].expand(-1, batch, -1)

    def encode(self, frame_queries: Tensor) -> tuple[Tensor, int]:
        """Project the frame queries and let them see each other: (L, B*T, Q, C) -> (T, Q, L*B, C) and L.

        As published, training never shifts the windows although testing does.
        """
        queries, num_outputs = self.arrange(frame_queries)
        if hasattr(self, "enc_self_attn"):
            layers = (self.enc_self_attn, self.enc_ffn)
            queries = encode_frame_queries(queries, *layers, window_size=self.window_size, shift=not self.training)
        return queries, num_outputs

    def decode(self, state: Tensor, encoded: Tensor) -> list[Tensor]:
        """Run the decoder layers: cross-attention to the queries of all frames together, self-attention, FFN.

        Args:
            state: (N, L*B, C) clip queries at the start.
            encoded: (T, Q, L*B, C).

        Returns:
            The clip queries after the layers to read, see `keep_state`; the last is that after all layers.
        """
        memory = encoded.flatten(0, 1)  # (T*Q, LB, C)
        memory_pos = self.fq_pos.weight.repeat(len(encoded), 1)[:, None]  # equal for every frame: no code of time
        query_pos = self.query_embed.weight[:, None]
        states: list[Tensor] = []
        for cross_attention, self_attention, ffn in zip(
            self.transformer_cross_attention_layers,
            self.transformer_self_attention_layers,
            self.transformer_ffn_layers,
            strict=True,
        ):
            state = cross_attention(state, memory, pos=memory_pos, query_pos=query_pos)
            state = ffn(self_attention(state, query_pos=query_pos))
            states = self.keep_state(states, state)
        return states
