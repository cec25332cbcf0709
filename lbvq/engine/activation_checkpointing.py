"""Trade time for memory: forget the activations inside repeated blocks and compute them again in the backward pass."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

logger = logging.getLogger(__name__)


def enable_activation_checkpointing(model: nn.Module) -> list[str]:
    """Make the repeated blocks of a model (residual blocks, transformer layers) forget their activations.

    A block is a module with children of its own that stands in a `Sequential` or `ModuleList` of at least two modules
    of one class. Parameter names, outputs and gradients stay the same; a training step takes about a third longer.
    Blocks with batch statistics in training (BatchNorm) are left alone, since they would see every batch twice.

    Returns:
        Names of the blocks.
    """
    names = []
    for name, block in _repeated_blocks(model):
        if any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in block.modules()):
            continue
        _forget_activations(block)
        names.append(name)
    if not names:
        logger.warning("SOLVER.ACTIVATION_CHECKPOINTING found no block it could act on in %s.", type(model).__name__)
    else:
        logger.info("Activation checkpointing of %d blocks: %s", len(names), ", ".join(names))
    return names


def _repeated_blocks(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield (name, block) from the outside in; nothing inside a block."""
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        stack = list(child.named_children()) if isinstance(child, nn.Sequential | nn.ModuleList) else []
        is_repeated = len(stack) > 1 and len({type(block) for _, block in stack}) == 1
        if is_repeated and any(True for _ in stack[0][1].children()):
            yield from ((f"{path}.{index}", block) for index, block in stack)
        else:
            yield from _repeated_blocks(child, f"{path}.")


def _forget_activations(block: nn.Module) -> None:
    """Give the block a subclass of its class whose forward recomputes; unlike a patched method it can be copied."""
    original = type(block)

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        compute = functools.partial(original.forward, self)
        if not (self.training and torch.is_grad_enabled()):
            return compute(*args, **kwargs)
        return checkpoint(compute, *args, use_reentrant=False, **kwargs)

    block.__class__ = type(original.__name__, (original,), {"forward": forward, "__module__": original.__module__})
