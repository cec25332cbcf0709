"""Which frames make a clip."""

from __future__ import annotations

import random

import numpy as np
import pytest

from lbvq.data.clip_sampling import choose_clip, choose_frames, frame_subset


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


@pytest.mark.parametrize("choose", [choose_frames, choose_clip])
@pytest.mark.parametrize("arguments", [(0, 1, 1), (5, 0, 1), (5, 1, -1), (0, 5, 2)])
def test_impossible_wishes_are_refused(choose, arguments):
    with pytest.raises(ValueError, match="SAMPLING_FRAME_NUM"):
        choose(*arguments)


def clips_of(count: int, *arguments: int, **ways: bool) -> list[list[int]]:
    random.seed(0)
    np.random.seed(0)
    return [choose_clip(*arguments, **ways) for _ in range(count)]


def test_frames_that_fill_the_range_follow_each_other_from_every_start():
    clips = clips_of(200, 8, 5, 2)
    assert {tuple(clip) for clip in clips} == {tuple(range(start, start + 5)) for start in range(4)}


def test_half_of_the_runs_are_turned_around_on_request():
    clips = clips_of(200, 8, 5, 2, reverse=True)
    forwards = [clip for clip in clips if clip == sorted(clip)]
    assert all(clip[::-1] == sorted(clip) for clip in clips if clip not in forwards)
    assert 60 < len(forwards) < 140
    assert all(clip == sorted(clip) for clip in clips_of(50, 30, 4, 10, reverse=True))  # no run


def test_a_run_in_a_short_video_lingers_on_its_frames():
    assert clips_of(3, 3, 7, 3) == [[0, 0, 0, 1, 1, 2, 2]] * 3
    assert clips_of(2, 5, 5, 2) == [[0, 1, 2, 3, 4]] * 2


def test_other_clips_are_drawn_as_ever():
    for arguments in ((30, 4, 10), (30, 1, 0)):
        clips = clips_of(20, *arguments)
        random.seed(0)
        np.random.seed(0)
        assert clips == [choose_frames(*arguments) for _ in range(20)]


def test_frames_repeat_only_where_there_are_too_few_on_request():
    assert all(len(set(clip)) == 6 for clip in clips_of(50, 40, 6, 6, repeats=False))
    assert any(len(set(clip)) < 6 for clip in clips_of(50, 40, 6, 6))
    assert all(len(clip) == 6 for clip in clips_of(50, 4, 6, 3, repeats=False))


@pytest.mark.parametrize(
    "length, want", [(1, [0]), (8, [4]), (19, [9]), (30, [0, 15]), (36, [0, 18]), (100, [0, 20, 40, 60, 80])]
)
def test_the_subset_of_a_video_is_the_published_one(length, want):
    assert frame_subset(length, 0.05) == want


@pytest.mark.parametrize("ratio", [0, 1, 1.5])
def test_a_share_must_be_one(ratio):
    with pytest.raises(ValueError, match="SAMPLING_FRAME_RATIO"):
        frame_subset(10, ratio)
