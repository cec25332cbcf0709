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

from typing import TYPE_CHECKING

from mask2former.lazy import lazy_names

if TYPE_CHECKING:
    from . import modeling as modeling
    from .config import add_maskformer2_config as add_maskformer2_config
    from .registry import BACKBONE_REGISTRY as BACKBONE_REGISTRY
    from .registry import META_ARCH_REGISTRY as META_ARCH_REGISTRY
    from .registry import SEM_SEG_HEADS_REGISTRY as SEM_SEG_HEADS_REGISTRY
    from .registry import TRANSFORMER_MODULE_REGISTRY as TRANSFORMER_MODULE_REGISTRY
    from .registry import build_backbone as build_backbone
    from .registry import build_model as build_model
    from .registry import build_sem_seg_head as build_sem_seg_head

_HOME = {  # public name: module that defines it
    "BACKBONE_REGISTRY": "mask2former.registry",
    "META_ARCH_REGISTRY": "mask2former.registry",
    "SEM_SEG_HEADS_REGISTRY": "mask2former.registry",
    "TRANSFORMER_MODULE_REGISTRY": "mask2former.registry",
    "add_maskformer2_config": "mask2former.config",
    "build_backbone": "mask2former.registry",
    "build_model": "mask2former.registry",
    "build_sem_seg_head": "mask2former.registry",
    "modeling": "mask2former.modeling",
}

__all__ = list(_HOME)

__getattr__, __dir__ = lazy_names(__name__, _HOME)
