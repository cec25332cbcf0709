"""VMT, the one method that is not built on the frame segmenter; see `model.py`."""

from __future__ import annotations

from .model import VMT

__all__ = ["VMT"]
