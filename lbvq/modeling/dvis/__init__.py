"""DVIS and DVIS++: a frozen frame segmenter, a referring tracker over its queries, and a refiner of whole videos."""

from __future__ import annotations

from .model import DVIS_online, DVIS_Plus_online
from .offline import DVIS_offline, DVIS_Plus_offline
from .segmenters import CTMinVIS, MinVIS

__all__ = ["CTMinVIS", "DVIS_Plus_offline", "DVIS_Plus_online", "DVIS_offline", "DVIS_online", "MinVIS"]
