"""Match the clip queries of every clip with its annotated objects, one to one, at least cost.

The cost is that of the frame matcher (Mask2Former), with the masks of all frames of a clip read as one long mask: a
query must be right about an object in every frame at once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mask2former.modeling.matcher import Match, assign, matching_cost
from mask2former.points import point_sample


class ClipMatcher(nn.Module):
    """Hungarian matching of clip queries for every frame-decoder output l and clip b; entry l * B + b."""

    def __init__(self, *, cost_class: float, cost_mask: float, cost_dice: float, num_points: int) -> None:
        """Args:
        cost_class, cost_mask, cost_dice: weights of the three costs.
        num_points: P points per frame at which masks are compared; one draw for all frames, queries and objects.
        """
        super().__init__()
        self.cost_class, self.cost_mask, self.cost_dice = cost_class, cost_mask, cost_dice
        self.num_points = num_points

    @torch.no_grad()
    def forward(self, outputs: dict[str, Any], targets: list[dict[str, Any]]) -> list[Match]:
        """Match every entry.

        Args:
            outputs: `pred_logits` (L, B, N, K+1) and `pred_masks` (L, B, N, T, h, w), a tensor or `ClipMasks`.
            targets: B clip targets with `labels` (G,), `masks` (G, T, H, W) and perhaps `name`.

        Returns:
            L*B matches, L outermost; empty for a clip without objects.
        """
        num_outputs, num_clips = outputs["pred_logits"].shape[:2]
        entries = [(layer, clip) for layer in range(num_outputs) for clip in range(num_clips)]
        # All costs first: a GPU computes the next while the first is copied.
        costs = [self.cost(outputs, targets[clip], layer, clip) for layer, clip in entries]
        return [
            assign(cost, targets[clip].get("name", f"clip {clip} of the batch"))
            for cost, (_, clip) in zip(costs, entries, strict=True)
        ]

    def cost(self, outputs: dict[str, Any], target: dict[str, Any], layer: int, clip: int) -> Tensor:
        """Cost of giving object g of a clip to query n: (N, G) float32."""
        masks = outputs["pred_masks"][layer, clip]  # (N, T, h, w)
        points = torch.rand(1, self.num_points, 2, device=masks.device)
        return matching_cost(
            outputs["pred_logits"][layer, clip],
            sample_clip(masks, points),
            target["labels"],
            sample_clip(target["masks"].to(masks.device), points),
            cost_class=self.cost_class,
            cost_mask=self.cost_mask,
            cost_dice=self.cost_dice,
        )


def sample_clip(masks: Tensor, points: Tensor) -> Tensor:
    """Read the masks (N, T, h, w) of all frames at the same points (1, P, 2): (N, T*P)."""
    return point_sample(masks, points.expand(len(masks), -1, -1)).flatten(1)
