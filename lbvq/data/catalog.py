"""Names of data sets: what is known about each (`MetadataCatalog`) and how to read it (`DatasetCatalog`).

Both are filled at import with names and functions only; no file is touched before somebody asks for its content.
"""

from __future__ import annotations

import difflib
import os
from collections import UserDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = [
    "LONG_VIDEO_FRAMES",
    "DatasetCatalog",
    "Metadata",
    "MetadataCatalog",
    "MetadataConflictError",
    "dataset_root",
]


# No video of YouTube-VIS 2021 has more annotated frames. The validation set of 2022 is that of 2021 and 71 longer ones.
LONG_VIDEO_FRAMES = 36


def dataset_root() -> Path:
    """Folder of all data sets: the environment variable DETECTRON2_DATASETS, by default `datasets`."""
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))


class MetadataConflictError(ValueError, AssertionError):
    """A fact about a data set was set to a second, different value."""


class Metadata:
    """Facts about one data set as attributes, e.g. `thing_classes`, `json_file`, `evaluator_type`.

    What evaluates a data set is asked of it, not of its name: `evaluator_type`, which its category table may refine
    ("evaluators"), and `long_videos`, the number of frames above which videos are reported apart.

    A fact never changes: setting it again is allowed only to an equal value. A fact may also be a function, which runs
    when the fact is read, so that paths follow DETECTRON2_DATASETS and no file is read before it is needed.
    """

    def __init__(self, name: str) -> None:
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "_lazy", {})

    def set(self, **facts: Any) -> Metadata:
        """Set several facts and return self."""
        for key, value in facts.items():
            setattr(self, key, value)
        return self

    def set_lazily(self, **functions: Callable[[], Any]) -> Metadata:
        """Set facts by functions without arguments and return self."""
        for key, function in functions.items():
            if key in self:
                raise MetadataConflictError(f"{key!r} of data set {self.name!r} is set already.")
            self._lazy[key] = function
        return self

    def get(self, key: str, default: Any = None) -> Any:
        """Return the fact, or `default` when nobody has set it."""
        return getattr(self, key) if key in self else default

    def as_dict(self) -> dict[str, Any]:
        """Return all facts; the functions among them are run."""
        return {key: getattr(self, key) for key in self._keys()}

    def __contains__(self, key: str) -> bool:
        return key in self._lazy or key in self._plain()

    def __getattr__(self, key: str) -> Any:
        lazy = self.__dict__.get("_lazy", {})
        if key in lazy:
            return lazy[key]()
        if key.startswith("__"):
            raise AttributeError(key)  # protocols of copy and pickle ask for these
        raise AttributeError(f"Data set {self.name!r} has no {key!r}; it has {self._keys()}.")

    def __setattr__(self, key: str, value: Any) -> None:
        if key in self:
            if getattr(self, key) != value:
                change = f"is {_short(getattr(self, key))} and cannot become {_short(value)}"
                raise MetadataConflictError(
                    f"{key!r} of data set {self.name!r} {change}; register the other data under a name of its own."
                )
            return
        object.__setattr__(self, key, value)

    def __repr__(self) -> str:
        return f"Metadata({self.name!r}, {self._keys()})"

    def _plain(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_lazy"}

    def _keys(self) -> list[str]:
        return sorted({*self._plain(), *self._lazy})


class _MetadataCatalog(UserDict[str, Metadata]):
    """Data set name -> its `Metadata`, made on first use."""

    def get(self, name: str) -> Metadata:  # type: ignore[override]  # as published, without a default
        if name not in self.data:
            self.data[name] = Metadata(name)
        return self.data[name]

    def __getitem__(self, name: str) -> Metadata:
        return self.get(name)

    def list(self) -> list[str]:
        return sorted(self.data)

    def remove(self, name: str) -> None:
        self.data.pop(name)


class _DatasetCatalog(UserDict[str, Callable[[], list[dict[str, Any]]]]):
    """Data set name -> function that returns its records."""

    def register(self, name: str, function: Callable[[], list[dict[str, Any]]]) -> None:
        """Add a data set; a name can be taken only once."""
        if not callable(function):
            raise TypeError(f"Data set {name!r} needs a function that returns its records, got {function!r}.")
        if name in self.data:
            raise ValueError(
                f"Data set {name!r} is registered already; DatasetCatalog.remove({name!r}) frees the name."
            )
        self.data[name] = function

    def get(self, name: str) -> list[dict[str, Any]]:  # type: ignore[override]  # as published, it reads
        """Read the data set; nothing is cached."""
        if name not in self.data:
            close = difflib.get_close_matches(name, self.data, n=3) or self.list()
            raise KeyError(f"No data set is called {name!r}; did you mean one of {close}? Set it in DATASETS.")
        return self.data[name]()

    def list(self) -> list[str]:
        return sorted(self.data)

    def remove(self, name: str) -> None:
        self.data.pop(name)


MetadataCatalog = _MetadataCatalog()
DatasetCatalog = _DatasetCatalog()


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
