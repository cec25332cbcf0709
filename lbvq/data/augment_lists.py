"""The lists of random transforms that a configuration asks for."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from lbvq.data.augment import (
    FixedSizeCrop,
    Policy,
    RandomApply,
    RandomColorJitter,
    RandomCrop,
    RandomFlip,
    RandomPhotometric,
    RandomRotation,
    ResizeScale,
    ResizeShortestEdge,
)

logger = logging.getLogger(__name__)

LARGE_SCALE_JITTER = "coco_instance_lsj"  # INPUT.DATASET_MAPPER_NAME, as published
_CROP_SHORT_EDGES = (400, 500, 600)  # as published: sizes before a random crop
_CROP_MAX_SIZE = 1333
_ANGLE = (-15.0, 15.0)
_CENTER = ((0.4, 0.4), (0.6, 0.6))
_NAMES = ("brightness", "contrast", "saturation", "rotation")  # applied in this order


def clip_augmentations(cfg: Any) -> list[Policy]:
    """Transforms for training clips of real videos (and for single images when there is nothing else to train on).

    INPUT.LSJ_AUG replaces cropping and resizing by large-scale jitter. Sizes vary from frame to frame unless
    MIN_SIZE_TRAIN_SAMPLING says "by_clip", flips unless RANDOM_FLIP is "flip_by_clip"; all else serves a whole clip.
    """
    flips = _flip(cfg)
    names = _check_names(cfg.INPUT.AUGMENTATIONS, "INPUT.AUGMENTATIONS")
    if cfg.INPUT.LSJ_AUG.ENABLED:
        return [*flips, *_large_scale_jitter(cfg)]
    # a single image turns by one angle; a clip turns steadily
    rotation = RandomRotation(_ANGLE, _CENTER, expand=False, coherent=cfg.INPUT.SAMPLING_FRAME_NUM > 1)
    return [*_crop_and_resize(cfg.INPUT), *flips, *_colors(names), *([rotation] if "rotation" in names else [])]


def pseudo_augmentations(cfg: Any) -> list[Policy]:
    """Transforms that make a moving clip out of one image."""
    flips = _flip(cfg)
    names = _check_names(cfg.INPUT.PSEUDO.AUGMENTATIONS, "INPUT.PSEUDO.AUGMENTATIONS")
    angle = float(cfg.INPUT.PSEUDO.ROTATE_ANGLE)
    rotation = RandomRotation((-angle, angle), _CENTER, expand=False)
    others = [*_colors(names), *([rotation] if "rotation" in names else [])]
    if cfg.INPUT.LSJ_AUG.ENABLED:
        return [*flips, *others, *_large_scale_jitter(cfg)]
    return [*_crop_and_resize(cfg.INPUT.PSEUDO), *flips, *others]


def image_augmentations(cfg: Any) -> list[Policy]:
    """Transforms for training on single images; see `LARGE_SCALE_JITTER`."""
    flips = _flip(cfg)
    colors = [RandomColorJitter(cfg.INPUT.FORMAT)] if cfg.INPUT.COLOR_AUG_SSD else []
    if cfg.INPUT.DATASET_MAPPER_NAME == LARGE_SCALE_JITTER:
        size = cfg.INPUT.IMAGE_SIZE
        jitter = [ResizeScale(cfg.INPUT.MIN_SCALE, cfg.INPUT.MAX_SCALE, size, size), FixedSizeCrop((size, size))]
        return [*flips, *jitter, *colors]
    return [*_crop_and_resize(cfg.INPUT), *flips, *colors]


def resize_for_test(cfg: Any) -> ResizeShortestEdge:
    """The resize of test time."""
    return ResizeShortestEdge((cfg.INPUT.MIN_SIZE_TEST,), cfg.INPUT.MAX_SIZE_TEST, "choice")


def _crop_and_resize(node: Any) -> list[Policy]:
    """Return the crop of half of the clips, and the final resize, as INPUT or INPUT.PSEUDO says."""
    sampling = node.MIN_SIZE_TRAIN_SAMPLING
    styles = {"choice": False, "range": False, "choice_by_clip": True, "range_by_clip": True}
    if sampling not in styles:
        raise ValueError(f"INPUT.MIN_SIZE_TRAIN_SAMPLING must be one of {sorted(styles)}, got {sampling!r}.")
    style, coherent = sampling.removesuffix("_by_clip"), styles[sampling]
    sizes = tuple(node.MIN_SIZE_TRAIN) if not isinstance(node.MIN_SIZE_TRAIN, int) else (node.MIN_SIZE_TRAIN,)
    policies: list[Policy] = []
    if node.CROP.ENABLED:
        before = _CROP_SHORT_EDGES if style == "choice" else (min(_CROP_SHORT_EDGES), max(_CROP_SHORT_EDGES))
        inner = (
            ResizeShortestEdge(before, _CROP_MAX_SIZE, style, coherent=coherent),
            RandomCrop(node.CROP.TYPE, tuple(node.CROP.SIZE), coherent=coherent),
        )
        policies.append(RandomApply(inner, coherent=coherent))
    policies.append(ResizeShortestEdge(sizes, node.MAX_SIZE_TRAIN, style, coherent=coherent))
    return policies


def _flip(cfg: Any) -> list[Policy]:
    kind = cfg.INPUT.RANDOM_FLIP
    kinds = ("horizontal", "vertical", "flip_by_clip", "none")
    if kind not in kinds:
        raise ValueError(f"INPUT.RANDOM_FLIP must be one of {kinds}, got {kind!r}.")
    if kind == "none":
        return []
    if kind != "flip_by_clip" and cfg.INPUT.SAMPLING_FRAME_NUM > 1:
        logger.warning(
            "INPUT.RANDOM_FLIP %s mirrors every frame of a clip on its own; flip_by_clip keeps the frames together.",
            kind,
        )
    return [RandomFlip(vertical=kind == "vertical", coherent=kind == "flip_by_clip")]


def _colors(names: Sequence[str]) -> list[Policy]:
    return [RandomPhotometric(name) for name in _NAMES[:3] if name in names]


def _check_names(names: Sequence[str], key: str) -> Sequence[str]:
    unknown = sorted(set(names) - set(_NAMES))
    if unknown:
        raise ValueError(f"{key} may name {_NAMES}, got {unknown}.")
    return names


def _large_scale_jitter(cfg: Any) -> list[Policy]:
    node = cfg.INPUT.LSJ_AUG
    size = node.IMAGE_SIZE
    return [ResizeScale(node.MIN_SCALE, node.MAX_SCALE, size, size), FixedSizeCrop((size, size))]
