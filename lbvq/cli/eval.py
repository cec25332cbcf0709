"""Score a trained model on a data folder: the work behind `lbvq eval`."""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLES = """examples:
  lbvq eval data/pets --weights runs/pets/model_best.pth
  lbvq eval data/pets --weights runs/pets/model_best.pth --part all --output scores

The development split is scored where there is one. results.json, which `lbvq export` and `tools/eval_json.py` read, and
metrics.json go to the folder `eval` beside the weights.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command line of `run`."""
    parser.add_argument("data", type=Path, help="data folder, or an annotation file in YouTube-VIS form")
    parser.add_argument("--weights", type=Path, required=True, metavar="FILE", help="of the trained model")
    parser.add_argument("--model", metavar="NAME", help="its configuration (default: config.yaml beside the weights)")
    parser.add_argument("--part", choices=("dev", "train", "all"), default="dev", help="of the data (default dev)")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="default: eval beside the weights")
    parser.add_argument("--report", metavar="FOLDER", help="write a report of the scores, with a page to look at")
    parser.add_argument("--num-gpus", type=int, default=1, help="processes (default 1)")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="of the configuration")


def run(args: argparse.Namespace) -> int:
    """Evaluate; raises ValueError, KeyError or OSError for what is wrong with data or settings."""
    from lbvq.cli.train import _has_gpu, parts_of
    from lbvq.cli.training import start
    from lbvq.engine.arguments import default_argument_parser
    from lbvq.files.data_entries import ANNOTATIONS, FRAMES, data_options

    if not args.weights.is_file():
        raise FileNotFoundError(f"There is no weight file {args.weights}.")
    config = args.model or str(config_of(args.weights))
    home = args.data if args.data.is_dir() else args.data.parent
    file = home / ANNOTATIONS if args.part == "all" and args.data.is_dir() else parts_of(args.data)[args.part]
    output = args.output or args.weights.parent / "eval"
    options = ["MODEL.WEIGHTS", str(args.weights), *data_options([f"scored={file}:{home / FRAMES}"])]
    options += ["OUTPUT_DIR", str(output), *([] if _has_gpu() else ["MODEL.DEVICE", "cpu"]), *args.settings]
    arguments = default_argument_parser().parse_args(["--config-file", config, "--eval-only"])
    arguments.opts, arguments.data, arguments.num_gpus = options, [], args.num_gpus
    arguments.report = args.report
    start(arguments)
    print(f"{file}: results and scores are in {output / 'inference'}")
    return 0


def config_of(weights: Path) -> Path:
    """config.yaml that training has left beside its weights."""
    path = weights.parent / "config.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"{weights.parent} has no config.yaml; name the model with --model.")
    return path
