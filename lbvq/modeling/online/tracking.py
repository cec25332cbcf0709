"""Put the queries of a frame in correspondence with those of the frames before.

The Q queries of a frame are the same Q objects as in the frames before, in another order. The order that fits best on
the whole is found with the Hungarian method on cosines between query vectors. What is compared with is the frame before
(MinVIS, NeurIPS 2022, section 3.2) or a weighted mean over a memory of some frames (VISAGE, ECCV 2024).

These are a few small matrices per frame, so all of it happens on the CPU in float32. A network that overflowed in half
precision gives rows that are not finite; such a row is worth nothing in a comparison and is not remembered, so that an
object is found again when the network recovers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from mask2former.transfer import most_precise

UNLIKE = -1.0  # cosine of opposite vectors: what a pair gets that cannot be compared


def cosine_similarity(tracks: Tensor, queries: Tensor) -> Tensor:
    """Cosine of every pair of rows, (N, C) and (Q, C) -> (N, Q); `UNLIKE` where a row is zero or not finite."""
    unit_tracks = tracks / tracks.norm(dim=-1, keepdim=True)
    unit_queries = queries / queries.norm(dim=-1, keepdim=True)
    return (unit_tracks @ unit_queries.T).nan_to_num(nan=UNLIKE, posinf=UNLIKE, neginf=UNLIKE)


def assign_queries(similarity: Tensor) -> Tensor:
    """Give every track a query of its own so that the sum of similarities is largest.

    Args:
        similarity: (Q, Q) on the CPU, row = track, column = query of the new frame.

    Returns:
        (Q,) int64 query of each track; empty for no queries.
    """
    return torch.as_tensor(linear_sum_assignment(similarity.numpy(), maximize=True)[1], dtype=torch.int64)


def is_finite(rows: Tensor) -> Tensor:
    """(Q, C) -> (Q, 1) bool: all numbers of the row are finite."""
    return rows.isfinite().all(dim=-1, keepdim=True)


def keep_finite(rows: Tensor, before: Tensor) -> Tensor:
    """Take rows (Q, C) that are finite, and what they were `before` for the others."""
    return torch.where(is_finite(rows), rows, before)


@dataclass(frozen=True)
class Memory:
    """Rules of a memory of query vectors; its content is a list of entries, newest first, that the caller keeps.

    An entry is a dict of query vectors by kind, (Q, C) each, in the order of the tracks, and `scores` (Q,).

    Attributes:
        size: most entries.
        newest_weighs_most: give the newest entry the largest weight. As published it is the other way round.
    """

    size: int
    newest_weighs_most: bool = False

    def add(self, memory: Sequence[dict[str, Tensor]], scores: Tensor, **vectors: Tensor) -> list[dict[str, Tensor]]:
        """Return the memory with a new entry in front; the oldest leaves when there is no room.

        A row that is not finite is replaced by that of the newest entry, or by zeros, and gets score 0.
        """
        before = memory[0] if memory else {kind: torch.zeros_like(rows) for kind, rows in vectors.items()}
        entry = {kind: keep_finite(rows, before[kind]) for kind, rows in vectors.items()}
        entry["scores"] = scores.nan_to_num(nan=0.0)
        return [entry, *memory][: self.size]

    def recall(self, memory: Sequence[dict[str, Tensor]], kind: str) -> Tensor:
        """Weighted mean of the vectors of one kind over the entries, (Q, C).

        Entry k of n (0 is the newest) has weight (k + 1) / n + its score; vectors are averaged as they are, not
        normalised.
        """
        rank = torch.arange(1, len(memory) + 1, dtype=torch.float32)
        if self.newest_weighs_most:
            rank = rank.flip(0)
        weights = rank[:, None] / len(memory) + torch.stack([entry["scores"] for entry in memory])  # (n, Q)
        vectors = torch.stack([entry[kind] for entry in memory])  # (n, Q, C)
        return (weights[..., None] * vectors).sum(0) / weights.sum(0)[:, None]


def add_logits(state: dict[str, Any], logits: Tensor) -> dict[str, Any]:
    """Add the class logits (Q, K+1) of one more frame, in the order of the tracks, to the sums of a stream.

    Returns:
        `logits_sum` (Q, K+1) and `num_logits` (Q, 1), float64 where the device has it; rows that are not finite are
        not counted.
    """
    counted, exact = is_finite(logits), most_precise(logits.device)
    return {
        "logits_sum": torch.where(counted, logits, 0.0).to(exact) + state.get("logits_sum", 0.0),
        "num_logits": counted.to(exact) + state.get("num_logits", 0.0),
    }


def mean_probabilities(state: dict[str, Any]) -> Tensor:
    """Class probabilities of the mean logits, (Q, K) without "no object"; 0 for an object without finite logits.

    Before the first frame there are no objects.
    """
    if "num_logits" not in state:
        return torch.zeros(0, 1)
    num_logits = state["num_logits"]
    mean = (state["logits_sum"] / num_logits.clamp(min=1)).float()
    return mean.softmax(dim=-1)[:, :-1] * (num_logits > 0)
