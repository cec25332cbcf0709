"""Published configuration trees and files, merged with our schema, give what the published code gives.

`golden/configs*.json.gz` hold the published key trees before any YAML, and for each published YAML file what it
changes; see `origin` in the files.
"""

from __future__ import annotations

import logging

import pytest
import yaml
from helpers import recorded

import lbvq
from lbvq.config import CfgNode, get_cfg, methods
from lbvq.config.defaults import IGNORED_GROUPS
from lbvq.config.node import dotted_leaves
from mask2former.config import add_maskformer2_config

PUBLISHED = recorded("configs")
METHODS = ("lbvq", "vita", "genvis", "minvis", "mask2former_vis", "visage", "ovformer", "vmt", "videomt", "pmt")

TUPLES = {  # keys that are tuples in the published tree; every other sequence is a list
    "DATASETS.PROPOSAL_FILES_TEST",
    "DATASETS.PROPOSAL_FILES_TRAIN",
    "DATASETS.REGISTER",  # ours, beside the lists of names
    "DATASETS.TEST",
    "DATASETS.TRAIN",
    "INPUT.MIN_SIZE_TRAIN",
    "INPUT.PSEUDO.CROP.SIZE",
    "INPUT.PSEUDO.MIN_SIZE_TRAIN",
    "MODEL.TIMM.OUT_LEVELS",
    "SOLVER.STEPS",
    "SOLVER.WARMUP_STEPS",  # there one number or a list
    "TEST.AUG.MIN_SIZES",
}

OTHER_DEFAULTS = {  # keys whose defaults differ from repository to repository; our files set them
    "videomt": {"DATASETS.DATASET_RATIO", "MODEL.BACKBONE.NAME", "SEED"},
    "pmt": {"DATASETS.DATASET_RATIO", "MODEL.BACKBONE.NAME", "SEED", "SOLVER.WARMUP_STEPS"},
    "CTVIS": {
        *("DATASETS.DATASET_RATIO", "INPUT.PSEUDO.MIN_SIZE_TRAIN", "INPUT.SAMPLING_FRAME_RANGE"),
        "MODEL.CL_PLUGIN.CL_PLUGIN_NAME",  # published is a name that does not exist
    },
    "DVIS": {"DATASETS.DATASET_RATIO", "SEED"},
    "DVIS_Plus": {"DATASETS.DATASET_RATIO", "SEED"},
}


def covered(leaves: dict) -> dict:
    """Drop the parts of detectron2's tree that are left out here."""
    return {key: value for key, value in leaves.items() if not key.startswith(tuple(f"{g}." for g in IGNORED_GROUPS))}


def plain(cfg: CfgNode) -> dict:
    return dotted_leaves(yaml.safe_load(cfg.dump()))


def nested(leaves: dict) -> dict:
    tree: dict = {}
    for key, value in leaves.items():
        *groups, name = key.split(".")
        node = tree
        for group in groups:
            node = node.setdefault(group, {})
        node[name] = value
    return tree


@pytest.mark.parametrize("repository", sorted(PUBLISHED["defaults"]))
def test_defaults_equal_the_published_tree(repository):
    ours = plain(get_cfg())
    want = covered(PUBLISHED["defaults"][repository])
    want = {key: value for key, value in want.items() if key not in OTHER_DEFAULTS.get(repository, ())}
    assert {key: ours.get(key, "missing") for key in want} == want
    assert {key: type(ours[key]) for key in want} == {key: type(value) for key, value in want.items()}


def test_tuple_keys_are_tuples_and_all_others_lists():
    leaves = dotted_leaves(get_cfg())
    assert {key for key, value in leaves.items() if isinstance(value, tuple)} == TUPLES


@pytest.mark.parametrize("name", sorted(PUBLISHED["changes"]))
def test_a_published_file_merges_to_the_published_tree(name, tmp_path):
    """The file is written as published ones are: one `_BASE_`, tuples as text, small numbers as 1e-05."""
    repository, *folders, _ = name.split("__")
    changes = PUBLISHED["changes"][name]
    text = {key: str(tuple(value)) if key in TUPLES else value for key, value in covered(changes).items()}
    half = len(text) // 2
    (tmp_path / "Base.yaml").write_text(yaml.safe_dump(nested({"VERSION": 2, **dict(list(text.items())[:half])})))
    leaf = tmp_path / "leaf.yaml"
    leaf.write_text(yaml.safe_dump({"_BASE_": "Base.yaml", **nested(dict(list(text.items())[half:]))}))
    cfg = get_cfg()
    cfg.merge_from_file(str(leaf))
    ours = plain(cfg)
    published = PUBLISHED["defaults"][
        "OVFormer_video" if repository == "OVFormer" and folders[-1:] == ["lvvis"] else repository
    ]
    published = {key: value for key, value in published.items() if key not in OTHER_DEFAULTS.get(repository, ())}
    want = covered({**published, **changes})
    assert {key: ours[key] for key in want} == want


