"""One-to-one matching of queries with annotated objects at least cost (Hungarian method).

DETR, Carion et al., ECCV 2020, section 3.1, with the mask costs of Mask2Former, Cheng et al., CVPR 2022.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ..points import point_sample, sample_lists

COMPARED_AT_ONCE = 2**24  # pixels of predicted masks; more images are compared one after the other

Match = tuple[Tensor, Tensor]  # query indices, ascending, and object indices, (n,) each, int64 on the CPU


class HungarianMatcher(nn.Module):
    """Match the queries of every image with its objects."""

    def __init__(
        self, cost_class: float = 1.0, cost_mask: float = 1.0, cost_dice: float = 1.0, num_points: int = 12544
    ) -> None:
        """Args:
        cost_class, cost_mask, cost_dice: weights of the three costs.
        num_points: P points at which masks are compared; one draw per image or clip for all its queries, objects and
            frames.
        """
        super().__init__()
        self.cost_class, self.cost_mask, self.cost_dice = cost_class, cost_mask, cost_dice
        self.num_points = num_points

    @torch.no_grad()
    def forward(self, outputs: dict[str, Any], targets: list[dict[str, Any]]) -> list[Match]:
        """Match every image.

        Args:
            outputs: `pred_logits` (B, Q, K+1) and `pred_masks` (B, Q, h, w), or (B, Q, T, h, w) of clips.
            targets: for each image `labels` (G,), `masks` (G, H, W) or (G, T, H, W), and perhaps `name` for messages.

        Returns:
            B matches; an image without objects has an empty one, and with G > Q some objects stay unmatched.
        """
        # All costs first: a GPU computes the next while the first is copied.
        costs = self.costs(outputs, targets)
        return [
            assign(cost, target.get("name", f"image {image} of the batch"))
            for image, (cost, target) in enumerate(zip(costs, targets, strict=True))
        ]

    def costs(self, outputs: dict[str, Any], targets: list[dict[str, Any]], first: int = 0) -> list[Tensor]:
        """Cost of giving object g to query q, for the images from `first` on: (Q, G) float32 each."""
        masks = outputs["pred_masks"]
        pixels = masks[0, :, ..., 0, 0].numel() * self.num_points  # that are read of the masks of an image
        at_once = max(1, COMPARED_AT_ONCE // max(pixels, 1))
        costs = []
        for start in range(0, len(targets), at_once):
            part = targets[start : start + at_once]
            images = slice(first + start, first + start + len(part))
            points = draw_points(len(part), self.num_points, masks.device)
            costs += pairwise_costs(
                self.class_scores(outputs, images),
                sample_masks(masks[images], points),
                [target["labels"] for target in part],
                sample_targets([target["masks"] for target in part], points),
                cost_class=self.cost_class,
                cost_mask=self.cost_mask,
                cost_dice=self.cost_dice,
            )
        return costs

    def cost(self, outputs: dict[str, Any], target: dict[str, Any], image: int) -> Tensor:
        """Cost of giving object g of an image to query q: (Q, G) float32."""
        return self.costs(outputs, [target], image)[0]

    def class_scores(self, outputs: dict[str, Any], images: slice) -> Tensor:
        """How well a query fits a class: (b, Q, K) or more classes."""
        return outputs["pred_logits"][images].float().softmax(-1)


def draw_points(num_images: int, num_points: int, device: torch.device) -> Tensor:
    """Draw (B, P, 2) points, image after image as published."""
    return torch.cat([torch.rand(1, num_points, 2, device=device) for _ in range(num_images)])


def sample_masks(masks: Tensor, points: Tensor) -> Tensor:
    """Read masks (B, Q, h, w) at points (B, P, 2): (B, Q, P); masks of clips, (B, Q, T, h, w), alike in all frames."""
    sampled = point_sample(masks.flatten(1, -3), points)  # (B, Q*T, P)
    return sampled.view(*masks.shape[:2], masks.shape[2:-2].numel() * points.shape[1])


def sample_targets(masks: Sequence[Tensor], points: Tensor) -> list[Tensor]:
    """Read B lists of masks (G, H, W) or (G, T, H, W) at points (B, P, 2): (G, P) or (G, T*P) each."""
    counts = torch.tensor([target.shape[:-2].numel() for target in masks], dtype=torch.int64)
    every = points.repeat_interleave(counts.to(points.device), dim=0, output_size=int(counts.sum()))
    sampled = sample_lists([target.flatten(0, -3) for target in masks], every).split(counts.tolist())
    num_points = points.shape[1]
    return [
        rows.reshape(len(target), target.shape[1:-2].numel() * num_points)
        for rows, target in zip(sampled, masks, strict=True)
    ]


def pairwise_costs(
    scores: Tensor, masks: Tensor, labels: Sequence[Tensor], target_masks: Sequence[Tensor], **weights: float
) -> list[Tensor]:
    """Costs of the pairs of several images at once; see `pairwise_cost`.

    Args:
        scores: (B, Q, K).
        masks: (B, Q, P).
        labels: B times (G_b,).
        target_masks: B times (G_b, P).

    Returns:
        B times (Q, G_b).
    """
    padded = pad_sequence(list(target_masks), batch_first=True)  # (B, G, P), zeros beyond G_b
    classes = pad_sequence([label.to(scores.device) for label in labels], batch_first=True)
    costs = pairwise_cost(scores, masks, classes, padded, **weights)
    return [cost[:, : len(label)] for cost, label in zip(costs, labels, strict=True)]


def matching_cost(logits: Tensor, masks: Tensor, labels: Tensor, target_masks: Tensor, **weights: float) -> Tensor:
    """`pairwise_cost` with class logits (Q, K+1), "no object" last, instead of scores."""
    return pairwise_cost(logits.float().softmax(-1), masks, labels, target_masks, **weights)


def pairwise_cost(
    scores: Tensor,
    masks: Tensor,
    labels: Tensor,
    target_masks: Tensor,
    *,
    cost_class: float,
    cost_mask: float,
    cost_dice: float,
) -> Tensor:
    """Weighted sum of class, mask and dice cost of every (query, object) pair, in float32.

    Args:
        scores: (..., Q, K), in [0, 1], of every class.
        masks: (..., Q, P) mask logits at P points.
        labels: (..., G) classes.
        target_masks: (..., G, P) masks at the same points, in [0, 1].

    Returns:
        (..., Q, G).
    """
    with torch.autocast(scores.device.type, enabled=False):
        masks, target_masks = masks.float(), target_masks.float()
        fits = scores.gather(-1, labels[..., None, :].expand(*scores.shape[:-1], -1))
        return (
            cost_mask * pairwise_sigmoid_ce(masks, target_masks)
            - cost_class * fits
            + cost_dice * pairwise_dice(masks, target_masks)
        )


def pairwise_sigmoid_ce(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean binary cross entropy of every pair: (..., Q, P) logits and (..., G, P) targets in [0, 1] -> (..., Q, G)."""
    # softplus(-x) t + softplus(x) (1 - t) = softplus(x) - x t
    return (F.softplus(logits).sum(-1, keepdim=True) - logits @ targets.mT) / logits.shape[-1]


