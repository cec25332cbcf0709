"""Methods that go through a video frame by frame: what they share, MinVIS, VISAGE, VidEoMT and PMT."""

from __future__ import annotations

from .minvis import VideoMaskFormer_frame
from .pmt import pmt_online
from .videomt import videomt_online
from .visage import VISAGE

__all__ = ["VISAGE", "VideoMaskFormer_frame", "pmt_online", "videomt_online"]
