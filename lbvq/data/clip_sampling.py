"""Which frames of a video make a training clip."""

from __future__ import annotations

import random

import numpy as np


def choose_clip(
    length: int,
    num_frames: int,
    frame_range: int,
    *,
    shuffle: bool = False,
    repeats: bool = True,
    reverse: bool = False,
) -> list[int]:
    """Choose the frames of a training clip: a run of frames if they fill the range exactly, else `choose_frames`.

    Args:
        length, num_frames, frame_range, shuffle, repeats: as of `choose_frames`.
        reverse: turn half of the runs around.
    """
    _check(length, num_frames, frame_range)
    if num_frames == 1 or num_frames != 2 * frame_range + 1:
        return choose_frames(length, num_frames, frame_range, shuffle=shuffle, repeats=repeats)
    chosen = choose_run(length, num_frames)
    return chosen[::-1] if reverse and random.random() < 0.5 else chosen


def choose_run(length: int, num_frames: int) -> list[int]:
    """Choose frames that follow each other, from a random first one; a video that is too short lingers on each."""
    if length < num_frames:
        return [position * length // num_frames for position in range(num_frames)]
    start = random.randrange(length - num_frames + 1)
    return list(range(start, start + num_frames))


def choose_frames(
    length: int, num_frames: int, frame_range: int, *, shuffle: bool = False, repeats: bool = True
) -> list[int]:
    """Choose a random frame and others near it.

    As published, the others are drawn with replacement, so they may repeat; the first never repeats. Draws from
    Python's `random` and then from numpy's global generator. A video of one frame repeats it.

    Args:
        length: of the video, at least 1.
        num_frames: of the clip, at least 1.
        frame_range: how far the others may be from the first chosen frame.
        shuffle: return the frames in random order instead of sorted.
        repeats: draw the others with replacement; False: only when there are too few of them.
    """
    _check(length, num_frames, frame_range)
    reference = random.randrange(length)
    window = [
        t for t in range(max(0, reference - frame_range), min(length, reference + frame_range + 1)) if t != reference
    ]
    if window:
        again = repeats or len(window) < num_frames - 1
        others = np.random.choice(np.array(window), num_frames - 1, replace=again).tolist()
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


def _check(length: int, num_frames: int, frame_range: int) -> None:
    if length < 1 or num_frames < 1 or frame_range < 0:
        raise ValueError(
            f"Expected at least 1 frame in the video, 1 in the clip and a range of at least 0, got {length}, "
            f"{num_frames} and {frame_range}; see INPUT.SAMPLING_FRAME_NUM and INPUT.SAMPLING_FRAME_RANGE."
        )
