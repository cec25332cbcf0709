"""Multi-head attention with the parameters of `torch.nn.MultiheadAttention`, and masks that heads can share.

`nn.MultiheadAttention` wants one mask per head and projects queries and keys separately even when they are the same
tensor. This function reads its parameters, so checkpoint names stay, and avoids both.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .linear import linear


def attend(
    attention: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    key_padding_mask: Tensor | None = None,
) -> Tensor:
    """Run `attention`; the sequence comes first in all three inputs.

    Args:
        attention: gives projections, number of heads M and dropout; key and value are as wide as the query.
        query: (Q, B, C).
        key, value: (S, B, C); a key that is the same object as the query saves a product.
        mask: bool with True = blocked, or float that is added to the attention logits; (Q, S), (B*M, Q, S) with heads
            innermost, or (B, 1 or M, Q, S).
        key_padding_mask: (B, S) bool, True = never attended.

    Returns:
        (Q, B, C). A query that may attend to nothing gets no defined value.
    """
    num_heads = attention.num_heads
    queries, keys, values = (_split_heads(x, num_heads) for x in _project(attention, query, key, value))
    attn_mask = _join_masks(mask, key_padding_mask, num_heads, queries.dtype)
    dropout = attention.dropout if attention.training else 0.0
    out = attend_heads(queries, keys, values, attn_mask, dropout)  # (B, M, Q, C/M)
    return linear(out.permute(2, 0, 1, 3).flatten(2), attention.out_proj.weight, attention.out_proj.bias)


def attend_heads(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """Softmax attention of every head by itself.

    Args:
        queries: (B, M, Q, c).
        keys, values: (B, M, S, c).
        mask: added to the attention logits, broadcastable to (B, M, Q, S).
        dropout: share of the attention weights that is dropped.

    Returns:
        (B, M, Q, c).
    """
    if queries.dtype == torch.bfloat16 and queries.device.type == "cpu" and torch.is_grad_enabled():
        # the backward pass of the CPU's kernel takes ten times as long in bfloat16, which autocast would choose again
        with torch.autocast("cpu", enabled=False):
            mask = None if mask is None else mask.float()
            inputs = (queries.float(), keys.float(), values.float())
            return F.scaled_dot_product_attention(*inputs, attn_mask=mask, dropout_p=dropout)
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, dropout_p=dropout)


def _project(attention: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
    """Project to queries, keys and values, (sequence, B, C) each, in as few products as possible."""
    weight, bias, dim = attention.in_proj_weight, attention.in_proj_bias, attention.embed_dim
    if query is key:
        queries, keys = linear(query, weight[: 2 * dim], bias[: 2 * dim]).chunk(2, dim=-1)
    else:
        queries = linear(query, weight[:dim], bias[:dim])
        keys = linear(key, weight[dim : 2 * dim], bias[dim : 2 * dim])
    return queries, keys, linear(value, weight[2 * dim :], bias[2 * dim :])


def _split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(sequence, B, C) -> (B, M, sequence, C/M)."""
    return x.unflatten(-1, (num_heads, -1)).permute(1, 2, 0, 3)


def _join_masks(
    mask: Tensor | None, key_padding_mask: Tensor | None, num_heads: int, dtype: torch.dtype
) -> Tensor | None:
    """Join both masks to one that is added to the logits, broadcastable to (B, M, Q, S); None without masks."""
    if mask is not None and mask.dim() == 3:
        mask = mask.unflatten(0, (-1, num_heads))
    if key_padding_mask is not None:
        padding = key_padding_mask[:, None, None]
        if mask is None:
            mask = padding
        elif mask.dtype == torch.bool:
            mask = mask | padding
        else:
            mask = mask.masked_fill(padding, float("-inf"))
    if mask is None:
        return None
    if mask.dtype == torch.bool:  # converted once here: the kernels of the CPU would do it slower
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(mask, float("-inf"))
    return mask.to(dtype)
