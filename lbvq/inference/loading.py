"""From what a user calls a model, a name, a file or a folder, to a network that can be run."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

import lbvq.modeling  # noqa: F401  registers the methods
from lbvq.data.builtin import MetadataCatalog
from lbvq.engine.checkpoint import load_weights
from lbvq.zoo import load_config
from mask2former.abilities import refusal
from mask2former.registry import build_model

if TYPE_CHECKING:
    from mask2former.cfg import Cfg

logger = logging.getLogger(__name__)


def load_model(
    source: str | os.PathLike, weights: str | os.PathLike | None = None, opts: Sequence[Any] = ()
) -> nn.Module:
    """Build a model for inference, with weights, on MODEL.DEVICE.

    Args:
        source: as of `load_config`.
        weights: a file or an address; by default the configuration's MODEL.WEIGHTS. "" builds an untrained network.
        opts: KEY VALUE pairs that override the configuration.
    """
    return trained_model(load_config(source, opts), weights)


def trained_model(cfg: Cfg, weights: str | os.PathLike | None = None) -> nn.Module:
    """Build a model for inference and load its weights, see `load_model`; an untrained one is announced loudly."""
    file = weights_of(cfg, weights)
    model = build_model(cfg).eval()
    if file:
        load_weights(model, file)
    else:
        logger.warning(
            "NO WEIGHTS: %s has random weights. It is UNTRAINED and what it finds is noise. "
            "Pass `weights` or set MODEL.WEIGHTS to a trained model.",
            type(model).__name__,
        )
    return model


def weights_of(cfg: Cfg, weights: str | os.PathLike | None) -> str:
    """The file or address to load, "" for none."""
    return cfg.MODEL.WEIGHTS if weights is None else os.fspath(weights)


def class_names_of(cfg: Cfg | None) -> tuple[str, ...] | None:
    """Names of the classes, by class index: the model's own, or those of the data set in DATASETS.TEST; or None."""
    if cfg is None:
        return None
    if cfg.MODEL.CATEGORIES.NAMES:
        return tuple(cfg.MODEL.CATEGORIES.NAMES)
    if not cfg.DATASETS.TEST:
        return None
    name = cfg.DATASETS.TEST[0]
    if name not in MetadataCatalog.list():
        return None
    names = MetadataCatalog.get(name).get("thing_classes")
    return tuple(names) if names else None


def category_ids_of(cfg: Cfg) -> tuple[int, ...] | None:
    """Category ids of the classes in results files, by class index; None means class index + 1."""
    return tuple(cfg.MODEL.CATEGORIES.IDS) or None


def fitting_names(cfg: Cfg, model: Any, classes: Sequence[str] | None) -> tuple[str, ...] | None:
    """Names of the classes of a model: those given, or those of its configuration's data set if there are as many.

    Names of a data set that do not fit are left out with a warning; ValueError if it is those given.
    """
    num_classes = getattr(model, "num_classes", cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)
    if classes is not None:
        if len(classes) != num_classes:
            raise ValueError(
                f"the model has {num_classes} classes, got {len(classes)} names in `classes`. "
                f"{refusal(model, 'open_vocabulary')}"
            )
        return tuple(classes)
    names = class_names_of(cfg)
    if names is None or len(names) == num_classes:
        return names
    logger.warning(
        "The model has %d classes but %s names %d; classes are shown by number. Pass `classes`, or set DATASETS.TEST "
        "to the data set the model was trained for.",
        num_classes,
        "MODEL.CATEGORIES" if cfg.MODEL.CATEGORIES.NAMES else cfg.DATASETS.TEST[0],
        len(names),
    )
    return None
