"""The deterministic weights that the goldens of plain ViTs, VidEoMT and PMT were recorded with, and their inputs."""

from __future__ import annotations

import numpy as np
import torch
from golden_fill import frames, tensor_for
from torch import Tensor, nn

MEAN = torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1)
DEVIATION = torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1)
KEPT = ("attn_mask_probs", "pixel_mean", "pixel_std", "empty_weight")  # had their own values when recording
TOKENS = ("cls_token", "reg_token", "register_tokens", "pos_embed")


def fill_vit_(module: nn.Module, prefix: str = "") -> nn.Module:
    """Overwrite the weights of a module whose recorded names begin with `prefix`; layer scales stay near 0.3."""
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point() and not name.endswith(KEPT):
                tensor.copy_(vit_tensor(prefix + name, tuple(tensor.shape)))
    return module


def vit_tensor(name: str, shape: tuple[int, ...]) -> Tensor:
    values = torch.from_numpy(np.asarray(tensor_for(name, shape))).reshape(shape)
    if name.endswith((".gamma", ".lambda1")):
        return 0.3 * (1 + 0.1 * values)
    if ".scalers." in name:
        return 1 + values
    is_query = name.endswith(".q.weight")
    if is_query or name.endswith(TOKENS):
        seed = len(name.removeprefix("backbone."))
        normal = np.random.RandomState(seed).standard_normal(shape).astype("f4")
        return torch.from_numpy(normal) * (1.0 if is_query else 0.5)
    return values


def normalised(num_frames: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Recorded frames as the network sees them: (T, 3, H, W)."""
    return (frames(num_frames, height, width, seed=seed).float() - MEAN) / DEVIATION
