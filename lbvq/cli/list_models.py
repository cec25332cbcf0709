"""List published models and configuration files: the work behind `lbvq list`."""

from __future__ import annotations

import argparse

from lbvq.zoo import MODELS, ZooModel, list_configs

EXAMPLES = """examples:
  lbvq list                every model: data set, published scores, what downloads by itself, licences
  lbvq list r50_ovis       those whose names contain it
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command line of `run`."""
    parser.add_argument("text", nargs="?", default="", help="show only names that contain it")


def run(args: argparse.Namespace) -> int:
    """Print the tables."""
    print(f"{'published model':36}{'data set':17}{'published scores':34}{'weights':22}configuration")
    licences: dict[str, list[str]] = {}
    for model in (model for model in MODELS.values() if args.text in model.name):
        scores = " ".join(f"{metric} {value:g}" for metric, value in list(model.scores.items())[:3])
        print(f"{model.name:36}{model.dataset:17}{scores:34}{_how_weights_come(model):22}{model.config}")
        licences.setdefault(model.licence or "licence not stated here; see where they come from", []).append(model.name)
    print("\nlicences of the weights (sizes are computed from the number of parameters)")
    for licence, names in licences.items():
        print(f"  {licence}: {', '.join(names)}")
    print("\nconfiguration files")
    for name in (name for name in list_configs() if args.text in name):
        print(f"  {name}")
    return 0


def _how_weights_come(model: ZooModel) -> str:
    if model.downloads:
        return f"by itself, {model.size_mb} MB" if model.size_mb else "by itself"
    return "Google Drive" if model.is_on_drive else "by hand"
