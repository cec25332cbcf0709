"""Our YAML files: each loads, and those with a published counterpart merge to the published tree."""

from __future__ import annotations

import pytest
import yaml
from helpers import CONFIGS, recorded

from lbvq.config import get_cfg
from lbvq.config.defaults import IGNORED_GROUPS
from lbvq.config.node import dotted_leaves

FILES = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml"))
LEAVES = [name for name in FILES if not name.startswith("_base_/")]

PUBLISHED = recorded("configs")


def published_files() -> dict[str, str]:
    """Our file: published file. Base files and second copies have no counterpart."""
    pairs = {}
    for name in PUBLISHED["changes"]:
        repository, *folders, file = name.split("__")
        if file.startswith("Base-") or (repository, folders[0]) == ("GenVIS", "vita"):
            continue
        folders = folders[1:] if repository == "GenVIS" else folders
        pairs["/".join([*folders, file]) + ".yaml"] = name
    return pairs


COUNTERPARTS = published_files()
DIFFERENCES: dict[str, dict[str, object]] = {  # our file: {key: our value}
    # the published file starts a ResNet-101 from the weights of a ResNet-50
    "coco/vita_R101_bs16_50ep.yaml": {"MODEL.WEIGHTS": "detectron2://ImageNetPretrained/torchvision/R-101.pkl"},
}


def without_effect(published: str, key: str) -> bool:
    """True for keys that our shared bases set and nothing reads in OVFormer, whose backbones are timm's and Swin."""
    return published.startswith("OVFormer__") and (
        key.startswith("MODEL.RESNETS.") or key in ("MODEL.MASK_ON", "MODEL.BACKBONE.FREEZE_AT")
    )


@pytest.mark.parametrize("name", FILES)
def test_the_file_loads_and_sets_only_known_keys(name):
    cfg = get_cfg()
    cfg.merge_from_file(str(CONFIGS / name))
    cfg.freeze()
    assert name.startswith("_base_/") or cfg.MODEL.META_ARCHITECTURE != get_cfg().MODEL.META_ARCHITECTURE


@pytest.mark.parametrize("name", LEAVES)
def test_the_file_sets_no_key_that_would_be_ignored(name, caplog):
    get_cfg().merge_from_file(str(CONFIGS / name))
    assert caplog.text == ""


def test_every_published_file_has_its_place():
    assert len(COUNTERPARTS) >= 76
    assert set(COUNTERPARTS) <= set(LEAVES)


@pytest.mark.parametrize("name", sorted(COUNTERPARTS))
def test_the_file_merges_to_the_published_tree(name):
    cfg = get_cfg()
    cfg.merge_from_file(str(CONFIGS / name))
    ours = dotted_leaves(yaml.safe_load(cfg.dump()))
    published = COUNTERPARTS[name]
    want = {**PUBLISHED["defaults"][published.split("__")[0]], **PUBLISHED["changes"][published]}
    left_out = tuple(f"{group}." for group in IGNORED_GROUPS)
    want = {
        key: value for key, value in want.items() if not key.startswith(left_out) and not without_effect(published, key)
    }
    assert {key: ours[key] for key in want} == {**want, **DIFFERENCES.get(name, {})}
