"""VidEoMT and PMT as their goldens were recorded, and small ones: configurations, samples, models."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from vit_weights import fill_vit_

import lbvq.modeling  # noqa: F401  # registers the methods
from lbvq.config import get_cfg
from mask2former.registry import build_model

PUBLISHED = {  # what the published files of both methods set
    "INPUT.FORMAT": "RGB",
    "MODEL.DEVICE": "cpu",
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    "MODEL.BACKBONE.CLASS_WEIGHT": 2.0,
    "MODEL.BACKBONE.MASK_WEIGHT": 5.0,
    "MODEL.BACKBONE.DICE_WEIGHT": 5.0,
    "MODEL.BACKBONE.NUM_CLASSES": 40,
    "MODEL.BACKBONE.TEST.MAX_NUM": 10,
    "MODEL.BACKBONE.TEST.WINDOW_SIZE": 1,
    "MODEL.BACKBONE.MASKED_ATTN_ENABLED": False,
    # and how the goldens were recorded
    "MODEL.BACKBONE.IMG_SIZE": 160,
    "MODEL.BACKBONE.NUM_OBJECT_QUERIES": 20,
    "MODEL.BACKBONE.TRAIN_NUM_POINTS": 1024,
    "INPUT.SAMPLING_FRAME_NUM": 3,
}
VIDEOMT = {
    **PUBLISHED,
    "MODEL.META_ARCHITECTURE": "videomt_online",
    "MODEL.BACKBONE.MODEL_NAME": "vit_small_patch14_reg4_dinov2",
    "MODEL.BACKBONE.SEGMENTER_BLOCKS": [9, 10, 11],
}
PMT = {
    **PUBLISHED,
    "MODEL.META_ARCHITECTURE": "pmt_online",
    "MODEL.BACKBONE.MODEL_NAME": "vit_small_patch14_reg4_dinov2",
    "MODEL.BACKBONE.INTERACTION_INDICES": [2, 5, 8, 11],
    "MODEL.BACKBONE.NUM_BLOCKS": 2,
    "MODEL.BACKBONE.HIDDEN_DIM": 96,
}
TINY = {  # a model of which everything takes milliseconds
    "MODEL.VIT.EMBED_DIM": 48,
    "MODEL.VIT.DEPTH": 4,
    "MODEL.VIT.NUM_HEADS": 3,
    "MODEL.BACKBONE.IMG_SIZE": 64,
    "MODEL.BACKBONE.SEGMENTER_BLOCKS": [2, 3],
    "MODEL.BACKBONE.INTERACTION_INDICES": [1, 3],
    "MODEL.BACKBONE.NUM_OBJECT_QUERIES": 8,
    "MODEL.BACKBONE.NUM_CLASSES": 13,
    "MODEL.BACKBONE.TRAIN_NUM_POINTS": 112,
}


def model_of(settings: dict[str, Any], **changes: Any) -> nn.Module:
    """A model with the weights of the goldens, in evaluation mode; changes are `MODEL__VIT__DEPTH=2`."""
    cfg = cfg_of(settings, **changes)
    return fill_vit_(build_model(cfg)).eval()


def cfg_of(settings: dict[str, Any], **changes: Any) -> Any:
    cfg = get_cfg()
    pairs = {**settings, **{name.replace("__", "."): value for name, value in changes.items()}}
    cfg.merge_from_list([word for pair in pairs.items() for word in pair])
    return cfg


def tiny(method: dict[str, Any] = VIDEOMT, **changes: Any) -> nn.Module:
    return model_of({**method, **TINY}, **changes)


def video(frames: torch.Tensor, **more: Any) -> dict[str, Any]:
    return {"image": list(frames), **more}
