"""Follow the queries of OVFormer from frame to frame, or from clip to clip, and average what is said of them."""

from __future__ import annotations

import torch
from torch import Tensor

from ..online.tracking import add_logits, assign_queries, cosine_similarity, keep_finite
from .zero_shot import open_vocabulary_scores


class LinkedTracks:
    """Q tracks; track q begins as query q of the first frame (or clip), and has one query in every later one.

    Attributes:
        orders: for every frame (or clip) so far, the query of each track, (Q,) int64 on the CPU.
    """

    def __init__(self, decay: float) -> None:
        """Args:
        decay: weight of the remembered embedding when one is added; 0 remembers the last one only.
        """
        self.decay = decay
        self.orders: list[Tensor] = []
        self._memory = torch.zeros(0)
        self._objects: list[Tensor] = []  # objectness logits (Q, 2) of every frame in the order of the queries
        self._class_sums: dict[str, Tensor] = {}
        self._object_sums: dict[str, Tensor] = {}

    def add(self, embeddings: Tensor, logits: Tensor, object_logits: Tensor) -> None:
        """Link the next frame: embeddings (Q, C), class logits (Q, K+1), objectness logits (Q, 2)."""
        embeddings, logits, object_logits = (part.float().cpu() for part in (embeddings, logits, object_logits))
        if not self.orders:
            order = torch.arange(len(embeddings))
            self._memory = keep_finite(embeddings, torch.zeros_like(embeddings))
        else:
            order = assign_queries(cosine_similarity(self._memory, embeddings))
            new = keep_finite(embeddings[order], self._memory)
            self._memory = (1 - self.decay) * new + self.decay * self._memory
        self.orders.append(order)
        self._objects.append(object_logits)
        self._class_sums = add_logits(self._class_sums, logits[order])
        self._object_sums = add_logits(self._object_sums, object_logits[order])

    def mean_logits(self) -> tuple[Tensor, Tensor]:
        """Mean class logits (Q, K+1) and mean objectness logits (Q, 2); of finite logits only."""
        classes, objects = (
            (each["logits_sum"] / each["num_logits"].clamp(min=1)).float()
            for each in (self._class_sums, self._object_sums)
        )
        return classes, objects

    def scores(self) -> Tensor:
        """Scores (Q, K) of the tracks in the video; 0 for a track that never had finite logits."""
        return open_vocabulary_scores(*self.mean_logits()) * (self._class_sums["num_logits"] > 0)

    def frame_scores(self, start: int, logits: Tensor, queries: Tensor, labels: Tensor) -> Tensor:
        """Scores of given labels in t frames by themselves.

        Args:
            start: number of the first frame.
            logits: (t, Q, K+1) class logits in the order of the queries.
            queries: (t, N) query of each prediction in each frame.
            labels: (N,) class of each prediction.

        Returns:
            (t, N); 0 where logits are not finite.
        """
        objects = torch.stack(self._objects[start : start + len(logits)])  # (t, Q, 2)
        fits = logits.cpu()[torch.arange(len(logits))[:, None], queries, labels].sigmoid()
        return (fits * objects.softmax(-1)[..., 0].gather(1, queries)).sqrt().nan_to_num(nan=0.0)
