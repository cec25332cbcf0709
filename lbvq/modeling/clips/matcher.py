"""Match the clip queries of every clip with its annotated objects, one to one, at least cost.

The cost is that of the frame matcher (Mask2Former), with the masks of all frames of a clip read as one long mask: a
query must be right about an object in every frame at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mask2former.modeling.matcher import (
    COMPARED_AT_ONCE,
    Match,
    assign,
    draw_points,
    pairwise_costs,
    sample_masks,
    sample_targets,
)


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
        costs = self.costs(outputs, targets, entries)
        return [
            assign(cost, targets[clip].get("name", f"clip {clip} of the batch"))
            for cost, (_, clip) in zip(costs, entries, strict=True)
        ]

    def costs(
        self, outputs: dict[str, Any], targets: list[dict[str, Any]], entries: Sequence[tuple[int, int]]
    ) -> list[Tensor]:
        """Cost of giving object g of a clip to query n: (N, G) float32 for each (layer, clip) of `entries`."""
        _, _, num_queries, num_frames, *_ = outputs["pred_masks"].shape
        at_once = max(1, COMPARED_AT_ONCE // (num_queries * num_frames * self.num_points))
        costs = []
        for start in range(0, len(entries), at_once):
            part = entries[start : start + at_once]
            costs += self.costs_at_once(outputs, [targets[clip] for _, clip in part], part)
        return costs

    def costs_at_once(
        self, outputs: dict[str, Any], targets: list[dict[str, Any]], entries: Sequence[tuple[int, int]]
    ) -> list[Tensor]:
        """As `costs`, with one target per entry; the masks of all entries are read before any is compared."""
        logits = outputs["pred_logits"]
        points = draw_points(len(entries), self.num_points, logits.device)
        masks = [
            sample_masks(outputs["pred_masks"][entry][None], here[None])
            for entry, here in zip(entries, points, strict=True)
        ]
        return pairwise_costs(
            torch.stack([logits[entry] for entry in entries]).float().softmax(-1),
            torch.cat(masks),
            [target["labels"] for target in targets],
            sample_targets([target["masks"] for target in targets], points),
            cost_class=self.cost_class,
            cost_mask=self.cost_mask,
            cost_dice=self.cost_dice,
        )

    def cost(self, outputs: dict[str, Any], target: dict[str, Any], layer: int, clip: int) -> Tensor:
        """Cost of giving object g of a clip to query n: (N, G) float32."""
        return self.costs_at_once(outputs, [target], [(layer, clip)])[0]
