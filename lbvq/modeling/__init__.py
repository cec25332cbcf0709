"""Video methods; importing this package registers them and their parts under their published names."""

from __future__ import annotations

import mask2former.modeling  # noqa: F401  # registers backbones, pixel decoder and head

from . import frame_decoder
from .base import FrameSegmenter, VideoModel, VideoSegmenter
from .ctvis import CTVISModel
from .dvis import CTMinVIS, DVIS_offline, DVIS_online, DVIS_Plus_offline, DVIS_Plus_online, MinVIS
from .genvis import GenVIS, Genvis
from .lbvq import LBVQ, Lbvq
from .mask2former_vis import VideoMaskFormer
from .online import VISAGE, VideoMaskFormer_frame
from .online.frame_matching import as_tested, online_form
from .ovformer import OVFormer, OVFormerVideo, VideoOVFormer
from .vita import VITA, Vita
from .vmt import VMT

__all__ = [
    "LBVQ",
    "VISAGE",
    "VITA",
    "VMT",
    "CTMinVIS",
    "CTVISModel",
    "DVIS_Plus_offline",
    "DVIS_Plus_online",
    "DVIS_offline",
    "DVIS_online",
    "FrameSegmenter",
    "GenVIS",
    "Genvis",
    "Lbvq",
    "MinVIS",
    "OVFormer",
    "OVFormerVideo",
    "VideoMaskFormer",
    "VideoMaskFormer_frame",
    "VideoModel",
    "VideoOVFormer",
    "VideoSegmenter",
    "Vita",
    "as_tested",
    "frame_decoder",
    "online_form",
]
