"""Boxes and outlines of masks, as tools that know no masks want them."""

from __future__ import annotations

import numpy as np


def boxes_of(masks: np.ndarray) -> np.ndarray:
    """Smallest boxes around masks: (N, H, W) bool -> (N, 4) float64.

    A box is x, y of the first and x, y of the last pixel, both included, as in `torchvision.ops.masks_to_boxes` and in
    supervision; NaN for an empty mask.
    """
    boxes = np.full((len(masks), 4), np.nan)
    for box, mask in zip(boxes, masks, strict=True):
        columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
        if len(rows):
            box[:] = columns[0], rows[0], columns[-1], rows[-1]
    return boxes


def polygons_of(mask: np.ndarray) -> list[np.ndarray]:
    """Outer outlines of a mask: (H, W) bool -> (P, 2) int32 (x, y) each, largest first; holes are not told.

    A part of one or two pixels has an outline of as many points.
    """
    import cv2  # here: whoever reads and scores files need not wait for it

    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return sorted((outline[:, 0] for outline in outlines), key=cv2.contourArea, reverse=True)
