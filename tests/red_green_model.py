"""A test double that keeps the contract of video models: it finds reddish and greenish regions in every frame."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lbvq.masks.tubes import MaskTubes
from mask2former.registry import META_ARCH_REGISTRY


@META_ARCH_REGISTRY.register()
class RedGreenModel(nn.Module):
    """Object 0 is red (class 1, score 0.9), object 1 green (class 0, score 0.4), object 2 the red one as class 2."""

    def __init__(self, margin: float = 50.0) -> None:
        super().__init__()
        self.margin = nn.Parameter(torch.tensor(margin))
        self.samples: list[dict] = []  # what it was called with
        self.sizes: list[tuple[int, ...]] = []  # of the frames it read

    @classmethod
    def from_config(cls, cfg: Any) -> dict:
        return {}

    def forward(self, samples: list[dict]) -> dict:
        assert not self.training and torch.is_inference_mode_enabled() and len(samples) == 1
        sample = samples[0]
        self.samples.append(sample)
        size = (sample["height"], sample["width"])
        tubes = MaskTubes(size)
        dense = []
        for t in range(len(sample["image"])):
            image = sample["image"][t]
            assert image.dtype == torch.uint8 and image.shape[0] == 3
            self.sizes.append(tuple(image.shape[1:]))
            red, green, blue = nn.functional.interpolate(image[None].float(), size)[0]
            masks = torch.stack([red - torch.maximum(green, blue), green - torch.maximum(red, blue)]) > self.margin
            masks = masks[[0, 1, 0]][:, None]
            if sample.get("dense_masks", True):
                dense.append(masks)
            else:
                tubes.append(masks)
        return {
            "image_size": size,
            "pred_scores": [0.9, 0.4, 0.2],
            "pred_labels": [1, 0, 2],
            "pred_masks": torch.cat(dense, dim=1) if dense else tubes,
        }
