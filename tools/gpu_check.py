"""Check and measure the project on the GPU of this machine, in at most 8 minutes; it was never run on one so far.

    python tools/gpu_check.py                    # writes gpu_check.json and prints its table
    python tools/gpu_check.py --parts kernel training --output other.json
    python tools/gpu_check.py --small            # tiny models and sizes, on a CPU too: whether this script still works

Each part is a process of its own with a budget of seconds, so that one that fails or hangs takes no other with it. The
exit code is 1 if a check failed, whatever the speeds. Weights are random and videos synthetic; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

from lbvq.engine.user_errors import user_command

if TYPE_CHECKING:  # imported by the parts, so that --help answers at once
    import torch
    from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
Row = dict[str, Any]  # name, ok (None: nothing to check), and what was measured

# Part -> seconds it may take, together 8 minutes.
BUDGETS = {"device": 30, "kernel": 60, "r50": 110, "videomt": 90, "training": 120, "long_video": 70}
SMALL_BUDGET = 900  # a busy CPU decides nothing
MAX_MEMORY_RATIO = 1.1  # of the device memory of the whole video to that of a quarter of it


class Setup:
    """Models, sizes and the device of a run."""

    def __init__(self, small: bool, device: str | None = None) -> None:
        import torch

        self.small = small
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.size = (64, 96) if small else (360, 640)
        self.frames, self.long_video = (2, 8) if small else (36, 600)
        self.iterations, self.training_size = (6, (96, 128)) if small else (200, (480, 854))
        self.repeats = 2 if small else 20
        configs = ROOT / "configs"
        self.r50 = configs / ("synthetic/lbvq_R18_tiny.yaml" if small else "youtubevis_2019/lbvq_R50_bs8.yaml")
        videomt = "synthetic/videomt_tiny.yaml" if small else "ovis/videomt/dinov2/videomt_online_ViTL.yaml"
        self.videomt = configs / videomt

    def build(self, config_file: Path, *opts: Any) -> nn.Module:
        """An untrained model that always has the same weights."""
        import torch

        import lbvq.modeling  # noqa: F401  registers the methods
        from lbvq.zoo import load_config
        from mask2former.registry import build_model

        torch.manual_seed(0)
        cfg = load_config(str(config_file), ["MODEL.DEVICE", str(self.device), "MODEL.WEIGHTS", "", *opts])
        return build_model(cfg).eval()

    def seconds(self, function: Callable[[], object], repeats: int | None = None) -> float:
        """Of one call, the shortest of several after one that does not count."""
        function()
        times = []
        for _ in range(repeats or self.repeats):
            self.wait()
            start = time.perf_counter()
            function()
            self.wait()
            times.append(time.perf_counter() - start)
        return min(times)

    def wait(self) -> None:
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @contextlib.contextmanager
    def peak(self) -> Iterator[Row]:
        """Fills in the highest MiB of the device inside the block; of the process on a CPU."""
        import torch

        from lbvq.engine.memory import peak_memory_mib

        found: Row = {}
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
        yield found
        on_gpu = self.device.type == "cuda"
        found["MiB"] = torch.cuda.max_memory_allocated(self.device) / 2**20 if on_gpu else peak_memory_mib()


def benchmark(name: str) -> ModuleType:
    """A file of tools/benchmarks, which is no package."""
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", ROOT / "tools" / "benchmarks" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# -- the device -------------------------------------------------------------------------------------------------------


def check_device(setup: Setup) -> Iterator[Row]:
    """What it is, whether it computes rightly in the ways the models ask for, and how fast it copies."""
    import torch
    import torch.nn.functional as F

    on_gpu = setup.device.type == "cuda"
    name = torch.cuda.get_device_name(setup.device) if on_gpu else "CPU"
    memory = torch.cuda.get_device_properties(setup.device).total_memory / 2**30 if on_gpu else 0
    yield {"name": name, "ok": None, "torch": torch.__version__, "GiB": memory}

    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(2, 16, 20, 24, generator=generator), torch.randn(8, 16, 3, 3, generator=generator)
    want = F.conv2d(x.double(), weight.double(), padding=1)
    for dtype, tolerance in ((torch.float32, 2e-3), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)):  # TF32 is allowed
        inputs = (each.to(setup.device).contiguous(memory_format=torch.channels_last) for each in (x, weight))
        with torch.autocast(setup.device.type, dtype, enabled=dtype != torch.float32):
            error = relative(F.conv2d(*inputs, padding=1), want)
        yield {"name": f"convolution, channels last, {short(dtype)}", "ok": error < tolerance, "error": error}

    size = 2**22 if setup.small else 2**28
    source = torch.ones(size // 4, device=setup.device)
    target = torch.empty_like(source)
    seconds = setup.seconds(lambda: target.copy_(source))
    yield {"name": "copy", "ok": bool((target == source).all()), "GB/s": 2 * size / seconds / 1e9}


def relative(got: Tensor, want: Tensor) -> float:
    """Largest difference by the largest number."""
    got, want = got.detach().double().cpu(), want.detach().double().cpu()
    return float((got - want).abs().max() / want.abs().max().clamp(min=1e-12))


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# -- deformable attention ---------------------------------------------------------------------------------------------


def check_kernel(setup: Setup) -> Iterator[Row]:
    """The chosen kernel against grid_sample, both directions, and its time against a copy of what it must move."""
    import torch

    from mask2former.modeling.deform_attn import KERNELS, choose_kernel, sample_by_grid

    height, width = (-(-side // 32) * 32 for side in setup.size)
    sizes = [(height // stride, width // stride) for stride in (32, 16, 8)]
    num_cells, bandwidth = sum(h * w for h, w in sizes), copy_bandwidth(setup)
    for dtype, tolerance in ((torch.float32, 1e-3), (torch.bfloat16, 1.6e-2)):
        case = random_case(setup, sizes, dtype)
        name = choose_kernel(case[0], 3, 4)
        if setup.device.type == "cuda":
            yield {"name": f"Triton is chosen, {short(dtype)}", "ok": name == "triton", "kernel": name}
        results = [forward_and_backward(kernel, sizes, case) for kernel in (KERNELS[name], sample_by_grid)]
        for what, *pair in zip(("sums", "values", "points", "weights"), *results, strict=True):
            error = relative(*pair)
            what = what if what == "sums" else f"gradients of {what}"
            yield {"name": f"{name}, {short(dtype)}, {what}", "ok": error < tolerance, "error": error}
        moved, _ = least_work(1, num_cells, num_cells, 8, 32, 3, 4, case[0].element_size())
        for direction, measure in (("forward", forward), ("forward and backward", forward_and_backward)):
            calls = [functools.partial(measure, kernel, sizes, case) for kernel in (KERNELS[name], sample_by_grid)]
            ours, theirs = (setup.seconds(call) for call in calls)
            row = {"ms": 1e3 * ours, "grid_sample ms": 1e3 * theirs, "times as fast": theirs / ours}
            floor = {"floor ms": 1e3 * moved / bandwidth} if direction == "forward" else {}
            yield {"name": f"{name}, {short(dtype)}, {direction}", "ok": None, **row, **floor}


def least_work(
    batch: int, cells: int, queries: int, heads: int, channels: int, levels: int, points: int, value_bytes: int
) -> tuple[int, int]:
    """Bytes that the sampling must move and operations that it takes, see `mask2former.modeling.deform_attn_triton`."""
    samples = queries * heads * levels * points
    moved = (cells + queries) * heads * channels * value_bytes + 3 * samples * 4
    return batch * moved, batch * 8 * samples * channels


def copy_bandwidth(setup: Setup) -> float:
    """Bytes per second, read and written."""
    import torch

    source = torch.ones((2**20 if setup.small else 2**28) // 4, device=setup.device)
    return 2 * source.nbytes / setup.seconds(source.clone)


def random_case(setup: Setup, sizes: Sequence[tuple[int, int]], dtype: torch.dtype) -> list[Tensor]:
    """Values (1, S, 8, 32), points (1, 2, 8, L, 4, S) around their own cells and beyond the borders, weights."""
    import torch

    generator = torch.Generator().manual_seed(0)
    num_cells = sum(height * width for height, width in sizes)
    layout = (8, len(sizes), 4, num_cells)
    scale = torch.tensor([[w for _, w in sizes], [h for h, _ in sizes]])[:, None, :, None, None]
    points = (torch.rand(1, 2, *layout, generator=generator) * 1.2 - 0.1) * scale
    points = points.floor() + 0.02 + 0.96 * points.frac().abs()  # rounding may put a point on a border into either cell
    value = torch.randn(1, num_cells, 8, 32, generator=generator).to(dtype)
    weights = torch.rand(1, *layout, generator=generator)
    return [tensor.to(setup.device).requires_grad_() for tensor in (value, points, weights)]


def forward(kernel: Callable[..., Tensor], sizes: Any, case: list[Tensor]) -> Tensor:
    import torch

    with torch.no_grad():
        return kernel(case[0], sizes, case[1], case[2])


def forward_and_backward(kernel: Callable[..., Tensor], sizes: Any, case: list[Tensor]) -> list[Tensor]:
    import torch

    out = kernel(case[0], sizes, case[1], case[2])
    return [out, *torch.autograd.grad(out, case, torch.linspace(-1, 1, out.numel()).view_as(out).to(out))]


# -- inference --------------------------------------------------------------------------------------------------------


def check_r50(setup: Setup) -> Iterator[Row]:
    return check_inference(setup, setup.r50)


def check_videomt(setup: Setup) -> Iterator[Row]:
    return check_inference(setup, setup.videomt)


def check_inference(setup: Setup, config_file: Path) -> Iterator[Row]:
    """Frames per second in every form, and whether all forms find the same."""
    import torch

    from lbvq.engine.flops import flops_by_part

    inference = benchmark("inference")
    with tempfile.TemporaryDirectory() as folder:
        video = inference.RepeatedFrames(inference.write_frames(Path(folder), setup.size), setup.size, setup.frames)
        frames = [video[t] for t in range(len(video))]  # decoded before: the network is measured
    model, exact = setup.build(config_file), None
    one_frame = {"image": frames[:1], "dense_masks": False}
    counted, _ = flops_by_part(model, lambda: model([one_frame]), depth=0)
    yield {"name": model_name(config_file), "ok": None, "GFLOP per frame": counted[0][1] / 1e9}
    for name, mode, dtype, tolerance in forms(model, inference, setup):
        with mode, torch.autocast(setup.device.type, dtype, enabled=dtype != torch.float32), setup.peak() as memory:
            scores = torch.tensor(segment(model, frames)["pred_scores"])
            seconds = setup.seconds(lambda: segment(model, frames), repeats=1)
        exact = scores if exact is None else exact
        error = relative(scores, exact)
        yield {
            "name": f"{model_name(config_file)}, {name}",
            "ok": bool(scores.isfinite().all()) and len(scores) > 0 and error < tolerance,
            "error": error,
            "fps": len(frames) / seconds,
            "TFLOP/s": counted[0][1] * len(frames) / seconds / 1e12,
            **memory,
        }


def forms(model: nn.Module, inference: ModuleType, setup: Setup) -> Iterator[tuple[str, Any, torch.dtype, float]]:
    """(name, context, type, tolerance of scores) of every way of running a model, the exact one first."""
    import torch

    from mask2former.abilities import has_ability

    nothing = contextlib.nullcontext()
    yield "eager float32", nothing, torch.float32, 1e-6
    if hasattr(model, "sem_seg_head"):
        yield "published float32", inference.published_arithmetic(model), torch.float32, 0.02
        yield "published bfloat16", inference.published_arithmetic(model), torch.bfloat16, 0.3
    yield "eager bfloat16", nothing, torch.bfloat16, 0.3
    if setup.device.type == "cuda" and has_ability(model, "compile"):
        model.compile_encoder()
        yield "compiled float32", nothing, torch.float32, 0.02
        yield "compiled bfloat16", nothing, torch.bfloat16, 0.3


def segment(model: nn.Module, frames: Sequence[Tensor]) -> dict[str, Any]:
    return model([{"image": frames, "dense_masks": False}])


def model_name(config_file: Path) -> str:
    return config_file.stem.split("_bs")[0]


# -- training and long videos -----------------------------------------------------------------------------------------


def check_training(setup: Setup) -> Iterator[Row]:
    """Steps of the engine on synthetic clips in bfloat16: how many per second, and whether the loss falls."""
    from lbvq.engine.random_state import seed_all_rng
    from lbvq.zoo import load_config

    train = benchmark("train")
    opts = ["MODEL.DEVICE", str(setup.device), "MODEL.WEIGHTS", "", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "5"]
    opts += ["DATASETS.TRAIN", "('synthetic_train',)", "DATASETS.DATASET_RATIO", "[1.0]"]
    opts += ["SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "bfloat16", "SOLVER.IMS_PER_BATCH", "2"]
    opts += ["SOLVER.BASE_LR", "0.0001", "DATALOADER.NUM_WORKERS", "0" if setup.small else "4"]
    cfg = load_config(str(setup.r50), opts)
    seed_all_rng(1)
    with tempfile.TemporaryDirectory() as folder, setup.peak() as memory:
        videos = 2 if setup.small else 8
        train.write_videos(folder, SimpleNamespace(synthetic=(*setup.training_size, 6), videos=videos))
        step = train.build_step(cfg)
        totals, warm = [], min(3, setup.iterations // 2)
        for iteration in range(setup.iterations):
            if iteration == warm:
                setup.wait()
                start = time.perf_counter()
            totals.append(sum(step(iteration).values()).detach())
        setup.wait()
        speed = (setup.iterations - warm) / (time.perf_counter() - start)
    losses = [float(total) for total in totals]
    part = max(1, len(losses) // 5)
    first, last = (sum(some) / part for some in (losses[:part], losses[-part:]))
    is_finite = all(abs(loss) < float("inf") for loss in losses)
    falls = last < first or setup.small  # a few steps prove nothing
    row = {"it/s": speed, "first loss": first, "last loss": last, **memory}
    yield {"name": f"{model_name(setup.r50)}, bfloat16, {setup.iterations} steps", "ok": is_finite and falls, **row}


def check_long_video(setup: Setup) -> Iterator[Row]:
    """The device memory of a long video is that of a quarter of it."""
    inference = benchmark("inference")
    model, peaks = setup.build(setup.r50), []
    with tempfile.TemporaryDirectory() as folder:
        path = inference.write_frames(Path(folder), setup.size)
        for num_frames in (setup.long_video // 4, setup.long_video):
            start = time.perf_counter()
            with setup.peak() as memory:
                result = segment(model, inference.RepeatedFrames(path, setup.size, num_frames))
            seconds = time.perf_counter() - start
            peaks.append(memory["MiB"])
            is_whole = result["pred_masks"].num_frames == num_frames
            name = f"video of {num_frames} frames, decoded on the way"
            yield {"name": name, "ok": is_whole, "fps": num_frames / seconds, **memory}
    ratio = peaks[1] / peaks[0]
    is_bounded = ratio <= MAX_MEMORY_RATIO if setup.device.type == "cuda" else None
    yield {"name": "memory of the long video by that of the short one", "ok": is_bounded, "ratio": ratio}


PARTS: dict[str, Callable[[Setup], Iterator[Row]]] = {
    "device": check_device,
    "kernel": check_kernel,
    "r50": check_r50,
    "videomt": check_videomt,
    "training": check_training,
    "long_video": check_long_video,
}


# -- the run ----------------------------------------------------------------------------------------------------------


def run_here(part: str, setup: Setup) -> None:
    """Print the rows of a part, a line of JSON each, as they come."""
    for row in PARTS[part](setup):
        print(json.dumps({"part": part, **row}), flush=True)


def run_part(part: str, options: Sequence[str], budget: float) -> list[Row]:
    """Rows of a part from a process of its own; the last one says what went wrong, if anything did."""
    command = [sys.executable, str(Path(__file__).resolve()), "--here", part, *options]
    start = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=budget, cwd=ROOT)
        output, error = done.stdout, done.stderr.strip().splitlines()[-1:] or ["no message"]
        failure = f"exit code {done.returncode}: {error[0]}" if done.returncode else ""
    except subprocess.TimeoutExpired as expired:
        output = expired.stdout.decode() if isinstance(expired.stdout, bytes) else expired.stdout or ""
        failure = f"took longer than {budget:.0f} s"
    rows = [json.loads(line) for line in output.splitlines() if line.startswith('{"part"')]
    rows.append({"part": part, "name": "whole part", "ok": not failure, "s": time.perf_counter() - start})
    if failure:
        rows[-1]["failure"] = failure
    return rows


def table(rows: Sequence[Row]) -> str:
    """One line for every row."""
    said = {True: "ok", False: "FAILED", None: ""}
    lines = []
    for row in rows:
        numbers = [
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in row.items()
            if name not in ("part", "name", "ok")
        ]
        lines.append(f"{row['part']:<11}{row['name']:<52}{said[row['ok']]:<8}{', '.join(numbers)}")
    return "\n".join(lines)


@user_command
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), help="default: all")
    parser.add_argument("--output", default="gpu_check.json", help="the table as JSON (default gpu_check.json)")
    parser.add_argument("--small", action="store_true", help="tiny models and sizes, on any machine")
    parser.add_argument("--device", help="default: the first GPU, or with --small the CPU where there is none")
    parser.add_argument("--here", choices=list(PARTS), help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.here:
        run_here(args.here, Setup(args.small, args.device))
        return 0
    import torch

    if not (args.small or args.device or torch.cuda.is_available()):
        raise ValueError("there is no CUDA device here; --small checks this script on the CPU.")
    options = ["--small"] * args.small + (["--device", args.device] if args.device else [])
    rows: list[Row] = []
    for part in args.parts:
        print(f"{part} ...", file=sys.stderr, flush=True)
        rows += run_part(part, options, SMALL_BUDGET if args.small else BUDGETS[part])
    Path(args.output).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(table(rows))
    return int(any(row["ok"] is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
