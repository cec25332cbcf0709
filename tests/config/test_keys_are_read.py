"""Every key of the schema acts: some source file reads it, or it is listed as unused with the reason."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from helpers import ROOT

import lbvq.modeling  # noqa: F401  registers the methods
from lbvq.config import get_cfg, methods, tracking
from lbvq.config.node import dotted_leaves
from lbvq.config.unused import UNUSED_KEYS
from mask2former.registry import META_ARCH_REGISTRY

METHODS = {  # keys of a method have to be read once its model exists
    "Lbvq": methods.LBVQ,
    "Vita": methods.VITA,
    "Genvis": methods.GENVIS,
    "VideoMaskFormer_frame": methods.MINVIS,
    "VISAGE": methods.VISAGE,
    "OVFormer": methods.OVFORMER,
    "VMT": methods.VMT,
    "videomt_online": methods.VIDEOMT,
    "pmt_online": methods.PMT,
    "CTVISModel": tracking.CTVIS,
    "CTMinVIS": tracking.CONTRASTIVE_SEGMENTER,
    "DVIS_online": tracking.DVIS,
}
LEAVES = dotted_leaves(get_cfg())


def chains(tree: ast.AST) -> set[tuple[str, bool]]:
    """Key paths that a file reads: (dotted path, whether it is known to begin at the root of the configuration).

    `solver = cfg.SOLVER` makes `solver.GAMMA` the path SOLVER.GAMMA; an unknown variable leaves the beginning open.
    """
    aliases: dict[str, set[tuple[str, bool]]] = {"cfg": {("", True)}}
    assignments = [node for node in ast.walk(tree) if isinstance(node, ast.Assign)]
    for _ in range(3):  # aliases of aliases
        for node in assignments:
            pairs = [(target, node.value) for target in node.targets]
            for target, value in pairs:
                if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
                    pairs += zip(target.elts, value.elts, strict=True)
                elif isinstance(target, ast.Name) and isinstance(value, ast.Attribute) and value.attr.isupper():
                    aliases.setdefault(target.id, set()).update(resolve(value, aliases))
    found: set[tuple[str, bool]] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_key(node.attr):
            found |= resolve(node, aliases)
    return found


def is_key(name: str) -> bool:
    return (name.isupper() or name == "maximum_cache") and not name.startswith("_")  # published name


def resolve(node: ast.expr, aliases: dict[str, set[tuple[str, bool]]]) -> set[tuple[str, bool]]:
    names: list[str] = []
    while isinstance(node, ast.Attribute) and is_key(node.attr):
        names.insert(0, node.attr)
        node = node.value
    if isinstance(node, ast.Attribute) and node.attr == "cfg":  # self.cfg
        starts = {("", True)}
    else:
        starts = aliases.get(node.id, {("", False)}) if isinstance(node, ast.Name) else {("", False)}
    return {(".".join([start, *names]).lstrip("."), known) for start, known in starts}


def source_files() -> list[Path]:
    folders = [ROOT / name for name in ("lbvq", "mask2former", "tools", "demo", "datasets")]
    files = [path for folder in folders for path in folder.rglob("*.py")] + [ROOT / "train_net.py"]
    return [path for path in files if path.is_file() and path.parent.name != "config" and path.name != "config.py"]


@pytest.fixture(scope="module")
def found_paths() -> set[tuple[str, bool]]:
    return set().union(*(chains(ast.parse(path.read_text(encoding="utf-8"))) for path in source_files()))


@pytest.fixture(scope="module")
def read_keys(found_paths) -> set[str]:
    found = found_paths
    exact = {path for path, known in found if known}
    open_ends = tuple(f".{path}" for path, known in found if not known)
    return {key for key in LEAVES if key in exact or f".{key}".endswith(open_ends)}


def keys_of_missing_methods() -> set[str]:
    return {key for name, tree in METHODS.items() if name not in META_ARCH_REGISTRY for key in dotted_leaves(tree)}


def test_the_reader_of_sources_follows_names():
    code = "solver = cfg.SOLVER\nsolver.GAMMA\na, b = cfg.MODEL, cfg.TEST\na.DEVICE\nself.cfg.SEED\nx.AMP.ENABLED\n"
    got = chains(ast.parse(code))
    assert {("SOLVER.GAMMA", True), ("MODEL.DEVICE", True), ("SEED", True), ("AMP.ENABLED", False)} <= got
    assert ("GAMMA", False) not in got


def test_every_key_is_read_or_listed_as_unused(read_keys):
    waiting = keys_of_missing_methods()
    unread = set(LEAVES) - read_keys - set(UNUSED_KEYS) - waiting - {"VERSION"}  # VERSION: read by the merge itself
    assert sorted(unread) == []


def test_no_key_listed_as_unused_is_read(read_keys, found_paths):
    """`clip.DEC_LAYERS` is no reading of MODEL.BACKBONE.DEC_LAYERS: keys of that group are read by their whole path."""
    whole = {path for path, known in found_paths if known}
    read = {key for key in read_keys if key in whole or not key.startswith(("MODEL.BACKBONE.", "TEST.TEST_"))}
    assert sorted(read & set(UNUSED_KEYS)) == []


def test_unused_keys_exist_and_have_a_reason():
    assert set(UNUSED_KEYS) <= set(LEAVES)
    assert all(reason for reason, _ in UNUSED_KEYS.values())
    assert get_cfg().unused_keys() == {key: reason for key, (reason, _) in UNUSED_KEYS.items()}
