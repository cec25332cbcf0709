"""What the object decoders over frame queries have in common: LBVQ, VITA and GenVIS.

A clip module reads the queries that the frame segmenter found in every frame and returns N objects of the clip. All of
them project the frame queries, run D layers of cross-attention, self-attention and feed-forward network on N clip
queries, and read class, mask embedding and similarity embedding from the result. Where the clip queries start and how
they look at the frames is what the methods differ in; that part is in `lbvq.py`, `vita.py` and `genvis.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mask2former.layers import MLP, Conv2d, CrossAttentionLayer, FFNLayer, SelfAttentionLayer, c2_xavier_fill
from mask2former.linear import linear
from mask2former.modeling.criterion import masks_of_rows, select_rows

if TYPE_CHECKING:
    from mask2former.cfg import Cfg


class ClipDecoder(nn.Module):
    """Layers, embeddings and heads of an object decoder; subclasses write `forward`.

    Sequence-first layout as in the frame decoder: a tensor of queries is (Q, LB, C), where LB runs over the kept
    outputs of the frame decoder first and over clips second.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        hidden_dim: int,
        num_frame_queries: int,
        num_queries: int,
        num_heads: int,
        dim_feedforward: int,
        num_layers: int,
        pre_norm: bool,
        num_frames: int,
        num_classes: int,
        mask_dim: int,
        enforce_input_project: bool,
        aux_loss: bool,
        use_sim: bool,
        sim_use_clip: bool,
    ) -> None:
        """Args:
        in_channels: width of the frame queries.
        hidden_dim: C, width of everything inside.
        num_frame_queries: Q queries per frame.
        num_queries: N clip queries.
        num_layers: D.
        num_frames: T of a training clip; at test the module takes as many frames as it is given.
        num_classes: K, without "no object".
        mask_dim: channels of mask embeddings and mask features.
        enforce_input_project: keep the input projection even when in_channels equals hidden_dim.
        aux_loss: return the outputs after every layer in training.
        use_sim, sim_use_clip: make similarity embeddings of frame queries, and of clip queries too.
        """
        super().__init__()
        self.num_heads, self.num_layers, self.num_frames = num_heads, num_layers, num_frames
        self.aux_loss = aux_loss
        layer = {"normalize_before": pre_norm}
        self.transformer_self_attention_layers = nn.ModuleList(
            SelfAttentionLayer(hidden_dim, num_heads, **layer) for _ in range(num_layers)
        )
        self.transformer_cross_attention_layers = nn.ModuleList(
            CrossAttentionLayer(hidden_dim, num_heads, **layer) for _ in range(num_layers)
        )
        self.transformer_ffn_layers = nn.ModuleList(
            FFNLayer(hidden_dim, dim_feedforward, **layer) for _ in range(num_layers)
        )
        self.decoder_norm = nn.LayerNorm(hidden_dim)
        self.query_embed = nn.Embedding(num_queries, hidden_dim)  # position of the clip queries
        self.fq_pos = nn.Embedding(num_frame_queries, hidden_dim)  # position of the frame queries
        self.input_proj_dec: nn.Module = nn.Identity()
        if in_channels != hidden_dim or enforce_input_project:
            self.input_proj_dec = nn.Linear(in_channels, hidden_dim)
        self.class_embed = nn.Linear(hidden_dim, num_classes + 1)
        self.mask_embed = MLP(hidden_dim, hidden_dim, mask_dim, 3)
        self.sim_embed_frame = nn.Linear(hidden_dim, hidden_dim) if use_sim else None
        self.sim_embed_clip = nn.Linear(hidden_dim, hidden_dim) if use_sim and sim_use_clip else None

    @classmethod
    def from_config(cls, cfg: Cfg, group: str) -> dict[str, Any]:
        """Keyword arguments from the configuration group `MODEL.<group>` and those of the frame segmenter."""
        clip, head, mask_former = cfg.MODEL[group], cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.MASK_FORMER
        return {
            "in_channels": mask_former.HIDDEN_DIM,
            "hidden_dim": clip.HIDDEN_DIM,
            "num_frame_queries": mask_former.NUM_OBJECT_QUERIES,
            "num_queries": clip.NUM_OBJECT_QUERIES,
            "num_heads": clip.NHEADS,
            "dim_feedforward": clip.DIM_FEEDFORWARD,
            "num_layers": clip.DEC_LAYERS,
            "pre_norm": clip.PRE_NORM,
            "num_frames": cfg.INPUT.SAMPLING_FRAME_NUM,
            "num_classes": head.NUM_CLASSES,
            "conv_dim": head.CONVS_DIM,
            "mask_dim": head.MASK_DIM,
            "enforce_input_project": clip.ENFORCE_INPUT_PROJ,
            "aux_loss": clip.DEEP_SUPERVISION,
            "use_sim": clip.SIM_WEIGHT > 0,
            "sim_use_clip": clip.SIM_USE_CLIP,
        }

    def mask_features(self, finest_map: Tensor) -> Tensor:
        """(BT, conv_dim, h, w) finest map of the pixel decoder, see `forward_features` -> (BT, mask_dim, h, w)."""
        raise NotImplementedError

    def arrange(self, frame_queries: Tensor) -> tuple[Tensor, int]:
        """Project frame queries and put time first; at test only the last frame-decoder output is used.

        Args:
            frame_queries: (L, B*T, Q, C).

        Returns:
            (T, Q, L*B, C) and L.
        """
        if not self.training:
            frame_queries = frame_queries[-1:]
        num_outputs, num_images, num_queries, channels = frame_queries.shape
        num_frames = self.num_frames if self.training else num_images
        if num_images % num_frames:
            raise ValueError(
                f"a training batch must hold whole clips of {num_frames} frames, got {num_images} frames; "
                "INPUT.SAMPLING_FRAME_NUM must be what the data loader samples."
            )
        clips = frame_queries.reshape(-1, num_frames, num_queries, channels)  # (LB, T, Q, C)
        return self.input_proj_dec(clips.permute(1, 2, 0, 3)), num_outputs

    def frame_similarity(self, queries: Tensor, num_outputs: int) -> Tensor | None:
        """Similarity embeddings of frame queries: (T, Q, L*B, C) -> (L, B, T, Q, C), None without similarity loss."""
        if self.sim_embed_frame is None:
            return None
        embedded = self.sim_embed_frame(queries).permute(2, 0, 1, 3)  # (LB, T, Q, C)
        return embedded.unflatten(0, (num_outputs, -1))

    def predict(self, states: list[Tensor], num_outputs: int, frame_similarity: Tensor | None) -> dict[str, Any]:
        """Read objects from the clip queries after some of the layers.

        Args:
            states: (N, L*B, C) after each layer to read, the last layer last.
            num_outputs: L.
            frame_similarity: (L, B, T, Q, C) or None; handed on.

        Returns:
            Of the last state `pred_logits` (L, B, N, K+1), `pred_mask_embed` (L, B, N, mask_dim), `pred_cq_embed`
            (L, B, N, C) or None, `pred_fq_embed`; and `aux_outputs`, a list with the same of the states before it.
        """
        normed = self.decoder_norm(torch.stack(states)).transpose(1, 2)  # (D, LB, N, C)
        normed = normed.unflatten(1, (num_outputs, -1))  # (D, L, B, N, C)
        logits, mask_embed = self.class_embed(normed), self.mask_embed(normed)
        clip_similarity = [None] * len(states) if self.sim_embed_clip is None else self.sim_embed_clip(normed)
        outputs = [
            {
                "pred_logits": logits[layer],
                "pred_mask_embed": mask_embed[layer],
                "pred_fq_embed": frame_similarity,
                "pred_cq_embed": clip_similarity[layer],
            }
            for layer in range(len(states))
        ]
        return {**outputs[-1], "aux_outputs": outputs[:-1]}

    def keep_state(self, states: list[Tensor], state: Tensor) -> list[Tensor]:
        """Collect the state after one more layer: all of them for auxiliary losses, else only the newest."""
        return [*states, state] if self.training and self.aux_loss else [state]


