"""Refine the masks of an existing results file, without the model that made them.

    python tools/refine_json.py results.json --frames JPEGImages --annotations valid.json --output refined.json \
        --opts REFINE.NAME hq_sam REFINE.MODEL_TYPE vit_h REFINE.CHECKPOINT sam_hq_vit_h.pth

Frames are found through the `file_names` of the annotation file (with or without annotations in it), or without one in
`FRAMES/<video id>`. When the file holds ground truth, mask and boundary AP before and after are printed. A run that
was interrupted goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lbvq.engine.user_errors import user_command
from lbvq.files.data_entries import add_data_argument, data_options
from lbvq.refine import build_refiner, refine_results
from lbvq.video.reader import VideoFrames, read_video
from lbvq.zoo import load_config


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="results.json in YouTube-VIS form")
    parser.add_argument("--frames", type=Path, required=True, help="folder that holds the frames of all videos")
    parser.add_argument("--annotations", type=Path, help="annotation file with the videos' file names")
    parser.add_argument("--output", type=Path, help="default: RESULTS with .refined.json")
    add_data_argument(parser)
    parser.add_argument("--config-file", default="", help="YAML with REFINE settings")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="settings, last")
    return parser.parse_args()


def frame_finder(frames: Path, annotations: dict[str, Any] | None) -> Callable[[int | str], VideoFrames]:
    """Video id -> its frames; by the names in the annotation file, else all images of the folder with that name."""
    names = {video["id"]: video["file_names"] for video in (annotations or {}).get("videos", [])}

    def open_frames(video_id: int | str) -> VideoFrames:
        if annotations is None:
            return read_video(frames / str(video_id))
        if video_id not in names:
            raise ValueError(f"video {video_id} of the results is not in the annotation file")
        return read_video([frames / name for name in names[video_id]])

    return open_frames


def print_scores(annotations: Path, before: Path, after: Path) -> None:
    """Tube-mask and tube-boundary AP of both results files, in percent."""
    from lbvq.evaluation import VideoScorer

    scorer = VideoScorer("hq_ytvis", annotations)
    print(f"{'':8s}{'mask AP':>10s}{'boundary AP':>14s}")
    for name, path in (("before", before), ("after", after)):
        scorer.reset()
        tables = scorer.update(path).compute().tables
        print(f"{name:8s}{tables['segm']['AP']:10.2f}{tables['boundary']['AP']:14.2f}")


@user_command
def main() -> int:
    args = parse_args()
    cfg = load_config(args.config_file, [*data_options(args.data), *args.opts])
    output = args.output or args.results.with_suffix(".refined.json")
    refiner = build_refiner(cfg)
    if refiner is None:
        raise ValueError("no refiner chosen; add e.g. REFINE.NAME hq_sam")
    annotations = json.loads(args.annotations.read_text(encoding="utf-8")) if args.annotations else None
    with tqdm(unit="video", desc="refine") as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        report = refine_results(
            args.results,
            output,
            frame_finder(args.frames, annotations),
            refiner,
            settings=cfg.REFINE.dump() + f"SAM: {cfg.SAM}",
            score_threshold=cfg.REFINE.SCORE_THRESHOLD,
            progress=show,
        )
    print(f"{report}\nwritten to {output}")
    if annotations and annotations.get("annotations"):
        print_scores(args.annotations, args.results, output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
