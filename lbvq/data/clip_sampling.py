"""Which frames of a video make a training clip."""

from __future__ import annotations

import random

import numpy as np


def choose_frames(length: int, num_frames: int, frame_range: int, *, shuffle: bool = False) -> list[int]:
    """Choose a random frame and others near it.

    As published, the others are drawn with replacement, so they may repeat; the first never repeats. Draws from
    Python's `random` and then from numpy's global generator. A video of one frame repeats it.

    Args:
        length: of the video, at least 1.
        num_frames: of the clip, at least 1.
        frame_range: how far the others may be from the first chosen frame.
        shuffle: return the frames in random order instead of sorted.
    """
    if length < 1 or num_frames < 1 or frame_range < 0:
        raise ValueError(
            f"Expected at least 1 frame in the video, 1 in the clip and a range of at least 0, got {length}, "
            f"{num_frames} and {frame_range}; see INPUT.SAMPLING_FRAME_NUM and INPUT.SAMPLING_FRAME_RANGE."
        )
    reference = random.randrange(length)
    window = [
        t for t in range(max(0, reference - frame_range), min(length, reference + frame_range + 1)) if t != reference
    ]
    if window:
        others = np.random.choice(np.array(window), num_frames - 1).tolist()
    else:
        others = [reference] * (num_frames - 1)
    chosen = sorted([*others, reference])
    if shuffle:
        random.shuffle(chosen)
    return chosen


def frame_subset(length: int, ratio: float) -> list[int]:
    """Frames that training may use when only a share of each video is annotated (MinVIS' experiments).

    The subset depends on the length alone, so it is the same in every epoch.

    Args:
        length: of the video.
        ratio: share of the frames in (0, 1); at least one frame is kept.
    """
    if not 0 < ratio < 1:
        raise ValueError(f"The share of frames must be between 0 and 1, got {ratio}; set INPUT.SAMPLING_FRAME_RATIO.")
    count = max(int(np.round(ratio * length)), 1)
    if count == 1:
        return [length // 2]
    return np.linspace(0, length, count, endpoint=False).astype(int).tolist()
