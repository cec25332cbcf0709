"""Give every object of a clip one query for all frames, chosen where the object first appears.

The matching that trains trackers whose query n is object n from the first frame to the last (DVIS, ICCV 2023; DVIS++;
VidEoMT, CVPR 2026). Frames are matched in their order, each with the objects that appear in it for the first time; a
query that an earlier frame has given away is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mask2former.modeling.matcher import HungarianMatcher, Match, Places, assign
from mask2former.structures import ABSENT
from mask2former.transfer import to_device

TAKEN = 1e6  # cost of a query that another object has


class ConsistentMatcher(HungarianMatcher):
    """Hungarian matching of the frames of clips, the same in all frames of a clip."""

    def __init__(self, *, num_frames: int, reuse_queries: bool = False, **costs: Any) -> None:
        """Args:
        num_frames: T of a clip.
        reuse_queries: let a frame match queries that earlier frames have given away, so that two objects may share one.
        costs: arguments of `HungarianMatcher`.
        """
        super().__init__(**costs)
        self.num_frames = num_frames
        self.reuse_queries = reuse_queries

    @torch.no_grad()
    def forward(self, outputs: dict[str, Any], targets: list[dict[str, Any]]) -> list[Match]:
        """Match every clip.

        Args:
            outputs: `pred_logits` (B*T, Q, K+1) and `pred_masks` (B*T, Q, h, w), clip by clip.
            targets: one per frame, each with all G objects of its clip in one order: `labels` (G,), `masks`
                (G, H, W), `ids` (G,), -1 where the frame does not show the object, and perhaps `name`. `cost_labels`
                (G,), where there are some, take the place of the labels in the cost of matching.

        Returns:
            B*T matches, T times the same one for each clip. Queries are in the order in which their objects appear. An
            object that is never visible, or for which no query is left, stays unmatched.
        """
        return super().forward(outputs, targets)

    def places(self, outputs: dict[str, Any], targets: list[dict[str, Any]]) -> Places:
        """Every frame in which objects appear."""
        return [frame for frame, _ in self._appearing(targets)]

    def compared(self, targets: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The objects that appear in these frames."""
        return [appearing_target(targets[frame], rows) for frame, rows in self._appearing(targets)]

    def num_pairs(self, outputs: dict[str, Any], targets: list[dict[str, Any]]) -> int:
        num_queries, pairs = outputs["pred_logits"].shape[1], 0
        free: dict[int, int] = {}  # of every clip
        for frame, rows in self._appearing(targets):
            left = num_queries if self.reuse_queries else free.get(frame // self.num_frames, num_queries)
            found = min(left, len(rows))
            free[frame // self.num_frames] = left - found
            pairs += found
        return pairs * self.num_frames

    def assign(self, costs: Sequence[Tensor], targets: list[dict[str, Any]]) -> list[Match]:
        of_clips: list[list[tuple[Tensor, Tensor, str]]] = [[] for _ in range(len(targets) // self.num_frames)]
        for cost, (frame, rows) in zip(costs, self._appearing(targets), strict=True):
            name = targets[frame].get("name", "frame of a clip")
            of_clips[frame // self.num_frames].append((cost, rows, name))
        return [match for clip in of_clips for match in [self.match_clip(clip)] * self.num_frames]

    def match_clip(self, frames: Sequence[tuple[Tensor, Tensor, str]]) -> Match:
        """Match a clip, given for each frame the costs (Q, n) of the n objects that appear, their rows (n,), a name."""
        taken = torch.zeros(0, dtype=torch.int64)
        matched = torch.zeros(0, dtype=torch.int64)
        for cost, appearing, name in frames:
            if not self.reuse_queries:
                cost[taken] = TAKEN
            queries, objects = assign(cost, name)
            if not self.reuse_queries:  # with fewer queries than objects the method has no free ones to choose
                free = ~torch.isin(queries, taken)
                queries, objects = queries[free], objects[free]
            taken, matched = torch.cat((taken, queries)), torch.cat((matched, appearing[objects]))
        return taken, matched

    def _appearing(self, targets: list[dict[str, Any]]) -> list[tuple[int, Tensor]]:
        """Frames in which objects appear for the first time in their clip, with the rows of these objects."""
        if len(targets) % self.num_frames:
            raise ValueError(f"{len(targets)} frames are no clips of {self.num_frames}; see INPUT.SAMPLING_FRAME_NUM.")
        found = []
        for start in range(0, len(targets), self.num_frames):
            frames = targets[start : start + self.num_frames]
            first = first_frames(torch.stack([target["ids"].cpu() for target in frames]))
            for frame in first[first < self.num_frames].unique().tolist():
                found.append((start + frame, (first == frame).nonzero().flatten()))
        return found


def first_frames(ids: Tensor) -> Tensor:
    """First frame that shows each object: ids (T, G) -> (G,) int64, T for one that no frame shows."""
    visible = ids != ABSENT
    shown = visible.cummax(dim=0).values if len(ids) else visible
    return (~shown).sum(dim=0)


def appearing_target(target: dict[str, Any], objects: Tensor) -> dict[str, Any]:
    """The target of a frame with some of its objects only."""
    masks = target["masks"]
    return {
        "labels": target.get("cost_labels", target["labels"]).cpu()[objects],
        "masks": masks[to_device(objects, masks.device)],
    }
