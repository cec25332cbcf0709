"""Masked-attention decoder: queries that look only where their own mask is.

Mask2Former, Cheng et al., "Masked-attention Mask Transformer for Universal Image Segmentation", CVPR 2022, section 3.2.
Layer i attends to one of three maps of the pixel decoder, coarse to fine in turn, inside the mask predicted after
layer i - 1.

Attention masks do not need masks of full size. They come from mask features resized once per map: resizing and the
product with the mask embedding are both linear and act on different axes, so their order does not matter. In evaluation
full masks and classes are therefore computed after the last layer only.

Steps that a subclass may replace: `flatten_maps` and `resize_features` (what is attended and where), `start_queries`,
`prediction_heads` (what is predicted) and `collect_outputs` (in what form it is returned).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..layers import (
    MLP,
    Conv2d,
    CrossAttentionLayer,
    FFNLayer,
    PositionEmbeddingSine,
    SelfAttentionLayer,
    c2_xavier_fill,
)
from ..linear import Linear, mask_logits, predicted_masks
from ..registry import TRANSFORMER_MODULE_REGISTRY
from ..resize import resize_bilinear, size_of

if TYPE_CHECKING:
    from ..cfg import Cfg

NUM_LEVELS = 3


@TRANSFORMER_MODULE_REGISTRY.register()
class MultiScaleMaskedTransformerDecoder(nn.Module):
    """Q queries through the decoder layers; predictions before the first and after every layer."""

    _version = 2

    def __init__(
        self,
        in_channels: int,
        *,
        num_classes: int,
        hidden_dim: int,
        num_queries: int,
        nheads: int,
        dim_feedforward: int,
        dec_layers: int,
        mask_dim: int,
        pre_norm: bool = False,
        enforce_input_project: bool = False,
        last_layer_num: int = 1,
    ) -> None:
        """Args:
        in_channels: of the three maps.
        num_classes: K, without "no object".
        hidden_dim: C.
        num_queries: Q.
        dec_layers: number of layers.
        mask_dim: channels of the mask features.
        pre_norm: normalise before attention instead of after.
        enforce_input_project: project the maps even when they have C channels.
        last_layer_num: L, frame queries of so many last layers are returned in training; in evaluation 1.
        """
        super().__init__()
        if not 1 <= last_layer_num <= dec_layers:
            raise ValueError(f"last_layer_num must be in [1, {dec_layers}], got {last_layer_num}; set LAST_LAYER_NUM.")
        self.num_heads = nheads
        self.num_layers = dec_layers
        self.last_layer_num = last_layer_num
        self.pe_layer: nn.Module = PositionEmbeddingSine(hidden_dim // 2, normalize=True)
        self.transformer_self_attention_layers = nn.ModuleList(
            SelfAttentionLayer(hidden_dim, nheads, normalize_before=pre_norm) for _ in range(dec_layers)
        )
        self.transformer_cross_attention_layers = nn.ModuleList(
            CrossAttentionLayer(hidden_dim, nheads, normalize_before=pre_norm) for _ in range(dec_layers)
        )
        self.transformer_ffn_layers = nn.ModuleList(
            FFNLayer(hidden_dim, dim_feedforward, normalize_before=pre_norm) for _ in range(dec_layers)
        )
        self.decoder_norm = nn.LayerNorm(hidden_dim)
        self.query_feat = nn.Embedding(num_queries, hidden_dim)
        self.query_embed = nn.Embedding(num_queries, hidden_dim)
        self.level_embed = nn.Embedding(NUM_LEVELS, hidden_dim)
        self.input_proj = nn.ModuleList()
        for _ in range(NUM_LEVELS):
            if in_channels != hidden_dim or enforce_input_project:
                projection = Conv2d(in_channels, hidden_dim, kernel_size=1)
                c2_xavier_fill(projection)
                self.input_proj.append(projection)
            else:
                self.input_proj.append(nn.Sequential())
        self.class_embed: nn.Module = Linear(hidden_dim, num_classes + 1)
        self.mask_embed = MLP(hidden_dim, hidden_dim, mask_dim, 3)

    @classmethod
    def from_config(cls, cfg: Cfg, in_channels: int, mask_classification: bool = True) -> dict[str, Any]:
        if not mask_classification:
            raise ValueError("the masked-attention decoder always classifies masks; mask_classification must be True.")
        mask_former = cfg.MODEL.MASK_FORMER
        if mask_former.DEC_LAYERS < 2:
            raise ValueError(
                f"MODEL.MASK_FORMER.DEC_LAYERS must be at least 2, got {mask_former.DEC_LAYERS}: "
                "it counts the prediction before the first layer too."
            )
        return {
            "in_channels": in_channels,
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "hidden_dim": mask_former.HIDDEN_DIM,
            "num_queries": mask_former.NUM_OBJECT_QUERIES,
            "nheads": mask_former.NHEADS,
            "dim_feedforward": mask_former.DIM_FEEDFORWARD,
            "dec_layers": mask_former.DEC_LAYERS - 1,
            "mask_dim": cfg.MODEL.SEM_SEG_HEAD.MASK_DIM,
            "pre_norm": mask_former.PRE_NORM,
            "enforce_input_project": mask_former.ENFORCE_INPUT_PROJ,
        }

    def forward(
        self,
        multi_scale: Sequence[Tensor],
        mask_features: Tensor,
        clip_mask_features: Tensor | None = None,
        **context: Any,
    ) -> tuple[dict[str, Any], Tensor, Tensor | None]:
        """Decode BT images.

        Args:
            multi_scale: three maps (BT, c, h_l, w_l), coarse to fine.
            mask_features: (BT, mask_dim, h, w).
            clip_mask_features: anything; returned as it is.
            context: what `prediction_heads` of a subclass needs besides.

        Returns:
            outputs (see `collect_outputs`), frame queries (L, BT, Q, C), and `clip_mask_features`.
        """
        memories, positions = self.flatten_maps(multi_scale)
        sizes = [size_of(level) for level in multi_scale]
        states, queries = self.run_layers(memories, positions, self.resize_features(mask_features.detach(), sizes))
        return (*self.predict(states, queries, mask_features, **context), clip_mask_features)

    def predict(
        self, states: list[Tensor], queries: Tensor, mask_features: Tensor, **context: Any
    ) -> tuple[dict[str, Any], Tensor]:
        """What `run_layers` returns -> outputs, frame queries (L, BT, Q, C); of all layers in training only."""
        wanted = states if self.training else states[-1:]
        predictions = [self.prediction_heads(state, mask_features, **context) for state in wanted]
        count = self.last_layer_num if self.training else 1
        return self.collect_outputs(predictions), torch.stack(states[-count:])

    def flatten_maps(self, multi_scale: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Three maps (BT, c, h, w) -> memories (h*w, BT, C) and their position codes (h*w, BT, C)."""
        if len(multi_scale) != NUM_LEVELS:
            raise ValueError(f"the decoder needs {NUM_LEVELS} maps, got {len(multi_scale)}.")
        memories, positions = [], []
        for index, level in enumerate(multi_scale):
            memory = self.input_proj[index](level).flatten(2).permute(2, 0, 1)
            memories.append(memory + self.level_embed.weight[index])
            positions.append(self.pe_layer(level).flatten(2).permute(2, 0, 1).to(memory.dtype))
        return memories, positions

    def start_queries(self, batch: int) -> tuple[Tensor, Tensor]:
        """Features and position codes of the queries before the first layer: (Q, BT, C) each."""
        return (
            self.query_feat.weight[:, None].expand(-1, batch, -1),
            self.query_embed.weight[:, None].expand(-1, batch, -1),
        )

    def resize_features(self, mask_features: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Mask features (BT, mask_dim, h, w) at the size of every map: (BT, mask_dim, h_l, w_l)."""
        return [resize_bilinear(mask_features, size) for size in sizes]

    def run_layers(
        self, memories: list[Tensor], positions: list[Tensor], small_features: list[Tensor]
    ) -> tuple[list[Tensor], Tensor]:
        """Normalised queries (BT, Q, C) before the first and after every layer; and those of the last as they are."""
        queries, query_pos = self.start_queries(memories[0].shape[1])
        states = [self.normalise(queries)]
        for index in range(self.num_layers):
            level = index % NUM_LEVELS
            with torch.no_grad():
                mask = mask_logits(self.mask_embed(states[-1]), small_features[level])
                blocked = blocked_keys(mask.flatten(2))
            queries = self.layer(index, queries, query_pos, memories[level], positions[level], blocked)
            states.append(self.normalise(queries))
        return states, queries.transpose(0, 1)

    def layer(
        self, index: int, queries: Tensor, query_pos: Tensor, memory: Tensor, position: Tensor, blocked: Tensor
    ) -> Tensor:
        """One decoder layer on queries (Q, BT, C): cross attention, self attention, feed-forward."""
        queries = self.transformer_cross_attention_layers[index](
            queries, memory, memory_mask=blocked[:, None], pos=position, query_pos=query_pos
        )
        queries = self.transformer_self_attention_layers[index](queries, query_pos=query_pos)
        return self.transformer_ffn_layers[index](queries)

    def normalise(self, queries: Tensor) -> Tensor:
        """(Q, BT, C) -> (BT, Q, C), what predictions and frame queries are made of."""
        return self.decoder_norm(queries).transpose(0, 1)

    def prediction_heads(self, state: Tensor, mask_features: Tensor, **context: Any) -> dict[str, Any]:
        """Normalised queries (BT, Q, C) -> pred_logits (BT, Q, K+1) and pred_masks (BT, Q, h, w)."""
        return {"pred_logits": self.class_embed(state), **predicted_masks(self.mask_embed(state), mask_features)}

    def collect_outputs(self, predictions: list[dict[str, Any]]) -> dict[str, Any]:
        """Predictions in layer order -> those of the last layer, with the others as the list `aux_outputs`."""
        return {**predictions[-1], "aux_outputs": predictions[:-1]}

    def _load_from_state_dict(self, state_dict: dict, prefix: str, local_metadata: dict, *args: Any) -> None:
        """Read files of the published zoo, in which `query_feat` is called `static_query`."""
        version = local_metadata.get("version")
        if version is None or version < 2:
            for key in [key for key in state_dict if key.startswith(prefix) and "static_query" in key]:
                state_dict[key.replace("static_query", "query_feat")] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


def blocked_keys(masks: Tensor) -> Tensor:
    """Where a query must not look: outside its mask, unless the mask is empty, when it may look everywhere.

    Args:
        masks: (BT, Q, S) mask logits at the size of the attended map.

    Returns:
        (BT, Q, S) bool, True = blocked.
    """
    blocked = masks < 0  # sigmoid below 0.5
    return blocked & ~blocked.all(dim=-1, keepdim=True)
