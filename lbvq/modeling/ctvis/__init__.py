"""CTVIS: a frame segmenter that learns to know objects again, and a tracker with births, deaths and a memory."""

from __future__ import annotations

from .model import CTVISModel

__all__ = ["CTVISModel"]
