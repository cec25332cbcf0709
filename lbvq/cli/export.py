"""Predictions, or a data folder, into the format of a labelling tool: the work behind `lbvq export`."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lbvq.data.formats.labels import Labels

EXAMPLES = """examples:
  lbvq export results.json --to cvat --tolerance 1            what `lbvq predict` has found, to be corrected in CVAT
  lbvq export runs/pets/inference/results.json --data data/pets/dev.json --to labelme --out corrected
  lbvq export data/pets --to mots                             the labels of a data folder

cvat: one XML per video, upload it to the task of that video as "CVAT 1.1"; every object is a track of polygons, which
are exact to the pixel without --tolerance and easier to edit with it. mots: one folder per video, zipped it is "MOTS
PNG 1.0". What a format cannot hold is counted, with the first example.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command line of `run`."""
    parser.add_argument("source", type=Path, help="results file, data folder, or annotation file in YouTube-VIS form")
    parser.add_argument("--to", required=True, metavar="FORMAT", help="cvat, coco, mots, mots_text, labelme or ytvis")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="new folder (default: SOURCE_FORMAT)")
    parser.add_argument("--data", type=Path, help="data folder or annotation file that the ids of a results file mean")
    parser.add_argument("--frames", type=Path, help="folder of the frames, for paths in labelme files")
    parser.add_argument("--score-threshold", type=float, default=0.3, help="of predictions (default 0.3)")
    parser.add_argument(
        "--tolerance", type=float, default=0.0, metavar="PIXELS", help="of outlines in CVAT (default 0)"
    )


def run(args: argparse.Namespace) -> int:
    """Export; raises ValueError, KeyError or OSError for what is wrong with the input."""
    from lbvq.data.formats import WriteOptions, writer
    from lbvq.files.writing import atomic_path

    write = writer(args.to)
    labels = _read(args)
    if args.frames is not None:
        _name_frames(labels, args.frames)
    target = args.out or args.source.with_name(f"{args.source.stem}_{args.to}")
    if target.exists():
        raise FileExistsError(f"{target} exists already; choose another --out.")
    with atomic_path(target) as part:
        part.mkdir()
        # relative paths in the files are those from the folder's final place, which has the same parent
        labels.notes.extend(write(labels, part, WriteOptions(_frames(args), args.tolerance)))
    for line in labels.notes.lines():
        print(line)
    num_tracks = sum(len(video.tracks) for video in labels.videos)
    print(f"wrote {target}: {len(labels.videos)} videos, {num_tracks} objects")
    return 0


def _read(args: argparse.Namespace) -> Labels:
    """Labels of a results file, or of a data folder."""
    from lbvq.data.formats.results import read_results
    from lbvq.files.json_files import read_json

    if args.source.is_dir() or isinstance(read_json(args.source), dict):
        if args.data is not None:
            raise ValueError(f"{args.source} holds labels, which need no --data.")
        return _annotations(args.source)
    known = None if args.data is None else _annotations(args.data)
    return read_results(args.source, known, args.score_threshold)


def _annotations(path: Path) -> Labels:
    """Labels of an annotation file in YouTube-VIS form."""
    from lbvq.data.formats import ReadOptions, read_labels
    from lbvq.data.formats.source import open_source
    from lbvq.files.data_entries import ANNOTATIONS

    with open_source(path / ANNOTATIONS if path.is_dir() else path) as source:
        return read_labels(source, "ytvis", ReadOptions())[1]


def _name_frames(labels: Labels, frames: Path) -> None:
    """Find the image of every frame that is known by its number only."""
    from lbvq.data.formats.frames import FrameFinder

    finder = FrameFinder([frames], labels)
    for video in labels.videos:
        if any(frame.name for frame in video.frames):
            continue
        images = finder.find(video).images
        names = [image.relative_to(frames).as_posix() if image else "" for image in images]
        video.frames = [replace(frame, name=name) for frame, name in zip(video.frames, names, strict=True)]


def _frames(args: argparse.Namespace) -> Path | None:
    """Where the names of frames are relative to."""
    from lbvq.files.data_entries import FRAMES

    home = args.data or args.source
    beside = (home if home.is_dir() else home.parent) / FRAMES
    frames = args.frames or (beside if beside.is_dir() else None)
    return None if frames is None else frames.resolve()
