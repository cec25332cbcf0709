"""A model's network as graphs for another runtime: what `lbvq export --model` does."""

from __future__ import annotations

import argparse
from pathlib import Path

# Options of `lbvq export` that belong to networks.
NETWORK_OPTIONS = ("model", "weights", "format", "size", "half", "int8", "calibrate", "opts")


def add_network_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options in `NETWORK_OPTIONS`."""
    group = parser.add_argument_group("networks, for other runtimes")
    group.add_argument("--model", metavar="NAME", help="published model, folder of a model, or configuration file")
    group.add_argument("--weights", metavar="FILE", help="weights (default: those that come with the model)")
    group.add_argument("--format", choices=("onnx", "openvino"), help="what runs it; each is an extra to install")
    group.add_argument(
        "--size",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="of frames as the network gets them (INPUT.MIN_SIZE_TEST), for a graph of this size alone (default: any)",
    )
    precision = group.add_mutually_exclusive_group()
    precision.add_argument("--half", action="store_true", help="weights in 16 bit, and products where the CPU has them")
    precision.add_argument("--int8", action="store_true", help="products with weights in 8 bit; needs --calibrate")
    group.add_argument(
        "--calibrate",
        type=Path,
        metavar="DATA",
        help="of --int8: a video, a folder of frames, or a data folder like what the network will see",
    )
    group.add_argument("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="configuration")


def export_network(args: argparse.Namespace) -> int:
    """Write the folder; raises ValueError, OSError or ImportError for what is missing or wrong."""
    for name, option in (("model", "--model NAME"), ("format", "--format onnx|openvino"), ("out", "--output FOLDER")):
        if getattr(args, name) is None:
            raise ValueError(f"{option} is missing; see lbvq export --help.")
    from lbvq.inference.base import Predictor
    from lbvq.inference.exported.folder import export_model
    from lbvq.zoo import load_config

    parts = Predictor.parts(
        load_config(args.model, ["MODEL.DEVICE", "cpu", "MODEL.COMPILE", False, *args.opts]), args.weights
    )
    size = None if args.size is None else (args.size[0], args.size[1])
    classes = {name: parts[name] for name in ("names", "category_ids")}
    precision = "half" if args.half else "int8" if args.int8 else "float32"
    folder = export_model(
        parts["model"],
        args.out,
        format=args.format,
        size=size,
        precision=precision,
        calibrate=args.calibrate,
        **classes,
    )
    megabytes = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
    print(f"wrote {folder}: {megabytes:.1f} MB")
    return 0
