"""Peak memory by the length of the video: whole videos, streams, and a program that holds all of it.

    python tools/benchmark.py memory --json memory.json --plot docs/memory.svg

Every number is the peak of resident memory of a process of its own, which reads a video file, segments it, and writes a
video with what it found:

    held      the usual program: lists of all frames, of all frames at the network's size in float32, of all masks as
              arrays of the frames' size, and of all drawn frames; what the network computes for frames is held, too
    whole     VideoPredictor, as `lbvq predict` uses it
    stream    StreamPredictor with keep_masks=False, as `lbvq stream` uses it for drawn videos

The network is the same, with random weights unless given. Random masks are torn, so that their run lengths take more
memory than those of objects do.
"""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lbvq.engine.memory import peak_memory_mib
from lbvq.files.json_files import to_json
from lbvq.files.writing import atomic_path, write_text
from lbvq.inference.predictor import VideoPredictor
from lbvq.inference.stream import StreamPredictor
from lbvq.video.draw import draw_objects, draw_video
from lbvq.video.reader import read_video
from lbvq.video.writer import open_writer, write_video

RATE = 25.0  # frames per second


def run(args: argparse.Namespace) -> None:
    torch.manual_seed(0)
    if args.peak_of:
        logging.disable(logging.WARNING)  # that weights are random is said above
        FORMS[args.peak_of](args, Path(args.video))
        print(f"{peak_memory_mib():.1f}")
        return
    peaks = compare(args)
    if args.json:
        about = {"config": args.config_file, "size": args.size, "frames": args.frames, "unit": "MiB"}
        write_text(args.json, to_json({**about, "peaks": peaks}, indent=2) + "\n")
    if args.plot:
        draw_plot(args, peaks)


def compare(args: argparse.Namespace) -> dict[str, list[float]]:
    """Print a table with a row for each length; returns the columns."""
    peaks: dict[str, list[float]] = {form: [] for form in FORMS}
    print("peak resident memory, MiB\nframes" + "".join(f"{form:>10s}" for form in FORMS))
    with tempfile.TemporaryDirectory() as folder:
        for num_frames in args.frames:
            video = Path(folder) / f"{num_frames}.mp4"
            write_video(video, moving_squares(num_frames, args.size), RATE)
            for form, column in peaks.items():
                column.append(peak_of(form, video, args))
            print(f"{num_frames:6d}" + "".join(f"{column[-1]:10.0f}" for column in peaks.values()), flush=True)
    return peaks


def peak_of(form: str, video: Path, args: argparse.Namespace) -> float:
    """Peak memory in MiB of a fresh process that segments and draws a video."""
    words = ["memory", "--peak-of", form, "--video", video, "--config-file", args.config_file]
    words += ["--weights", args.weights, *args.opts]
    command = [sys.executable, str(Path(__file__).parents[1] / "benchmark.py"), *map(str, words)]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def moving_squares(num_frames: int, size_hw: Sequence[int]) -> Iterator[np.ndarray]:
    """Frames (H, W, 3) of three squares that go from side to side."""
    height, width = size_hw
    side = height // 4
    for t in range(num_frames):
        frame = np.full((height, width, 3), 90, np.uint8)
        for row, color in enumerate(((220, 60, 60), (60, 200, 60), (80, 80, 230))):
            left = abs((3 * (row + 1) * t) % (2 * (width - side)) - (width - side))
            frame[row * height // 3 : row * height // 3 + side, left : left + side] = color
        yield frame


# -- what is measured -------------------------------------------------------------------------------------------------


def settings(args: argparse.Namespace) -> dict[str, Any]:
    return {"weights": args.weights, "opts": ["MODEL.DEVICE", "cpu", *args.opts]}


def held(args: argparse.Namespace, path: Path) -> None:
    predictor = VideoPredictor.from_pretrained(args.config_file, **settings(args))
    predictor.model.feature_budget_mib = float("inf")
    frames = list(read_video(path))
    images = [image.float() for image in predictor.resize(frames)]
    height, width = frames[0].shape[:2]
    with predictor.inference_context():
        output = predictor.model([{"image": images, "height": height, "width": width}])
    masks = output["pred_masks"].numpy()  # (N, T, H, W) bool
    numbers = range(1, len(masks) + 1)
    drawn = [draw_objects(frame, masks[:, t], numbers) for t, frame in enumerate(frames)]
    write_video(path.with_name("drawn.mp4"), drawn, RATE, overwrite=True)


def whole(args: argparse.Namespace, path: Path) -> None:
    predictor, frames = VideoPredictor.from_pretrained(args.config_file, **settings(args)), read_video(path)
    write_video(path.with_name("drawn.mp4"), draw_video(frames, predictor(frames)), RATE, overwrite=True)


def stream(args: argparse.Namespace, path: Path) -> None:
    predictor = StreamPredictor.from_pretrained(args.config_file, keep_masks=False, **settings(args))
    with open_writer(path.with_name("drawn.mp4"), RATE, overwrite=True) as writer:
        for frame in read_video(path):
            objects = predictor.step(frame)
            writer.write(draw_objects(frame, objects.masks, objects.ids))


FORMS: dict[str, Callable[[argparse.Namespace, Path], None]] = {"held": held, "whole": whole, "stream": stream}


# -- the picture ------------------------------------------------------------------------------------------------------


def draw_plot(args: argparse.Namespace, peaks: dict[str, list[float]]) -> None:
    """Write curves over the length; the suffix of the file chooses the format."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('the plot is drawn by matplotlib: pip install -e ".[dev]"') from error
    names = {
        "held": "all frames and masks held as arrays",
        "whole": "whole video, VideoPredictor",
        "stream": "stream, StreamPredictor",
    }
    axes = (figure := Figure(figsize=(6.4, 3.6), layout="constrained")).add_subplot()
    for (form, column), style in zip(peaks.items(), ("o-", "s-", "^--"), strict=True):
        axes.plot(args.frames, column, style, label=names[form])
    axes.set(xlabel=f"frames of {args.size[0]} x {args.size[1]} pixels", ylabel="peak memory of the process, MiB")
    axes.set(xlim=(0, None), ylim=(0, 1.1 * max(map(max, peaks.values()))))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    kind = args.plot.suffix[1:]
    same = {
        "svg.fonttype": "none",
        "svg.hashsalt": "lbvq",
    }  # texts stay texts, and the file the same for the same numbers
    with atomic_path(args.plot) as part, rc_context(same):
        figure.savefig(part, format=kind, metadata={"Date": None} if kind == "svg" else None)
