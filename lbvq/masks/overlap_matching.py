"""Match the masks of one frame with those of another by their overlap."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pycocotools.mask as coco_mask
from scipy.optimize import linear_sum_assignment

from .rle import Rle

LEAST_OVERLAP = 0.3  # intersection over union of an object in two frames
LONGEST_GAP = 2  # frames in which it may be hidden between them


def match_by_overlap(
    before: Sequence[Rle], now: Sequence[Rle], same: np.ndarray, least_overlap: float = LEAST_OVERLAP
) -> list[tuple[int, int]]:
    """Find the pairs whose overlap is greatest in sum.

    Args:
        before, now: B and N masks of one size, checked.
        same: (B, N) bool, False forbids a pair.
        least_overlap: of a pair, intersection over union in (0, 1].

    Returns:
        Positions in `before` and `now`.
    """
    if not before or not now:
        return []
    overlap = np.array(coco_mask.iou(list(now), list(before), [0] * len(before))).T.reshape(len(before), len(now))
    overlap = np.where(same & (overlap >= least_overlap), overlap, 0.0)
    rows, columns = linear_sum_assignment(-overlap)
    return [(int(row), int(column)) for row, column in zip(rows, columns, strict=True) if overlap[row, column] > 0]
