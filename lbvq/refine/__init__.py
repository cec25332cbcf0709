"""Mask refinement after inference, for the masks of any method; the models know nothing of it.

Add a refiner: a class with `refine(frame, masks)` (usually a `PromptRefiner`) and one row in `REFINERS`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .base import MaskRefiner, PromptRefiner, Prompts, RefinedFrame, mask_ious, split_components
from .results_file import refine_results
from .video import RefineReport, refine_output, refine_tubes

__all__ = [
    "REFINERS",
    "MaskRefiner",
    "PromptRefiner",
    "Prompts",
    "RefineReport",
    "RefinedFrame",
    "build_refiner",
    "mask_ious",
    "refine_output",
    "refine_results",
    "refine_tubes",
    "refiner_name",
    "split_components",
]


def _build_sam(name: str, settings: Any, device: str, options: dict[str, Any]) -> MaskRefiner:
    from .sam import build_sam_refiner

    return build_sam_refiner(
        name,
        model_type=settings.MODEL_TYPE,
        checkpoint=settings.CHECKPOINT,
        device=device,
        half=settings.HALF,
        **options,
    )


def _build_sam2(name: str, settings: Any, device: str, options: dict[str, Any]) -> MaskRefiner:
    from .sam2 import build_sam2_refiner

    return build_sam2_refiner(
        checkpoint=settings.CHECKPOINT,
        video=name == "sam2_video",
        window=settings.WINDOW,
        device=device,
        half=settings.HALF,
        **options,
    )


REFINERS: dict[str, Callable[[str, Any, str, dict[str, Any]], MaskRefiner]] = {
    "sam": _build_sam,
    "hq_sam": _build_sam,
    "sam2": _build_sam2,
    "sam2_video": _build_sam2,
}


def refiner_name(cfg: Any) -> str:
    """Name of the refiner that the configuration asks for, "" for none; `SAM: True` alone is HQ-SAM, as published."""
    return cfg.REFINE.NAME or ("hq_sam" if cfg.SAM else "")


def build_refiner(cfg: Any) -> MaskRefiner | None:
    """Build the refiner of `cfg.REFINE`, or None when refinement is off."""
    name = refiner_name(cfg)
    if not name:
        return None
    if name not in REFINERS:
        raise ValueError(f"no refiner {name!r}; known: {', '.join(REFINERS)}; set REFINE.NAME")
    settings = cfg.REFINE
    options = {
        "iou_threshold": settings.IOU_THRESHOLD,
        "prompt": settings.PROMPT,
        "min_area": settings.MIN_AREA,
        "connectivity": settings.CONNECTIVITY,
        "batch_size": settings.BATCH_SIZE,
    }
    return REFINERS[name](name, settings, settings.DEVICE or cfg.MODEL.DEVICE, options)
