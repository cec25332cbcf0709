"""Noise on what tracked objects start from, so that a tracker learns not to rely on the matching: DVIS++, section 3.3.

In training, with some probability per frame, the matched queries are replaced by queries that are mixed up. What an
object asks with stays, so the tracker has to find it again.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mask2former.transfer import to_device

MODES = ("none", "rs", "wa", "cc")


@dataclass(frozen=True)
class MatchNoise:
    """Replaces the matched queries of a frame.

    The noise acts on the queries in their own order; as published, the match is then not used at all.

    Attributes:
        mode: "none"; "rs" shuffles the queries; "wa" adds to every query a random one, with random weights that sum to
            1; "cc" takes some channels of every query from a random one.
        ratio: probability that the queries of a frame are replaced.
    """

    mode: str
    ratio: float

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"MODEL.TRACKER.NOISE_MODE must be one of {MODES}, got {self.mode!r}.")
        if not 0 <= self.ratio <= 1:
            raise ValueError(f"MODEL.TRACKER.NOISE_RATIO must be in [0, 1], got {self.ratio}.")

    def __call__(self, queries: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
        """Choose what the objects start from in a frame that is not the first.

        Args:
            queries: (Q, B, C).
            order: (B, Q) query of each object, as matched.

        Returns:
            Starts (Q, B, C), and (B, Q) the query that each is mostly made of; one may occur several times.
        """
        starts, orders = [], []
        for rows, matched in zip(queries.unbind(1), order, strict=True):
            start, taken = self._video(rows, matched)
            starts.append(start)
            orders.append(taken)
        return torch.stack(starts, dim=1), torch.stack(orders)

    def _video(self, rows: Tensor, matched: Tensor) -> tuple[Tensor, Tensor]:
        """The same for one video: (Q, C) and (Q,)."""
        if draw_share() >= self.ratio or self.mode == "none":
            return rows[to_device(matched, rows.device)], matched
        own, other = torch.arange(len(rows)), draw_permutation(len(rows))
        mixed_in = rows[to_device(other, rows.device)]
        if self.mode == "rs":
            return mixed_in, other
        if self.mode == "wa":
            weight = torch.rand(len(rows), 1, 1)[:, 0]
            taken = torch.where(weight[:, 0] >= 0.5, own, other)
            weight = to_device(weight, rows.device)
            return weight * rows + (1 - weight) * mixed_in, taken
        cuts = draw_cuts(len(rows), rows.shape[1])
        keeps = torch.arange(rows.shape[1], device=rows.device) < to_device(cuts[:, None], rows.device)  # (Q, C)
        # as published: the query that gave the smaller part is named
        return torch.where(keeps, rows, mixed_in), torch.where(cuts < rows.shape[1] // 2, other, own)


def draw_share() -> float:
    """A number in [0, 1)."""
    return torch.rand(()).item()


def draw_permutation(count: int) -> Tensor:
    """A random order of `count` rows, int64 on the CPU."""
    return torch.randperm(count)


def draw_cuts(count: int, num_channels: int) -> Tensor:
    """For each of `count` rows how many leading channels it keeps, in [0, num_channels), int64 on the CPU."""
    return torch.randint(0, num_channels, (count,))
