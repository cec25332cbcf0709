"""Command line: `python -m lbvq COMMAND`, installed as `lbvq`. Training is `python train_net.py`."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence

from lbvq.engine.user_errors import HINT, user_command


@user_command
def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="lbvq",
        description="Video instance segmentation: LBVQ and its peers.",
        epilog="\n".join(f"{name:16}{(command.__doc__ or '').splitlines()[0]}" for name, command in COMMANDS.items())
        + f"\n{HINT}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="see: lbvq COMMAND --help")
    args = parser.parse_args(argv)
    command = COMMANDS[args.command]
    return command(argparse.ArgumentParser(prog=f"lbvq {args.command}", description=command.__doc__), args.arguments)


def predict(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> int:
    """Segment videos; write drawn videos, frames or results."""
    from lbvq.cli.predict import add_arguments, run  # imported here: the other commands need no network

    add_arguments(parser)
    return run(parser.parse_args(arguments))


def list_models(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> int:
    """List published models and configuration files."""
    from lbvq.zoo import MODELS, list_configs

    parser.add_argument("text", nargs="?", default="", help="show only names that contain it")
    text = parser.parse_args(arguments).text
    print(f"{'published model':36}{'data set':17}{'published scores':34}{'weights':22}configuration")
    licences: dict[str, list[str]] = {}
    for model in (model for model in MODELS.values() if text in model.name):
        scores = " ".join(f"{metric} {value:g}" for metric, value in list(model.scores.items())[:3])
        size = f", {model.size_mb} MB" if model.size_mb else ""
        weights = f"by itself{size}" if model.downloads else "Google Drive"
        print(f"{model.name:36}{model.dataset:17}{scores:34}{weights:22}{model.config}")
        licences.setdefault(model.licence or "licence not stated here; see where they come from", []).append(model.name)
    print("\nlicences of the weights (sizes are computed from the number of parameters)")
    for licence, names in licences.items():
        print(f"  {licence}: {', '.join(names)}")
    print("\nconfiguration files")
    for name in (name for name in list_configs() if text in name):
        print(f"  {name}")
    return 0


def info(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> int:
    """Print versions and devices, for bug reports."""
    parser.parse_args(arguments)
    from lbvq.engine.environment import environment_report  # imports torch

    print(environment_report())
    return 0


def _module(name: str, summary: str) -> Callable[[argparse.ArgumentParser, Sequence[str]], int]:
    """The command in `lbvq.cli.<name>`, which has `add_arguments` and `run`."""

    def command(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> int:
        module = importlib.import_module(f"lbvq.cli.{name}")
        module.add_arguments(parser)
        return module.run(parser.parse_intermixed_args(arguments))  # settings may follow options

    command.__doc__ = summary
    return command


COMMANDS: dict[str, Callable[[argparse.ArgumentParser, Sequence[str]], int]] = {
    "predict": predict,
    "convert": _module("convert", "Turn the labels of a labelling tool into a data folder."),
    "doctor": _module("doctor", "Say what is wrong with a data set, and what to do about it."),
    "extract-frames": _module("extract_frames", "Write frames of video files as images, with their numbers and times."),
    "split": _module("split", "Set videos of a data folder aside for development."),
    "train": _module("train", "Train on a data folder, from published weights or from scratch."),
    "eval": _module("eval", "Score a trained model on a data folder."),
    "compare": _module("compare", "Compare two results files: is the difference noise, and where does it come from."),
    "export": _module("export", "Turn predictions or a data folder into the format of a labelling tool."),
    "download": _module("download", "Fetch the weights of published models."),
    "list": list_models,
    "info": info,
}


if __name__ == "__main__":
    sys.exit(main())
