"""What programs put before the names of a model's tensors: data-parallel training, `torch.compile`, Lightning.

One file may hold a model several times, as the weights and their moving average: then the names tell them apart.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Container, Iterable
from typing import TypeVar

Value = TypeVar("Value")

WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")  # anywhere in a name
MAX_DEPTH = 6  # of a prefix
_AVERAGE = re.compile(r"(?:^|[._])(?:ema|swa|averaged?|teacher)(?:[._]|$)")


def is_average(key: str) -> bool:
    """Whether the name of a set of weights says that it is a moving average of others."""
    return bool(_AVERAGE.search(key))


def without_wrappers(tensors: OrderedDict[str, Value], own: Iterable[str]) -> OrderedDict[str, Value]:
    """Drop the parts that wrappers around modules add, "module" too unless the model has such a part itself."""
    unwanted = {*WRAPPERS}
    if not any("module" in name.split(".") for name in own):
        unwanted.add("module")

    def plain(name: str) -> str:
        return ".".join(part for part in name.split(".") if part not in unwanted)

    if all(plain(name) == name for name in tensors):
        return tensors
    return _renamed(tensors, plain)


def shared_prefixes(names: Iterable[str]) -> list[str]:
    """ "" and every prefix that all names with a dot have, shortest first: ["", "model.", "model.net."].

    Every name keeps its module and its leaf. A name without a dot stands beside the model and does not count, as a
    counter of averages does.
    """
    split = [name.split(".") for name in names if "." in name]
    prefixes = [""]
    while split and all(len(parts) > len(prefixes) + 1 for parts in split) and len(prefixes) <= MAX_DEPTH:
        first = split[0][: len(prefixes)]
        if not all(parts[: len(prefixes)] == first for parts in split):
            break
        prefixes.append(".".join(first) + ".")
    return prefixes


def find_prefix(names: Iterable[str], own: Container[str]) -> tuple[str, list[str]]:
    """The prefix under which most names of a file are names of the model, and others that hold the model once more.

    Weights are preferred to their average, then the shorter prefix; ("", []) when no name fits.
    """
    found: dict[str, set[str]] = {}
    for name in names:
        parts = name.split(".")
        for depth in range(min(len(parts), MAX_DEPTH + 1)):
            if ".".join(parts[depth:]) in own:
                prefix = "".join(f"{part}." for part in parts[:depth])
                found.setdefault(prefix, set()).add(name)
    if not found:
        return "", []
    most = max(map(len, found.values()))
    whole = [prefix for prefix, fitting in found.items() if 2 * len(fitting) > most]
    best = max(whole, key=lambda prefix: (not is_average(prefix), len(found[prefix]), -prefix.count(".")))
    return best, [prefix for prefix in whole if prefix and not found[prefix] & found[best]]


def strip_prefix(tensors: OrderedDict[str, Value], prefix: str, dropped: Iterable[str] = ()) -> OrderedDict[str, Value]:
    """Remove `prefix` where a name has it, in the `_metadata` too, and leave out names that begin with `dropped`.

    A name that would then be there twice keeps what stands behind the prefix; the other one is marked.
    """
    dropped = tuple(dropped)
    if not prefix and not dropped:
        return tensors
    taken = {name.removeprefix(prefix) for name in tensors if prefix and name.startswith(prefix)}

    def rename(name: str) -> str | None:
        if dropped and name.startswith(dropped):
            return None
        if prefix and name.startswith(prefix):
            return name.removeprefix(prefix)
        return f"{name} (not under {prefix})" if name in taken else name

    return _renamed(tensors, rename)


def split_flat_average(tensors: OrderedDict[str, Value]) -> OrderedDict[str, Value]:
    """Names of averages as mmcv writes them, "ema_backbone_conv_weight", as "ema.backbone.conv.weight"."""
    flat = {f"ema_{name.replace('.', '_')}": f"ema.{name}" for name in tensors if not name.startswith("ema_")}
    if sum(name in flat for name in tensors) < 2:
        return tensors
    return _renamed(tensors, lambda name: flat.get(name, name))


def _renamed(tensors: OrderedDict[str, Value], rename: Callable[[str], str | None]) -> OrderedDict[str, Value]:
    """The same tensors under other names, None leaves one out; the names of modules in `_metadata` follow."""
    pairs = ((rename(name), value) for name, value in tensors.items())
    result = OrderedDict((name, value) for name, value in pairs if name is not None)
    metadata = getattr(tensors, "_metadata", None)
    if metadata is not None:
        modules = ((rename(f"{module}.x" if module else "x"), value) for module, value in metadata.items())
        kept = ((name.removesuffix("x").removesuffix("."), value) for name, value in modules if name is not None)
        result._metadata = OrderedDict(kept)  # type: ignore[attr-defined]
    return result
