"""What GenVIS remembers of earlier clips: for every query, the object it had become at the end of each of them.

The published memory holds a key and a value of every object, both linear in it. Products with the keys are products
with the objects, and the sum of the values follows from the sum of the objects, so the objects alone are kept: half as
much. The memory is a list of blocks (m, L, B, N, C) of m clips, oldest first. Nothing is ever forgotten, and no tensor
is changed once it is in the memory, so a copy of the list is a snapshot.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

Memory = list[Tensor]

BLOCK = 64  # single clips are joined to blocks of so many


def remember(memory: Memory, objects: Tensor) -> Memory:
    """Return the memory with the objects (L, B, N, C) of one more clip; the memory given stays as it is."""
    blocks = [*memory, objects[None]]
    num_singles = next((i for i, block in enumerate(reversed(blocks)) if len(block) > 1), len(blocks))
    if num_singles < BLOCK:
        return blocks
    return [*blocks[:-BLOCK], torch.cat(blocks[-BLOCK:])]


def recall(memory: Memory, queries: Tensor, offsets: Tensor) -> Tensor:
    """Mean of what every query was in earlier clips, weighted by the softmax over the clips of products with it.

    Queries are not mixed. As published the products are not scaled.

    Args:
        memory: of at least one clip.
        queries: (N, L*B, C).
        offsets: (N, L*B), added to the products with all clips alike, so that the softmax takes them away again.

    Returns:
        (N, L*B, C).
    """
    blocks = [block.flatten(1, 2) for block in memory]  # (m, LB, N, C)
    products = torch.cat([torch.einsum("nbc,mbnc->mbn", queries, block) for block in blocks]) + offsets.T
    weights = products.softmax(dim=0).split([len(block) for block in blocks])  # (m, LB, N)
    parts = (torch.einsum("mbn,mbnc->nbc", *pair) for pair in zip(weights, blocks, strict=True))
    return functools.reduce(torch.add, parts)
