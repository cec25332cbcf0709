"""The frame decoders of the video methods, under their published names.

All of them are Mask2Former's masked-attention decoder, which hands its queries on: those of the last layer, or in
training, for methods with a clip module, those of the last LAST_LAYER_NUM layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mask2former.layers import MLP
from mask2former.modeling.transformer_decoder import MultiScaleMaskedTransformerDecoder
from mask2former.registry import TRANSFORMER_MODULE_REGISTRY

if TYPE_CHECKING:
    from mask2former.cfg import Cfg


@TRANSFORMER_MODULE_REGISTRY.register()
class LbvqMultiScaleMaskedTransformerDecoder(MultiScaleMaskedTransformerDecoder):
    """Frame decoder of LBVQ."""

    @classmethod
    def from_config(cls, cfg: Cfg, in_channels: int, mask_classification: bool = True) -> dict[str, Any]:
        arguments = super().from_config(cfg, in_channels, mask_classification)
        return {**arguments, "last_layer_num": cfg.MODEL.LBVQ.LAST_LAYER_NUM}


@TRANSFORMER_MODULE_REGISTRY.register()
class VitaMultiScaleMaskedTransformerDecoder(MultiScaleMaskedTransformerDecoder):
    """Frame decoder of VITA and GenVIS."""

    @classmethod
    def from_config(cls, cfg: Cfg, in_channels: int, mask_classification: bool = True) -> dict[str, Any]:
        arguments = super().from_config(cfg, in_channels, mask_classification)
        return {**arguments, "last_layer_num": cfg.MODEL.VITA.LAST_LAYER_NUM}


@TRANSFORMER_MODULE_REGISTRY.register()
class VideoMultiScaleMaskedTransformerDecoder_frame(MultiScaleMaskedTransformerDecoder):
    """Frame decoder of MinVIS: every frame on its own; its queries of the last layer are what is matched."""


@TRANSFORMER_MODULE_REGISTRY.register()
class VisageMultiScaleMaskedTransformerDecoder(MultiScaleMaskedTransformerDecoder):
    """Frame decoder of VISAGE, the same as MinVIS'."""


@TRANSFORMER_MODULE_REGISTRY.register()
class VideoMultiScaleMaskedTransformerDecoder_minvis(MultiScaleMaskedTransformerDecoder):
    """Frame decoder of MinVIS as DVIS and DVIS++ name it."""


@TRANSFORMER_MODULE_REGISTRY.register()
class VideoMultiScaleMaskedTransformerDecoder_dvis(MultiScaleMaskedTransformerDecoder):
    """Frame decoder of DVIS, the same as MinVIS'; it hands on the maps that masks are made of, `mask_features`."""

    def predict(
        self, states: list[Tensor], queries: Tensor, mask_features: Tensor, **context: Any
    ) -> tuple[dict[str, Any], Tensor]:
        outputs, frame_queries = super().predict(states, queries, mask_features, **context)
        return {**outputs, "mask_features": mask_features}, frame_queries


@TRANSFORMER_MODULE_REGISTRY.register()
class CLMultiScaleMaskedTransformerDecoder(MultiScaleMaskedTransformerDecoder):
    """Frame decoder of CTVIS: from every query a vector to know the object again by, `pred_embeds` (BT, Q, C)."""

    added_modules = ("reid_embed",)  # to what a segmenter of images has

    def __init__(
        self, in_channels: int, *, hidden_dim: int, reid_hidden_dim: int, num_reid_layers: int, **decoder: Any
    ) -> None:
        """Args:
        hidden_dim: C.
        reid_hidden_dim: width of the head that makes the vectors.
        num_reid_layers: of the head; with 0 a query is compared as it is.
        decoder: arguments of `MultiScaleMaskedTransformerDecoder`.
        """
        super().__init__(in_channels, hidden_dim=hidden_dim, **decoder)
        has_head = num_reid_layers > 0
        self.reid_embed = MLP(hidden_dim, reid_hidden_dim, hidden_dim, num_reid_layers) if has_head else nn.Identity()

    @classmethod
    def from_config(cls, cfg: Any, in_channels: int, mask_classification: bool = True) -> dict[str, Any]:
        mask_former = cfg.MODEL.MASK_FORMER
        return {
            **super().from_config(cfg, in_channels, mask_classification),
            "reid_hidden_dim": mask_former.REID_HIDDEN_DIM,
            "num_reid_layers": mask_former.NUM_REID_HEAD_LAYERS,
        }

    def predict(
        self, states: list[Tensor], queries: Tensor, mask_features: Tensor, **context: Any
    ) -> tuple[dict[str, Any], Tensor]:
        outputs, frame_queries = super().predict(states, queries, mask_features, **context)
        return {**outputs, "pred_embeds": self.reid_embed(states[-1])}, frame_queries


@TRANSFORMER_MODULE_REGISTRY.register()
class VideoMultiScaleMaskedTransformerDecoder_dvisPlus(CLMultiScaleMaskedTransformerDecoder):
    """Frame decoder of DVIS++: the vector of CTVIS is joined to the query, for matching and for the tracker.

    Frame queries are (1, BT, Q, 2C), and `unnormed_queries` (BT, Q, 2C) are the same before the query is normalised;
    both are C wide without the head. `mask_features` are the maps that masks are made of.
    """

    def __init__(self, in_channels: int, *, reid_branch: bool, **decoder: Any) -> None:
        """Args:
        reid_branch: have the head that makes the vectors.
        decoder: arguments of `CLMultiScaleMaskedTransformerDecoder`.
        """
        super().__init__(in_channels, **decoder)
        self.reid_branch = reid_branch
        if not reid_branch:
            self.reid_embed = nn.Identity()

    @classmethod
    def from_config(cls, cfg: Any, in_channels: int, mask_classification: bool = True) -> dict[str, Any]:
        arguments = super().from_config(cfg, in_channels, mask_classification)
        return {**arguments, "reid_branch": cfg.MODEL.MASK_FORMER.REID_BRANCH}

    def predict(
        self, states: list[Tensor], queries: Tensor, mask_features: Tensor, **context: Any
    ) -> tuple[dict[str, Any], Tensor]:
        outputs, frame_queries = super().predict(states, queries, mask_features, **context)
        if self.reid_branch:
            embeddings = outputs["pred_embeds"]
            queries = torch.cat((queries, embeddings), dim=-1)
            frame_queries = torch.cat((states[-1], embeddings), dim=-1)[None]
        return {**outputs, "unnormed_queries": queries, "mask_features": mask_features}, frame_queries
