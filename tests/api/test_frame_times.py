"""Broken times of frames are repaired, and the others kept."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from small_videos import film, grey

from lbvq.video.reader import read_video


def timed(path: Path, ticks: list[int], monkeypatch) -> np.ndarray:
    """Times that are read of a film whose decoder reports these ticks of a millisecond."""
    video = read_video(film(path, [grey(40)] * len(ticks)))
    monkeypatch.setattr(video, "_read_times", [None if tick is None else tick / 1000 for tick in ticks])
    return video.timestamps


@pytest.mark.parametrize(
    "ticks, want",
    [
        ([500, 600, 600, 800, 2000], [0, 100, 200, 300, 1500]),  # two at once: the second goes between its neighbours
        ([0, 100, None, 300], [0, 100, 200, 300]),
        ([None, 100, 200, 300], [0, 100, 200, 300]),
        ([0, 100, 300, 250, 500], [0, 100, 300, 400, 500]),
        ([0, 100, 200, 0, 100, 200], [0, 100, 200, 300, 400, 500]),  # a clock that starts again
        ([10**9, 0, 100, 200, 300], [0, 100, 200, 300, 400]),
    ],
)
def test_a_broken_time_is_repaired_and_the_others_are_kept(tmp_path, monkeypatch, caplog, ticks, want):
    assert timed(tmp_path / "a.mp4", ticks, monkeypatch) == pytest.approx(np.array(want) / 1000)
    assert "a.mp4" in caplog.text


def test_a_file_without_a_clock_runs_at_a_usual_rate(tmp_path, monkeypatch, caplog):
    assert timed(tmp_path / "a.mp4", [None] * 4, monkeypatch) == pytest.approx(np.arange(4) / 30)
    assert timed(tmp_path / "b.mp4", [7] * 4, monkeypatch) == pytest.approx(np.arange(4) / 30)
    assert caplog.text.count("30 frames per second are assumed") == 2


def test_good_times_are_not_touched(tmp_path, monkeypatch, caplog):
    with caplog.at_level(logging.INFO):
        assert timed(tmp_path / "a.mp4", [5, 6, 6.5, 2000], monkeypatch) == pytest.approx([0, 0.001, 0.0015, 1.995])
    assert caplog.text == ""
