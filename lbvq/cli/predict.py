"""Segment video files and write what was found: the work behind `demo/demo.py` and `python -m lbvq predict`."""

from __future__ import annotations

import argparse
import glob
import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from lbvq.cli.interrupt import Interrupts
from lbvq.engine.user_errors import user_command
from lbvq.files.data_entries import add_data_argument, data_options
from lbvq.files.writing import write_text
from lbvq.inference.prompts import parse_classes
from lbvq.refine import REFINERS
from lbvq.video.address import is_address, name_of
from lbvq.video.draw import draw_video
from lbvq.video.reader import IMAGE_SUFFIXES, VideoFrames, read_video, without_clutter
from lbvq.video.sound import Sound
from lbvq.video.times import MAX_RATE, uneven_times
from lbvq.video.writer import FRAME_SUFFIXES, check_output, open_writer
from lbvq.zoo import DEFAULT_MODEL, MODELS, load_config

if TYPE_CHECKING:  # the network is imported when the arguments are read, so that --help answers at once
    from lbvq.inference.predictor import VideoPredictor
    from lbvq.inference.results import VideoPrediction

UNTRAINED_OBJECTS = 5  # shown of an untrained network, whose scores mean nothing

logger = logging.getLogger(__name__)

EXAMPLES = """examples:
  lbvq predict video.mp4                     drawn into video_segmented.mp4, with a model that is fetched once
  lbvq predict "clips/*.mp4" --model mask2former_swin_tiny_coco --score-threshold 0.5 --output drawn/{name}.mp4 all.json
  lbvq predict frames/ --weights runs/pets/model_best.pth --output found.mp4
"""


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what says which model is run; the live demo has the same."""
    parser.add_argument(
        *("--config-file", "--model"),
        metavar="MODEL",
        help="a name of `lbvq list`, a folder of a model, organisation/model of the Hugging Face Hub, or a YAML file "
        f"(default: the config.yaml beside --weights, or else {DEFAULT_MODEL}, which is downloaded once)",
    )
    parser.add_argument("--weights", metavar="FILE", help="trained weights (default: MODEL.WEIGHTS)")
    add_data_argument(parser)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command line of `run`."""
    add_model_arguments(parser)
    parser.add_argument("videos", nargs="*", help="the same as --input")
    parser.add_argument(
        *("--input", "--video-input"),
        nargs="+",
        default=[],
        help="video files, addresses, folders of frames, or patterns in quotes; several images are the frames of one "
        "video",
    )
    parser.add_argument(
        "--output",
        nargs="+",
        default=["{name}_segmented.mp4"],
        help="any of: video (.mp4), folder of frames (no suffix), results (.json); '{name}' in a video or folder name "
        "stands for the input's name (default: {name}_segmented.mp4)",
    )
    parser.add_argument(
        "--classes",
        metavar="NAMES",
        help='names of the classes, e.g. "cat, skateboard, potted plant"; an open-vocabulary model (OVFormer) finds '
        "exactly these",
    )
    parser.add_argument("--refine", choices=sorted(REFINERS), help="refine the masks; settings are in REFINE.*")
    add_threshold(parser)
    parser.add_argument("--fps", type=float, help="frame rate to write (default: that of the input, 10 for images)")
    parser.add_argument("--no-audio", action="store_true", help="leave out the sound, which videos keep otherwise")
    parser.add_argument("--frame-format", choices=[suffix[1:] for suffix in FRAME_SUFFIXES], default="jpg")
    parser.add_argument(
        "--save-frames",
        type=_truth,
        nargs="?",
        const=True,
        metavar="True|False",
        help="of an output without suffix: frames (True, as by default), or visualization.mp4 in it (False)",
    )
    parser.add_argument("--allow-truncated", action="store_true", help="use what can be read of a damaged file")
    parser.add_argument("--overwrite", action="store_true", help="replace outputs that exist")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="configuration")


def add_threshold(parser: argparse.ArgumentParser) -> None:
    """Add the least score of the objects that are shown, under both names it has had."""
    parser.add_argument(
        *("--score-threshold", "--confidence-threshold"),
        dest="score_threshold",
        type=float,
        default=0.3,
        help="keep objects with at least this score (default: 0.3)",
    )


