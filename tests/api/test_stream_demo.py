"""`demo/stream.py`: sources, sinks, and stopping and going on, with a small untrained network."""

from __future__ import annotations

import argparse
import io
import json
import signal
import struct
import subprocess
import sys
import threading
import urllib.request
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np
import pytest
import torch
from golden_fill import fill_, frames
from helpers import ROOT
from loud_videos import film, packets
from video_models import load_cfg

from lbvq.cli import live, sources
from lbvq.inference.results import FramePrediction, VideoPrediction
from lbvq.inference.stream import StreamPredictor
from lbvq.video.reader import read_video
from lbvq.video.writer import VideoWriter, write_video
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
    with pytest.raises(ValueError, match="the pipe cannot be opened as a video"):
        sources.open_pipe(io.BytesIO(b"no video"), "the pipe")


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
    monkeypatch.setattr(sources.cv2, "VideoCapture", Camera)
    source = sources.open_source("7")
    seen = [frame.picture[0, 0].tolist() for frame in source]
    source.close()
    assert seen and seen[-1] == [0, 0, 3]  # earlier ones may be skipped
    assert [blue for *_, blue in seen] == sorted(blue for *_, blue in seen)


def test_a_camera_that_is_not_there_is_an_error(monkeypatch, capsys):
    monkeypatch.setattr(sources.cv2, "VideoCapture", Camera)
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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_stream_with_whole_files(folder, monkeypatch, capsys, number):
    step = StreamPredictor.step

    def step_and_signal(self, frame):
        objects = step(self, frame)
        if self.num_frames == 3:
            signal.raise_signal(number)
        return objects

    monkeypatch.setattr(StreamPredictor, "step", step_and_signal)
    outputs = [folder / name for name in ("out.mp4", "frames", "out.json")]
    assert run("--input", folder / "in.mp4", "--output", *outputs, "--save-state", folder / "state.pth") == 0
    assert len(read_video(folder / "out.mp4")) == len(read_video(folder / "frames")) == 3
    assert len(json.loads((folder / "out.json").read_text())[0]["segmentations"]) == 3
    assert torch.load(folder / "state.pth", weights_only=True)["num_frames"] == 3
    assert "interrupted" in capsys.readouterr().out
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_a_signal_while_waiting_for_a_frame_ends_the_stream(folder, monkeypatch):
    class Waiting(sources.FrameSource):
        def __iter__(self):
            yield sources.TimedFrame(VIDEO[0], None)
            signal.raise_signal(signal.SIGTERM)
            raise AssertionError("the signal did not come through")

    monkeypatch.setattr(live, "open_source", lambda name: Waiting())
    assert run("--output", folder / "out.mp4") == 0
    assert len(read_video(folder / "out.mp4")) == 1


def test_the_times_and_the_sound_of_a_file_are_kept(folder, caplog):
    times = [0, 0.1, 0.1004, 0.9, 1.0, 2.0]
    write_video(folder / "uneven.mp4", VIDEO, timestamps=times)
    assert run("--input", folder / "uneven.mp4", "--output", folder / "out.mp4") == 0
    assert read_video(folder / "out.mp4").timestamps == pytest.approx([0, 0.1, 0.101, 0.9, 1.0, 2.0], abs=2e-4)
    loud = film(folder / "loud.mp4", num_frames=4, seconds=0.4)
    assert run("--input", loud, "--output", folder / "all.mp4") == 0
    assert packets(folder / "all.mp4") == packets(loud) != []
    assert run("--input", loud, "--output", folder / "two.mp4", "--max-frames", 2) == 0
    assert 0 < len(packets(folder / "two.mp4")) < len(packets(loud))
    assert run("--input", loud, "--output", folder / "none.mp4", "--no-audio") == 0
    assert packets(folder / "none.mp4") == [] and "sound" not in caplog.text
    assert run("--input", loud, "--output", folder / "fast.mp4", "--fps", 50) == 0
    assert "--fps changes its speed" in caplog.text


def test_a_clock_of_a_stream_that_stops_or_starts_again_goes_on(tmp_path):
    with VideoWriter(tmp_path / "out.mp4", 10) as writer:
        view = live.FileView(writer, rate=10, timed=True)
        for time in (5.0, 5.1, 5.1, None, 5.5, 0.2, 0.3):
            view.show(VIDEO[0], time)
    want = [0, 0.1, 0.101, 0.201, 0.5, 0.6, 0.7]
    assert read_video(tmp_path / "out.mp4").timestamps == pytest.approx(want, abs=1e-3)


def test_a_stream_is_upright_and_says_that_its_sound_is_lost(folder, caplog, monkeypatch):
    path = film(folder / "loud.mkv", num_frames=4, seconds=0.4)
    monkeypatch.setattr(live, "open_source", lambda name: sources.open_pipe(io.BytesIO(path.read_bytes()), "the pipe"))
    assert run("--output", folder / "out.mp4") == 0
    assert read_video(folder / "out.mp4").timestamps == pytest.approx(np.arange(4) / 10, abs=1e-3)
    assert "sound of 0 is left out: it is copied from files only" in caplog.text
    turned = bytearray(film(folder / "turned.mov", num_frames=4, movflags="+faststart").read_bytes())
    start = turned.find(b"tkhd") + 4 + 40
    turned[start : start + 36] = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)
    frames = list(sources.open_pipe(io.BytesIO(bytes(turned)), "the pipe"))
    assert len(frames) == 4 and frames[0].picture.shape == (64, 48, 3)


def test_a_damaged_frame_ends_a_stream_and_what_was_before_is_kept(folder, caplog):
    write_video(folder / "images", VIDEO)
    broken = folder / "images" / "00003.jpg"
    broken.write_bytes(broken.read_bytes()[:800])
    assert run("--input", folder / "images", "--output", folder / "out.mp4", folder / "out.json") == 0
    assert len(read_video(folder / "out.mp4")) == 3
    assert "The video ends early" in caplog.text and "00003.jpg" in caplog.text


def test_a_pipe_names_no_other_files(folder):
    text = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{(folder / 'in.mp4').as_uri()}\n#EXT-X-ENDLIST\n"
    for content in (text, f"ffconcat version 1.0\nfile '{folder / 'in.mp4'}'\n"):
        with pytest.raises(ValueError, match="the pipe cannot be opened as a video"):
            sources.open_pipe(io.BytesIO(content.encode()), "the pipe")


def test_an_address_is_read_as_in_the_other_demo(folder):
    assert len(list(sources.open_source((folder / "in.mp4").as_uri()))) == 6
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert len(list(sources.open_source(f"http://127.0.0.1:{server.server_address[1]}/in.mp4"))) == 6
        server.shutdown()


@pytest.mark.parametrize("content", [b"", b"no stream", {"model": {"a": torch.zeros(2)}}, [1, 2], {"version": 1}, None])
def test_a_file_that_holds_no_stream_is_named(folder, capsys, content):
    path = folder / "state.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is None:  # one of this model, damaged
        assert run("--input", folder / "in.mp4", "--save-state", path, "--max-frames", 2) == 0
        state = torch.load(path, weights_only=True)
        torch.save({**state, "masks": {}, "ids": 7}, path)
    else:
        torch.save(content, path)
    assert run("--input", folder / "in.mp4", "--load-state", path, "--output", folder / "out.mp4") == 2
    assert "state.pth" in capsys.readouterr().err and not (folder / "out.mp4").exists()
