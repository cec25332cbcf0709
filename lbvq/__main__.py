"""Command line: `python -m lbvq COMMAND`, installed as `lbvq`; each command is a module of `lbvq.cli`."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence

from lbvq import __version__
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
    parser.add_argument("--version", action="version", version=f"lbvq {__version__}")
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="see: lbvq COMMAND --help")
    args = parser.parse_args(argv)
    command = COMMANDS[args.command]
    return command(argparse.ArgumentParser(prog=f"lbvq {args.command}", description=command.__doc__), args.arguments)


def _module(name: str, summary: str) -> Callable[[argparse.ArgumentParser, Sequence[str]], int]:
    """The command in `lbvq.cli.<name>`, which has `EXAMPLES`, `add_arguments` and `run`."""

    def command(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> int:
        module = importlib.import_module(f"lbvq.cli.{name}")  # the other commands may need what this one does not
        parser.epilog, parser.formatter_class = module.EXAMPLES, argparse.RawDescriptionHelpFormatter
        module.add_arguments(parser)
        return module.run(parser.parse_intermixed_args(arguments))  # settings may follow options

    command.__doc__ = summary
    return command


COMMANDS: dict[str, Callable[[argparse.ArgumentParser, Sequence[str]], int]] = {
    "predict": _module("predict", "Segment videos; write drawn videos, frames or results."),
    "stream": _module("live", "Segment a camera, an address or a video while it plays."),
    "app": _module("app", "A page to drop videos on, on this computer: tracks, the drawn video, CVAT."),
    "convert": _module("convert", "Turn the labels of a labelling tool into a data folder."),
    "doctor": _module("doctor", "Say what is wrong with a data set, and what to do about it."),
    "extract-frames": _module("extract_frames", "Write frames of video files as images, with their numbers and times."),
    "split": _module("split", "Set videos of a data folder aside for development."),
    "train": _module("train", "Train on a data folder, from published weights or from scratch."),
    "eval": _module("eval", "Score a trained model on a data folder."),
    "compare": _module("compare", "Compare two results files: is the difference noise, and where does it come from."),
    "export": _module("export", "Turn predictions into labels for a tool, or a network into ONNX or OpenVINO."),
    "download": _module("download", "Fetch the weights of published models."),
    "list": _module("list_models", "List published models and configuration files."),
    "info": _module("info", "Print versions and devices, for bug reports."),
}


if __name__ == "__main__":
    sys.exit(main())
