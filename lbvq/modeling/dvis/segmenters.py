"""The frame segmenters that DVIS and DVIS++ start from, under their published names.

The first stage of training: MinVIS, or with the contrastive losses of CTVIS. Both are also methods of their own, whose
queries are matched from frame to frame.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mask2former.registry import META_ARCH_REGISTRY

from ..base import FrameSegmenter
from ..ctvis.model import ContrastiveSegmenter
from ..online.frame_matching import FrameMatching
from ..online.minvis import VideoMaskFormer_frame

if TYPE_CHECKING:
    from mask2former.cfg import Cfg


@META_ARCH_REGISTRY.register()
class MinVIS(VideoMaskFormer_frame):
    """MinVIS as DVIS and DVIS++ name it."""

    @classmethod
    def from_config(cls, cfg: Cfg) -> dict[str, Any]:
        return {**super().from_config(cfg), "run_chunk_size": cfg.MODEL.MASK_FORMER.TEST.WINDOW_SIZE}


@META_ARCH_REGISTRY.register()
class CTMinVIS(ContrastiveSegmenter, FrameMatching):  # published name
    """MinVIS trained as CTVIS; queries and their vectors are matched together."""

    can = replace(FrameSegmenter.can, online=True)

    @classmethod
    def from_config(cls, cfg: Cfg) -> dict[str, Any]:
        return {
            **super().from_config(cfg),
            "num_predictions": cfg.MODEL.MINVIS.NUM_PREDICTIONS,
            "run_chunk_size": cfg.MODEL.MASK_FORMER.TEST.WINDOW_SIZE,
        }
