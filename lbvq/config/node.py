"""The configuration node: attribute access, `_BASE_` files, and a merge that checks names and types.

It derives from `fvcore.common.config.CfgNode`, so detectron2 accepts our configuration and we accept detectron2's.
What differs from fvcore: YAML is only ever loaded safely, a merge either happens completely or not at all, an unknown
key is answered with the nearest known one and the file it was found in, and a few harmless conversions are made.
"""

from __future__ import annotations

import ast
import copy
import difflib
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from fvcore.common.config import CfgNode as FvcoreCfgNode

from lbvq.config.yaml_files import BASE_KEY, load_yaml_with_bases

logger = logging.getLogger(__name__)

LEAF_TYPES = (tuple, list, str, int, float, bool, type(None))
VERSION = 2

_UNUSED_KEYS = "__unused_keys__"  # beside yacs' own "__deprecated_keys__" in the node's __dict__


class UnknownKeyError(KeyError):
    """A key that the configuration does not have. Unlike `KeyError`, its text is printed without quotes."""

    def __str__(self) -> str:
        return str(self.args[0])


class CfgNode(FvcoreCfgNode):
    """A group of configuration keys; see the module text for what it adds to fvcore's node."""

    # -- merging -----------------------------------------------------------------------------------------------------

    def merge_from_file(self, cfg_filename: str) -> None:
        """Merge a YAML file, its bases first. `VERSION` must be 2."""
        tree, origins = load_yaml_with_bases(cfg_filename)
        version = tree.get("VERSION")
        if version is None and "VERSION" in self:
            logger.warning("%s has no VERSION; it is read as version %d.", cfg_filename, VERSION)
        elif version is not None and decode(version) != VERSION:
            raise ValueError(f"{cfg_filename} has VERSION {version}; only version {VERSION} is understood.")
        self._merge(tree, origins, f"in {cfg_filename}")

    def merge_from_other_cfg(self, cfg_other: Mapping[str, Any]) -> None:
        """Merge another node or a plain nested dict."""
        self._merge(cfg_other, {}, "in the merged configuration")

    def merge_from_list(self, cfg_list: Sequence[Any]) -> None:
        """Merge `["KEY.NAME", value, ...]` or `["KEY.NAME=value", ...]`, as given on a command line."""
        changes = []
        for dotted, value in setting_pairs(cfg_list):
            for part in reversed(dotted.split(".")):
                value = {part: value}
            changes += self._plan(value, {}, "on the command line or in the list of settings")
        self._apply(changes)

    def _merge(self, tree: Mapping[str, Any], origins: Mapping[str, str], where: str) -> None:
        self._apply(self._plan(tree, origins, where))

    def _plan(self, tree: Mapping[str, Any], origins: Mapping[str, str], where: str) -> list[tuple]:
        """Check the whole tree and return the assignments (node, key, value, dotted key) it asks for."""
        if BASE_KEY in tree:
            raise UnknownKeyError(f"{BASE_KEY} may only be used in files.")
        changes: list[tuple] = []
        ignored: list[str] = []

        def source(key: str) -> str:
            return f"in {origins[key]}" if key in origins else where

        self._plan_group(self, tree, "", source, changes, ignored)
        if ignored:
            logger.warning("Keys of detectron2 parts that do not exist here are ignored: %s.", ", ".join(ignored))
        return changes

    def _plan_group(
        self,
        node: CfgNode,
        tree: Mapping[str, Any],
        prefix: str,
        source: Callable[[str], str],
        changes: list[tuple],
        ignored: list[str],
    ) -> None:
        for key, raw in tree.items():
            dotted = f"{prefix}{key}"
            if dotted in self.__dict__[FvcoreCfgNode.DEPRECATED_KEYS]:
                ignored.append(dotted)
                continue
            if self.key_is_renamed(dotted):
                self.raise_key_rename_error(dotted)
            value = decode(raw)
            if key not in node:
                if not node.is_new_allowed():
                    deepest = next(iter(dotted_leaves({key: value})), key)
                    raise UnknownKeyError(self._unknown_key_text(prefix + deepest, source(dotted)))
                new = type(node)(value) if isinstance(value, Mapping) else copy.deepcopy(value)
                changes.append((node, key, new, dotted))
            elif isinstance(node[key], Mapping):
                if not isinstance(value, Mapping):
                    raise ValueError(f"{dotted} is a group of keys, got the single value {value!r} {source(dotted)}.")
                self._plan_group(node[key], value, f"{dotted}.", source, changes, ignored)
            else:
                changes.append((node, key, convert(value, node[key], dotted, source(dotted)), dotted))

    def _apply(self, changes: Iterable[tuple]) -> None:
        if self.is_frozen():
            raise AttributeError("The configuration is frozen; call defrost() before merging.")
        for node, key, value, dotted in changes:
            self._warn_if_unused(dotted, value, node.get(key))
            node[key] = value

    def _unknown_key_text(self, dotted: str, where: str) -> str:
        known = list(dotted_leaves(self))
        text = f"There is no configuration key {dotted} ({where})."
        near = difflib.get_close_matches(dotted, known, n=1, cutoff=0.6)
        if not near:  # the right name in the wrong group
            leaf = dotted.rsplit(".", 1)[-1]
            near = [key for key in known if key.rsplit(".", 1)[-1] == leaf][:1]
        return f"{text} The nearest one is {near[0]}." if near else text

    # -- keys without effect -----------------------------------------------------------------------------------------

    def register_ignored_group(self, dotted: str) -> None:
        """Let merges skip `dotted` and everything below it, with one warning for all skipped groups."""
        self.register_deprecated_key(dotted)

    def register_unused_key(self, dotted: str, reason: str, quiet_values: Sequence[Any] = ()) -> None:
        """Say `reason` when a merge sets `dotted`, which nothing reads, to a new value not among `quiet_values`."""
        self.__dict__.setdefault(_UNUSED_KEYS, {})[dotted] = (reason, tuple(quiet_values))

    def unused_keys(self) -> dict[str, str]:
        """Registered keys that nothing reads, with the reason."""
        return {key: reason for key, (reason, _) in self.__dict__.get(_UNUSED_KEYS, {}).items()}

    def _warn_if_unused(self, dotted: str, value: Any, old: Any) -> None:
        reason, quiet_values = self.__dict__.get(_UNUSED_KEYS, {}).get(dotted, ("", ()))
        if reason and value != old and value not in quiet_values:
            logger.warning("%s = %r has no effect: %s.", dotted, value, reason)

    # -- ways to run code from a file that the base classes offer ----------------------------------------------------

    @classmethod
    def load_yaml_with_base(cls, filename: str, allow_unsafe: bool = False) -> dict[str, Any]:
        """Return the plain merged tree of a YAML file and its bases; unsafe loading is refused."""
        if allow_unsafe:
            raise ValueError("YAML that builds Python objects is not supported; load the file with allow_unsafe=False.")
        return load_yaml_with_bases(filename)[0]

    @classmethod
    def _load_cfg_py_source(cls, filename: str) -> CfgNode:
        raise ValueError(f"{filename} is Python code; configurations are YAML files only.")


