"""The command lines of the benchmarks, one function each, read before anything that takes time is imported."""

from __future__ import annotations

import argparse
from pathlib import Path

from lbvq.files.data_entries import add_data_argument

LBVQ = str(Path(__file__).parents[2] / "configs" / "youtubevis_2019" / "lbvq_R50_bs8.yaml")
SMALL = "configs/synthetic/lbvq_R18_tiny.yaml"
SMALL_ONLINE = "configs/synthetic/minvis_R18_tiny.yaml"


def add_deform_attn(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", type=int, nargs=2, default=(384, 640), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--frames", type=int, default=1, help="images in a batch")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: torch's choice)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=10, help="calls of which the fastest counts")
    parser.add_argument("--grad", action="store_true", help="time forward and backward")
    parser.add_argument("--processor-time", action="store_true", help="count seconds of the CPU")


def add_eval(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cases", nargs="+", choices=("small", "many", "large"), default=["small", "many", "large"])
    tasks = ("mask", "boundary", "submission", "results")
    parser.add_argument("--tasks", nargs="+", choices=tasks, default=list(tasks))
    parser.add_argument("--repeats", type=int, default=3, help="runs of which the best counts")
    parser.add_argument("--folder", type=Path, help="keep the generated files here (default: a temporary folder)")
    parser.add_argument("--published", type=Path, help="folder with the published ytvos.py, for the mask task")
    parser.add_argument("--published-boundary", type=Path, help="the same of HQ-YTVIS, for the boundary task")


def add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--folders", nargs="+", required=True, metavar="FOLDER", help="of `lbvq export`, of one model")
    parser.add_argument("--size", type=int, nargs=2, default=(360, 640), metavar=("HEIGHT", "WIDTH"), help="of frames")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1; 0: torch's choice)")
    parser.add_argument("--repeats", type=int, default=5, help="frames of which the fastest counts")


def add_inference(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config-file", default=LBVQ)
    parser.add_argument("--weights", default="", help="trained weights (default: random)")
    parser.add_argument("--frames", type=int, default=36, help="frames of the video")
    parser.add_argument(
        "--size", type=int, nargs=2, default=(360, 640), metavar=("HEIGHT", "WIDTH"), help="network input"
    )
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: torch's choice)")
    parser.add_argument(
        "--processor-time", action="store_true", help="count seconds of the CPU, which other programs lengthen less"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="set MODEL.COMPILE")
    parser.add_argument("--only-ours", action="store_true", help="leave the published arithmetic out")
    parser.add_argument("--memory", action="store_true", help="compare the peak memory of a short and a long video")
    parser.add_argument(
        "--memory-frames", type=int, nargs=2, default=(60, 600), metavar=("SHORT", "LONG"), help="their frames"
    )
    parser.add_argument("--stream", action="store_true", help="with --memory: as a stream that keeps no masks")
    parser.add_argument(
        "--peak-only", action="store_true", help="print the peak memory of one run in MiB and nothing else"
    )
    parser.add_argument("opts", nargs="*", default=[], metavar="KEY VALUE", help="configuration")


def add_loader(parser: argparse.ArgumentParser) -> None:
    add_data_argument(parser)
    parser.add_argument("--config-file", default="", help="default: 6 frames, short side 288 to 512 pixels, crop, flip")
    parser.add_argument("--dataset", default="", help="registered name; default: synthetic videos")
    parser.add_argument("--height", type=int, default=480, help="of synthetic frames (default 480)")
    parser.add_argument("--width", type=int, default=854, help="of synthetic frames (default 854)")
    parser.add_argument("--num-videos", type=int, default=8, help="synthetic videos (default 8)")
    parser.add_argument("--clips", type=int, default=40, help="clips per measurement (default 40)")
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 1, 2], help="loader processes (default 0 1 2)")


def add_memory(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config-file", default=SMALL_ONLINE, help=f"of an online method (default {SMALL_ONLINE})")
    parser.add_argument("--weights", default="", help="trained weights (default: random)")
    parser.add_argument("--frames", type=int, nargs="+", default=[50, 100, 200, 400], help="frames of the videos")
    parser.add_argument(
        "--size", type=int, nargs=2, default=(270, 480), metavar=("HEIGHT", "WIDTH"), help="of frames (default 270 480)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw them, .svg or .png")
    parser.add_argument("--peak-of", choices=("held", "whole", "stream"), help="print the peak of one form, of --video")
    parser.add_argument("--video", type=Path, help="for --peak-of")
    parser.add_argument("opts", nargs="*", default=[], metavar="KEY VALUE", help="configuration")


def add_refine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--refiner", choices=("hq_sam", "sam"), default="hq_sam")
    parser.add_argument("--model-type", default="vit_b", help="vit_b, vit_l, vit_h; vit_tiny for hq_sam")
    parser.add_argument("--checkpoint", help="published file; default: random weights")
    parser.add_argument("--device", help="default: cuda where there is one, else cpu")
    parser.add_argument("--frames", type=int, default=10)
    parser.add_argument("--objects", type=int, default=10, help="visible objects per frame")
    parser.add_argument("--components", type=int, default=1, choices=(1, 2, 3), help="parts of every object")
    parser.add_argument("--decoder-only", action="store_true", help="random image embeddings instead of the encoder's")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--size", type=int, nargs=2, default=(360, 640), metavar=("H", "W"))


def add_train(parser: argparse.ArgumentParser) -> None:
    add_data_argument(parser)
    parser.add_argument("--config-file", default=SMALL, help=f"default {SMALL}")
    parser.add_argument("--iterations", type=int, default=20, help="timed iterations (default 20)")
    parser.add_argument("--warmup", type=int, default=3, help="iterations before them (default 3)")
    parser.add_argument("--videos", type=int, default=24, help="videos to write (default 24)")
    parser.add_argument(
        "--synthetic", type=int, nargs=3, default=(96, 128, 10), metavar=("H", "W", "T"), help="default 96 128 10"
    )
    parser.add_argument("--real", action="store_true", help="use the data sets of the configuration")
    parser.add_argument("--published", action="store_true", help="take turns with the published arithmetic, on a CPU")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: torch's choice)")
    parser.add_argument("--processor-time", action="store_true", help="count seconds of the CPU")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides of the configuration")


def add_vmt_points(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--points", type=int, default=12000, help="pixels in the sequence")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--layers", type=int, default=3)


def add_plain_vit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sizes", nargs="+", default=["S"], choices=("S", "B", "L"), help="networks (default: S)")
    parser.add_argument("--frames", type=int, default=3, help="timed frames of each row, the fastest counts")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: torch's choice)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="set MODEL.COMPILE")
    parser.add_argument("--only-ours", action="store_true", help="leave transformers' class out")
    parser.add_argument("--memory", action="store_true", help="compare peak memory instead of time")
    parser.add_argument("--memory-frames", type=int, default=60, help="frames of the video (default: 60)")
    parser.add_argument("--peak-of", choices=["ours", "transformers"], help="print the peak memory of one run in MiB")
