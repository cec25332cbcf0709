"""Video instance segmentation: LBVQ and its peers in one framework.

Everything named in `__all__` is loaded when it is first used, so `import lbvq` is quick and needs no GPU library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lbvq.moved import install_moved_modules
from mask2former.lazy import PROVIDERS, lazy_names

if TYPE_CHECKING:
    from lbvq.config import CfgNode as CfgNode
    from lbvq.config import add_lbvq_config as add_lbvq_config
    from lbvq.config import get_cfg as get_cfg
    from lbvq.engine.checkpoint import load_weights as load_weights
    from lbvq.inference.loading import build_model as build_model
    from lbvq.inference.loading import load_model as load_model
    from lbvq.inference.predictor import VideoPredictor as VideoPredictor
    from lbvq.inference.results import VideoPrediction as VideoPrediction
    from lbvq.inference.stream import StreamPredictor as StreamPredictor
    from lbvq.inference.tracking import track as track

__version__ = "0.1.0"

install_moved_modules()
PROVIDERS.append("lbvq.modeling")

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
    "track": "lbvq.inference.tracking",
}

__all__ = ["__version__", *_HOME]

__getattr__, __dir__ = lazy_names(__name__, _HOME)
