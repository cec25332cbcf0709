"""docs/deviations.md names every key that brings published behaviour back, and no key that does not exist."""

from __future__ import annotations

import re

import pytest
from helpers import ROOT

from lbvq.config import get_cfg
from lbvq.config.node import dotted_leaves

PAGE = (ROOT / "docs" / "deviations.md").read_text(encoding="utf-8")
SETTINGS = re.findall(r"`((?:[A-Z][A-Z0-9_]*\.)+[A-Z][A-Z0-9_]*)(?: ([^`]+))?`", PAGE)
KEYS = dotted_leaves(get_cfg())


def keys_with_a_published_side() -> set[str]:
    """Last part of every key whose comment in the configuration says what is published and what is not."""
    found = set()
    for name in ("methods.py", "tracking.py"):
        for line in (ROOT / "lbvq" / "config" / name).read_text(encoding="utf-8").splitlines():
            key = re.match(r'\s*"([A-Z_]+)": .*#.*\bas published\b', line)
            if key:
                found.add(key[1])
    return found - {"BACKBONE"}  # a group


def test_the_configuration_has_such_keys():
    assert len(keys_with_a_published_side()) >= 15


@pytest.mark.parametrize("leaf", sorted(keys_with_a_published_side()))
def test_every_key_that_restores_published_behaviour_is_on_the_page(leaf):
    assert leaf in {key.rpartition(".")[2] for key, _ in SETTINGS}


@pytest.mark.parametrize("key, value", sorted(set(SETTINGS)))
def test_every_key_on_the_page_exists_and_takes_the_value(key, value):
    groups = {".".join(leaf.split(".")[:depth]) for leaf in KEYS for depth in range(1, leaf.count(".") + 1)}
    assert key in KEYS or key in groups
    if value:
        cfg = get_cfg()
        cfg.merge_from_list([key, value])


def test_deviations_of_training_are_the_defaults():
    """What the page calls published is not what is set; what it calls kept is."""
    restored = PAGE[PAGE.index("## Training") : PAGE.index("Odd behaviour")]
    corrected = PAGE[PAGE.index("Odd behaviour") : PAGE.index("## Evaluation")]
    for part in (restored, corrected):
        for key, value in re.findall(r"`(MODEL\.[\w.]+) (True|False|random)` \|", part):
            assert str(KEYS[key]) != value, f"{key} is {value} already"
