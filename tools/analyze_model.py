"""Print what a configuration's model costs: parameters by part, multiply-adds, seconds and memory.

    python tools/analyze_model.py --config-file configs/youtubevis_2019/lbvq_R50_bs8.yaml
    python tools/analyze_model.py --config-file ... --frames 36 --size 360 640 --tasks parameters flops speed

The input is a video of random pixels, so weights do not matter. Multiply-adds are those of matrix products,
convolutions and attention (one multiply-add counts as 2 FLOPs), counted while the model runs on the video; the sampling
of deformable attention, norms and activations are not among them.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lbvq.engine.memory import peak_memory_mib
from lbvq.engine.user_errors import user_command
from lbvq.files.data_entries import add_data_argument, data_options
from lbvq.zoo import load_config

if TYPE_CHECKING:  # imported when the arguments are read, so that --help answers at once
    import torch
    from torch import nn

logger = logging.getLogger(__name__)

TASKS = ("parameters", "flops", "speed")


def parameter_table(model: nn.Module, depth: int) -> list[tuple[str, int, int]]:
    """Return (part, parameters, trainable ones) down to `depth` levels of names, largest first, "total" at the end."""
    total: Counter[str] = Counter()
    trainable: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        part = ".".join(name.split(".")[:-1][:depth]) or name
        total[part] += parameter.numel()
        trainable[part] += parameter.numel() * parameter.requires_grad
    rows = [(part, count, trainable[part]) for part, count in total.most_common()]
    return [*rows, ("total", sum(total.values()), sum(trainable.values()))]


def random_video(num_frames: int, size_hw: tuple[int, int]) -> dict:
    """A test sample of noise."""
    import torch

    generator = torch.Generator().manual_seed(0)
    frames = [torch.randint(0, 256, (3, *size_hw), dtype=torch.uint8, generator=generator) for _ in range(num_frames)]
    names = [f"noise/{t:05d}.jpg" for t in range(num_frames)]
    return {"image": frames, "height": size_hw[0], "width": size_hw[1], "file_names": names, "video_len": num_frames}


def segment(model: nn.Module, video: dict) -> None:
    """Run a model on a video; one that takes images gets the frames one by one."""
    import torch

    with torch.no_grad():
        for sample in [video] if model.sample == "video" else [{**video, "image": frame} for frame in video["image"]]:
            model([sample])


def count_flops(model: nn.Module, video: dict, depth: int) -> list[tuple[str, int]]:
    """Return (part, FLOPs) of one inference, the whole model first; warn of operators that could not be counted."""
    from lbvq.engine.flops import flops_by_part

    model.eval()
    rows, uncounted = flops_by_part(model, lambda: segment(model, video), depth)
    for operator, calls in uncounted.items():
        logger.warning("not counted: %d calls of %s, which may hold products.", calls, operator)
    return rows


def measure_speed(model: nn.Module, video: dict, repeats: int) -> float:
    """Return the shortest seconds of an inference, after one that does not count."""
    import torch

    model.eval()
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        segment(model, video)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def peak_of(device: torch.device) -> float:
    """MiB of the GPU, or of this process, at the highest moment."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return peak_memory_mib()


@user_command
def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_argument(parser)
    parser.add_argument("--config-file", required=True, help="YAML file of the model")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="what to print")
    parser.add_argument("--frames", type=int, default=4, help="frames of the video (default 4)")
    parser.add_argument("--size", type=int, nargs=2, default=(360, 640), metavar=("H", "W"), help="default 360 640")
    parser.add_argument("--depth", type=int, default=2, help="levels of module names in the tables (default 2)")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs (default 3)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides of the configuration")
    args = parser.parse_args(arguments)
    from lbvq.modeling import as_tested  # registers the methods, too
    from mask2former.registry import build_model

    logging.basicConfig(level=logging.WARNING)
    cfg = load_config(args.config_file, [*data_options(args.data), *args.opts])
    model = build_model(cfg).eval()
    tested, video = as_tested(model), random_video(args.frames, tuple(args.size))
    if "parameters" in args.tasks:
        print(f"{'parameters of':<48}{'all':>14}{'trainable':>14}")
        for part, count, trainable in parameter_table(model, args.depth):
            print(f"{part:<48}{count:>14,}{trainable:>14,}")
    if "flops" in args.tasks:
        print(f"\n{'GFLOPs per frame of':<48}{'':>14}")
        for part, count in count_flops(tested, video, args.depth):
            print(f"{part:<48}{count / args.frames / 1e9:>14.3f}")
    if "speed" in args.tasks:
        seconds = measure_speed(tested, video, args.repeats)
        device = next(model.parameters()).device
        print(f"\n{args.frames} frames of {args.size[0]} x {args.size[1]} on {device}: {seconds:.3f} s, ", end="")
        print(f"{args.frames / seconds:.2f} frames per second, peak memory {peak_of(device):.0f} MiB")


if __name__ == "__main__":
    sys.exit(main())
