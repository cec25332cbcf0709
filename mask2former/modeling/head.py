"""Pixel decoder and transformer decoder under one roof, with the names of the published checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..registry import SEM_SEG_HEADS_REGISTRY, TRANSFORMER_MODULE_REGISTRY, build_from_cfg
from ..structures import ShapeSpec

if TYPE_CHECKING:
    from ..cfg import Cfg

logger = logging.getLogger(__name__)


@SEM_SEG_HEADS_REGISTRY.register()
class MaskFormerHead(nn.Module):
    """Turn backbone features into class and mask predictions of every query."""

    _version = 2

    pixel_decoder: Any  # any module with `forward_features`, see MSDeformAttnPixelDecoder
    predictor: Any  # any module that takes its maps, see MultiScaleMaskedTransformerDecoder

    def __init__(self, *, pixel_decoder: Any, predictor: Any, num_classes: int) -> None:
        super().__init__()
        self.pixel_decoder = pixel_decoder
        self.predictor = predictor
        self.num_classes = num_classes

    @classmethod
    def from_config(cls, cfg: Cfg, input_shape: Mapping[str, ShapeSpec]) -> dict[str, Any]:
        head, mask_former = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.MASK_FORMER
        missing = [name for name in head.IN_FEATURES if name not in input_shape]
        if missing:
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.IN_FEATURES names {missing}, but the backbone returns {list(input_shape)}; "
                "change it or the OUT_FEATURES of the backbone."
            )
        if mask_former.TRANSFORMER_IN_FEATURE != "multi_scale_pixel_decoder":
            raise ValueError(
                "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE must be 'multi_scale_pixel_decoder', "
                f"got {mask_former.TRANSFORMER_IN_FEATURE!r}: the decoders attend to three maps of the pixel decoder."
            )
        features = {name: input_shape[name] for name in head.IN_FEATURES}
        pixel_decoder = build_from_cfg(SEM_SEG_HEADS_REGISTRY, head.PIXEL_DECODER_NAME, cfg, features)
        predictor = build_from_cfg(
            TRANSFORMER_MODULE_REGISTRY, mask_former.TRANSFORMER_DECODER_NAME, cfg, head.CONVS_DIM, True
        )
        return {"pixel_decoder": pixel_decoder, "predictor": predictor, "num_classes": head.NUM_CLASSES}

    def forward(self, features: dict[str, Tensor], **context: Any) -> tuple[dict[str, Any], Tensor, Tensor]:
        """Decode the backbone features of BT images; `context` is handed on to the predictor.

        Returns:
            The predictor's outputs: a dictionary with pred_logits (BT, Q, K + 1), pred_masks (BT, Q, H / 4, W / 4)
            and aux_outputs; frame queries (L, BT, Q, C); clip mask features (BT, C, H / 4, W / 4).
        """
        mask_features, clip_mask_features, _, multi_scale = self.pixel_decoder.forward_features(features)
        return self.predictor(multi_scale, mask_features, clip_mask_features, **context)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, local_metadata: dict, *args: Any) -> None:
        """Read files from before the pixel decoder had its own prefix: `<prefix>X` -> `<prefix>pixel_decoder.X`."""
        if not any(key.startswith(f"{prefix}pixel_decoder.") for key in state_dict):
            old = [key for key in state_dict if key.startswith(prefix) and not key.startswith(f"{prefix}predictor.")]
            for key in old:
                state_dict[f"{prefix}pixel_decoder.{key[len(prefix) :]}"] = state_dict.pop(key)
            if old:
                logger.warning("Renamed %d keys %sX to %spixel_decoder.X.", len(old), prefix, prefix)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)
