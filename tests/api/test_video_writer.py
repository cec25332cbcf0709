from __future__ import annotations

import logging
import os
from pathlib import Path

import av
import numpy as np
import pytest

from lbvq.video import writer as video_writer
from lbvq.video.reader import read_image, read_video
from lbvq.video.writer import atomic_output, check_output, open_writer, write_video


def smooth_frames(count: int, height: int = 48, width: int = 64) -> list[np.ndarray]:
    """A slowly moving colour gradient, which lossy coding keeps within a few levels."""
    rows, columns = np.mgrid[:height, :width]
    return [
        np.stack([rows * 2 + 3 * index, columns * 2, np.full_like(rows, 60)], axis=2).clip(0, 255).astype(np.uint8)
        for index in range(count)
    ]


def names_in(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def assert_close(got: np.ndarray, want: np.ndarray) -> None:
    assert got.shape == want.shape
    assert np.abs(got.astype(int) - want.astype(int)).mean() < 4


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.mov"])
def test_a_written_video_reads_back_frame_by_frame(tmp_path, name):
    frames = smooth_frames(13)
    write_video(tmp_path / name, frames, frame_rate=30000 / 1001)
    video = read_video(tmp_path / name)
    assert len(video) == 13 and video.frame_rate == pytest.approx(30000 / 1001, rel=2e-3)  # .mkv keeps milliseconds
    for got, want in zip(video, frames, strict=True):
        assert_close(got, want)
    assert names_in(tmp_path) == [name]


def test_mp4_is_what_browsers_play(tmp_path):
    write_video(tmp_path / "a.mp4", smooth_frames(3), frame_rate=25)
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264" and stream.codec_context.pix_fmt == "yuv420p"
        assert stream.codec_context.colorspace == 6 and stream.codec_context.color_range == 1
    data = (tmp_path / "a.mp4").read_bytes()
    assert data.find(b"moov") < data.find(b"mdat")  # the index in front, so that playing starts before the end is there


@pytest.mark.parametrize("height, width", [(45, 63), (46, 63), (45, 64), (1, 1), (96, 54)])
def test_odd_sizes_are_extended_by_their_last_row_and_column(tmp_path, height, width):
    frames = smooth_frames(3, height, width)
    write_video(tmp_path / "a.mp4", frames, frame_rate=5)
    video = read_video(tmp_path / "a.mp4")
    assert video.size == (height + height % 2, width + width % 2)
    assert_close(video[1][:height, :width], frames[1])


def test_uneven_frame_times_and_the_total_duration_are_kept(tmp_path):
    times = [0.0, 0.04, 0.08, 0.5, 0.54, 2.0]
    write_video(tmp_path / "a.mp4", smooth_frames(6), timestamps=times)
    assert read_video(tmp_path / "a.mp4").timestamps == pytest.approx(times, abs=1e-4)


@pytest.mark.parametrize("count, rate", [(1, 10), (7, 10), (24, 24)])
def test_the_duration_is_frames_over_rate(tmp_path, count, rate):
    write_video(tmp_path / "a.mp4", smooth_frames(count), frame_rate=rate)
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.duration / av.time_base == pytest.approx(count / rate, abs=2e-3)
        assert container.streams.video[0].frames == count


def test_without_a_rate_ten_frames_a_second_are_written(tmp_path):
    write_video(tmp_path / "a.mp4", smooth_frames(4))
    assert read_video(tmp_path / "a.mp4").frame_rate == pytest.approx(10)


def test_a_folder_gets_numbered_images(tmp_path):
    frames = smooth_frames(3)
    write_video(tmp_path / "png", frames, frame_suffix=".png")
    assert names_in(tmp_path / "png") == ["00000.png", "00001.png", "00002.png"]
    assert np.array_equal(read_image(tmp_path / "png" / "00002.png"), frames[2])
    write_video(tmp_path / "jpg", frames)
    assert_close(read_video(tmp_path / "jpg")[1], frames[1])
    assert names_in(tmp_path) == ["jpg", "png"]


@pytest.mark.parametrize("target", ["a.mp4", "folder"])
def test_an_error_half_way_leaves_nothing_behind(tmp_path, target):
    with pytest.raises(RuntimeError, match="model"), open_writer(tmp_path / target) as writer:
        for frame in smooth_frames(3):
            writer.write(frame)
        raise RuntimeError("the model fails")
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("target", ["a.mp4", "folder"])
def test_an_error_half_way_keeps_the_old_result(tmp_path, target):
    write_video(tmp_path / target, smooth_frames(2))
    before = read_video(tmp_path / target)[0]
    with pytest.raises(RuntimeError), open_writer(tmp_path / target, overwrite=True) as writer:
        writer.write(np.zeros((48, 64, 3), dtype=np.uint8))
        raise RuntimeError
    assert names_in(tmp_path) == [target]
    assert np.array_equal(read_video(tmp_path / target)[0], before)


@pytest.mark.parametrize("target", ["a.mp4", "folder"])
def test_overwriting_replaces_everything(tmp_path, target):
    write_video(tmp_path / target, smooth_frames(5))
    with pytest.raises(FileExistsError, match="overwrite"):
        write_video(tmp_path / target, smooth_frames(2))
    write_video(tmp_path / target, smooth_frames(2), overwrite=True)
    assert len(read_video(tmp_path / target)) == 2 and names_in(tmp_path) == [target]


@pytest.mark.parametrize("target", ["a.mp4", "folder"])
def test_no_frame_is_an_error_and_leaves_nothing(tmp_path, target):
    with pytest.raises(ValueError, match="no frame"):
        write_video(tmp_path / target, [])
    assert names_in(tmp_path) == []


def test_a_folder_with_other_files_is_never_replaced(tmp_path):
    write_video(tmp_path / "frames", smooth_frames(2))
    (tmp_path / "frames" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"more than numbered frames, such as notes\.txt"):
        write_video(tmp_path / "frames", smooth_frames(2), overwrite=True)
    assert (tmp_path / "frames" / "notes.txt").read_text() == "mine"
    (tmp_path / "a.mp4").mkdir()
    with pytest.raises(FileExistsError, match="is a folder"):
        write_video(tmp_path / "a.mp4", smooth_frames(2), overwrite=True)
    (tmp_path / "empty").mkdir()
    write_video(tmp_path / "empty", smooth_frames(2))
    assert len(read_video(tmp_path / "empty")) == 2


def test_inputs_are_never_outputs(tmp_path):
    write_video(tmp_path / "a.mp4", smooth_frames(1))
    write_video(tmp_path / "frames", smooth_frames(1))
    for output in ("a.mp4", "frames", "frames/result.mp4"):
        inputs = [tmp_path / "a.mp4", tmp_path / "frames"]
        with pytest.raises(ValueError, match="would overwrite or mix with the input"):
            check_output(tmp_path / output, inputs, overwrite=True)
    with pytest.raises(ValueError, match="would overwrite"):
        check_output(tmp_path, [tmp_path / "a.mp4"], overwrite=True)
    os.symlink(tmp_path / "a.mp4", tmp_path / "link.mp4")
    with pytest.raises(ValueError, match="would overwrite"):
        check_output(tmp_path / "link.mp4", [tmp_path / "a.mp4"], overwrite=True)


@pytest.mark.parametrize(
    "call, reason",
    [
        (lambda path: open_writer(path / "a.gif"), "expected a video"),
        (lambda path: open_writer(path / "a.mp4", frame_rate=0), "frame_rate"),
        (lambda path: open_writer(path / "a.mp4", frame_rate=float("nan")), "frame_rate"),
        (lambda path: open_writer(path / "a", frame_suffix=".gif"), "frame_suffix"),
        (lambda path: write_video(path / "a.mp4", [np.zeros((4, 4, 3))]), "uint8 RGB"),
        (lambda path: write_video(path / "a.mp4", [np.zeros((4, 4), np.uint8)]), "uint8 RGB"),
        (lambda path: write_video(path / "a.mp4", [*smooth_frames(1), *smooth_frames(1, 8, 8)]), "frame 1 has shape"),
        (lambda path: write_video(path / "a.mp4", smooth_frames(2), timestamps=[0, 0]), "time of frame 1"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, call, reason):
    with pytest.raises(ValueError, match=reason):
        call(tmp_path)
    assert names_in(tmp_path) == []


def test_without_an_h264_encoder_mpeg4_is_written_and_said(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(video_writer.av, "codecs_available", {"mpeg4"})
    with caplog.at_level(logging.WARNING):
        write_video(tmp_path / "a.mp4", smooth_frames(5), timestamps=[0, 0.1, 0.2, 0.5, 0.6])
    assert "no H.264 encoder" in caplog.text
    video = read_video(tmp_path / "a.mp4")
    assert len(video) == 5 and video.timestamps == pytest.approx([0, 0.1, 0.2, 0.5, 0.6], abs=1e-3)


def test_text_files_are_written_whole_or_not_at_all(tmp_path):
    with atomic_output(tmp_path / "new" / "a.json") as partial:
        partial.write_text("[]")
        assert names_in(tmp_path / "new") != ["a.json"]
    assert (tmp_path / "new" / "a.json").read_text() == "[]"
    with pytest.raises(RuntimeError), atomic_output(tmp_path / "new" / "a.json") as partial:
        partial.write_text("half")
        raise RuntimeError
    assert (tmp_path / "new" / "a.json").read_text() == "[]" and names_in(tmp_path / "new") == ["a.json"]


def test_4k_video_is_written_and_read(tmp_path):
    frames = smooth_frames(2, 2160, 3840)
    write_video(tmp_path / "a.mp4", frames, frame_rate=30)
    video = read_video(tmp_path / "a.mp4")
    assert video.size == (2160, 3840) and len(video) == 2
    assert_close(video[1], frames[1])