def clip_mask_conv(conv_dim: int, mask_dim: int) -> Conv2d:
    """The 1x1 convolution that makes a clip module's mask features from the pixel decoder's finest map."""
    conv = Conv2d(conv_dim, mask_dim, kernel_size=1)
    c2_xavier_fill(conv)
    return conv


class ClipMasks:
    """Mask logits of clip queries, made only where they are needed.

    Indexing works as with the dense tensor (L, B, N, T, h, w) they stand for: `masks[l, b]` is (N, T, h, w) and
    `masks[l, b, queries]` is (n, T, h, w). Losses touch few queries, so the dense tensor, N/n times larger and needed
    once per decoder layer, never has to exist.
    """

    def __init__(self, embed: Tensor, features: Tensor) -> None:
        """Args:
        embed: (L, B, N, mask_dim) mask embeddings.
        features: (B, T, mask_dim, h, w) mask features.
        """
        self.embed, self.features = embed, features

    @property
    def shape(self) -> tuple[int, ...]:
        batch, frames, _, height, width = self.features.shape
        return (self.embed.shape[0], batch, self.embed.shape[2], frames, height, width)

    def __getitem__(self, index: tuple[Any, ...]) -> Tensor:
        pixels = self.features[index[1]].permute(0, 2, 3, 1)  # (T, h, w, c)
        return linear(pixels, self.embed[index]).permute(3, 0, 1, 2)

    def dense(self) -> Tensor:
        """The whole tensor (L, B, N, T, h, w)."""
        return torch.einsum("lbnc,btchw->lbnthw", self.embed, self.features)


def select_masks(layers: Sequence[ClipMasks], order: Tensor, outputs: Tensor, clips: Tensor, queries: Tensor) -> Tensor:
    """Masks (n, T, h, w) of clip queries of several layers with the same mask features.

    Args:
        order, outputs, clips, queries: (n,) each on the CPU, where the masks are: layer, l, b, query.
    """
    embed = select_rows(torch.stack([masks.embed for masks in layers]), order, outputs, clips, queries)  # (n, mask_dim)
    features = layers[0].features
    num_frames = features.shape[1]
    frames = (clips[:, None] * num_frames + torch.arange(num_frames)).flatten()  # (n*T,) which frame of all clips
    maps = [frame for clip in features.unbind() for frame in clip.unbind()]
    masks = masks_of_rows(embed.repeat_interleave(num_frames, 0), frames, maps)
    return masks.view(-1, num_frames, *features.shape[-2:])
