"""What makes an object alike in all frames and different from the others: DVIS++, section 3.4.

The tracker learns from neighbouring frames, the refiner from whole clips and from objects of the same class in clips
before.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mask2former.transfer import to_device

from ..contrast import Terms, contrast, join_terms

MEMORY_SIZE = 20  # embeddings of a class, as published


def neighbour_terms(references: Tensor, queries: Tensor) -> Terms:
    """Compare what objects ask with in neighbouring frames of a clip.

    An anchor is an object in a frame that is not the first; its positive is itself in the frame before, and once more
    in the frame after; the other queries there are the negatives. Frames in which the object is hidden count.

    Args:
        references: (T, Q, C).
        queries: (n,) query of each object, the same in all frames.
    """
    num_frames, num_queries = references.shape[:2]
    queries = to_device(queries, references.device)
    others = torch.arange(num_queries, device=references.device) != queries[:, None]  # (n, Q)
    pairs = [(t, t - 1) for t in range(1, num_frames)] + [(t, t + 1) for t in range(1, num_frames - 1)]
    return join_terms(
        [
            contrast(references[t, queries], references[other, queries, None], references[other], others)
            for t, other in pairs
        ],
        references,
    )


class ClassMemory:
    """Embeddings of the objects of earlier training clips, by class; at most `MEMORY_SIZE` of each.

    It lives as long as the training run: it is no part of a checkpoint, and fills again within some clips.
    """

    def __init__(self) -> None:
        self.rows: dict[int, Tensor] = {}  # class: (m, C) without gradient

    def recall(self, label: int) -> Tensor | None:
        """Embeddings (m, C) of a class, None when there are none."""
        return self.rows.get(label)

    def add(self, label: int, embeddings: Tensor) -> None:
        """Remember embeddings (m, C) of a class; when there are too many, a random choice stays."""
        rows = embeddings.detach().float()
        if label in self.rows:
            rows = torch.cat((self.rows[label].to(rows.device), rows))
        if len(rows) > MEMORY_SIZE:
            rows = rows[to_device(shuffled(len(rows)), rows.device)][-MEMORY_SIZE:]
        self.rows[label] = rows


def shuffled(count: int) -> Tensor:
    """A random order of `count` rows, int64 on the CPU."""
    return torch.randperm(count)


def clip_terms(embeddings: Tensor, queries: Tensor, labels: Tensor, memory: ClassMemory) -> Terms:
    """Compare the objects of a clip with themselves, with each other and with remembered ones of their class.

    An anchor is an object in a frame; its positives are the object in all frames, the anchor included. It is compared
    with the other queries of the frame, and once more with what is remembered of its class. Afterwards the objects are
    remembered.

    Args:
        embeddings: (T, Q, C).
        queries: (n,) query of each object.
        labels: (n,) class of each object, on the CPU.
        memory: is changed.
    """
    terms, num_queries = [], embeddings.shape[1]
    queries = to_device(queries, embeddings.device)
    others = torch.arange(num_queries, device=embeddings.device) != queries[:, None]  # (n, Q)
    positives = embeddings[:, queries].transpose(0, 1)  # (n, T, C)
    for frame in embeddings:
        terms.append(contrast(frame[queries], positives, frame, others))
    for tracks, label in zip(positives, labels.tolist(), strict=True):
        remembered = memory.recall(label)
        if remembered is not None:
            counts = torch.ones(len(tracks), len(remembered), dtype=torch.bool, device=tracks.device)
            terms.append(contrast(tracks, tracks.expand(len(tracks), -1, -1), remembered.to(tracks.device), counts))
    for tracks, label in zip(positives, labels.tolist(), strict=True):
        memory.add(label, tracks)
    return join_terms(terms, embeddings)
