"""Models for the tests of MinVIS and VISAGE, whose goldens were recorded with sharpened weights."""

from __future__ import annotations

import re
from typing import Any

import torch
from golden_fill import fill_
from torch import Tensor, nn
from video_models import load_cfg

from mask2former.registry import build_model
from mask2former.structures import BitMasks, Instances

MINVIS = "youtubevis_2019/video_maskformer2_R50_bs32_8ep_frame.yaml"
VISAGE = "youtubevis_2019/visage_R50_bs16.yaml"

# `fill_` alone leaves the queries of a frame nearly equal. Powers of two, so that the products are exact.
SHARPEN = (
    (r"level_embed", 0.125),
    (r"predictor\.transformer_self.*out_proj\.weight$", 0.125),
    (r"predictor\.transformer_cross.*out_proj\.weight$", 2.0),
    (r"query_feat", 4.0),
    (r"class_embed\.weight$", 4.0),
)
SHARPEN_VISAGE = (*SHARPEN, (r"predictor\.mask_embed\.layers\.2\.bias", -4.0))


def sharpen_(model: nn.Module, rules: tuple[tuple[str, float], ...]) -> nn.Module:
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            for pattern, factor in rules:
                if re.search(pattern, name):
                    tensor.mul_(factor)
    return model


def sharp_model(config_file: str, rules: tuple[tuple[str, float], ...] = SHARPEN, **changes: Any) -> nn.Module:
    """The model of a configuration with the weights of the goldens, in eval mode."""
    return sharpen_(fill_(build_model(load_cfg(config_file, **changes))), rules).eval()


SMALL = {  # a whole model in a fraction of a second
    "MODEL__MASK_FORMER__NUM_OBJECT_QUERIES": 8,
    "MODEL__SEM_SEG_HEAD__NUM_CLASSES": 13,
    "MODEL__MASK_FORMER__TRAIN_NUM_POINTS": 112,
    "MODEL__VISAGE__NUM_PREDICTIONS": 0,
}


def ellipse(height: int, width: int, cy: float, cx: float, ry: float, rx: float) -> Tensor:
    """(height, width) bool: inside an ellipse, on integer pixel coordinates."""
    y, x = torch.arange(height)[:, None].double(), torch.arange(width)[None].double()
    return ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 <= 1


def frame_instances(height: int, width: int, rows: list[tuple[int, int, tuple | None]]) -> Instances:
    """Instances of a frame from (id, class, ellipse or None for an empty mask)."""
    frame = Instances((height, width))
    frame.gt_ids = torch.tensor([row[0] for row in rows], dtype=torch.int64)
    frame.gt_classes = torch.tensor([row[1] for row in rows], dtype=torch.int64)
    masks = torch.zeros(len(rows), height, width, dtype=torch.bool)
    for index, (_, _, shape) in enumerate(rows):
        if shape is not None:
            masks[index] = ellipse(height, width, *shape)
    frame.gt_masks = BitMasks(masks)
    return frame


def recorded_calls(module: Any, name: str, monkeypatch: Any) -> list:
    """Replace a function of a module or object by one that notes (arguments, result) of every call."""
    original, calls = getattr(module, name), []

    def noted(*arguments: Any, **options: Any) -> Any:
        calls.append((arguments, original(*arguments, **options)))
        return calls[-1][1]

    monkeypatch.setattr(module, name, noted)
    return calls
