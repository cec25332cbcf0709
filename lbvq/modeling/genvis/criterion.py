"""Unified video label assignment of GenVIS (section 3.3) and the losses under it.

An annotated object is matched in the clip in which it appears first; from then on its query is responsible for it. So
the network is trained to carry an object in one query through the whole video, also while it is hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mask2former.modeling.matcher import Match, assign, costs_on_host
from mask2former.points import Draws

from ..clips.criterion import ClipCriterion, layers_of
from ..clips.matcher import ClipMatcher

FORBIDDEN = 1e6  # cost of a pair that must not be made

# Query of every object of a video, (N,) int64 on the CPU, for each of L*B entries; of an object that has not appeared
# yet it is a placeholder.
Owners = list[Tensor]


@dataclass
class ClipInputs:
    """What there is to a clip of B videos; see `ClipCriterion.forward`, and `split_target` for the targets."""

    outputs: dict[str, Any]
    targets: list[dict[str, Any]]
    frame_targets: list[dict[str, Any]]
    frame_matches: list[list[Match]]


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
    """Match new objects with queries that belong to nobody visible; targets are of one clip, from `split_target`."""

    def num_pairs(self, outputs: dict[str, Any], targets: list[dict[str, Any]]) -> int:
        """Every visible object has a query in every entry."""
        num_outputs, _, num_queries = outputs["pred_logits"].shape[:3]
        for target in targets:
            if len(target["labels"]) > num_queries:
                raise ValueError(
                    f"{target.get('name') or 'sample'}: {len(target['labels'])} objects in a video need as many "
                    f"queries, MODEL.VITA.NUM_OBJECT_QUERIES is {num_queries}."
                )
        return num_outputs * sum(int(target["valid"].sum()) for target in targets)

    def owners(self, costs: Sequence[Tensor], targets: list[dict[str, Any]], before: Owners | None) -> Owners:
        """Find the query of every object.

        Args:
            costs: of L*B entries, on the CPU.
            targets: B targets of one clip from `split_target`.
            before: queries of the objects after the clip before; None for the first clip.

        Returns:
            Queries of the objects after this clip, for each of L*B entries, L outermost.
        """
        return [
            self.match(cost, targets[entry % len(targets)], None if before is None else before[entry])
            for entry, cost in enumerate(costs)
        ]

    def match(self, cost: Tensor, target: dict[str, Any], before: Tensor | None) -> Tensor:
        """Assign the new objects of one clip; the others keep their queries.

        As published, the query of an object that is hidden in this clip may be given away to a new one.

        Args:
            cost: (Q, N), on the CPU as all that belongs to the target but its masks.
            before: (N,) queries of the objects so far.
        """
        cost, new, valid = cost.clone(), target["new"], target["valid"]
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
    matcher: GenvisMatcher

    def forward(  # type: ignore[override]  # `Genvis` alone calls it
        self, clips: Sequence[ClipInputs]
    ) -> list[tuple[dict[str, Tensor], list[Owners]]]:
        """Compute the losses of the clips of B videos one after the other, unweighted.

        What the network says about a clip does not depend on the matches before it, so the host waits for the costs of
        all of them once.

        Returns:
            For each clip the losses, named as those of `ClipCriterion`; and the queries of the objects, for the last
            decoder layer and then for every layer before it.
        """
        prepared = [self.prepare([layer for _, layer in layers_of(clip.outputs)], clip.targets) for clip in clips]
        costs = iter(costs_on_host([layer for layers, _ in prepared for layer in layers]))
        found: list[tuple[dict[str, Tensor], list[Owners]]] = []
        for clip, (layers, draws) in zip(clips, prepared, strict=True):
            before: Sequence[Owners | None] = found[-1][1] if found else [None] * len(layers)
            owners = [self.matcher.owners(next(costs), clip.targets, queries) for queries in before]
            found.append((self.losses_of_clip(clip, owners, draws), owners))
        return found

    def losses_of_clip(self, clip: ClipInputs, owners: list[Owners], draws: list[Draws]) -> dict[str, Tensor]:
        """Losses of a clip, given the queries of its objects."""
        matches = [visible_pairs(queries, clip.targets) for queries in owners]
        num_objects = sum(int(target["valid"].sum()) for target in clip.targets)
        num_masks = self.count_masks(clip.outputs["pred_logits"], num_objects)
        of_frames = (clip.frame_targets, clip.frame_matches)
        return self.losses(layers_of(clip.outputs), clip.targets, *of_frames, matches, draws, num_masks)


def visible_pairs(owners: Owners, targets: list[dict[str, Any]]) -> list[Match]:
    """Pairs (queries, objects) of the objects that are visible in the clip, for each of L*B entries."""
    pairs = []
    for entry, queries in enumerate(owners):
        objects = targets[entry % len(targets)]["valid"].nonzero().flatten()
        pairs.append((queries[objects], objects))
    return pairs
