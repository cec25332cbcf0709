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
from lbvq.files.class_list import ClassList, with_classes
from lbvq.inference.exported.runtimes import run_graphs
from lbvq.zoo import load_config
from mask2former.abilities import has_ability, refusal
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
    """Build a model for inference and load its weights, see `load_model`; an untrained one is announced loudly.

    `model.config` gets the categories that come with the weights, unless the model is given its classes as text.
    """
    file = weights_of(cfg, weights)
    model = build_model(cfg).eval()
    run_graphs(model, cfg)
    if file:
        classes = load_weights(model, file).classes
        if classes is not None and not has_ability(model, "open_vocabulary"):
            model.config = with_classes(cfg, classes)  # type: ignore[assignment]
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


def class_list_of(cfg: Cfg | None) -> ClassList | None:
    """Categories by class index: the model's own, or those of the data set in DATASETS.TEST; None: not known."""
    if cfg is None:
        return None
    own = ClassList.from_config(cfg)
    if own is not None or not cfg.DATASETS.TEST or cfg.DATASETS.TEST[0] not in MetadataCatalog.list():
        return own
    return ClassList.from_metadata(MetadataCatalog.get(cfg.DATASETS.TEST[0]))


def class_names_of(cfg: Cfg | None) -> tuple[str, ...] | None:
    """Names of the classes, by class index, see `class_list_of`."""
    classes = class_list_of(cfg)
    return None if classes is None else classes.names


def fitting_classes(cfg: Cfg, model: Any, names: Sequence[str] | None) -> ClassList | None:
    """Categories of a model: those given by name, or those of its configuration if there are as many as classes.

    Others are left out with a warning; ValueError if it is those given.
    """
    num_classes = getattr(model, "num_classes", cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)
    if names is not None:
        if len(names) != num_classes:
            raise ValueError(
                f"the model has {num_classes} classes, got {len(names)} names in `classes`. "
                f"{refusal(model, 'open_vocabulary')}"
            )
        return ClassList(tuple(names), tuple(range(1, num_classes + 1)))
    classes = class_list_of(cfg)
    if classes is None or len(classes) == num_classes:
        return classes
    source = "MODEL.CATEGORIES" if ClassList.from_config(cfg) else cfg.DATASETS.TEST[0]
    logger.warning(
        "The model has %d classes but %s names %d; classes are shown by number. Pass `classes`, or set DATASETS.TEST "
        "to the data set the model was trained for.",
        num_classes,
        source,
        len(classes),
    )
    return None
