"""Unified video label assignment of GenVIS (section 3.3) and the losses under it.

An annotated object is matched in the clip in which it appears first; from then on its query is responsible for it. So
the network is trained to carry an object in one query through the whole video, also while it is hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mask2former.modeling.matcher import Match, assign

from ..clips.criterion import ClipCriterion, layers_of
from ..clips.matcher import ClipMatcher

FORBIDDEN = 1e6  # cost of a pair that must not be made

# Query of every object of a video, (N,) int64 on the CPU, for each of L*B entries; of an object that has not appeared
# yet it is a placeholder.
Owners = list[Tensor]


def split_target(target: dict[str, Any], clip_length: int) -> list[dict[str, Any]]:
    """Split the target of a video into targets of clips; frames that do not fill a clip are left out.

    Args:
        target: `labels` (N,), `ids` (N, T), `masks` (N, T, H, W), and more that is handed on; see `targets.py`.
        clip_length: W.

    Returns:
        T // W targets with all N objects, `ids` (N, W), `masks` (N, W, H, W), and two bool tensors (N,): `valid`, the
        object is visible in the clip, and `new`, it is for the first time.
    """
    clips = []
    seen = torch.zeros(len(target["labels"]), dtype=torch.bool, device=target["labels"].device)
    for start in range(0, target["ids"].shape[1] - clip_length + 1, clip_length):
        frames = slice(start, start + clip_length)
        masks = target["masks"][:, frames]
        valid = masks.flatten(1).any(dim=1)
        clips.append({**target, "ids": target["ids"][:, frames], "masks": masks, "valid": valid, "new": valid & ~seen})
        seen = seen | valid
    return clips


class GenvisMatcher(ClipMatcher):
    """Match new objects with queries that belong to nobody visible."""

    @torch.no_grad()
    def forward(  # type: ignore[override]  # `GenvisCriterion` alone calls it
        self, outputs: dict[str, Any], targets: list[dict[str, Any]], owners: Owners | None = None
    ) -> Owners:
        """Find the query of every object.

        Args:
            outputs: as of `ClipMatcher`.
            targets: B targets of one clip from `split_target`.
            owners: queries of the objects after the clip before; None for the first clip.

        Returns:
            Queries of the objects after this clip, for each of L*B entries, L outermost.
        """
        num_outputs, num_clips, num_queries = outputs["pred_logits"].shape[:3]
        result = []
        for entry in range(num_outputs * num_clips):
            layer, clip = divmod(entry, num_clips)
            target, before = targets[clip], None if owners is None else owners[entry]
            if len(target["labels"]) > num_queries:
                raise ValueError(
                    f"{target.get('name') or 'sample'}: {len(target['labels'])} objects in a video need as many "
                    f"queries, MODEL.VITA.NUM_OBJECT_QUERIES is {num_queries}."
                )
            result.append(self.match(self.cost(outputs, target, layer, clip), target, before))
        return result

    def match(self, cost: Tensor, target: dict[str, Any], before: Tensor | None) -> Tensor:
        """Assign the new objects of one clip; the others keep their queries.

        As published, the query of an object that is hidden in this clip may be given away to a new one.

        Args:
            cost: (Q, N).
            before: (N,) queries of the objects so far.
        """
        cost, new, valid = cost.cpu().clone(), target["new"].cpu(), target["valid"].cpu()
        cost[:, ~new] = FORBIDDEN
        if before is not None:
            cost[before[valid & ~new]] = FORBIDDEN
        queries, objects = assign(cost, target.get("name"))
        fresh = torch.empty_like(queries)
        fresh[objects] = queries
        return fresh if before is None else torch.where(new, fresh, before)


class GenvisCriterion(ClipCriterion):
    """Losses of one clip after another."""

    matcher_type = GenvisMatcher

    def forward(  # type: ignore[override]  # `Genvis` alone calls it
        self,
        outputs: dict[str, Any],
        clip_targets: list[dict[str, Any]],
        frame_targets: list[dict[str, Any]],
        frame_matches: list[list[Match]],
        owners: list[Owners] | None = None,
    ) -> tuple[dict[str, Tensor], list[Owners]]:
        """Compute the losses of one clip of B videos, unweighted.

        Args:
            outputs, frame_targets, frame_matches: as of `ClipCriterion`, of this clip.
            clip_targets: from `split_target`.
            owners: what this function returned for the clip before; None for the first clip.

        Returns:
            Losses, named as those of `ClipCriterion`; and the queries of the objects, for the last decoder layer and
            then for every layer before it.
        """
        layers = [layer for _, layer in layers_of(outputs)]
        before: Sequence[Owners | None] = owners or [None] * len(layers)
        owners = [self.matcher(layer, clip_targets, queries) for layer, queries in zip(layers, before, strict=True)]
        matches = [visible_pairs(queries, clip_targets) for queries in owners]
        num_objects = sum(int(target["valid"].sum()) for target in clip_targets)
        losses = self.losses(outputs, clip_targets, frame_targets, frame_matches, matches, num_objects)
        return losses, owners


def visible_pairs(owners: Owners, targets: list[dict[str, Any]]) -> list[Match]:
    """Pairs (queries, objects) of the objects that are visible in the clip, for each of L*B entries."""
    pairs = []
    for entry, queries in enumerate(owners):
        objects = targets[entry % len(targets)]["valid"].cpu().nonzero().flatten()
        pairs.append((queries[objects], objects))
    return pairs
