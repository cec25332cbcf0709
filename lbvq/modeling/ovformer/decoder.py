"""Decoders of OVFormer: Mask2Former's, with a zero-shot classifier and a head that tells objects from background."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from mask2former.layers import MLP
from mask2former.linear import predicted_masks
from mask2former.modeling.transformer_decoder import MultiScaleMaskedTransformerDecoder
from mask2former.registry import TRANSFORMER_MODULE_REGISTRY

from ..clips.volume import ClipVolume
from .zero_shot import RANDOM_TEXT, ZeroShotClassifier, read_text_embeddings

if TYPE_CHECKING:
    from mask2former.cfg import Cfg

# Published name of the image decoder, which is also that of Mask2Former's own -> ours.
DECODER_NAMES = {"MultiScaleMaskedTransformerDecoder": "OpenVocabularyTransformerDecoder"}


def with_open_vocabulary_decoder(cfg: Cfg) -> Any:
    """Copy of a configuration that names OVFormer's decoder where it has the name of Mask2Former's."""
    mask_former = cfg.MODEL.MASK_FORMER
    if not mask_former.CLIP_CLASSIFIER:
        raise ValueError(
            "MODEL.MASK_FORMER.CLIP_CLASSIFIER must be True: OVFormer classifies with text embeddings only."
        )
    cfg = cfg.clone()
    cfg.defrost()
    name = mask_former.TRANSFORMER_DECODER_NAME
    cfg.MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME = DECODER_NAMES.get(name, name)
    return cfg


@TRANSFORMER_MODULE_REGISTRY.register()
class OpenVocabularyTransformerDecoder(MultiScaleMaskedTransformerDecoder):
    """Q queries per image; `forward` also wants `image_features` (1, B, E), CLIP's embeddings of the images."""

    added_modules = ("object_embed",)  # to what a segmenter of images has

    def __init__(
        self, in_channels: int, *, hidden_dim: int, text: Tensor, is_learned: bool = False, **decoder: Any
    ) -> None:
        """Args:
        text, is_learned: see `ZeroShotClassifier`.
        decoder: see `MultiScaleMaskedTransformerDecoder`.
        """
        super().__init__(in_channels, hidden_dim=hidden_dim, **decoder)
        self.class_embed = ZeroShotClassifier(hidden_dim, text=text, is_learned=is_learned)
        self.object_embed = MLP(hidden_dim, hidden_dim, 2, 2)

    @classmethod
    def from_config(cls, cfg: Cfg, in_channels: int, mask_classification: bool = True) -> dict[str, Any]:
        arguments = super().from_config(cfg, in_channels, mask_classification)
        path = cfg.MODEL.MASK_FORMER.CLIP_TEXT_PATH
        text = read_text_embeddings(path, arguments["num_classes"])
        return {**arguments, "text": text, "is_learned": path == RANDOM_TEXT}

    def prediction_heads(self, state: Tensor, mask_features: Tensor, **context: Any) -> dict[str, Any]:
        """Normalised queries (B, Q, C) -> pred_object_logits (B, Q, 2), pred_logits, pred_masks, pred_embds."""
        return {
            "pred_object_logits": self.object_embed(state),
            "pred_logits": self.class_embed(state, context["image_features"]),
            "pred_embds": state,
            **predicted_masks(self.mask_embed(state), mask_features),
        }

    def collect_outputs(self, predictions: list[dict[str, Any]]) -> dict[str, Any]:
        outputs = super().collect_outputs(predictions)
        for layer in outputs["aux_outputs"]:
            del layer["pred_embds"]
        return outputs


@TRANSFORMER_MODULE_REGISTRY.register()
class VideoMultiScaleMaskedTransformerDecoder(ClipVolume, OpenVocabularyTransformerDecoder):  # published name
    """Q queries per clip of T frames; `image_features` are (T, B, E), and masks (B, Q, T, h, w)."""

    def forward(
        self,
        multi_scale: Sequence[Tensor],
        mask_features: Tensor,
        clip_mask_features: Tensor | None = None,
        **context: Any,
    ) -> tuple[dict[str, Any], Tensor, Tensor | None]:
        """Decode B clips of T frames given as B*T images, clip by clip; frame queries are (L, B, Q, C)."""
        image_features = context["image_features"]
        num_frames = len(image_features)
        if num_frames * image_features.shape[1] != len(mask_features):
            raise ValueError(
                f"got image features of {image_features.shape[1]} clips of {num_frames} frames for "
                f"{len(mask_features)} frames."
            )
        return super().forward(
            multi_scale, mask_features, clip_mask_features, num_frames=num_frames, image_features=image_features
        )
