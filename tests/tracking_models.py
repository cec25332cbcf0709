"""Models for the tests of CTVIS, DVIS and DVIS++: published configurations with the weights of their goldens."""

from __future__ import annotations

from typing import Any

import torch
from frame_models import SHARPEN, sharpen_
from golden_fill import fill_
from golden_samples import training_sample
from torch import nn
from video_models import load_cfg

from mask2former.registry import build_model

CTVIS = "youtubevis_2019/CTVIS_R50.yaml"
TRACKED = (*SHARPEN, (r"^(tracker|refiner)\..*out_proj\.weight$", 0.125))


def training_model(config_file: str, rules: tuple[tuple[str, float], ...] = TRACKED, **changes: Any) -> nn.Module:
    """The model whose training was recorded; its class weights are the true ones, 1 and 0.1 for "no object"."""
    model = build_model(load_cfg(config_file, **changes))
    class_weight = model.criterion.empty_weight.clone()
    sharpen_(fill_(model), rules)
    model.criterion.empty_weight.copy_(class_weight)
    return model.train()


def padded(clip: dict[str, Any], height: int, width: int) -> dict[str, Any]:
    """A clip of `synth_targets` with zeros on the right and below, so that a model pads nothing."""
    short = (0, width - clip["image"][0].shape[-1], 0, height - clip["image"][0].shape[-2])
    images = [nn.functional.pad(image, short) for image in clip["image"]]
    return {**clip, "image": images, "masks": nn.functional.pad(clip["masks"].to(torch.uint8), short).bool()}


def samples(clips: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [training_sample(clip) for clip in clips]
