"""Read a YAML configuration file together with the files named in its `_BASE_`.

Only `yaml.safe_load`-like parsing is used: a Python tag in a file is an error, never executed. What a file can ask for
is bounded: its bytes, its values after aliases are put in, and every base is read once however often it is named.
"""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import yaml

BASE_KEY = "_BASE_"
MAX_BYTES = 1 << 19
MAX_DEPTH = 60
MAX_VALUES = 200_000  # keys and values of one file, those that aliases repeat included

logger = logging.getLogger(__name__)

Loaded = tuple[dict[str, Any], dict[str, str]]  # tree, origins


def load_yaml_with_bases(filename: str | Path) -> Loaded:
    """Load `filename` on top of its bases.

    `_BASE_` is a path or a list of paths: absolute, starting with `~`, or relative to the file that names it. Bases are
    merged in order, later ones win, and the file itself wins over all of them.

    Returns:
        The merged tree without `_BASE_`, and for every dotted key of it the file that had the last word.
    """
    try:
        return _load(Path(filename).expanduser(), (), {})
    except RecursionError as error:
        raise ValueError(f"{filename} is nested too deeply, or its {BASE_KEY} are.") from error


def _load(path: Path, named_by: tuple[Path, ...], done: dict[Path, Loaded]) -> Loaded:
    resolved = path.resolve()
    if resolved in named_by:
        chain = " -> ".join(str(p) for p in (*named_by, resolved))
        raise ValueError(f"{BASE_KEY} goes in a circle: {chain}")
    if resolved in done:
        return done[resolved]
    if not path.is_file():
        hint = f", named as {BASE_KEY} in {named_by[-1]}" if named_by else ""
        raise FileNotFoundError(f"No configuration file at {path}{hint}.")
    own = _read(path)
    tree: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for base in _base_paths(own.pop(BASE_KEY, []), path):
        base_tree, base_origins = _load(base, (*named_by, resolved), done)
        _overlay(tree, base_tree, origins, base_origins)
    _overlay(tree, own, origins, dict.fromkeys(_dotted_keys(own), str(path)))
    done[resolved] = tree, origins
    return tree, origins


def _read(path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ValueError(f"{path} has {size} bytes; a configuration file has at most {MAX_BYTES}.")
    try:
        tree = _parse(path)
    except yaml.constructor.ConstructorError as error:
        raise ValueError(
            f"{path} holds a YAML tag that builds Python objects ({error.problem}); only plain values are allowed."
        ) from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deeply.") from error
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:  # `!!bool x`, 2001-99-99
        raise ValueError(f"{path} holds a value that is none of its kind: {error}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ValueError(f"{path} must hold a mapping of keys to values, got {type(tree).__name__}.")
    return tree


def _parse(path: Path) -> Any:
    loader = _SafeLoader(path.read_bytes())  # bytes: the text may be UTF-8 or UTF-16, with or without a mark
    loader.name = str(path)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        values = _count_values(node, {}, set())
        if values > MAX_VALUES:
            raise ValueError(f"its aliases (*name) repeat values until there are {values}, more than {MAX_VALUES}")
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _count_values(node: yaml.Node, known: dict[int, int], above: set[int]) -> int:
    """Values of a node when every alias is replaced by what it stands for."""
    if id(node) in above:
        raise ValueError(f"an alias stands inside of what it names (line {node.start_mark.line + 1})")
    if id(node) not in known:
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        children = [child for part in parts for child in (part if isinstance(part, tuple) else (part,))]
        inside = above | {id(node)} if children else above
        known[id(node)] = 1 + sum(_count_values(child, known, inside) for child in children)
    return known[id(node)]


def _base_paths(bases: Any, path: Path) -> list[Path]:
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ValueError(f"{BASE_KEY} in {path} must be a path or a list of paths, got {bases!r}.")
    for base in bases:
        if "://" in base:
            raise ValueError(f"{BASE_KEY} in {path} is an address ({base}); download the file and give its path.")
    return [path.parent / Path(base).expanduser() for base in bases]  # an absolute path replaces the parent


def _overlay(
    under: dict[str, Any], over: dict[str, Any], origins: dict[str, str], over_origins: dict[str, str], prefix: str = ""
) -> None:
    """Merge `over` into `under` in place: mappings recursively, anything else replaces."""
    for key, value in over.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, dict) and isinstance(under.get(key), dict):
            _overlay(under[key], value, origins, over_origins, f"{dotted}.")
            continue
        if isinstance(value, dict) and under.get(key) is not None:
            raise ValueError(
                f"{dotted} is a group of keys in {over_origins.get(dotted)} "
                f"but the single value {under[key]!r} in {origins.get(dotted)}."
            )
        under[key] = copy.deepcopy(value)  # a base may be laid under several files
        for name in (dotted, *_dotted_keys(value, f"{dotted}.")):
            origins[name] = over_origins[name]


def _dotted_keys(tree: Any, prefix: str = "") -> list[str]:
    """Every key of a nested mapping, groups included."""
    keys: list[str] = []
    for key, value in tree.items() if isinstance(tree, dict) else ():
        keys += [f"{prefix}{key}", *_dotted_keys(value, f"{prefix}{key}.")]
    return keys


class _SafeLoader(yaml.SafeLoader):
    """`yaml.SafeLoader` with an end to its depth, and a warning where a key is written twice: YAML drops the first."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise RecursionError
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue
            if key_node.value in seen:
                place = f"{key_node.start_mark.name}, line {key_node.start_mark.line + 1}"
                logger.warning("%s: %s is written twice; the last one is used.", place, key_node.value)
            seen.add(key_node.value)
        return super().construct_mapping(node, deep=deep)
