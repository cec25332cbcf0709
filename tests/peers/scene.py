"""A tiny labelled video that other programs write down and this project must read back: numpy only, no code of ours."""

from __future__ import annotations

import numpy as np

HEIGHT, WIDTH, NUM_FRAMES = 40, 56, 5
CLASSES = ("cat", "dog")
TRACKS = {1: "cat", 2: "dog", 7: "cat"}  # object: class


def masks(frame: int) -> dict[int, np.ndarray]:
    """Object -> (H, W) bool mask of the objects that this frame shows; they never overlap.

    1 moves to the right, 2 has two parts and a hole, 7 appears in frame 2 and is hidden in frame 3.
    """
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    found = {1: (np.abs(rows - 8) <= 4) & (np.abs(columns - 8 - 4 * frame) <= 3 + frame % 2)}
    ring = (rows - 26) ** 2 + (columns - 14) ** 2
    found[2] = ((ring <= 64) & (ring > 9)) | ((np.abs(rows - 36) <= 1) & (np.abs(columns - 30) <= frame))
    if frame >= 2 and frame != 3:
        found[7] = rows + columns >= HEIGHT + WIDTH - 22 + 2 * frame
    return found


def corners(frame: int) -> dict[int, list[tuple[float, float]]]:
    """Object -> corners (x, y) of a polygon; other shapes than `masks`, for tools without masks."""
    found = {1: [(4.0 + 4 * frame, 4.0), (13.0 + 4 * frame, 5.0), (11.0 + 4 * frame, 14.0), (3.0 + 4 * frame, 12.0)]}
    found[2] = [(20.0, 20.0), (34.0, 22.0), (30.0 + frame, 35.0)]
    if frame >= 2 and frame != 3:
        found[7] = [(40.0, 2.0), (50.0, 2.0), (50.0, 12.0), (40.0, 12.0)]
    return found


def image(frame: int) -> np.ndarray:
    """(H, W, 3) uint8 picture of a frame."""
    pixels = np.full((HEIGHT, WIDTH, 3), 60 + 10 * frame, dtype=np.uint8)
    for number, mask in masks(frame).items():
        pixels[mask] = (30 * number, 200 - 20 * number, 90)
    return pixels
