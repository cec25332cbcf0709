from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT
from loud_videos import film, packets
from red_green_model import RedGreenModel  # noqa: F401  registers itself

from lbvq.cli import predict
from lbvq.cli.predict import add_arguments, group_inputs, run
from lbvq.inference.predictor import VideoPredictor
from lbvq.inference.results import VideoPrediction
from lbvq.video.reader import read_video
from lbvq.video.writer import VideoWriter, write_video

YAML = """
VERSION: 2
MODEL:
  META_ARCHITECTURE: RedGreenModel
  DEVICE: cpu
  WEIGHTS: coco_start.pkl
  SEM_SEG_HEAD: {NUM_CLASSES: 40}
INPUT: {MIN_SIZE_TEST: 60, FORMAT: RGB}
DATASETS:
  TEST: ("ytvis_2019_val",)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder with a configuration, trained weights, a video and the same video as images."""
    monkeypatch.chdir(tmp_path)
    Path("model.yaml").write_text(YAML)
    torch.save({"model": {"margin": torch.tensor(50.0)}}, "trained.pth")
    write_video("video.mp4", colour_video(), 25)
    write_video("frames", colour_video(), frame_suffix=".png")
    return tmp_path


def colour_video(num_frames: int = 6) -> list[np.ndarray]:
    frames = []
    for t in range(num_frames):
        frame = np.full((60, 80, 3), 90, dtype=np.uint8)
        frame[4 * t : 4 * t + 20, 8:28] = (220, 20, 20)
        frame[30:50, 50:70] = (20, 220, 20)
        frames.append(frame)
    return frames


def demo(*arguments: str, weights: str | None = "trained.pth") -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    chosen = [] if weights is None else ["--weights", weights]
    return run(parser.parse_args(["--config-file", "model.yaml", *chosen, *arguments]))


def test_one_run_writes_a_video_a_folder_and_results(folder, capsys):
    outputs = ["out.mp4", "drawn", "out.json"]
    assert demo("--input", "video.mp4", "--output", *outputs, "--frame-format", "png") == 0
    video = read_video("out.mp4")
    assert len(video) == 6 and video.frame_rate == pytest.approx(25, rel=1e-3)
    assert sorted(os.listdir("drawn")) == [f"{t:05d}.png" for t in range(6)]
    drawn = read_video("drawn")
    assert np.abs(drawn[3][40:, 50:].astype(int) - colour_video()[3][40:, 50:]).max() > 40  # green is tinted
    entries = json.loads(Path("out.json").read_text())
    described = [(entry["object_id"], entry["category_id"], entry["category_name"]) for entry in entries]
    assert described == [(1, 2, "giant_panda"), (2, 1, "person")]  # what is drawn, each with its best class
    assert VideoPrediction.from_json(entries).masks.shape == (2, 6, 60, 80)
    said = capsys.readouterr().out
    assert "6 frames of 80 x 60" in said and "2 of 2 objects have a score of at least 0.3" in said
    assert all(f"wrote {output}" in said for output in outputs)


def test_the_threshold_decides_what_is_drawn(folder, capsys):
    assert demo("--input", "frames", "--output", "all", "--frame-format", "png") == 0
    assert demo("--input", "frames", "--output", "one", "--frame-format", "png", "--score-threshold", "0.5") == 0
    assert demo("--input", "frames", "--output", "none", "--frame-format", "png", "--score-threshold", "0.95") == 0
    green = (slice(30, 50), slice(50, 70))
    assert not np.array_equal(read_video("all")[0][green], colour_video()[0][green])
    assert np.array_equal(read_video("one")[0][45:50, 50:70], colour_video()[0][45:50, 50:70])
    assert all(np.array_equal(got, want) for got, want in zip(read_video("none"), colour_video(), strict=True))
    assert "0 of 2 objects have a score of at least 0.95; the best has 0.90" in capsys.readouterr().out


def test_an_untrained_network_runs_and_says_so(folder, capsys, caplog):
    assert demo("--input", "video.mp4", "--output", "out.mp4", "--score-threshold", "0.99", weights=None) == 0
    assert "UNTRAINED" in capsys.readouterr().out and "coco_start.pkl" in caplog.text and "UNTRAINED" in caplog.text
    assert np.abs(read_video("out.mp4")[0].astype(int) - read_video("video.mp4")[0]).max() > 40  # shows something


