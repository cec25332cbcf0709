"""`demo/stream.py`: sources, sinks, and stopping and going on, with a small untrained network."""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import urllib.request

import cv2
import numpy as np
import pytest
import torch
from golden_fill import fill_, frames
from helpers import ROOT
from video_models import load_cfg

from lbvq.cli import live
from lbvq.inference.results import FramePrediction, VideoPrediction
from lbvq.video.reader import read_video
from lbvq.video.writer import write_video
from mask2former.registry import build_model

VIDEO = frames(6, 48, 64, seed=3).permute(0, 2, 3, 1).numpy()
CONFIG = str(ROOT / "configs" / "synthetic" / "genvis_R18_tiny_online.yaml")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "model.pth"
    torch.save({"model": fill_(build_model(load_cfg("synthetic/genvis_R18_tiny_online.yaml"))).state_dict()}, path)
    return path


@pytest.fixture
def folder(tmp_path):
    write_video(tmp_path / "in.mp4", VIDEO, 5)
    return tmp_path


def run(*arguments: object) -> int:
    """Run the command, without trained weights unless given."""
    parser = argparse.ArgumentParser()
    live.add_arguments(parser)
    return live.run(parser.parse_args(["--config-file", CONFIG, "--weights", "", *map(str, arguments)]))


def test_a_file_becomes_a_drawn_video_frames_and_results(folder, capsys):
    outputs = [folder / name for name in ("out.mp4", "frames", "out.json")]
    assert run("--input", folder / "in.mp4", "--output", *outputs) == 0
    drawn = read_video(folder / "out.mp4")
    assert len(drawn) == 6 and drawn.size == (48, 64) and drawn.frame_rate == pytest.approx(5)
    assert len(list((folder / "frames").iterdir())) == 6
    assert not np.array_equal(np.stack([drawn[t] for t in range(6)]), VIDEO)
    prediction = VideoPrediction.from_json(json.loads((folder / "out.json").read_text()))
    assert prediction.masks.num_frames == 6 and 0 < len(prediction) <= live.UNTRAINED_OBJECTS
    assert "6 frames," in capsys.readouterr().out


def test_a_stream_is_stopped_and_goes_on(folder, weights):
    images = folder / "rest"
    images.mkdir()
    source = read_video(folder / "in.mp4")
    for t in range(6):
        cv2.imwrite(str(images / f"{t}.png"), source[t][:, :, ::-1])
    common = ("--input", images, "--weights", weights, "--score-threshold", 0)
    assert run(*common, "--output", folder / "whole.json") == 0
    assert run(*common, "--max-frames", 4, "--save-state", folder / "state.pth") == 0
    for t in range(4):
        (images / f"{t}.png").unlink()
    assert run(*common, "--load-state", folder / "state.pth", "--output", folder / "parts.json") == 0
    whole, parts = (json.loads((folder / f"{name}.json").read_text()) for name in ("whole", "parts"))
    assert parts == whole and len(whole) > 0


def test_a_pipe_is_decoded_while_it_arrives(folder):
    """Without seeking; the transport stream is made for that."""
    write_video(folder / "in.mkv", VIDEO, 5)
    result = subprocess.run(
        [sys.executable, "demo/stream.py", "--config-file", CONFIG, "--input", "-", "--max-frames", "2"],
        cwd=ROOT,
        input=(folder / "in.mkv").read_bytes(),
        capture_output=True,
    )
    assert result.returncode == 0, result.stderr.decode()
    assert b"2 frames," in result.stdout


def test_a_pipe_without_a_video_is_refused():
    with pytest.raises(ValueError, match="cannot read a video from the pipe"):
        live.StreamSource(io.BytesIO(b"no video"), "the pipe")


class Camera:
    """Three frames, then it is unplugged."""

    def __init__(self, number: int) -> None:
        self.left = [np.full((4, 6, 3), (value, 0, 0), np.uint8) for value in (1, 2, 3)] if number == 7 else None

    def isOpened(self) -> bool:
        return self.left is not None

    def read(self):
        return (True, self.left.pop(0)) if self.left else (False, None)

    def release(self) -> None:
        self.left = None


def test_a_camera_gives_its_newest_frame_as_rgb_and_ends(monkeypatch):
    monkeypatch.setattr(live.cv2, "VideoCapture", Camera)
    source = live.open_source("7")
    seen = [frame[0, 0].tolist() for frame in source]
    source.close()
    assert seen and seen[-1] == [0, 0, 3]  # earlier ones may be skipped
    assert [blue for *_, blue in seen] == sorted(blue for *_, blue in seen)


def test_a_camera_that_is_not_there_is_an_error(monkeypatch, capsys):
    monkeypatch.setattr(live.cv2, "VideoCapture", Camera)
    assert run("--input", "3") == 2
    assert "camera 3 cannot be opened" in capsys.readouterr().err


def test_a_browser_sees_the_newest_frame():
    view = live.BrowserView("127.0.0.1", 0)
    try:
        assert view.show(VIDEO[0])
        address = f"http://127.0.0.1:{view.port}/"
        with urllib.request.urlopen(address, timeout=10) as page:
            assert b"/frames" in page.read()
        with urllib.request.urlopen(address + "frames", timeout=10) as stream:
            assert stream.readline() == b"--frame\r\n"
            assert stream.readline() == b"Content-Type: image/jpeg\r\n"
            assert stream.readline() == b"\r\n"
            assert stream.read(2) == b"\xff\xd8"  # a JPEG begins
    finally:
        view.close()


def test_a_port_in_use_is_an_error():
    view = live.BrowserView("127.0.0.1", 0)
    try:
        with pytest.raises(ValueError, match="choose another port"):
            live.BrowserView("127.0.0.1", view.port)
    finally:
        view.close()


def test_an_output_that_exists_is_not_replaced(folder, capsys):
    (folder / "out.json").write_text("precious")
    assert run("--input", folder / "in.mp4", "--output", folder / "out.json") == 2
    assert (folder / "out.json").read_text() == "precious"
    assert "out.json" in capsys.readouterr().err


def test_only_good_objects_are_drawn_each_once():
    masks = np.zeros((3, 96, 64), bool)
    masks[:2, :20] = True
    masks[2, 76:] = True
    frame = np.zeros((96, 64, 3), np.uint8)
    objects = FramePrediction(masks, np.array([0.9, 0.8, 0.1]), np.array([0, 1, 0]), np.array([1, 2, 3]))
    picture = live.draw_frame(frame, objects, 0.5, True)
    assert picture[:20].any() and not picture[76:].any()
    assert live.draw_frame(frame, objects, 0.5, False)[76:].any()
    assert not live.draw_frame(frame, objects, 0.95, True).any()


def test_a_saved_stream_is_read_without_unpickling(folder):
    assert run("--input", folder / "in.mp4", "--save-state", folder / "state.pth") == 0
    assert torch.load(folder / "state.pth", weights_only=True)["num_frames"] == 6
