"""The type of a configuration. Import it under TYPE_CHECKING: a signature needs no more."""

from __future__ import annotations

from typing import Any, Protocol


class Cfg(Protocol):
    """Groups and keys as attributes, `cfg.MODEL.DEVICE`; ours, detectron2's, or another with the same keys."""

    def __getattr__(self, name: str) -> Any: ...

    def __setattr__(self, name: str, value: Any) -> None: ...