def setting_pairs(words: Sequence[Any]) -> list[tuple[str, Any]]:
    """Split settings into (key, value): `KEY VALUE` and `KEY=VALUE`, in any mixture."""
    pairs: list[tuple[str, Any]] = []
    rest = iter(words)
    for word in rest:
        text = str(word)
        key, equals, value = text.partition("=")
        if equals and re.fullmatch(r"\w+(\.\w+)*", key):
            pairs.append((key, value))
            continue
        if text.startswith("-"):
            raise ValueError(f"{text} stands among the settings; options go before the first KEY VALUE.")
        following = list(islice(rest, 1))
        if not following:
            raise ValueError(f"Settings come in pairs KEY VALUE or as KEY=VALUE; {text} has no value.")
        pairs.append((text, following[0]))
    return pairs


def decode(value: Any) -> Any:
    """Read a string as a Python literal when it is one: "(360, 480)" -> tuple, "1e-4" -> float; else keep it."""
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return value


def convert(value: Any, old: Any, dotted: str, where: str) -> Any:
    """Return `value` in the type of `old`, the value it replaces, or raise ValueError.

    Accepted are: the same type, None on either side, list for tuple and back, int for float, "true"/"false" for a bool,
    and a single string or number for a tuple.
    """
    kind = type(old)
    if type(value) not in LEAF_TYPES:
        raise ValueError(f"{dotted} cannot hold a {type(value).__name__}, got {value!r} {where}.")
    if value is None or old is None or type(value) is kind:
        return copy.deepcopy(value)
    if kind is float and type(value) is int:
        return _as_float(value, dotted, where)
    if kind is bool and isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if kind in (tuple, list) and isinstance(value, (tuple, list)):
        return kind(copy.deepcopy(value))
    if kind is tuple and type(value) in (str, int, float):
        if isinstance(value, str) and any(mark in value for mark in "()[],"):
            raise ValueError(f"{dotted} expects a tuple such as ('a', 'b'), got the text {value!r} {where}.")
        return (value,)
    raise ValueError(f"{dotted} expects {kind.__name__} (now {old!r}), got {type(value).__name__} {value!r} {where}.")


def _as_float(value: int, dotted: str, where: str) -> float:
    try:
        return float(value)
    except OverflowError as error:
        raise ValueError(f"{dotted} cannot hold a number so large {where}.") from error


def dotted_leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested groups: {"MODEL": {"DEVICE": "cpu"}} -> {"MODEL.DEVICE": "cpu"}."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            leaves.update(dotted_leaves(value, f"{prefix}{key}."))
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves
