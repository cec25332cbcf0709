"""What is wrong with a data set: the work behind `lbvq doctor`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lbvq.data.doctor import Report

EXAMPLES = """examples:
  lbvq doctor data/pets
  lbvq doctor data/pets --model videomt_small_ytvis19 --steps 1000      also what a training takes, by doing two steps
  lbvq doctor train.json --frames JPEGImages --json report.json --all

Every frame is decoded and every mask is read, on all cores. Exit code: 0 nothing that stops a training, 1 errors.
Pictures of the worst findings go to the folder `doctor` of a data folder, or to --pictures. Nothing is changed.
"""
FOUND_ERRORS = 1  # exit code
FEW_OBJECTS = 100  # queries of nearly every published model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command line of `run`."""
    parser.add_argument("data", type=Path, help="data folder, or an annotation file in YouTube-VIS form")
    parser.add_argument("--frames", type=Path, metavar="FOLDER", help="of the frames (default: frames beside the file)")
    parser.add_argument("--model", metavar="NAME", help="compare with this model, and measure two steps of training")
    parser.add_argument("--steps", type=int, default=500, help="of the training whose time is estimated (default 500)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to a file")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="new folder for pictures of the worst findings")
    parser.add_argument("--all", action="store_true", help="list every finding, not only the first of each kind")
    parser.add_argument("--jobs", type=int, metavar="N", help="processes (default: all cores)")


def run(args: argparse.Namespace) -> int:
    """Examine; raises ValueError or OSError when there is nothing to examine."""
    from tqdm import tqdm

    from lbvq.data.doctor import examine
    from lbvq.files.data_entries import ANNOTATIONS, FRAMES
    from lbvq.files.json_files import to_json
    from lbvq.files.writing import write_text

    file = args.data / ANNOTATIONS if args.data.is_dir() else args.data
    frames = args.frames or file.parent / FRAMES
    if not file.is_file():
        raise FileNotFoundError(f"There is no annotation file {file}; `lbvq convert` makes one.")
    with tqdm(desc="videos", unit="video", disable=None) as bar:
        report = examine(
            file, frames, name=str(args.data), jobs=args.jobs, progress=lambda done: bar.update(done - bar.n)
        )
    _compare_with_model(report, args)
    for line in report.lines(args.all):
        print(line)
    if args.json is not None:
        write_text(args.json, to_json(report.to_json(), indent=2) + "\n")
        print(f"wrote {args.json}")
    _draw(report, file, frames, args)
    return FOUND_ERRORS if report.has_errors else 0


def _draw(report: Report, file: Path, frames: Path, args: argparse.Namespace) -> None:
    """Write the pictures; those of an earlier visit are replaced only where they are ours."""
    from lbvq.data.doctor.pictures import draw_worst

    folder = args.pictures or (args.data / "doctor" if args.data.is_dir() else None)
    if folder is None:
        return
    if args.pictures is not None and folder.exists():
        raise FileExistsError(f"{folder} exists already; choose another --pictures.")
    paths = draw_worst(file, frames, report, folder)
    if paths:
        print(f"{len(paths)} pictures in {folder}, such as {paths[0].name}")


def _compare_with_model(report: Report, args: argparse.Namespace) -> None:
    """Objects against queries; with a model also what a training takes here."""
    if args.model is None:
        note_crowded(report, FEW_OBJECTS)
        return
    from lbvq.cli.estimate import estimate
    from lbvq.zoo import load_config

    note_crowded(report, load_config(args.model).MODEL.MASK_FORMER.NUM_OBJECT_QUERIES)
    if report.has_errors:
        report.estimate = ["A training is estimated when there are no errors."]
        return
    print(f"two steps of {args.model} are measured", file=sys.stderr)
    report.estimate = estimate(args.data, args.model, args.steps)


def note_crowded(report: Report, num_queries: int) -> None:
    """Add the videos that have more objects, in a frame or in all, than a model has queries."""
    for video in report.videos:
        for kind, count in (("queries", video.most_objects), ("queries_video", video.num_objects)):
            if count > num_queries:
                report.add(kind, f"video {video.name}", f"{count} objects, {num_queries} queries", video.id)
                break
