"""Public names of a package that are loaded when they are first used, so that importing the package is quick."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

PROVIDERS: list[str] = []  # modules of other packages that register models, imported when one is asked for


def lazy_names(package: str, home: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return what a package calls `__getattr__` and `__dir__`.

    Args:
        package: its `__name__`.
        home: public name -> module that defines it; a module stands for itself where it is called like the name.
    """

    def load(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}; it offers {', '.join(home)}")
        module = importlib.import_module(home[name])
        value = module if home[name] == f"{package}.{name}" else getattr(module, name)
        setattr(sys.modules[package], name, value)
        return value

    def list_names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *home})

    return load, list_names
