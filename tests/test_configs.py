"""Our YAML files: each loads, and those with a published counterpart merge to the published tree."""

from __future__ import annotations

import gzip
import json

import pytest
import yaml
from helpers import CONFIGS, GOLDEN

from lbvq.config import get_cfg
from lbvq.config.defaults import IGNORED_GROUPS
from lbvq.config.node import dotted_leaves

FILES = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml"))
LEAVES = [name for name in FILES if not name.startswith("_base_/")]

with gzip.open(GOLDEN / "configs.json.gz", "rt") as golden_file:
    PUBLISHED = json.load(golden_file)

# our file: published file. Differences on purpose are in DIFFERENCES.
COUNTERPARTS = {
    f"{folder}/{name}.yaml": f"LBVQ__{folder}__{name}"
    for folder, name in (
        ("youtubevis_2019", "lbvq_R50_bs8"),
        ("youtubevis_2019", "lbvq_R101_bs8"),
        ("youtubevis_2021", "lbvq_R50_bs8"),
        ("youtubevis_2022", "lbvq_R50_bs8"),
        ("ovis", "lbvq_R50_bs8"),
    )
}
DIFFERENCES: dict[str, dict[str, object]] = {}  # our file: {key: our value}


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


@pytest.mark.parametrize("name", sorted(COUNTERPARTS))
def test_the_file_merges_to_the_published_tree(name):
    cfg = get_cfg()
    cfg.merge_from_file(str(CONFIGS / name))
    ours = dotted_leaves(yaml.safe_load(cfg.dump()))
    published = COUNTERPARTS[name]
    want = {**PUBLISHED["defaults"][published.split("__")[0]], **PUBLISHED["changes"][published]}
    want = {key: value for key, value in want.items() if not key.startswith(tuple(f"{g}." for g in IGNORED_GROUPS))}
    assert {key: ours[key] for key in want} == {**want, **DIFFERENCES.get(name, {})}
