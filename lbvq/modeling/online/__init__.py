"""Methods that go through a video frame by frame: what they share, MinVIS and VISAGE."""

from __future__ import annotations

from .minvis import VideoMaskFormer_frame
from .visage import VISAGE

__all__ = ["VISAGE", "VideoMaskFormer_frame"]
