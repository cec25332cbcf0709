"""GenVIS, online and semi-online; see `model.py`."""

from __future__ import annotations

from .model import GenVIS, Genvis

__all__ = ["GenVIS", "Genvis"]
