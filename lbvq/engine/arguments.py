"""The command line of a training run; this module imports nothing that takes time."""

from __future__ import annotations

import argparse


def default_argument_parser(epilog: str | None = None) -> argparse.ArgumentParser:
    """Return a parser with the published command line: flags, then KEY VALUE pairs that override the configuration."""
    parser = argparse.ArgumentParser(
        epilog=epilog or "KEY VALUE pairs after the flags override the configuration: SOLVER.MAX_ITER 100.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config-file", default="", metavar="FILE", help="YAML file of the run")
    parser.add_argument(
        "--resume", action="store_true", help="go on from the last checkpoint in OUTPUT_DIR, if there is one"
    )
    parser.add_argument("--overwrite", action="store_true", help="begin anew where OUTPUT_DIR holds a training")
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS, do not train")
    parser.add_argument(
        "--report", metavar="FOLDER", help="write a report of the scores of videos, with a page to look at"
    )
    parser.add_argument("--num-gpus", type=int, default=1, help="processes on each machine (GPUs, or parts of a CPU)")
    parser.add_argument("--num-machines", type=int, default=1, help="machines of the run")
    parser.add_argument("--machine-rank", type=int, default=0, help="number of this machine, from 0")
    parser.add_argument(
        "--dist-url", default="auto", help="tcp://host:port of machine 0; 'auto' is a free port on one machine"
    )
    parser.add_argument(
        "--slurm",
        metavar="NAME=VALUE,...",
        help="submit the run as a SLURM job of --num-machines machines with --num-gpus tasks each, "
        "e.g. partition=gpu,time=2880 (minutes)",
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides of the configuration")
    return parser
