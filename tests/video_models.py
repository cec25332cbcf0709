"""Models for the tests of video methods: published configurations with deterministic weights, and a small one."""

from __future__ import annotations

from typing import Any

import torch
from golden_fill import fill_
from golden_tame import tame_
from helpers import CONFIGS
from torch import nn

import lbvq.modeling  # noqa: F401  # registers the methods
from lbvq.config import get_cfg
from mask2former.registry import build_model


def load_cfg(config_file: str, **changes: Any) -> Any:
    """Configuration of a YAML file in `configs/` on the CPU; changes are `MODEL__LBVQ__KEY=value`."""
    cfg = get_cfg()
    cfg.merge_from_file(str(CONFIGS / config_file))
    options = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""]
    for name, value in changes.items():
        options += [name.replace("__", "."), value]
    cfg.merge_from_list(options)
    return cfg


def golden_model(config_file: str, **changes: Any) -> nn.Module:
    """The model of a configuration with the deterministic weights that goldens were recorded with, in eval mode."""
    return fill_(build_model(load_cfg(config_file, **changes))).eval()


def damp_(model: nn.Module, factor: float = 0.3) -> nn.Module:
    """Weaken the value projection of every attention, as VITA's goldens were recorded: clip queries stay distinct."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("in_proj_weight"):
                parameter[2 * parameter.shape[1] :] *= factor
    return model


def small_cfg(method: str = "lbvq", **changes: Any) -> Any:
    """A method (lbvq, vita, genvis) with ResNet-18 and narrow layers: the whole model in a fraction of a second."""
    group = "LBVQ" if method == "lbvq" else "VITA"
    tiny = {
        "MODEL__MASK_FORMER__NUM_OBJECT_QUERIES": 8,
        f"MODEL__{group}__NUM_OBJECT_QUERIES": 8,
        "MODEL__MASK_FORMER__DEC_LAYERS": 4,
        f"MODEL__{group}__DEC_LAYERS": 2,
        "MODEL__SEM_SEG_HEAD__TRANSFORMER_ENC_LAYERS": 1,
        "MODEL__MASK_FORMER__TRAIN_NUM_POINTS": 112,
        "MODEL__SEM_SEG_HEAD__NUM_CLASSES": 13,
        "INPUT__SAMPLING_FRAME_NUM": 5 if method == "genvis" else 3,
    }
    config_file = {"lbvq": "lbvq_R18_tiny", "vita": "vita_R18_tiny", "genvis": "genvis_R18_tiny_online"}[method]
    return load_cfg(f"synthetic/{config_file}.yaml", **{**tiny, **changes})


def small_model(method: str = "lbvq", **changes: Any) -> nn.Module:
    """`small_cfg` with deterministic weights, in eval mode; attention is weak enough to keep queries distinct."""
    model = fill_(build_model(small_cfg(method, **changes))).eval()
    return model if method == "lbvq" else tame_(model, ("vita_module.", "sem_seg_head.predictor."))


class LazyFrames:
    """Frames that are decoded when indexed, as a video reader gives them; counts how often each was read."""

    def __init__(self, frames: torch.Tensor) -> None:
        self.frames, self.reads = frames, [0] * len(frames)

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, t: int) -> torch.Tensor:
        self.reads[t] += 1
        return self.frames[t].clone()
