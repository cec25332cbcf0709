"""Copies between the host and a device, up without waiting and down all at once; and what a device can hold."""

from __future__ import annotations

from collections.abc import Sequence

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


def tensor_like(numbers: Sequence[float], like: Tensor) -> Tensor:
    """A tensor (n,) of a few numbers of the host, of the type and on the device of another."""
    return to_device(torch.tensor(numbers, dtype=like.dtype), like.device)


def to_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copy tensors to the CPU, of whatever type. From another device they come in one copy: the host waits once."""
    if all(tensor.device.type == "cpu" for tensor in tensors):
        return [tensor.cpu() for tensor in tensors]
    order = sorted(range(len(tensors)), key=lambda n: -tensors[n].itemsize)  # so that all lie at multiples of theirs
    parts = [tensors[n].detach().contiguous().flatten().view(torch.uint8) for n in order]
    joined = torch.cat(parts).cpu().split([len(part) for part in parts])
    copies = {n: part.view(tensors[n].dtype).view(tensors[n].shape) for n, part in zip(order, joined, strict=True)}
    return [copies[n] for n in range(len(tensors))]
