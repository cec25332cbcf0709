"""Our YAML files: each loads, and those with a published counterpart merge to the published tree."""

from __future__ import annotations

import pytest
import yaml
from helpers import CONFIGS, recorded

from lbvq.config import get_cfg
from lbvq.config.defaults import IGNORED_GROUPS
from lbvq.config.node import dotted_leaves
from lbvq.config.unused import UNUSED_KEYS

FILES = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml"))
LEAVES = [name for name in FILES if not name.startswith("_base_/")]

PUBLISHED = recorded("configs")


OUR_FOLDERS = {
    **{"ytvis19": "youtubevis_2019", "ytvis21": "youtubevis_2021", "ytvis22": "youtubevis_2022"},
    **{"ytvis_2019": "youtubevis_2019", "ytvis_2021": "youtubevis_2021"},
}


def published_files() -> dict[str, str]:
    """Our file: published file. Base files and second copies have no counterpart."""
    pairs = {}
    for name in PUBLISHED["changes"]:
        repository, *folders, file = name.split("__")
        if file.startswith("Base") or (repository, folders[0]) == ("GenVIS", "vita"):
            continue
        if repository == "DVIS_Plus":  # its names are those of other repositories, so it keeps its folders
            pairs["/".join(["dvis_Plus", *folders, file]) + ".yaml"] = name
            continue
        folders = folders[1:] if repository == "GenVIS" else folders
        folders = [OUR_FOLDERS.get(folder, folder) for folder in folders if not folder.startswith("vit-")]
        pairs["/".join([*folders, file]) + ".yaml"] = name
    return pairs


COUNTERPARTS = published_files()
DIFFERENCES: dict[str, dict[str, object]] = {  # our file: {key: our value}
    # the published file starts a ResNet-101 from the weights of a ResNet-50
    "coco/vita_R101_bs16_50ep.yaml": {"MODEL.WEIGHTS": "detectron2://ImageNetPretrained/torchvision/R-101.pkl"},
}


def without_effect(published: str, key: str) -> bool:
    """True for keys that nothing reads in a method, whatever the published file or our shared bases set them to.

    OVFormer's backbones are timm's and Swin; VidEoMT and PMT are plain ViTs, start from weights that the published
    files do not name, and follow a schedule of their own, which the published files do not name either.
    """
    if published.startswith(("videomt__", "pmt__")):
        groups = ("MODEL.RESNETS.", "MODEL.SEM_SEG_HEAD.", "SOLVER.WARMUP_")
        named = ("MODEL.WEIGHTS", "OUTPUT_DIR", "SOLVER.LR_SCHEDULER_NAME", "SOLVER.STEPS", "MODEL.BACKBONE.HIDDEN_DIM")
        is_pmt_width = published.startswith("pmt__") and key == "MODEL.BACKBONE.HIDDEN_DIM"
        return (key.startswith(groups) or key in (*UNUSED_KEYS, *named)) and not is_pmt_width
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
