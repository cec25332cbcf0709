"""A contrastive loss of one anchor with its positives and its negatives, which CTVIS and DVIS++ share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Terms = tuple[Tensor, Tensor]  # of n anchors: what `contrast` returns


def contrast(anchors: Tensor, positives: Tensor, negatives: Tensor, counts: Tensor) -> Terms:
    """Compare n anchors, each with P positives and some of M negatives.

    Args:
        anchors: (n, C), not normalised.
        positives: (n, P, C), not normalised.
        negatives: (M, C), or (n, M, C) when they differ.
        counts: (n, M) bool, True where a negative counts.

    Returns:
        For each anchor log(1 + sum over positives p and negatives k of exp(k a - p a)); and the mean squared error of
        the cosines, which should be 1 for positives and 0 for negatives. Both (n,) float32; 0 for one positive that is
        the anchor's direction, and no negative.
    """
    with torch.autocast(anchors.device.type, enabled=False):
        anchors, positives, negatives = anchors.float(), positives.float(), negatives.float()
        wrong = _products(anchors, negatives).masked_fill(~counts, float("-inf"))
        right = _products(anchors, positives)
        loss = F.softplus(_log_sum_exp(wrong) + _log_sum_exp(-right))

        unit = F.normalize(anchors, dim=-1)
        right_error = (_products(unit, F.normalize(positives, dim=-1)) - 1).square().sum(-1)
        wrong_error = (_products(unit, F.normalize(negatives, dim=-1)).square() * counts).sum(-1)
        error = (right_error + wrong_error) / (positives.shape[-2] + counts.sum(-1))
    return loss, error


def join_terms(terms: Sequence[Terms], like: Tensor) -> Terms:
    """Join the terms of several calls; without any, two empty tensors that are connected to the graph of `like`."""
    if not terms:
        nothing = like.flatten()[:0].float()
        return nothing, nothing
    losses, errors = zip(*terms, strict=True)
    return torch.cat(losses), torch.cat(errors)


def mean_terms(terms: Terms) -> dict[str, Tensor]:
    """Means over all anchors, loss_reid and loss_aux_reid; 0, still connected to the graph, without any."""
    count = max(len(terms[0]), 1)
    return {"loss_reid": terms[0].sum() / count, "loss_aux_reid": terms[1].sum() / count}


def _products(anchors: Tensor, others: Tensor) -> Tensor:
    """Inner products of (n, C) with (M, C) or (n, M, C): (n, M)."""
    if others.dim() == 2:
        return anchors @ others.T
    return torch.einsum("nc,nmc->nm", anchors, others)


def _log_sum_exp(values: Tensor) -> Tensor:
    """(n, M) -> (n,); the lowest number of the type where there is nothing to sum, so that gradients stay finite."""
    lowest = torch.finfo(values.dtype).min / 4
    return values.clamp(min=lowest).logsumexp(-1) if values.shape[-1] else values.new_full(values.shape[:-1], lowest)
