"""Frames of video files as images, with their exact numbers and times: the work behind `lbvq extract-frames`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

EXAMPLES = """examples:
  lbvq extract-frames videos/*.mp4 --out frames             frames/<video>/00000.jpg, 00001.jpg, ...
  lbvq extract-frames run.mp4 --out frames --rate 6         six frames a second
  lbvq extract-frames run.mp4 --out frames --numbers 0,10,20-29 --format png

Images are called by their number in the video, counted from 0. frames.csv beside them lists number and time in seconds,
from the file's own clock.
"""
TABLE = "frames.csv"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command line of `run`."""
    parser.add_argument("videos", type=Path, nargs="+", help="video files")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="gets a folder for every video")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--every", type=int, metavar="N", help="every N-th frame")
    chosen.add_argument("--rate", type=float, metavar="R", help="the first frame of every 1/R seconds")
    chosen.add_argument("--numbers", metavar="LIST", help="these frames, as in 0,10,20-29")
    parser.add_argument("--format", choices=("jpg", "png"), default="jpg", help="of the images (default jpg)")
    parser.add_argument("--allow-truncated", action="store_true", help="use what can be read of a damaged file")


def run(args: argparse.Namespace) -> int:
    """Extract; raises ValueError or OSError for what is wrong with the input."""
    from lbvq.video.reader import read_video

    choose = chooser(args.every, args.rate, args.numbers)
    targets = [args.out / path.stem for path in args.videos]
    twice = sorted({str(target) for target in targets if targets.count(target) > 1})
    if twice:
        raise ValueError(f"Several videos would go to {twice[0]}; extract them one after the other.")
    for target in targets:
        if target.exists():
            raise FileExistsError(f"{target} exists already; choose another --out.")
    for path, target in zip(args.videos, targets, strict=True):
        with read_video(path, allow_truncated=args.allow_truncated) as frames:
            times = frames.timestamps
            if times is None:
                raise ValueError(f"{path} is no video file; its images are frames already.")
            numbers = choose(times)
            _write(frames, numbers, times, target, f".{args.format}")
            print(f"{path}: {len(numbers)} of {len(times)} frames -> {target}")
    return 0


def chooser(every: int | None, rate: float | None, numbers: str | None) -> Callable[[np.ndarray], list[int]]:
    """Function from the times of all frames, in seconds, to the numbers of those that are wanted."""
    if every is not None:
        if every < 1:
            raise ValueError(f"--every must be at least 1, got {every}")
        return lambda times: list(range(0, len(times), every))
    if rate is not None:
        if not rate > 0:
            raise ValueError(f"--rate must be positive, got {rate}")
        return lambda times: _at_rate(times, rate)
    if numbers is not None:
        wanted = parse_numbers(numbers)
        return lambda times: _existing(wanted, len(times))
    return lambda times: list(range(len(times)))


def parse_numbers(text: str) -> list[int]:
    """ "0,10,20-22" -> [0, 10, 20, 21, 22], ascending and without repetition."""
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,9})(?:-(\d{1,9}))?\s*", part)
        if match is None or (match[2] and int(match[2]) < int(match[1])):
            raise ValueError(f"--numbers is a list such as 0,10,20-29, got {text!r}")
        found.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return sorted(found)


def _existing(wanted: list[int], total: int) -> list[int]:
    if wanted[-1] >= total:
        raise ValueError(f"Frame {wanted[-1]} does not exist: the video has {total} frames, from 0 to {total - 1}.")
    return wanted


def _at_rate(times: np.ndarray, rate: float) -> list[int]:
    """The first frame of every 1 / rate seconds."""
    chosen, due = [], 0.0
    for number, time in enumerate(times.tolist()):
        if time >= due - 1e-6:
            chosen.append(number)
            due = (int(time * rate + 1e-6) + 1) / rate
    return chosen


def _write(frames: Sequence[np.ndarray], numbers: list[int], times: np.ndarray, target: Path, suffix: str) -> None:
    from lbvq.data.formats.folder import save_image
    from lbvq.files.writing import atomic_path

    wanted = set(numbers)
    with atomic_path(target) as part:
        part.mkdir()
        rows = ["number,seconds,file"]
        for number, pixels in enumerate(frames):
            if number in wanted:
                name = f"{number:05d}{suffix}"
                save_image(pixels, part / name)
                rows.append(f"{number},{times[number]:.6f},{name}")
            if number == numbers[-1]:
                break
        (part / TABLE).write_text("\n".join(rows) + "\n", encoding="utf-8")
