"""Configuration: `get_cfg()` is the whole schema with its defaults, `CfgNode` the type of its groups."""

from __future__ import annotations

from lbvq.config.defaults import DEFAULTS, IGNORED_GROUPS
from lbvq.config.methods import (
    add_genvis_config,
    add_lbvq_config,
    add_mask2former_vis_config,
    add_maskformer2_video_config,
    add_minvis_config,
    add_ovformer_config,
    add_pmt_config,
    add_refine_config,
    add_videomt_config,
    add_visage_config,
    add_vita_config,
    add_vmt_config,
)
from lbvq.config.node import CfgNode, UnknownKeyError
from lbvq.config.tracking import add_ctvis_config, add_dvis_config
from lbvq.config.unused import register_unused_keys
from mask2former.config import add_maskformer2_config

__all__ = [
    "CfgNode",
    "UnknownKeyError",
    "add_ctvis_config",
    "add_dvis_config",
    "add_genvis_config",
    "add_lbvq_config",
    "add_mask2former_vis_config",
    "add_maskformer2_config",
    "add_maskformer2_video_config",
    "add_minvis_config",
    "add_ovformer_config",
    "add_pmt_config",
    "add_refine_config",
    "add_videomt_config",
    "add_visage_config",
    "add_vita_config",
    "add_vmt_config",
    "get_cfg",
]


def get_cfg() -> CfgNode:
    """Return a new configuration with the keys of every method at their published defaults."""
    cfg = CfgNode(DEFAULTS)
    add_maskformer2_config(cfg)
    for add_config in (
        add_lbvq_config,
        add_vita_config,
        add_genvis_config,
        add_minvis_config,
        add_mask2former_vis_config,
        add_visage_config,
        add_ovformer_config,
        add_vmt_config,
        add_videomt_config,
        add_pmt_config,
        add_ctvis_config,
        add_dvis_config,
        add_refine_config,
    ):
        add_config(cfg)
    for group in IGNORED_GROUPS:
        cfg.register_ignored_group(group)
    register_unused_keys(cfg)
    return cfg
