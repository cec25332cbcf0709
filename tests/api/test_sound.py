"""The sound of a video is copied, unchanged and in time, into what is written of it."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from loud_videos import RATE, film, packets

from lbvq.video.reader import read_video
from lbvq.video.sound import Sound
from lbvq.video.writer import VideoWriter, open_writer


def onset(path: Path) -> float:
    """Seconds from the first frame to the beginning of the tone."""
    with av.open(str(path)) as source:
        first = next(source.decode(video=0)).time
        source.seek(0)
        for sound in source.decode(audio=0):
            loud = np.flatnonzero(
                np.abs(sound.to_ndarray().astype(float).ravel()) > (0.1 if "flt" in sound.format.name else 3277)
            )
            if len(loud):
                return sound.time + loud[0] / sound.sample_rate - first
    raise AssertionError(f"{path} is silent")


def copy(source: Path, target: Path, *, num_frames: int | None = None, sound: Sound | None = None) -> list:
    video = read_video(source)
    with open_writer(target, video.frame_rate, sound=sound or video.sound) as writer:
        for frame in video[:num_frames]:
            writer.write(frame)
        writer.is_whole = num_frames is None
    return packets(target)


@pytest.mark.parametrize(
    "source, codec, target",
    [
        ("a.mp4", "aac", "b.mp4"),
        ("a.mp4", "aac", "b.mkv"),
        ("a.ts", "aac", "b.mp4"),
        ("a.mkv", "libopus", "b.mp4"),
        ("a.mov", "pcm_s16le", "b.mov"),
    ],
)
def test_sound_is_copied_bit_for_bit_and_in_time(tmp_path, source, codec, target):
    film(tmp_path / source, codec)
    copied, original = copy(tmp_path / source, tmp_path / target), packets(tmp_path / source)
    if source == "a.ts":  # there every packet has a header, which mp4 has once
        assert len(copied) == len(original) and all(
            old.endswith(new) for new, old in zip(copied, original, strict=True)
        )
    else:
        assert copied == original
    assert onset(tmp_path / target) == pytest.approx(1.0, abs=0.025)
    assert len(read_video(tmp_path / target)) == 20


@pytest.mark.parametrize("codec, suffix", [("aac", ".mp4"), ("libopus", ".mkv")])
def test_sound_before_the_first_frame_is_left_out(tmp_path, codec, suffix):
    film(tmp_path / f"a{suffix}", codec, first=5)
    copied = copy(tmp_path / f"a{suffix}", tmp_path / f"b{suffix}")
    assert onset(tmp_path / f"b{suffix}") == pytest.approx(0.5, abs=0.025)
    assert packets(tmp_path / f"a{suffix}")[-len(copied) :] == copied


def test_sound_that_goes_on_after_the_last_frame_is_kept_unless_frames_are_missing(tmp_path):
    film(tmp_path / "a.mp4", num_frames=10)
    assert copy(tmp_path / "a.mp4", tmp_path / "whole.mp4") == packets(tmp_path / "a.mp4")
    part = copy(tmp_path / "a.mp4", tmp_path / "part.mp4", num_frames=5)
    assert len(part) * 1024 / RATE == pytest.approx(0.5, abs=0.13)
    assert part == packets(tmp_path / "a.mp4")[: len(part)]


def test_sound_of_a_cut_off_file_ends_with_its_frames(tmp_path):
    path = film(tmp_path / "a.mkv", num_frames=20, seconds=5)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    video = read_video(path, allow_truncated=True)
    assert not video.sound.is_whole


def test_sound_that_a_format_cannot_hold_is_said(tmp_path, caplog):
    film(tmp_path / "a.mkv", "libopus")
    assert copy(tmp_path / "a.mkv", tmp_path / "b.mov") == []
    assert "(opus) cannot be stored in a file of the kind mov and is left out; write .mkv" in caplog.text
    assert len(read_video(tmp_path / "b.mov")) == 20


def test_every_language_is_kept(tmp_path):
    film(tmp_path / "a.mkv")
    with av.open(str(tmp_path / "a.mkv")) as source, av.open(str(tmp_path / "two.mkv"), "w") as target:
        video = target.add_stream_from_template(source.streams.video[0])
        tongues = [target.add_stream_from_template(source.streams.audio[0]) for _ in range(2)]
        for packet in source.demux():
            if packet.size:
                for stream in [video] if packet.stream.type == "video" else tongues:
                    packet.stream = stream
                    target.mux(packet)
    copy(tmp_path / "two.mkv", tmp_path / "b.mkv")
    with av.open(str(tmp_path / "b.mkv")) as result:
        assert len(result.streams.audio) == 2


def test_silent_videos_and_images_have_no_sound(tmp_path):
    with VideoWriter(tmp_path / "a.mp4", 10) as writer:
        writer.write(np.zeros((16, 16, 3), np.uint8))
    assert read_video(tmp_path / "a.mp4").sound is None
    assert read_video(tmp_path / "a.mp4")[:1].sound is None
