"""Where the tensors are in what a file holds: under one of several keys, beside the state of a training, or bare."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .name_prefixes import is_average, split_flat_average

STATE_KEYS = ("model", "state_dict", "model_state_dict")  # where programs put the tensors, in order of preference
MAX_DEPTH = 2  # keys above the tensors, as in {"ema": {"module": ...}}
MIN_SHARED = 0.5  # of the names of two sets that hold the same model


@dataclass
class WeightFile:
    """Tensors of a file under the names they have there.

    Attributes:
        path: the local file.
        kind: what the file is, for messages.
        tensors: name to tensor on the CPU; its `_metadata` (module versions) is kept when the file has it.
        suffix_matching: the file asks for names to be matched by their endings.
        caffe2_names: names are those of Caffe2 blobs.
        rest: other content of a checkpoint: iteration, trainer state.
        others: keys under which the file holds the same model again, such as the moving average of its weights.
    """

    path: Path
    kind: str
    tensors: OrderedDict[str, Tensor]
    suffix_matching: bool = False
    caffe2_names: bool = False
    rest: dict[str, Any] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)


def from_content(path: Path, content: Any, kind: str, key: str = "") -> WeightFile:
    """Find the tensors in what a torch file or a pickle holds.

    Args:
        path: for messages.
        content: of the file.
        kind: what the file is.
        key: where the tensors are, "ema.module" for {"ema": {"module": ...}}; "" finds them.
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} must hold a dict of tensors, got {type(content).__name__}.")
    sets = dict(_sets_of_tensors(content))
    key, state = _chosen(path, content, sets, key)
    first = key.split(".")[0]
    rest = {name: value for name, value in content.items() if name != first} if key else {}
    tensors = _to_tensors(path, state, sets)
    others = [other for other, names in sets.items() if other.split(".")[0] != first and _same_model(names, tensors)]
    shown = kind if key in (*STATE_KEYS, "") else f"{kind}, its {key!r}"
    asks = bool(rest.get("matching_heuristics", False))
    return WeightFile(path, shown, tensors, suffix_matching=asks, rest=rest, others=others if key else [])


def from_caffe2(path: Path, content: Mapping[str, Any]) -> WeightFile | None:
    """Blobs of Caffe2, under "blobs" or bare; None for anything else."""
    blobs = content.get("blobs", content)
    if not isinstance(blobs, Mapping):
        raise ValueError(f"{path} must hold a dict under 'blobs', got {type(blobs).__name__}.")
    if "blobs" not in content and not _has_caffe2_names(blobs):
        return None
    kept = {name: value for name, value in blobs.items() if not name.endswith("_momentum") and value is not None}
    # besides blobs there are single numbers such as the learning rate
    arrays = {name: value for name, value in kept.items() if isinstance(value, (np.ndarray, np.generic, Tensor))}
    tensors = _to_tensors(path, arrays, {})
    return WeightFile(path, "Caffe2 model", tensors, suffix_matching=True, caffe2_names=True)


def _has_caffe2_names(state: Mapping[str, Any]) -> bool:
    names = [str(name) for name in state]
    return not any("." in name for name in names) and any(name.endswith(("_w", "_b", "_bn_s")) for name in names)


def _sets_of_tensors(content: Mapping, above: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(dotted key, names to tensors) of everything in a content that may be a model."""
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Mapping) or not value:
            continue
        if all(isinstance(part, (Tensor, np.ndarray)) for part in value.values()):
            yield f"{above}{key}", value
        elif above.count(".") < MAX_DEPTH - 1:
            yield from _sets_of_tensors(value, f"{above}{key}.")


def _chosen(
    path: Path, content: Mapping[str, Any], sets: Mapping[str, Mapping[str, Any]], key: str
) -> tuple[str, Mapping[str, Any]]:
    """Key and content of the set that is loaded; the key is "" for a bare dict of tensors."""
    if key in sets:
        return key, sets[key]
    if key:
        _, whole = _chosen(path, content, sets, "")  # one of two models that prefixes tell apart
        named = split_flat_average(OrderedDict((str(name), value) for name, value in whole.items()))
        part = {name.removeprefix(f"{key}."): value for name, value in named.items() if name.startswith(f"{key}.")}
        if not part:
            raise ValueError(f"{path} has nothing under key={key}; it has {', '.join(sets) or 'one set of tensors'}.")
        return key, part
    usual = next((usual for usual in STATE_KEYS if isinstance(content.get(usual), Mapping)), None)
    if usual is not None:
        return usual, content[usual]
    if any(isinstance(value, (Tensor, np.ndarray)) for value in content.values()) or not sets:
        return "", content
    averages = [name for name in sets if is_average(name)]
    candidates = [name for name in sets if name not in averages] or averages
    if len(candidates) > 1:
        raise ValueError(f"{path} holds several sets of weights; choose one with ?key= after its name: {_keys(sets)}.")
    return candidates[0], sets[candidates[0]]


def _keys(sets: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} ({len(tensors)} tensors)" for name, tensors in sets.items())


def _same_model(names: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bool:
    """Whether two sets of tensors are of one model, by the ends of their names."""
    ends = {".".join(name.split(".")[-2:]) for name in tensors}
    shared = sum(".".join(name.split(".")[-2:]) in ends for name in names)
    return shared >= MIN_SHARED * max(len(names), len(tensors))


def _to_tensors(path: Path, state: Mapping[str, Any], sets: Mapping[str, Any]) -> OrderedDict[str, Tensor]:
    """Turn arrays into tensors, dropping nothing; `_metadata` of the mapping is kept."""
    tensors: OrderedDict[str, Tensor] = OrderedDict()
    for name, value in state.items():
        if isinstance(value, (np.ndarray, np.generic)):
            if value.dtype.kind not in "biufc":
                raise ValueError(f"{path}: {name} is an array of {value.dtype}, not of numbers.")
            value = torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("=")))
        if not isinstance(value, Tensor):
            names = ", ".join(map(str, list(state)[:8]))
            hint = f" Or name one of these with ?key= after the file: {_keys(sets)}." if sets else ""
            raise ValueError(
                f"{path}: {name} is a {type(value).__name__}, not a tensor; the dict has the keys {names}"
                f"{', ...' if len(state) > 8 else ''}. Tensors are expected there or under one of {STATE_KEYS}.{hint}"
            )
        tensors[str(name)] = value.detach()
    metadata = getattr(state, "_metadata", None)
    if isinstance(metadata, Mapping):
        tensors._metadata = OrderedDict(  # type: ignore[attr-defined]
            (name, facts) for name, facts in metadata.items() if isinstance(name, str) and isinstance(facts, Mapping)
        )
    return tensors
