"""Offer our models, backbones, heads and data sets to an installed detectron2; the only file that imports it.

    import lbvq.detectron2_plugin
    lbvq.detectron2_plugin.register()

    cfg = detectron2.config.get_cfg()
    add_maskformer2_config(cfg)  # of mask2former.config
    add_lbvq_config(cfg)         # of lbvq.config
    cfg.merge_from_file("configs/youtubevis_2019/lbvq_R50_bs8.yaml")
    model = detectron2.modeling.build_model(cfg)

`DETECTRON2_ENV_MODULE=lbvq.detectron2_plugin` in the environment registers everything on `import detectron2`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from fvcore.common.registry import Registry

from mask2former import registry as ours

logger = logging.getLogger(__name__)


def setup_environment() -> None:
    """Entry point for DETECTRON2_ENV_MODULE."""
    register()


def register(prefix: str = "") -> list[str]:
    """Add what we have to detectron2's registries and catalogs; a name that is taken there stays as it is.

    Args:
        prefix: put before the names of models, backbones and heads, for when another package uses ours.

    Returns:
        The added names; [] when detectron2 is not installed.
    """
    try:
        import detectron2.data as their_data
        import detectron2.modeling as theirs
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != "detectron2":
            raise  # detectron2 is there but cannot be imported
        return []
    import lbvq.modeling  # noqa: F401  registers the methods
    from mask2former.modeling.backbone import Backbone

    theirs.Backbone.register(Backbone)  # for their isinstance check; nothing is inherited
    added = [
        *_add_parts(ours.META_ARCH_REGISTRY, theirs.META_ARCH_REGISTRY, prefix),
        *_add_parts(ours.BACKBONE_REGISTRY, theirs.BACKBONE_REGISTRY, prefix),
        *_add_parts(ours.SEM_SEG_HEADS_REGISTRY, theirs.SEM_SEG_HEADS_REGISTRY, prefix),
        *_add_data_sets(their_data.DatasetCatalog, their_data.MetadataCatalog),
    ]
    logger.info("Registered with detectron2: %s", ", ".join(added))
    return added


def _add_parts(source: Registry, target: Registry, prefix: str) -> list[str]:
    added = []
    for name, _ in source:
        if prefix + name in target:
            logger.info("detectron2 has %s already; ours is not registered.", prefix + name)
            continue
        target._do_register(prefix + name, _builder(source, name))
        added.append(prefix + name)
    return added


def _builder(source: Registry, name: str) -> Callable[..., Any]:
    """Return what detectron2 calls with its configuration, and with the input shapes for backbones and heads."""
    build: Any = partial(ours.build_from_cfg, source, name)
    build.__name__ = name  # shown in detectron2's tables
    return build


def _add_data_sets(dataset_catalog: Any, metadata_catalog: Any) -> list[str]:
    from lbvq.data.builtin import DatasetCatalog, MetadataCatalog

    added = []
    for name in DatasetCatalog.list():
        if name in dataset_catalog:
            continue
        dataset_catalog.register(name, partial(DatasetCatalog.get, name))
        facts = MetadataCatalog.get(name).as_dict()
        facts.pop("name", None)  # theirs has its own
        metadata_catalog.get(name).set(**facts)
        added.append(name)
    return added
