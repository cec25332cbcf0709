"""Contrastive training that goes through a clip as the tracker will: CTVIS (ICCV 2023), section 3.2.

A memory of every object is filled frame by frame, with the same moving average as at test; in each frame an object is
compared with what the memory has of it, and with the other queries of the frame before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mask2former.modeling.criterion import select_rows
from mask2former.modeling.matcher import Match
from mask2former.structures import ABSENT
from mask2former.transfer import to_device

from ..contrast import Terms, contrast, join_terms, mean_terms

HIDDEN = -1  # instead of the query of an object that a frame does not show


@dataclass(frozen=True)
class MemoryContrast:
    """The contrastive losses of clips.

    Attributes:
        num_negatives: most other queries that an object is told from; a random choice where there are more.
        use_averages: compare with the moving average half of the time, else always with the latest appearance.
        skip_first_appearance: as published: an object that appears first in frame t, and is hidden in exactly t frames
            after it, is not compared with its next appearance as others are.
    """

    num_negatives: int = 99
    use_averages: bool = True
    skip_first_appearance: bool = False

    def __call__(self, embeddings: Tensor, queries: Sequence[Tensor]) -> dict[str, Tensor]:
        """Means over the appearances in all clips.

        Args:
            embeddings: (B, T, Q, C).
            queries: one (T, N) int64 on the CPU for each clip: the query of each object, `HIDDEN` where it is not
                visible.

        Returns:
            loss_reid and loss_aux_reid, 0 but connected to the graph when nothing can be compared.
        """
        terms = []
        for clip, chosen in zip(embeddings, queries, strict=True):
            terms += self.clip_terms(clip, chosen)
        return mean_terms(join_terms(terms, embeddings))

    def clip_terms(self, embeddings: Tensor, queries: Tensor) -> list[Terms]:
        """Both terms of `contrast` for every frame of a clip (T, Q, C) with objects that can be compared."""
        visible = queries != HIDDEN  # (T, N)
        frames = torch.arange(len(queries))[:, None].expand_as(queries)
        own = select_rows(embeddings, frames, queries.clamp(min=0))  # (T, N, C)
        averages = moving_averages(own, to_device(visible, own.device))
        terms = []
        for frame in range(1, len(embeddings)):
            positives, compared = self.positives(frame, own, averages, visible)
            if len(compared):
                counts = self.negatives(queries[frame - 1], embeddings.shape[1])[compared]
                anchors, positives = (select_rows(rows, compared) for rows in (own[frame], positives))
                counts = to_device(counts, anchors.device)
                terms.append(contrast(anchors, positives[:, None], embeddings[frame - 1], counts))
        return terms

    def positives(self, frame: int, own: Tensor, averages: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
        """What each object is compared with in a frame, (N, C), and the objects that are, (n,) on the CPU.

        It is the average until the frame before or the latest appearance; of an object that appears first, the next.
        """
        before, after = visible[:frame], visible[frame + 1 :]
        seen_before, seen_after = before.any(dim=0), after.any(dim=0)
        latest = select_rows(own, latest_true(before), torch.arange(own.shape[1]))
        asked = visible[frame] & seen_before
        by_average = torch.zeros_like(asked)
        if self.use_averages:
            by_average[asked] = draw_shares(int(asked.sum())) > 0.5
        positives = torch.where(to_device(by_average[:, None], own.device), averages[frame - 1], latest)
        if len(after):
            following = select_rows(own, frame + 1 + after.int().argmax(dim=0), torch.arange(own.shape[1]))
            positives = torch.where(to_device(seen_before[:, None], own.device), positives, following)
        if self.skip_first_appearance:  # as published: the number of hidden frames is compared with the wrong one
            seen_after = seen_after & ((~after).sum(dim=0) != frame)
        return positives, (visible[frame] & (seen_before | seen_after)).nonzero().flatten()

    def negatives(self, queries: Tensor, num_queries: int) -> Tensor:
        """Which queries of a frame are others, (N, Q) bool: all of them where the object (N,) is hidden."""
        others = torch.arange(num_queries) != queries[:, None]
        if self.num_negatives >= num_queries - 1:
            return others
        shares = torch.rand(others.shape).masked_fill(~others, -1.0)
        least = shares.topk(self.num_negatives, dim=1).values[:, -1:]
        return (others & (shares >= least)) | (queries[:, None] == HIDDEN)


def draw_shares(count: int) -> Tensor:
    """Numbers in [0, 1), (count,) on the CPU."""
    return torch.rand(count)


def moving_averages(own: Tensor, visible: Tensor) -> Tensor:
    """What the memory has of every object after each frame, (T, N, C); zeros before it appears.

    Args:
        own: (T, N, C) vectors of the objects.
        visible: (T, N) bool; what is not visible does not count.
    """
    unit = F.normalize(own, dim=-1)
    average = torch.zeros_like(own[0])
    averages = []
    for frame in range(len(own)):
        before = visible[:frame]
        cosines = torch.einsum("nc,tnc->tn", unit[frame], unit[:frame]) * before
        share = (cosines.sum(dim=0) / before.sum(dim=0).clamp(min=1)).clamp(min=0)
        share = torch.where(before.any(dim=0), share, 1.0)[:, None]
        moved = (1 - share) * average + share * own[frame]
        average = torch.where(visible[frame, :, None], moved, average)
        averages.append(average)
    return torch.stack(averages)


def latest_true(flags: Tensor) -> Tensor:
    """Last row with True in each column of (t, N) bool, t > 0: (N,) int64; any row where there is none."""
    return len(flags) - 1 - flags.flip(0).int().argmax(dim=0)


def queries_of_clips(matches: Sequence[Match], targets: Sequence[dict[str, Any]], num_frames: int) -> list[Tensor]:
    """Query of each object of B clips in each frame, from B*T matches and targets with N rows: B times (T, N) int64."""
    rows = []
    for (queries, objects), target in zip(matches, targets, strict=True):
        chosen = torch.full((len(target["ids"]),), HIDDEN, dtype=torch.int64)
        chosen[objects] = queries
        rows.append(torch.where(target["ids"] == ABSENT, HIDDEN, chosen))
    return [torch.stack(rows[start : start + num_frames]) for start in range(0, len(rows), num_frames)]