@pytest.mark.parametrize("name", sorted(PUBLISHED["changes"]))
def test_a_published_file_causes_no_warning_about_unused_keys(name, caplog):
    cfg = get_cfg()
    cfg.merge_from_other_cfg(nested(covered(PUBLISHED["changes"][name])))
    assert caplog.text == ""


def test_a_complete_published_dump_loads_and_names_what_it_ignores(tmp_path, caplog):
    """config.yaml of a published run holds the groups of box detectors too."""
    tree = nested(PUBLISHED["defaults"]["LBVQ"])
    tree["MODEL"]["RPN"] = {"HEAD_NAME": "StandardRPNHead"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    cfg = get_cfg()
    cfg.merge_from_file(str(tmp_path / "config.yaml"))
    assert cfg == get_cfg()
    assert len(caplog.records) == 1 and "MODEL.RPN" in caplog.text and "MODEL.FPN" in caplog.text


class Detectron2CfgNode(CfgNode.__mro__[1]):
    """Stands in for detectron2's node, which derives from fvcore's as well."""


@pytest.mark.parametrize("method", METHODS)
def test_method_keys_can_be_added_to_a_detectron2_configuration(method, tmp_path):
    cfg = Detectron2CfgNode(nested({**detectron2_leaves(), "MODEL.RPN.HEAD_NAME": "StandardRPNHead"}))
    add_maskformer2_config(cfg)
    getattr(methods, f"add_{method}_config")(cfg)
    nodes = [cfg]
    for node in nodes:
        assert type(node) is Detectron2CfgNode
        nodes += [child for child in node.values() if isinstance(child, dict)]
    whole = dotted_leaves(get_cfg())
    assert all(whole[key] == value for key, value in dotted_leaves(cfg).items() if key in whole)
    groups = {"minvis": "MASK_FORMER", "visage": "APPEARANCE_DECODER", "ovformer": "MASK_FORMER"}
    groups |= {"videomt": "VIT", "pmt": "VIT"}
    group = groups.get(method, method.upper())
    assert group in cfg.MODEL
    (tmp_path / "a.yaml").write_text(f"VERSION: 2\nTEST: {{AMP: {{ENABLED: false}}}}\nMODEL: {{{group}: {{}}}}\n")
    cfg.merge_from_file(str(tmp_path / "a.yaml"))
    assert cfg.TEST.AMP.ENABLED is False


def detectron2_leaves() -> dict:
    """The published tree without the keys that the methods' adders bring."""
    common = set.intersection(*(set(tree) for tree in PUBLISHED["defaults"].values()))
    added = ("MASK_FORMER", "SWIN", "SAMPLING_", "DATASET_MAPPER", "COLOR_AUG", "ASPP", "PROJECT_", "PIXEL_DECODER")
    leaves = {k: v for k, v in PUBLISHED["defaults"]["LBVQ"].items() if k in common and not any(a in k for a in added)}
    return {key: tuple(value) if key in TUPLES else value for key, value in leaves.items()}


def test_adding_a_method_again_changes_nothing():
    cfg = get_cfg()
    cfg.merge_from_list(["MODEL.LBVQ.SIM_WEIGHT", 0.25])
    before = cfg.clone()
    for method in METHODS:
        getattr(methods, f"add_{method}_config")(cfg)
    assert cfg == before


def test_two_configurations_share_nothing():
    one, two = get_cfg(), get_cfg()
    one.MODEL.PIXEL_MEAN.append(1.0)
    one.MODEL.LBVQ.SIM_WEIGHT = 9.0
    assert two == get_cfg() != one
    assert two.MODEL.VITA.SIM_WEIGHT == 0.5


def test_an_unused_key_set_on_the_command_line_is_reported(caplog):
    cfg = lbvq.get_cfg()
    with caplog.at_level(logging.WARNING):
        cfg.merge_from_list(["TEST.AUG.ENABLED", True])
    assert "TEST.AUG.ENABLED = True has no effect" in caplog.text
