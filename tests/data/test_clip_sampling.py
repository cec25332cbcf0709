"""Which frames make a clip."""

from __future__ import annotations

import random

import numpy as np
import pytest

from lbvq.data.clip_sampling import choose_frames, frame_subset


def test_frames_lie_near_the_reference_and_are_sorted():
    for seed in range(50):
        random.seed(seed)
        np.random.seed(seed)
        reference = random.Random(seed).randrange(100)
        frames = choose_frames(100, 4, 5)
        assert frames == sorted(frames) and reference in frames and frames.count(reference) == 1
        assert all(abs(t - reference) <= 5 for t in frames)


def test_shuffled_frames_are_the_same_frames():
    clips = []
    for shuffle in (False, True):
        random.seed(1)
        np.random.seed(1)
        clips.append(choose_frames(50, 6, 20, shuffle=shuffle))
    assert sorted(clips[1]) == clips[0] != clips[1]


@pytest.mark.parametrize("length, num_frames, frame_range", [(1, 3, 5), (7, 3, 0)])
def test_a_frame_without_neighbours_is_repeated(length, num_frames, frame_range):
    frames = choose_frames(length, num_frames, frame_range)
    assert len(frames) == num_frames and len(set(frames)) == 1


def test_a_clip_of_one_frame_draws_nothing_from_numpy():
    np.random.seed(0)
    before = np.random.get_state()[2]
    assert len(choose_frames(10, 1, 3)) == 1
    assert np.random.get_state()[2] == before


@pytest.mark.parametrize("arguments", [(0, 1, 1), (5, 0, 1), (5, 1, -1)])
def test_impossible_wishes_are_refused(arguments):
    with pytest.raises(ValueError, match="SAMPLING_FRAME_NUM"):
        choose_frames(*arguments)


@pytest.mark.parametrize(
    "length, want", [(1, [0]), (8, [4]), (19, [9]), (30, [0, 15]), (36, [0, 18]), (100, [0, 20, 40, 60, 80])]
)
def test_the_subset_of_a_video_is_the_published_one(length, want):
    assert frame_subset(length, 0.05) == want


@pytest.mark.parametrize("ratio", [0, 1, 1.5])
def test_a_share_must_be_one(ratio):
    with pytest.raises(ValueError, match="SAMPLING_FRAME_RATIO"):
        frame_subset(10, ratio)
