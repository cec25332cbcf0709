"""The frame decoders of the video methods, under their published names.

All of them are Mask2Former's masked-attention decoder, which hands its queries on: those of the last layer, or in
training, for methods with a clip module, those of the last LAST_LAYER_NUM layers.
"""

from __future__ import annotations

from typing import Any

from mask2former.modeling.transformer_decoder import MultiScaleMaskedTransformerDecoder
from mask2former.registry import TRANSFORMER_MODULE_REGISTRY


@TRANSFORMER_MODULE_REGISTRY.register()
class LbvqMultiScaleMaskedTransformerDecoder(MultiScaleMaskedTransformerDecoder):
    """Frame decoder of LBVQ."""

    @classmethod
    def from_config(cls, cfg: Any, in_channels: int, mask_classification: bool = True) -> dict[str, Any]:
        arguments = super().from_config(cfg, in_channels, mask_classification)
        return {**arguments, "last_layer_num": cfg.MODEL.LBVQ.LAST_LAYER_NUM}


@TRANSFORMER_MODULE_REGISTRY.register()
class VitaMultiScaleMaskedTransformerDecoder(MultiScaleMaskedTransformerDecoder):
    """Frame decoder of VITA and GenVIS."""

    @classmethod
    def from_config(cls, cfg: Any, in_channels: int, mask_classification: bool = True) -> dict[str, Any]:
        arguments = super().from_config(cfg, in_channels, mask_classification)
        return {**arguments, "last_layer_num": cfg.MODEL.VITA.LAST_LAYER_NUM}


@TRANSFORMER_MODULE_REGISTRY.register()
class VideoMultiScaleMaskedTransformerDecoder_frame(MultiScaleMaskedTransformerDecoder):
    """Frame decoder of MinVIS: every frame on its own; its queries of the last layer are what is matched."""


@TRANSFORMER_MODULE_REGISTRY.register()
class VisageMultiScaleMaskedTransformerDecoder(MultiScaleMaskedTransformerDecoder):
    """Frame decoder of VISAGE, the same as MinVIS'."""
