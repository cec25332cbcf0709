"""The readers that are tried with damaged files."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from lbvq.fuzz.mutations import mutate_bytes

TOPICS = ("lbvq.fuzz.masks", "lbvq.fuzz.scoring", "lbvq.fuzz.settings", "lbvq.fuzz.media")  # modules that hold targets

Mutate = Callable[[bytes, Random], bytes]


@dataclass(frozen=True)
class Target:
    """A reader and what it is fed.

    Attributes:
        name: on the command line and in the table.
        write_seeds: writes the files to start from into a folder; most are valid, so that damage reaches deep.
        read: reads one file as the project does. It may return anything, or refuse with a ValueError, KeyError or
            OSError of this project that names the file. An AssertionError says that what was read is wrong.
        mutate: makes the content of an input out of that of a seed.
    """

    name: str
    write_seeds: Callable[[Path], None]
    read: Callable[[Path], object]
    mutate: Mutate = mutate_bytes


def target(name: str, write_seeds: Callable[[Path], None], mutate: Mutate = mutate_bytes) -> Callable[..., Target]:
    """Decorator that makes a `Target` of a reader."""

    def wrap(read: Callable[[Path], object]) -> Target:
        return Target(name, write_seeds, read, mutate)

    return wrap


def target_names(topics: Sequence[str] = TOPICS) -> list[str]:
    """Names of the targets of some modules in order, read from their sources: the readers are not imported."""
    specs = filter(None, map(importlib.util.find_spec, topics))
    sources = [Path(spec.origin or "").read_text(encoding="utf-8") for spec in specs]
    return [name for source in sources for name in re.findall(r'^@target\("([^"]+)"', source, re.MULTILINE)]


def all_targets(topics: Sequence[str] = TOPICS) -> dict[str, Target]:
    """Every target of some modules by its name."""
    content = [item for topic in topics for item in vars(importlib.import_module(topic)).values()]
    found = [item for item in content if isinstance(item, Target)]
    named = {item.name: item for item in found}
    if len(named) < len(found):
        raise KeyError(f"two fuzz targets have one name, among {sorted(item.name for item in found)}")
    return named
