"""Train on a data folder: the work behind `lbvq train`, with settings for few videos."""

from __future__ import annotations

import argparse
import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lbvq.config import CfgNode

EXAMPLES = """examples:
  lbvq train data/pets --model mask2former_vis_r50_ytvis19        from published weights, into runs/pets
  lbvq train data/pets --model synthetic/minvis_R18_tiny --steps 2000          a small model from scratch, on a CPU
  lbvq train data/pets --model mask2former_vis_r50_ytvis19 --steps 1000 SOLVER.BASE_LR=0.0001
  torchrun --nproc-per-node 2 -m lbvq train data/pets --model mask2former_vis_r50_ytvis19

The classes are those of the data. Without KEY=VALUE: four frames a step and GPU; the learning rate of the model's
configuration, times the root of the part of its batch that is used, falling as a cosine; a backbone that rests for the
first quarter when weights are given; eight evaluations on the development split, of which the best one stays as
model_best.pth, and an end when four in a row bring nothing.
"""
FRAMES_PER_STEP = 4  # on a GPU
NUM_EVALUATIONS = 8
PATIENCE = 4  # evaluations
METRIC = "segm/AP"
PARTS = ("train", "dev")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command line of `run`."""
    parser.add_argument("data", type=Path, help="data folder; train.json and dev.json of `lbvq split` are used")
    parser.add_argument(
        "--model", required=True, metavar="NAME", help="model of `lbvq list`, configuration, or folder of a trained one"
    )
    parser.add_argument("--weights", metavar="FILE", help="start from these (default: those of the model)")
    parser.add_argument("--steps", type=int, default=500, help="training steps (default 500)")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="default: runs/NAME_OF_DATA")
    parser.add_argument("--num-gpus", type=int, default=1, help="processes (default 1)")
    parser.add_argument("--resume", action="store_true", help="go on where a run in the same folder stopped")
    parser.add_argument("--overwrite", action="store_true", help="begin anew where the folder holds a run")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="of the configuration")


def run(args: argparse.Namespace) -> int:
    """Train; raises ValueError, KeyError or OSError for what is wrong with data or settings."""
    from lbvq.cli.training import start
    from lbvq.engine.arguments import default_argument_parser
    from lbvq.zoo import load_config

    if args.steps < 1:
        raise ValueError(f"--steps must be at least 1, got {args.steps}.")
    output = args.output or Path("runs") / args.data.resolve().name
    start_from = ["MODEL.WEIGHTS", args.weights] if args.weights else []
    cfg = load_config(args.model, [*start_from, *args.settings])
    options = [*start_from, *data_settings(args.data), *recipe(cfg, args.steps, args.num_gpus)]
    arguments = default_argument_parser().parse_args(["--config-file", args.model, "--num-gpus", str(args.num_gpus)])
    arguments.opts = [*options, "OUTPUT_DIR", str(output), *args.settings]
    arguments.data, arguments.score_before = [], True
    arguments.resume, arguments.overwrite = args.resume, args.overwrite
    start(arguments)
    if int(os.environ.get("RANK", "0")) == 0:
        print_scores(output)
    return 0


def parts_of(data: Path) -> dict[str, Path]:
    """Annotation files of training and development; both are the whole data where it was not split."""
    from lbvq.files.data_entries import ANNOTATIONS

    if not data.exists():
        raise FileNotFoundError(f"There is no data folder {data}; `lbvq convert` makes one.")
    if data.is_file():
        return dict.fromkeys(PARTS, data)
    split = {part: data / f"{part}.json" for part in PARTS}
    if all(path.is_file() for path in split.values()):
        return split
    if not (data / ANNOTATIONS).is_file():
        raise FileNotFoundError(f"{data} is no data folder: it has no {ANNOTATIONS}; `lbvq convert` makes one.")
    return dict.fromkeys(PARTS, data / ANNOTATIONS)


def data_settings(data: Path) -> list[Any]:
    """Settings that train on one part of a data folder and test on the other."""
    from lbvq.files.data_entries import FRAMES, data_options

    parts = parts_of(data)
    if len(set(parts.values())) == 1:
        print(f"{data} is not split: scores are of videos that were trained on; see `lbvq split`.")
    name = "".join(letter if letter.isalnum() else "_" for letter in data.resolve().stem)
    frames = (data if data.is_dir() else data.parent) / FRAMES
    return data_options([f"{name}_{part}={path}:{frames}" for part, path in parts.items()])


def recipe(cfg: CfgNode, steps: int, num_processes: int) -> list[Any]:
    """Settings for few videos.

    Args:
        cfg: of the model, with the settings of the user, which win over these.
        steps: of training.
        num_processes: the batch is a multiple of it.
    """
    clips = max(1, FRAMES_PER_STEP // max(cfg.INPUT.SAMPLING_FRAME_NUM, 1))
    batch = num_processes * max(1, min(clips, cfg.SOLVER.IMS_PER_BATCH // num_processes))
    period = max(1, steps // NUM_EVALUATIONS)
    settings: dict[str, Any] = {
        "SOLVER.IMS_PER_BATCH": batch,
        "SOLVER.BASE_LR": cfg.SOLVER.BASE_LR * math.sqrt(batch / cfg.SOLVER.IMS_PER_BATCH),  # as suits AdamW
        "SOLVER.MAX_ITER": steps,
        "SOLVER.LR_SCHEDULER_NAME": "WarmupCosineLR",
        "SOLVER.WARMUP_ITERS": min(steps // 20, 100),
        "SOLVER.WARMUP_FACTOR": 0.01,
        "SOLVER.REST_BACKBONE_ITERS": steps // 4 if cfg.MODEL.WEIGHTS else 0,
        "SOLVER.CHECKPOINT_PERIOD": period,
        "SOLVER.MAX_TO_KEEP": 1,
        "SOLVER.BEST_METRIC": METRIC,
        "SOLVER.EARLY_STOP": PATIENCE,
        "TEST.EVAL_PERIOD": period,
        "DATALOADER.NUM_WORKERS": min(cfg.DATALOADER.NUM_WORKERS, os.cpu_count() or 1),
    }
    if not _has_gpu():
        settings["MODEL.DEVICE"] = "cpu"
    return [item for pair in settings.items() for item in pair]


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def print_scores(output: Path) -> None:
    """Print AP before and after, and where the weights are."""
    from lbvq.cli.training import METRICS_BEFORE

    lines = [json.loads(line) for line in (output / "metrics.json").read_text(encoding="utf-8").splitlines()]
    scores = [(line[METRIC], line["iteration"]) for line in lines if line.get(METRIC) is not None]
    before = output / "inference" / METRICS_BEFORE
    if before.is_file():
        task, metric = METRIC.split("/")
        score = json.loads(before.read_text(encoding="utf-8"))[task][metric]
        print("AP before training: " + ("none, no object is annotated" if score is None else f"{score:.1f}"))
    if scores:
        best, step = max(scores, key=lambda pair: pair[0])
        print(f"AP after: best {best:.1f} (step {step}), last {scores[-1][0]:.1f} (step {scores[-1][1]})")
    names = [name for name in ("model_best.pth", "model_final.pth") if (output / name).is_file()]
    print(f"weights: {', '.join(str(output / name) for name in names)}")
