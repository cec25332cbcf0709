"""Where the limits of joining by overlap and of MOTS' numbers lie."""

from __future__ import annotations

import numpy as np
import pytest

from lbvq.data.formats.join import join_by_overlap
from lbvq.data.formats.labels import Frame, Labels, Notes, Track, Video
from lbvq.data.formats.mots import short_ids
from lbvq.masks.rle import encode


def object_in_single_frames(frames: list[int]) -> Labels:
    """One square that every frame calls by another number."""
    mask = np.zeros((8, 8), bool)
    mask[2:6, 2:6] = True
    tracks = [Track(10 + t, 1, {t: encode(mask)}) for t in frames]
    return Labels({1: "cell"}, [Video("a", [Frame(f"{t}.png") for t in range(10)], tracks, (8, 8))])


@pytest.mark.parametrize("frames, tracks", [([0, 1], 1), ([0, 3], 1), ([0, 4], 2)])
def test_an_object_may_be_hidden_for_two_frames_and_not_for_three(frames, tracks):
    labels = object_in_single_frames(frames)
    join_by_overlap(labels)
    assert len(labels.videos[0].tracks) == tracks
    assert sorted(t for track in labels.videos[0].tracks for t in track.masks) == frames


@pytest.mark.parametrize("first, count, want", [(0, 1000, 0), (1, 1000, 0), (999, 1, 999), (1000, 1, 0)])
def test_a_thousand_objects_are_numbered_from_0_and_short_numbers_are_kept(first, count, want):
    video = Video("a", [], [Track(first + n, 1) for n in range(count)])
    numbers = short_ids(video, Notes())
    assert numbers[first] == want and len(set(numbers.values())) == count and max(numbers.values()) <= 999


def test_more_than_a_thousand_objects_are_refused():
    video = Video("a", [], [Track(1 + n, 1) for n in range(1001)])
    with pytest.raises(ValueError, match="1001 objects, MOTS has room for 1000"):
        short_ids(video, Notes())