def pairwise_dice(logits: Tensor, targets: Tensor) -> Tensor:
    """Dice loss of every pair: (..., Q, P) logits and (..., G, P) targets in [0, 1] -> (..., Q, G) in [0, 1]."""
    probabilities = logits.sigmoid()
    overlap = 2 * probabilities @ targets.mT
    total = probabilities.sum(-1)[..., :, None] + targets.sum(-1)[..., None, :]
    return 1 - (overlap + 1) / (total + 1)


def matched_rows(matches: Sequence[Match]) -> Match:
    """List the matched pairs of several images one after the other: image and query of each, (n,) both, on the CPU."""
    counts = torch.tensor([len(queries) for queries, _ in matches], dtype=torch.int64)
    images = torch.arange(len(matches)).repeat_interleave(counts)
    return images, torch.cat([queries.cpu() for queries, _ in matches]) if matches else images


def assign(cost: Tensor, name: str | None = None) -> Match:
    """Choose the pairs of least total cost.

    Args:
        cost: (Q, G).
        name: what is matched, for the message.

    Raises:
        ValueError: a cost is not finite, which means the network's outputs are not.
    """
    cost = cost.detach().cpu()
    if not torch.isfinite(cost).all():
        bad = int((~torch.isfinite(cost)).sum())
        raise ValueError(
            f"{name or 'sample'}: {bad} of {cost.numel()} matching costs are not finite, so the outputs of the network "
            "are not; lower SOLVER.BASE_LR, check the images of this sample, or train without SOLVER.AMP."
        )
    queries, objects = linear_sum_assignment(cost.numpy())
    return torch.as_tensor(queries, dtype=torch.int64), torch.as_tensor(objects, dtype=torch.int64)
