"""Video instance segmentation: LBVQ and its peers in one framework.

Everything named in `__all__` is loaded when it is first used, so `import lbvq` is quick and needs no GPU library.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lbvq.moved import install_moved_modules

if TYPE_CHECKING:  # what `__getattr__` gives, for editors and type checkers
    from lbvq.config import CfgNode as CfgNode
    from lbvq.config import add_lbvq_config as add_lbvq_config
    from lbvq.config import get_cfg as get_cfg
    from lbvq.engine.checkpoint import load_weights as load_weights
    from lbvq.inference.loading import build_model as build_model
    from lbvq.inference.loading import load_model as load_model
    from lbvq.inference.predictor import VideoPredictor as VideoPredictor
    from lbvq.inference.results import VideoPrediction as VideoPrediction
    from lbvq.inference.stream import StreamPredictor as StreamPredictor

__version__ = "0.1.0"

install_moved_modules()

_HOME = {  # public name: module that defines it
    "CfgNode": "lbvq.config",
    "StreamPredictor": "lbvq.inference.stream",
    "VideoPrediction": "lbvq.inference.results",
    "VideoPredictor": "lbvq.inference.predictor",
    "add_lbvq_config": "lbvq.config",
    "build_model": "lbvq.inference.loading",
    "get_cfg": "lbvq.config",
    "load_model": "lbvq.inference.loading",
    "load_weights": "lbvq.engine.checkpoint",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'lbvq' has no attribute {name!r}; it offers {', '.join(__all__)}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
