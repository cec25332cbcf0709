"""One-to-one matching of queries with annotated objects at least cost (Hungarian method).

DETR, Carion et al., ECCV 2020, section 3.1, with the mask costs of Mask2Former, Cheng et al., CVPR 2022.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from ..points import point_sample

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
        costs = [self.cost(outputs, target, image) for image, target in enumerate(targets)]
        return [
            assign(cost, target.get("name", f"image {image} of the batch"))
            for image, (cost, target) in enumerate(zip(costs, targets, strict=True))
        ]

    def cost(self, outputs: dict[str, Any], target: dict[str, Any], image: int) -> Tensor:
        """Cost of giving object g of an image to query q: (Q, G) float32."""
        masks = outputs["pred_masks"][image]  # (Q, h, w) or (Q, T, h, w)
        points = torch.rand(1, self.num_points, 2, device=masks.device)
        return matching_cost(
            outputs["pred_logits"][image],
            sample_masks(masks, points),
            target["labels"],
            sample_masks(target["masks"].to(masks.device), points),
            cost_class=self.cost_class,
            cost_mask=self.cost_mask,
            cost_dice=self.cost_dice,
        )


def sample_masks(masks: Tensor, points: Tensor) -> Tensor:
    """Read masks (N, h, w) at points (1, P, 2): (N, P); masks of clips, (N, T, h, w), alike in all frames: (N, T*P)."""
    sampled = point_sample(masks.flatten(0, -3)[None], points)[0]
    return sampled.view(len(masks), masks.shape[1:-2].numel() * points.shape[1])


def matching_cost(
    logits: Tensor,
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
        logits: (Q, K+1) class logits.
        masks: (Q, P) mask logits at P points.
        labels: (G,) classes.
        target_masks: (G, P) masks at the same points, in [0, 1].

    Returns:
        (Q, G).
    """
    with torch.autocast(logits.device.type, enabled=False):
        logits, masks, target_masks = logits.float(), masks.float(), target_masks.float()
        return (
            cost_mask * pairwise_sigmoid_ce(masks, target_masks)
            - cost_class * logits.softmax(-1)[:, labels]
            + cost_dice * pairwise_dice(masks, target_masks)
        )


def pairwise_sigmoid_ce(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean binary cross entropy of every pair: (Q, P) logits and (G, P) targets in [0, 1] -> (Q, G)."""
    # softplus(-x) t + softplus(x) (1 - t) = softplus(x) - x t
    return (F.softplus(logits).sum(1, keepdim=True) - logits @ targets.T) / logits.shape[1]


def pairwise_dice(logits: Tensor, targets: Tensor) -> Tensor:
    """Dice loss of every pair: (Q, P) logits and (G, P) targets in [0, 1] -> (Q, G) in [0, 1]."""
    probabilities = logits.sigmoid()
    overlap = 2 * probabilities @ targets.T
    total = probabilities.sum(1)[:, None] + targets.sum(1)[None]
    return 1 - (overlap + 1) / (total + 1)


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
