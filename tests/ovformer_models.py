"""Models for the tests of OVFormer, with the stand-ins for CLIP's files that the goldens were recorded with."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import ov_inputs
import torch
from golden_fill import fill_, frames
from helpers import GOLDEN
from torch import nn
from video_models import load_cfg

from mask2former.registry import build_model

IMAGE = "lvis/ovformer_R50_bs8.yaml"
IMAGE_SWIN = "lvis/ovformer_SwinB_bs8.yaml"
FRAME = "youtubevis_2019/ovformer_R50_bs8.yaml"
CLIP = "lvvis/video_ovformer_R50_bs8.yaml"

# `fill_` alone leaves the queries nearly equal and every mask empty.
SCALE = {
    r"^sem_seg_head\.predictor\.transformer_(self|cross)_attention_layers\.\d+\.\w+\.out_proj\.": 0.1,
    r"^sem_seg_head\.predictor\.transformer_ffn_layers\.\d+\.linear2\.": 0.15,
    r"^sem_seg_head\.predictor\.level_embed\.": 0.2,
}
MASK_BIAS = "sem_seg_head.pixel_decoder.mask_features.bias"


def write_text(folder: Path, name: str, num_classes: int) -> str:
    """Text embeddings in the published form."""
    path = folder / f"{name}.npy"
    np.save(path, ov_inputs.text_embedding(name, num_classes))
    return str(path)


def write_features(path: Path, keys: Iterable[Hashable]) -> str:
    """Image features in the published form."""
    torch.save({key: ov_inputs.image_feature(key) for key in keys}, path)
    return str(path)


def clip_cfg(config_file: str, folder: Path, keys: Iterable[Hashable] = ("none",), **changes: Any) -> Any:
    """Configuration whose text and image features are files in `folder`."""
    cfg = load_cfg(config_file)
    vocabulary = re.search(r"fg_bg_5_10_(\w+)_ens", cfg.MODEL.MASK_FORMER.CLIP_TEXT_PATH)[1]
    features = write_features(folder / "features.pkl", keys)
    files = {
        "MODEL__MASK_FORMER__CLIP_TEXT_PATH": write_text(folder, vocabulary, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES),
        "MODEL__MASK_FORMER__CLIP_IMAGE_PATH": features,
        "MODEL__MASK_FORMER__CLIP_TRAIN_IMAGE_PATH": features,
    }
    return load_cfg(config_file, **{**files, **changes})


def golden_model(config_file: str, folder: Path, keys: Iterable[Hashable] = ("none",), **changes: Any) -> nn.Module:
    """The model of a configuration with the weights of the goldens, in eval mode."""
    model = build_model(clip_cfg(config_file, folder, keys, **changes))
    data = {
        name: value.clone()
        for name, value in model.state_dict().items()
        if name.endswith("zs_weight") or name.startswith("criterion.")
    }
    fill_(model)
    model.load_state_dict(data, strict=False)
    state = model.state_dict()
    with torch.no_grad():
        for name, tensor in state.items():
            for pattern, factor in SCALE.items():
                if re.search(pattern, name):
                    tensor.mul_(factor)
        biases = np.load(GOLDEN / "ovformer_mask_bias.npz")
        state[MASK_BIAS].copy_(torch.from_numpy(biases["swinb" if "Swin" in config_file else "r50"]))
    return model.eval()


def fixed_choice(weight: torch.Tensor, _waits: torch.Tensor, count: int) -> torch.Tensor:
    """In place of `first_to_come`: the classes that were drawn when the goldens were recorded."""
    with ov_inputs.fixed_multinomial():
        return torch.multinomial(weight, count, replacement=False)


def cropped(num_frames: int, seed: int, height: int = 90, width: int = 120) -> list[torch.Tensor]:
    """Frames of the recorded videos: the corner of a larger picture, so that padding is exercised."""
    return list(frames(num_frames, 96, 128, seed)[:, :, :height, :width].contiguous())