def test_several_videos_are_named_after_their_inputs(folder):
    write_video("second.mp4", colour_video(3), 10)
    assert demo("--input", "video.mp4", "second.mp4", "--output", "out/{name}.mp4", "all.json") == 0
    assert len(read_video("out/video.mp4")) == 6 and len(read_video("out/second.mp4")) == 3
    entries = json.loads(Path("all.json").read_text())
    assert {(entry["video_id"], entry["file_name"]) for entry in entries} == {(1, "video.mp4"), (2, "second.mp4")}
    assert VideoPrediction.from_json("all.json", video_id=2).num_frames == 3


def test_several_images_are_one_video(folder):
    images = sorted(str(path) for path in Path("frames").iterdir())
    assert group_inputs(images) == [images] and group_inputs(images[:1]) == images[:1]
    assert demo("--input", *images, "--output", "out.json") == 0
    assert demo("--input", "frames/*.png", "--output", "pattern.json") == 0
    assert VideoPrediction.from_json("out.json") == VideoPrediction.from_json("pattern.json")
    assert VideoPrediction.from_json("out.json").num_frames == 6


def test_frame_times_and_a_given_rate_are_respected(folder):
    times = [0, 0.1, 0.2, 0.9, 1.0, 2.0]
    write_video("uneven.mp4", colour_video(), timestamps=times)
    assert demo("--input", "uneven.mp4", "--output", "kept.mp4") == 0
    assert read_video("kept.mp4").timestamps == pytest.approx(times, abs=1e-3)
    assert demo("--input", "uneven.mp4", "--output", "steady.mp4", "--fps", "5") == 0
    assert read_video("steady.mp4").timestamps == pytest.approx(np.arange(6) / 5, abs=1e-3)
    assert demo("--input", "frames", "--output", "images.mp4") == 0
    assert read_video("images.mp4").frame_rate == pytest.approx(10)


def test_two_frames_at_almost_the_same_time_leave_the_other_times_as_they_are(folder):
    times = [0, 0.1, 0.1005, 0.9, 1.0, 2.0]
    write_video("uneven.mp4", colour_video(), timestamps=times)
    assert demo("--input", "uneven.mp4", "--output", "kept.mp4") == 0
    assert read_video("kept.mp4").timestamps == pytest.approx([0, 0.1, 0.101, 0.9, 1.0, 2.0], abs=2e-4)


def test_sound_is_kept_left_out_on_demand_or_said_to_be_lost(folder, caplog):
    film(Path("loud.mp4"), num_frames=6, seconds=0.6)
    assert demo("--input", "loud.mp4", "--output", "kept.mp4", "kept.mkv", "drawn") == 0
    assert packets(Path("kept.mp4")) == packets(Path("kept.mkv")) == packets(Path("loud.mp4")) != []
    assert demo("--input", "loud.mp4", "--output", "silent.mp4", "--no-audio") == 0
    assert packets(Path("silent.mp4")) == [] and "sound" not in caplog.text
    assert demo("--input", "loud.mp4", "--output", "fast.mp4", "--fps", "50") == 0
    assert packets(Path("fast.mp4")) == [] and "sound of loud.mp4 is left out: --fps" in caplog.text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_drawing_leaves_whole_files_of_the_part(folder, capsys, monkeypatch, number):
    film(Path("loud.mp4"), num_frames=20, seconds=2)
    write = VideoWriter.write

    def write_and_signal(self, *arguments):
        write(self, *arguments)
        if self.num_frames == 5:
            signal.raise_signal(number)

    monkeypatch.setattr(VideoWriter, "write", write_and_signal)
    arguments = ["--input", "video.mp4", "loud.mp4", "--output", "{name}_out.mp4", "{name}_drawn", "out.json"]
    assert demo(*arguments) == 128 + number
    assert len(read_video("video_out.mp4")) == len(read_video("video_drawn")) == 5
    entries = json.loads(Path("out.json").read_text())
    assert {entry["video_id"] for entry in entries} == {1} and len(entries[0]["segmentations"]) == 6
    said = capsys.readouterr()
    assert "wrote video_out.mp4 with 5 of 6 frames" in said.out and "1 of 2 videos were segmented" in said.err
    assert not [name for name in os.listdir() if name.startswith(".") or name.startswith("loud_")]


