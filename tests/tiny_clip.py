"""A CLIP of open_clip's own classes with random weights, small enough for tests; nothing is downloaded."""

from __future__ import annotations

import open_clip
import torch
from open_clip.transform import image_transform

from lbvq.modeling.ovformer.towers import ClipTowers

WIDTH = 32  # of the joint space


def tiny_towers(seed: int = 0) -> ClipTowers:
    torch.manual_seed(seed)
    model = open_clip.model.CLIP(
        embed_dim=WIDTH,
        vision_cfg={"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        text_cfg={"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    )
    return ClipTowers("tiny", model, image_transform(32, is_train=False), open_clip.get_tokenizer("ViT-B-32"))