@user_command
def run(args: argparse.Namespace) -> int:
    """Do what the command line says; returns the exit code, 2 for anything wrong with files or settings."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr)
    try:
        with Interrupts() as interrupts:
            return _run(args, interrupts)
    except KeyboardInterrupt:
        print("interrupted; nothing was segmented yet", file=sys.stderr)
        return interrupts.exit_code


def _run(args: argparse.Namespace, interrupts: Interrupts) -> int:
    videos = group_inputs([*args.videos, *args.input])
    if not videos:
        raise ValueError("no video is named; give video files, folders of frames, patterns in quotes, or addresses.")
    names = published_outputs(args.output, args.save_frames)
    outputs = plan_outputs(names, videos, args.overwrite, args.fps)
    frames = [read_video(video, allow_truncated=args.allow_truncated) for video in videos]
    for each in frames:
        each.check()  # a damaged file is found here, before the network is built
        what = "this video has one frame" if len(each) == 1 else f"{len(each)} frames"
        print(f"{each.name}: {what} of {each.size[1]} x {each.size[0]} pixels")
    predictor = build_predictor(args)
    entries: list[dict] = []
    done = 0
    try:
        for video_id, (each, paths) in enumerate(zip(frames, outputs, strict=True), start=1):
            print(f"segmenting {each.name}")
            prediction = segment(predictor, each)
            with interrupts.shielded():
                shown = choose_objects(prediction, args.score_threshold, predictor.is_trained)
                entries += result_entries(shown, video_id, each.name)
                done += 1
                write_drawn(each, shown, paths, args, interrupts)
            each.close()
    except KeyboardInterrupt:
        print(f"interrupted: {done} of {len(frames)} videos were segmented", file=sys.stderr)
    if done:
        with interrupts.shielded():
            write_results([path for path in names if _is_json(path)], entries)
    return interrupts.exit_code


def build_predictor(args: argparse.Namespace, make: Callable[..., Any] | None = None) -> Any:
    """Build the network; weights that only the YAML file names may be absent, then it stays untrained.

    Args:
        args: from the command line.
        make: called as make(cfg, weights, class names or None); by default `VideoPredictor.from_config`.
    """
    from lbvq.engine.weight_files import find_weights
    from lbvq.inference.predictor import VideoPredictor

    refine = getattr(args, "refine", None)
    opts = [*data_options(args.data), *args.opts, *(["REFINE.NAME", refine] if refine else [])]
    source = args.config_file or config_of(args.weights)
    cfg = load_config(source, opts)
    weights = args.weights
    # by the user, not by the file
    is_named = source in MODELS or Path(source).is_dir() or "MODEL.WEIGHTS" in args.opts[::2]
    if weights is None and not is_named and cfg.MODEL.WEIGHTS:
        try:
            find_weights(cfg.MODEL.WEIGHTS)
        except OSError as error:
            logger.warning("The weights that %s starts training from are not here: %s", source, error)
            weights = ""
    names = getattr(args, "classes", None)
    return (make or VideoPredictor.from_config)(cfg, weights, None if names is None else parse_classes(names))


def config_of(weights: str | None) -> str:
    """The configuration when none is named: that of the run which left the weights, or the default model."""
    if weights is None:
        return DEFAULT_MODEL
    beside = Path(weights).expanduser().parent / "config.yaml"
    if not beside.is_file():
        raise ValueError(f"there is no {beside}; say by --config-file which model {weights} is of.")
    return str(beside)


def group_inputs(inputs: Sequence[str]) -> list[str | list[str]]:
    """Split the arguments into videos: several images are one video, everything else is one video each."""
    if len(inputs) > 1:  # a shell has made them of a pattern, perhaps
        inputs = without_clutter(list(inputs))
    if len(inputs) > 1 and all(Path(item).suffix.lower() in IMAGE_SUFFIXES for item in inputs):
        return [list(inputs)]
    return list(inputs)


def published_outputs(outputs: Sequence[str], save_frames: bool | None) -> list[str]:
    """Where the published demos write: without --save-frames their folder holds a video and no frames."""
    if save_frames is not False:
        return list(outputs)
    return [path if Path(path).suffix else str(Path(path) / "visualization.mp4") for path in outputs]


def plan_outputs(
    outputs: Sequence[str], videos: Sequence[str | list[str]], overwrite: bool, frame_rate: float | None = None
) -> list[list[Path]]:
    """Fill in names and check every path, so that nothing fails after the network has run.

    Returns:
        For each video its drawn outputs (videos and folders).
    """
    inputs = [item for video in videos for item in ([video] if isinstance(video, str) else video)]
    plans = [
        [Path(path.replace("{name}", _name_of(video))) for path in outputs if not _is_json(path)] for video in videos
    ]
    every = [path for plan in plans for path in plan] + [Path(path) for path in outputs if _is_json(path)]
    for index, path in enumerate(every):
        others = every[:index] + every[index + 1 :]
        if path in others:
            raise ValueError(
                f"{path} would be written twice; with several videos put {{name}} into the output, as in "
                "out/{name}.mp4, and give inputs of different names"
            )
        if any(path in other.parents for other in others):
            raise ValueError(f"the folder of frames {path} cannot hold another output; choose another name")
        check_output(path, inputs, overwrite)
        if path.suffix and not _is_json(path):
            open_writer(path, frame_rate, overwrite=overwrite)  # checks its arguments, writes nothing yet
    return plans


def _name_of(video: str | list[str]) -> str:
    """What '{name}' stands for: a file without its suffix, or the folder of several images."""
    if isinstance(video, list):
        return Path(video[0]).resolve().parent.name
    if is_address(video):
        return Path(name_of(video)).stem
    if glob.has_magic(video) and not Path(video).exists():
        return Path(video).resolve().parent.name
    path = Path(video).resolve()
    return path.name if path.is_dir() else path.stem


def segment(predictor: VideoPredictor, frames: VideoFrames) -> VideoPrediction:
    """Run the predictor with a progress bar for each stage."""
    with ExitStack() as stack:
        bars: dict[str, tqdm] = {}

        def progress(stage: str, done: int, total: int) -> None:
            if stage not in bars:
                bars[stage] = stack.enter_context(tqdm(total=total, desc=stage, unit="frame", disable=None))
            bars[stage].update(done - bars[stage].n)

        return predictor(frames, progress=progress)


def choose_objects(prediction: VideoPrediction, threshold: float, is_trained: bool) -> VideoPrediction:
    """Keep the objects to report, each with its best class only; an untrained network shows a few to look at."""
    prediction = prediction.distinct()
    if not is_trained:
        shown = prediction[:UNTRAINED_OBJECTS]
        print(f"The network is UNTRAINED: showing its first {len(shown)} masks, which are noise, not objects.")
        return shown
    shown = prediction.keep(threshold)
    hint = (
        f"; the best has {prediction.scores[0]:.2f}, see --score-threshold" if len(prediction) > len(shown) == 0 else ""
    )
    print(f"{len(shown)} of {len(prediction)} objects have a score of at least {threshold:g}{hint}")
    return shown


def write_drawn(
    frames: VideoFrames,
    shown: VideoPrediction,
    paths: Sequence[Path],
    args: argparse.Namespace,
    interrupts: Interrupts,
    progress: Callable[[str, int, int], None] | None = None,
) -> None:
    """Draw the objects into the video once and write all outputs side by side; a signal ends them early, but whole.

    `progress` is called as progress("draw", done, total); when it raises, nothing is written.
    """
    if not paths:
        return
    times = None if args.fps else uneven_times(frames.timestamps)
    rate = args.fps or (frames.frame_rate and min(frames.frame_rate, MAX_RATE))
    sound = kept_sound(frames, paths, args)
    with ExitStack() as stack:
        options = {"frame_suffix": f".{args.frame_format}", "overwrite": args.overwrite, "sound": sound}
        writers = [open_writer(path, rate, **options) for path in paths]
        for writer in writers:
            stack.enter_context(writer)
        drawn = draw_video(_in_order(frames), shown)
        for t, picture in enumerate(tqdm(drawn, total=len(frames), desc="draw", unit="frame", disable=None)):
            for writer in writers:
                writer.write(picture, None if times is None else float(times[t]))
                writer.is_whole = t == len(frames) - 1
            if progress is not None:
                progress("draw", t + 1, len(frames))
            if interrupts.received:
                break
    for path in paths:
        print(f"wrote {path}" + ("" if t == len(frames) - 1 else f" with {t + 1} of {len(frames)} frames"))


def kept_sound(frames: VideoFrames, paths: Sequence[Path], args: argparse.Namespace) -> Sound | None:
    """The sound that goes into the videos that are written, None where there is none or it does not fit."""
    if args.no_audio or not any(path.suffix for path in paths) or frames.sound is None:
        return None
    if not args.fps and (frames.frame_rate or 0) <= MAX_RATE:
        return frames.sound
    reason = "--fps changes its speed" if args.fps else "its frames have no usable times"
    logger.warning("The sound of %s is left out: %s", frames.name, reason)
    return None


def write_results(paths: Sequence[str], entries: Sequence[dict]) -> None:
    """Write the entries of all videos as one YouTube-VIS results file each."""
    for path in paths:
        write_text(path, json.dumps(entries))
        print(f"wrote {path}")


def result_entries(shown: VideoPrediction, video_id: int, file_name: str) -> list[dict]:
    """Entries of a results file for the objects that are drawn, with their number and the name of their class."""
    entries = shown.to_json(video_id)
    for entry, item in zip(entries, shown, strict=True):
        entry.update(file_name=file_name, object_id=item.id)
        if item.name is not None:
            entry["category_name"] = item.name
    return entries


def _in_order(frames: VideoFrames) -> Iterator[np.ndarray]:
    return (frames[t] for t in range(len(frames)))


def _is_json(path: str | Path) -> bool:
    return str(path).lower().endswith(".json")


def _truth(text: str) -> bool:
    """Read True or False, as the published demos are told."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected True or False, got {text!r}")
    return text.lower() == "true"