def test_a_signal_while_segmenting_keeps_what_earlier_videos_gave(folder, capsys, monkeypatch):
    write_video("second.mp4", colour_video(3), 10)
    call = VideoPredictor.__call__

    def call_and_signal(self, frames, **options):
        if "second" in frames.name:
            signal.raise_signal(signal.SIGTERM)
        return call(self, frames, **options)

    monkeypatch.setattr(VideoPredictor, "__call__", call_and_signal)
    assert demo("--input", "video.mp4", "second.mp4", "--output", "{name}_out.mp4", "out.json") == 143
    assert len(read_video("video_out.mp4")) == 6 and not Path("second_out.mp4").exists()
    assert {entry["video_id"] for entry in json.loads(Path("out.json").read_text())} == {1}
    assert demo("--input", "second.mp4", "--output", "none.json") == 143 and not Path("none.json").exists()


def test_a_full_disk_ends_in_one_sentence_and_leaves_no_part(folder):
    """A limit of the size of files stands for the disk."""
    code = (
        "import resource, sys, numpy as np; from lbvq.video.writer import VideoWriter, write_video\n"
        "frames = np.random.default_rng(0).integers(0, 255, (60, 96, 128, 3), dtype=np.uint8)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try: write_video(sys.argv[1], frames, 10, overwrite=True)\n"
        "except OSError as error: print(error)"
    )
    Path("out.mkv").write_bytes(b"old")
    for name in ("out.mp4", "out.mkv"):
        done = subprocess.run([sys.executable, "-c", code, name], capture_output=True, text=True, cwd=folder)
        assert done.returncode == 0 and name in done.stdout and "larger than this system allows" in done.stdout, done
    assert not Path("out.mp4").exists() and Path("out.mkv").read_bytes() == b"old"
    assert not [name for name in os.listdir() if name.startswith(".")]


def test_the_command_lines_of_the_published_demos_run_as_they_are(folder, capsys):
    images = sorted(str(path) for path in Path("frames").iterdir())
    options = ["--confidence-threshold", "0.5", "--save-frames", "True"]
    assert demo("--input", *images, "--output", "seen", *options) == 0
    assert len(read_video("seen")) == 6 and "1 of 2 objects have a score of at least 0.5" in capsys.readouterr().out
    assert demo("--video-input", "video.mp4", "--output", "folder", "--save-frames", "False") == 0
    assert os.listdir("folder") == ["visualization.mp4"]
    assert demo("--input", "frames/*.png", "--output", "again", "--save-frames") == 0
    assert len(os.listdir("again")) == 6


def test_inputs_with_odd_names_give_their_names_to_outputs(folder):
    for name in ("2024-01-01T10:30:00.mp4", "clip[1].mp4"):
        shutil.copy("video.mp4", name)
    inputs = ["2024-01-01T10:30:00.mp4", "clip[1].mp4", "file://" + str(Path("video.mp4").resolve())]
    assert demo("--input", *inputs, "--output", "{name}:drawn.mkv") == 0
    for name in ("2024-01-01T10:30:00", "clip[1]", "video"):
        assert len(read_video(f"{name}:drawn.mkv")) == 6
    Path("frames/Thumbs.db").write_bytes(b"x")
    Path("frames/._00000.png").write_bytes(b"x")
    everything = sorted(str(path) for path in Path("frames").iterdir())
    assert demo("--input", *everything, "--output", "out.json") == 0
    assert len(json.loads(Path("out.json").read_text())[0]["segmentations"]) == 6


