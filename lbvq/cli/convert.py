"""Labels of any tool into a data folder: the work behind `lbvq convert`."""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLES = """examples:
  lbvq convert annotations.zip --frames videos/ --out data/pets
  lbvq convert Annotations/ --from davis --frames JPEGImages/ --classes cell --out data/cells

Files of yours are only read. What cannot be kept is counted, with the first example, on the screen and in
conversion.json.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command line of `run`."""
    parser.add_argument("source", type=Path, help="label file, folder or zip archive, as the labelling tool wrote it")
    parser.add_argument("--from", dest="format", metavar="FORMAT", help="what it is (default: what it looks like)")
    parser.add_argument(
        "--frames", type=Path, nargs="+", default=[], help="folders of images or videos (default: beside the labels)"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="new data folder")
    parser.add_argument("--classes", metavar="NAMES", help='names of the classes, "car, person", where files have none')
    parser.add_argument(
        "--join-by-overlap",
        action="store_true",
        help="objects that are labelled frame by frame without an identity become tracks where their masks overlap",
    )
    parser.add_argument("--frame-format", choices=("jpg", "png"), default="jpg", help="of frames from a video file")
    parser.add_argument("--symlink", action="store_true", help="link images instead of copying them")
    parser.add_argument("--skip-missing", action="store_true", help="leave out frames whose image is not there")
    parser.add_argument("--overwrite", action="store_true", help="replace the folder of an earlier conversion")


def run(args: argparse.Namespace) -> int:
    """Convert; raises ValueError, KeyError or OSError for what is wrong with the input."""
    from lbvq.data.formats import ReadOptions, read_labels
    from lbvq.data.formats.folder import FrameOptions, check_target, write_data_folder, write_report
    from lbvq.data.formats.frames import FrameFinder
    from lbvq.data.formats.join import join_by_overlap
    from lbvq.data.formats.source import open_source
    from lbvq.files.writing import atomic_path

    check_target(args.out, args.overwrite)
    classes = [name.strip() for name in (args.classes or "").split(",") if name.strip()]
    with open_source(args.source) as source:
        roots = [*args.frames, source.root]
        options = ReadOptions(classes, FrameFinder(roots).size_of)
        chosen, labels = read_labels(source, args.format, options)
        print(f"{args.source}: {chosen.title}, {len(labels.videos)} videos, {len(labels.categories)} classes")
        if args.join_by_overlap:
            join_by_overlap(labels)
        frames = FrameOptions(f".{args.frame_format}", args.symlink, args.skip_missing)
        with atomic_path(args.out) as part:
            part.mkdir()
            finder = FrameFinder(roots, labels)
            written = write_data_folder(labels, part, finder, frames, lambda line: print(f"  {line}"))
            write_report(part, str(args.source), chosen.name, written)
    for line in written.notes.lines():
        print(line)
    num_masks = sum(len(track.masks) for video in written.videos for track in video.tracks)
    num_tracks = sum(len(video.tracks) for video in written.videos)
    print(f"wrote {args.out}/annotations.json: {len(written.videos)} videos, {num_tracks} objects, {num_masks} masks")
    return 0
