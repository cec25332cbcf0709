"""OVFormer, which finds the classes that are named; see `model.py`."""

from __future__ import annotations

from .model import OVFormer, OVFormerVideo, VideoOVFormer

__all__ = ["OVFormer", "OVFormerVideo", "VideoOVFormer"]