def test_a_damaged_image_is_found_before_the_network_is_built(folder, capsys, monkeypatch):
    data = Path("frames/00003.png").read_bytes()
    Path("frames/00003.png").write_bytes(data[: len(data) // 2])
    monkeypatch.setattr(predict, "build_predictor", lambda *_: pytest.fail("the network was built"))
    assert demo("--input", "frames", "--output", "out.json") == 2
    assert "00003.png" in capsys.readouterr().err


def test_a_folder_that_a_mac_has_looked_at_is_still_replaced(folder):
    assert demo("--input", "video.mp4", "--output", "drawn") == 0
    Path("drawn/.DS_Store").write_bytes(b"x")
    assert demo("--input", "video.mp4", "--output", "drawn", "--overwrite") == 0
    Path("drawn/notes.txt").write_text("precious")
    assert demo("--input", "video.mp4", "--output", "drawn", "--overwrite") == 2


def test_a_video_of_one_frame_is_said(folder, capsys):
    assert demo("--input", "frames/00002.png", "--output", "out.json") == 0
    assert "00002.png: this video has one frame of 80 x 60 pixels" in capsys.readouterr().out


def test_damaged_videos_need_permission(folder, capsys):
    generator = np.random.default_rng(0)
    write_video("noise.mp4", list(generator.integers(0, 255, (30, 60, 80, 3), dtype=np.uint8)), 25)
    data = Path("noise.mp4").read_bytes()
    Path("cut.mp4").write_bytes(data[: len(data) // 2])
    assert demo("--input", "cut.mp4", "--output", "out.mp4") == 2
    assert "cut off" in capsys.readouterr().err and not Path("out.mp4").exists()
    assert demo("--input", "cut.mp4", "--output", "out.mp4", "--allow-truncated") == 0
    assert 0 < len(read_video("out.mp4")) < 30


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (["--input", "missing.mp4", "--output", "o.mp4"], "no file or folder missing.mp4"),
        (["--input", "model.yaml", "--output", "o.mp4"], "cannot be opened as a video"),
        (["--input", "empty", "--output", "o.mp4"], "holds no image"),
        (["--input", "*.gif", "--output", "o.mp4"], "no file matches"),
        (["--input", "video.mp4", "--output", "video.mp4", "--overwrite"], "would overwrite"),
        (["--input", "frames", "--output", "frames", "--overwrite"], "would overwrite"),
        (["--input", "video.mp4", "--output", "old.json"], "exists already"),
        (["--input", "video.mp4", "--output", "o.gif"], "expected a video"),
        (["--input", "video.mp4", "frames", "--output", "o.mp4"], "{name}"),
        (["--input", "video.mp4", "--output", "o", "o/a.json"], "cannot hold another output"),
        (["--input", "video.mp4", "--output", "o.mp4", "--fps", "-1"], "frame_rate"),
        (["--input", "video.mp4", "--output", "o.mp4", "--opts", "MODEL.NONSENSE", "1"], "MODEL.NONSENSE"),
        (["--input", "video.mp4", "--output", "o.mp4", "--opts", "MODEL.WEIGHTS"], "pairs|even|value"),
        (["--input", "video.mp4", "--output", "o.mp4", "--weights", "gone.pth"], "gone.pth"),
        (["--input", "video.mp4", "--output", "o.mp4", "--weights", "model.yaml"], "model.yaml"),
    ],
)
def test_bad_input_ends_with_code_2_and_the_reason(folder, capsys, arguments, reason):
    Path("empty").mkdir()
    Path("old.json").write_text("[]")
    before = sorted(os.listdir())
    assert demo(*arguments) == 2
    error = capsys.readouterr().err
    assert "error: " in error and any(part in error for part in reason.split("|"))
    assert sorted(os.listdir()) == before and Path("old.json").read_text() == "[]"


def test_outputs_are_replaced_only_when_asked(folder):
    assert demo("--input", "video.mp4", "--output", "out.mp4", "drawn", "out.json") == 0
    assert demo("--input", "video.mp4", "--output", "out.mp4") == 2
    assert demo("--input", "video.mp4", "--output", "out.mp4", "drawn", "out.json", "--overwrite") == 0


def test_the_script_explains_itself():
    done = subprocess.run([sys.executable, str(ROOT / "demo" / "demo.py"), "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "--score-threshold" in done.stdout
    done = subprocess.run([sys.executable, str(ROOT / "demo" / "demo.py")], capture_output=True, text=True)
    assert done.returncode == 2 and "no video is named" in done.stderr


def test_a_video_alone_is_drawn_beside_it_with_the_default_model(folder, monkeypatch):
    """Here the default is a stand-in; that published models are downloaded is tested with the folders of models."""
    monkeypatch.setattr(predict, "DEFAULT_MODEL", "model.yaml")
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert run(parser.parse_args(["video.mp4"])) == 0
    assert len(read_video("video_segmented.mp4")) == 6
    assert run(parser.parse_args(["video.mp4"])) == 2  # it is there now


def test_weights_of_a_run_bring_their_configuration(folder):
    run = Path("runs/mine")
    run.mkdir(parents=True)
    with pytest.raises(ValueError, match=r"no runs/mine/config\.yaml; say by --config-file"):
        predict.config_of("runs/mine/model_best.pth")
    (run / "config.yaml").write_text("VERSION: 2\n")
    assert predict.config_of("runs/mine/model_best.pth") == "runs/mine/config.yaml"
    assert predict.config_of(None) == "videomt_small_ytvis19"


def test_no_video_is_said(folder, capsys):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert run(parser.parse_args([])) == 2
    assert "no video is named" in capsys.readouterr().err
