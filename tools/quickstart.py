"""From nothing to a trained, evaluated and drawn model on a CPU: what `make quickstart` runs.

    python tools/quickstart.py [--folder quickstart] [--from-scratch] [KEY VALUE ...]

Five steps, of which the first three are commands that you can run by yourself:
1. write the built-in data set of moving shapes (600 videos to train on, 150 to test on);
2. train a small frame segmenter, a MinVIS whose backbone starts from ImageNet (train_net.py);
3. train a small LBVQ that starts from it, and compute tube AP on the held-out videos (train_net.py);
4. draw some held-out videos with what the model found (from results.json);
5. print the numbers and where everything is.

Frames first, then videos: so the published models are made too, and classes are learned from many different frames much
sooner than from clips. With --from-scratch nothing comes from ImageNet, which takes longer. With --config-file a single
recipe is trained.

A run that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from lbvq.engine.user_errors import user_command
from lbvq.files.images import read_image
from lbvq.inference.results import VideoPrediction
from lbvq.video.draw import contact_sheet, draw_video
from lbvq.video.writer import write_video

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs" / "synthetic"
# the recipe of frames, which are not scored here, and that of videos
FROM_IMAGENET = ["minvis_lite0.yaml", "DATASETS.TEST", "()"], ["lbvq_lite0.yaml"]
FROM_SCRATCH = ["minvis_R18_tiny.yaml", "DATASETS.TEST", "()"], ["lbvq_R18_tiny_from_frames.yaml"]
MAX_PROCESSES = 2  # the recipes have four clips per step
SHOWN_VIDEOS = 6
SHOWN_SCORE = 0.5
SCALE = 4  # the videos are small; masks and frames are enlarged before drawing
FRAME_RATE = 4.0


@user_command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default="quickstart", help="everything is written here (default: quickstart)")
    parser.add_argument("--config-file", help="the only recipe (default: the small MinVIS, then the small LBVQ)")
    parser.add_argument("--from-scratch", action="store_true", help="without weights of ImageNet")
    parser.add_argument("--num-train", type=int, default=600, help="videos to train on (default 600)")
    parser.add_argument("--num-val", type=int, default=150, help="videos to test on (default 150)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides of the recipe")
    args = parser.parse_args()
    start = time.monotonic()
    folder = Path(args.folder).resolve()
    data, output = folder / "datasets", folder / "output"
    environment = {**os.environ, "DETECTRON2_DATASETS": str(data)}

    sizes = ["--num-train", str(args.num_train), "--num-val", str(args.num_val)]
    run(environment, "datasets/make_synthetic.py", "--root", data, *sizes)
    if args.config_file:
        train(environment, output, [args.config_file, *args.opts])
    else:
        frames, videos = FROM_SCRATCH if args.from_scratch else FROM_IMAGENET
        weights = train(environment, folder / "frames", [CONFIGS / frames[0], *frames[1:], *args.opts])
        train(environment, output, [CONFIGS / videos[0], *videos[1:], "MODEL.WEIGHTS", weights, *args.opts])
    video = folder / "held_out_videos.mp4"
    results = output / "inference" / "results.json"
    draw_results(results, data / "synthetic" / "val.json", data / "synthetic" / "val" / "JPEGImages", video)
    metrics = json.loads((output / "inference" / "metrics.json").read_text(encoding="utf-8"))
    print_summary(metrics, time.monotonic() - start, {"results": results, "video": video, "run": output})


def train(environment: dict[str, str], output: Path, recipe: list[Any]) -> Path:
    """Train a recipe, its file and then KEY VALUE pairs, or go on with it; return the file of its weights."""
    processes = min(os.cpu_count() or 1, MAX_PROCESSES)  # on so small a network faster than as many threads
    config, *settings = recipe
    options = ["--num-gpus", processes, "--resume", "--config-file", config]
    run(environment, "train_net.py", *options, "OUTPUT_DIR", output, *settings)
    return output / "model_final.pth"


def run(environment: dict[str, str], script: str, *arguments: Any) -> None:
    """Run a script of this project and stop here if it fails."""
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    print(f"\n$ {shlex.join(['python', script, *command[2:]])}", flush=True)
    code = subprocess.run(command, env=environment, check=False).returncode
    if code:
        sys.exit(f"{script} failed with exit code {code}; see the lines above.")


def draw_results(results: Path, annotation_file: Path, image_root: Path, video: Path) -> None:
    """Draw the first held-out videos side by side, each repeated until the longest ends."""
    content = json.loads(annotation_file.read_text(encoding="utf-8"))
    entries = json.loads(results.read_text(encoding="utf-8"))
    names = [row["name"] for row in sorted(content["categories"], key=lambda row: row["id"])]
    ids = [row["id"] for row in sorted(content["categories"], key=lambda row: row["id"])]
    drawn = []
    for record in content["videos"][:SHOWN_VIDEOS]:
        mine = [entry for entry in entries if entry["video_id"] == record["id"] and entry["score"] >= SHOWN_SCORE]
        prediction = VideoPrediction.from_json(
            mine,
            video_id=record["id"],
            image_size=(record["height"], record["width"]),
            names=names,
            category_ids=ids,
            num_frames=record["length"],
        )
        frames = [read_image(image_root / name) for name in record["file_names"]]
        drawn.append(list(draw_video(map(_enlarge, frames), _enlarge_masks(prediction))))
    video.unlink(missing_ok=True)
    write_video(video, _sheets(drawn), frame_rate=FRAME_RATE)


def _sheets(drawn: list[list[np.ndarray]]) -> Iterator[np.ndarray]:
    """Put the t-th frames of all videos on one picture."""
    columns = min(math.ceil(math.sqrt(len(drawn))), 3)
    for t in range(max(map(len, drawn))):
        yield contact_sheet([frames[t % len(frames)] for frames in drawn], columns=columns, width=1280)


def _enlarge(frame: np.ndarray) -> np.ndarray:
    return cv2.resize(frame, None, fx=SCALE, fy=SCALE, interpolation=cv2.INTER_CUBIC)


def _enlarge_masks(prediction: VideoPrediction) -> VideoPrediction:
    height, width = (side * SCALE for side in prediction.image_size)
    masks = prediction.masks.to_dense().numpy().repeat(SCALE, axis=2).repeat(SCALE, axis=3)
    return VideoPrediction(masks, prediction.scores, prediction.labels, (height, width), prediction.names)


def print_summary(metrics: dict[str, Any], seconds: float, places: dict[str, Path]) -> None:
    """Print the table of tube AP and the files."""
    for task, numbers in metrics.items():
        overall = {name: value for name, value in numbers.items() if "-" not in name}
        print(f"\n{task}, held-out videos")
        print("  ".join(f"{name:>7}" for name in overall))
        # null stands for a number that the held-out videos cannot give, such as that of small objects
        print("  ".join(f"{'-':>7}" if value is None else f"{value:>7.2f}" for value in overall.values()))
    print(f"\nDone in {seconds / 60:.1f} minutes.")
    for name, path in places.items():
        print(f"{name + ':':<10}{path}")


if __name__ == "__main__":
    sys.exit(main())
