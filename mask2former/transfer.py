"""Copies to a device that the host does not wait for, and what a device can hold."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device; to a GPU through page-locked memory, while the host goes on."""
    if tensor.dtype == torch.float64:
        tensor = tensor.to(most_precise(device))
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def most_precise(device: torch.device) -> torch.dtype:
    """The type for sums over whole videos: float64, which MPS does not have."""
    return torch.float32 if device.type == "mps" else torch.float64
