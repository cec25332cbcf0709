"""What GenVIS remembers of earlier clips: for every query, how it looked at the end of each of them.

The memory is `{"k": blocks, "v": blocks}`: keys and values in blocks (m, L, B, N, C) of m clips each, oldest first.
Nothing is ever forgotten and no tensor is changed once it is in the memory, so copies of the dict are snapshots.
"""

from __future__ import annotations

import torch
from torch import Tensor

Memory = dict[str, list[Tensor]]

BLOCK = 64  # single clips are joined to blocks of so many, which long videos are read in


def empty_memory() -> Memory:
    """Memory before the first clip."""
    return {"k": [], "v": []}


def remember(memory: Memory, entry: dict[str, Tensor]) -> Memory:
    """Return the memory with one more clip, `k` and `v` (1, L, B, N, C); the memory given stays as it is."""
    return {name: _join_tail([*memory[name], entry[name]]) for name in ("k", "v")}


def read_memory(memory: Memory, queries: Tensor) -> Tensor:
    """Let every query attend to itself in earlier clips; queries are not mixed.

    As published the products are not scaled.

    Args:
        memory: keys and values of M clips.
        queries: (N, L*B, C).

    Returns:
        (N, L*B, C); zeros without a clip.
    """
    if not memory["k"]:
        return torch.zeros_like(queries)
    keys, values = ([block.flatten(1, 2) for block in memory[name]] for name in ("k", "v"))  # (m, LB, N, C)
    products = torch.cat([torch.einsum("nbc,mbnc->mbn", queries, block) for block in keys])  # (M, LB, N)
    weights = products.softmax(dim=0).split([len(block) for block in values])
    return sum(torch.einsum("mbn,mbnc->nbc", *pair) for pair in zip(weights, values, strict=True))


def _join_tail(blocks: list[Tensor]) -> list[Tensor]:
    """Join the single clips at the end as soon as they fill a block."""
    singles = next((i for i, block in enumerate(reversed(blocks)) if len(block) > 1), len(blocks))
    if singles < BLOCK:
        return blocks
    return [*blocks[:-BLOCK], torch.cat(blocks[-BLOCK:])]
