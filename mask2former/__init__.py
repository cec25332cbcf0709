"""Mask2Former: segmentation of single images, and the frame segmenter under every video method.

Shape letters, the same in the whole project:

    B  clips                         N  objects or clip queries
    T  frames                        C  channels
    L  frame-decoder outputs kept    K  classes without "no object"
    D  clip-decoder layers           G  ground-truth objects
    Q  frame queries                 P  points
    H W  pixels                      h w  feature cells

`BT` is the product: clips flattened over frames, clip by clip.
"""

from __future__ import annotations

from . import modeling
from .config import add_maskformer2_config
from .registry import (
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    SEM_SEG_HEADS_REGISTRY,
    TRANSFORMER_MODULE_REGISTRY,
    build_backbone,
    build_model,
    build_sem_seg_head,
)

__all__ = [
    "BACKBONE_REGISTRY",
    "META_ARCH_REGISTRY",
    "SEM_SEG_HEADS_REGISTRY",
    "TRANSFORMER_MODULE_REGISTRY",
    "add_maskformer2_config",
    "build_backbone",
    "build_model",
    "build_sem_seg_head",
    "modeling",
]
