"""The image and text towers of CLIP, from the package open_clip: an optional extra, loaded when first used.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021. The published
OVFormer was trained with OpenAI's ViT-B/32, which open_clip builds as ViT-B-32-quickgelu.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

logger = logging.getLogger(__name__)

IMAGES_AT_ONCE = 32
TEXTS_AT_ONCE = 256


class ClipTowers:
    """CLIP's embeddings of images and texts, float32, not normalised.

    Attributes:
        name: says which weights these are; embeddings are kept under it.
    """

    def __init__(self, name: str, model: nn.Module, preprocess: Any, tokenizer: Any) -> None:
        """Args:
        name: of the model and its weights.
        model: with `encode_image` and `encode_text`, as open_clip builds it.
        preprocess: PIL image -> (3, h, w) input of the image tower.
        tokenizer: list of n texts -> (n, length) input of the text tower.
        """
        self.name, self.model, self.preprocess, self.tokenizer = name, model.eval(), preprocess, tokenizer

    @classmethod
    def load(cls, model: str, weights: str) -> ClipTowers:
        """Build a model of open_clip with weights.

        Args:
            model: name in open_clip, such as "ViT-B-32-quickgelu".
            weights: a file, or a tag of open_clip such as "openai", which is downloaded once.
        """
        try:
            import open_clip
        except ImportError as error:
            raise ImportError('CLIP is computed by open_clip: pip install "lbvq[open-vocab]".') from error
        logger.info("Loading CLIP %s, weights %s.", model, weights)
        if model not in open_clip.list_models():
            raise ValueError(
                f"open_clip has no model {model!r}; change MODEL.MASK_FORMER.CLIP_MODEL (ViT-B-32-quickgelu is what "
                "the published weights were trained with)."
            )
        try:
            network, _, preprocess = open_clip.create_model_and_transforms(model, pretrained=weights)
        except (RuntimeError, OSError) as error:
            raise ValueError(
                f"open_clip cannot load the weights {weights!r} of {model} ({error}). Without a network, fetch the "
                "file elsewhere and give its path in MODEL.MASK_FORMER.CLIP_WEIGHTS."
            ) from error
        return cls(f"{model}/{weights}", network, preprocess, open_clip.get_tokenizer(model))

    def to(self, device: torch.device | str) -> ClipTowers:
        """Move the towers."""
        self.model.to(device)
        return self

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def encode_images(self, frames: Iterable[Tensor]) -> Tensor:
        """Embed RGB images (3, h, w), 0..255, of any sizes: (n, E) on the device of the towers."""
        found, batch = [], []
        for frame in frames:
            pixels = torch.as_tensor(frame).round().clamp(0, 255).to("cpu", torch.uint8).permute(1, 2, 0)
            batch.append(self.preprocess(Image.fromarray(np.ascontiguousarray(pixels.numpy()))))
            if len(batch) == IMAGES_AT_ONCE:
                found.append(self._run(self.model.encode_image, torch.stack(batch)))
                batch = []
        if batch:
            found.append(self._run(self.model.encode_image, torch.stack(batch)))
        return torch.cat(found) if found else torch.zeros(0, self.embed_dim, device=self.device)

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Embed texts: (n, E) on the device of the towers."""
        parts = [list(texts[start : start + TEXTS_AT_ONCE]) for start in range(0, len(texts), TEXTS_AT_ONCE)]
        found = [self._run(self.model.encode_text, self.tokenizer(part)) for part in parts]
        return torch.cat(found) if found else torch.zeros(0, self.embed_dim, device=self.device)

    @property
    def embed_dim(self) -> int:
        """E, the width of the joint space."""
        return self.encode_texts(["a"]).shape[1]

    def _run(self, encode: Any, batch: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            return encode(batch.to(self.device)).float()
