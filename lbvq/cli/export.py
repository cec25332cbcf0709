"""The work behind `lbvq export`: predictions or a data folder for labelling tools, and with --model a network.

How a network is exported is in `lbvq.cli.export_network`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lbvq.cli.export_network import NETWORK_OPTIONS, add_network_arguments, export_network

if TYPE_CHECKING:
    from lbvq.data.formats.labels import Labels

DEFAULT_THRESHOLD = 0.3  # score of predictions

EXAMPLES = """examples:
results, a data folder, or an annotation file for a labelling tool (SOURCE --to FORMAT)
  lbvq export results.json --to cvat --tolerance 1            what `lbvq predict` has found, to be corrected in CVAT
  lbvq export runs/pets/inference/results.json --data data/pets/dev.json --to labelme --out corrected
  lbvq export data/pets --to mots                             the labels of a data folder

cvat: one XML per video, upload it to the task of that video as "CVAT 1.1"; every object is a track of polygons, which
are exact to the pixel without --tolerance and easier to edit with it. mots: one folder per video, zipped it is "MOTS
PNG 1.0". What a format cannot hold is counted, with the first example.

a network for another runtime (--model NAME --format FORMAT --output FOLDER)
  lbvq export --model minvis_r50_ytvis19 --format onnx --output minvis_onnx
  lbvq export --model runs/pets --format openvino --size 360 640 --output pets_openvino
  lbvq predict video.mp4 --config-file minvis_onnx            and VideoPredictor.from_pretrained("minvis_onnx")

Frames go through the graph; what follows objects from frame to frame stays Python. See docs/export.md.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command line of `run`."""
    parser.usage = (
        "lbvq export SOURCE --to FORMAT [--out FOLDER] [options of labels]\n"
        "       lbvq export --model NAME --format onnx|openvino --output FOLDER [options of networks]"
    )
    labels = parser.add_argument_group("predictions and labels, for labelling tools")
    labels.add_argument(
        "source",
        nargs="?",
        type=Path,
        metavar="SOURCE",
        help="results file, data folder, or annotation file in YouTube-VIS form",
    )
    labels.add_argument("--to", metavar="FORMAT", help="cvat, coco, mots, mots_text, labelme or ytvis")
    labels.add_argument("--data", type=Path, help="data folder or annotation file that the ids of a results file mean")
    labels.add_argument("--frames", type=Path, help="folder of the frames, for paths in labelme files")
    labels.add_argument("--score-threshold", type=float, help="of predictions (default 0.3)")
    labels.add_argument("--tolerance", type=float, metavar="PIXELS", help="of outlines in CVAT (default 0)")
    add_network_arguments(parser)
    parser.add_argument(
        *("--out", "--output"), dest="out", type=Path, metavar="FOLDER", help="new folder (of labels: SOURCE_FORMAT)"
    )


def run(args: argparse.Namespace) -> int:
    """Export; raises ValueError, KeyError or OSError for what is wrong with the input."""
    of_labels = _given(args, ("source", "to", "data", "frames", "score_threshold", "tolerance"))
    of_networks = _given(args, NETWORK_OPTIONS)
    if of_labels and of_networks:
        raise ValueError(
            f"{', '.join(of_labels)} belong to the export of labels, {', '.join(of_networks)} to that of networks; "
            "give those of one of them, see lbvq export --help."
        )
    if of_networks:
        return export_network(args)
    for name, what in (("source", "SOURCE, a results file or data folder"), ("to", "--to FORMAT")):
        if getattr(args, name) is None:
            raise ValueError(f"{what} is missing; for a network give --model NAME. See lbvq export --help.")
    return export_labels(args)


def _given(args: argparse.Namespace, names: Sequence[str]) -> list[str]:
    """Options that are on the command line, as they are written there."""
    given = [name for name in names if getattr(args, name) not in (None, False, [])]
    return [name.upper() if name == "source" else f"--{name.replace('_', '-')}" for name in given]


def export_labels(args: argparse.Namespace) -> int:
    """Write predictions or labels as a folder of another format."""
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
        labels.notes.extend(write(labels, part, WriteOptions(_frames(args), args.tolerance or 0.0)))
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
    threshold = DEFAULT_THRESHOLD if args.score_threshold is None else args.score_threshold
    return read_results(args.source, known, threshold)


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
