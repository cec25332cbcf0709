"""Evaluation and files: CPU seconds and memory of whole processes, run in turn with what they are compared with.

    python tools/benchmark.py eval
    python tools/benchmark.py eval --published cocoapi/PythonAPI/pycocotools --published-boundary cocoapi_hq/...

Cases of 30 frames: `small` has 100 videos and 2000 predictions at 180 x 320, `many` 300 videos and 9000 predictions at
180 x 320, `large` 100 videos and 2000 predictions at 720 x 1280, with objects of the same share of the picture. Tasks:
`mask` and `boundary` are average precision from files to numbers, beside the published evaluators, which run here and
now if their folders are given (those with ytvos.py and ytvoseval.py of youtubevos and of HQ-YTVIS; they are patched for
today's numpy). `submission` is `check_submission --zip`, `results` is `VideoPrediction.from_json` of the predictions of
50 videos, as if they were one; both beside `json.load` of the same file. Every run is a process of its own, from its
start to its end, with all its threads and children; ours and the other take turns, and the best of each counts. Memory
is what is added to the imported program at its peak, as a share of the size of the files that are read. The inner loops
are those in C where there is a compiler, else, or with LBVQ_COMPILE=0, those in numpy; the first lines say which.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from lbvq.evaluation import boundary
from lbvq.masks.compiled import LOOPS

ROOT = Path(__file__).resolve().parents[2]
CASES = {
    "small": (100, 30, 180, 320, 40, 20),
    "many": (300, 30, 180, 320, 40, 30),
    "large": (100, 30, 720, 1280, 40, 20),
}
TASKS = ("mask", "boundary", "submission", "results")
VIDEOS_AS_ONE = 50

GENERATE = """
import json
from make_vis_eval_case import build_bench
truth, found = build_bench(*{size}, scale={size}[2] / 180)
one = [{{**entry, "video_id": 1}} for entry in found if entry["video_id"] <= {videos}]
for name, content in (("gt", truth), ("one", one), ("dt", found)):
    with open({target!r} + "/" + name + ".json", "w") as file:
        json.dump(content, file)
"""
SCRIPTS = {
    "mask": """
from lbvq.evaluation.tube_ap import TubeAP
start = peak_memory_mib()
print(TubeAP(folder + "/gt.json").update(folder + "/dt.json").compute().stats[0])
""",
    "boundary": """
from lbvq.evaluation.tube_ap import TubeAP
start = peak_memory_mib()
print(TubeAP(folder + "/gt.json", boundary_ratio=0.02).update(folder + "/dt.json").compute().stats[0])
""",
    "submission": """
import os, tempfile
from lbvq.evaluation.submission import check_submission, pack
start = peak_memory_mib()
assert not check_submission(folder + "/dt.json", folder + "/gt.json", "ytvis").faults
with tempfile.TemporaryDirectory() as temporary:
    print(pack(folder + "/dt.json", temporary + "/results.zip"))
""",
    "results": """
from lbvq.inference.results import VideoPrediction
start = peak_memory_mib()
print(len(VideoPrediction.from_json(folder + "/one.json")))
""",
}
OURS = """
import sys
from lbvq.engine.memory import peak_memory_mib
folder = sys.argv[1]
{script}
print(peak_memory_mib() - start)
"""
PUBLISHED = """
import contextlib, io, sys
import numpy as np
folder, code, task = sys.argv[1:]
for name, kind in (("float", float), ("int", int), ("bool", bool), ("object", object)):
    if name not in np.__dict__:
        setattr(np, name, kind)
linspace = np.linspace
np.linspace = lambda start, stop, num=50, **options: linspace(start, stop, int(num), **options)
import pycocotools
pycocotools.__path__.append(code)
from pycocotools.ytvos import YTVOS
from pycocotools.ytvoseval import YTVOSeval
options = {"get_boundary": True} if task == "boundary" else {}
with contextlib.redirect_stdout(io.StringIO()):
    truth = YTVOS(folder + "/gt.json", **options)
    evaluation = YTVOSeval(truth, truth.loadRes(folder + "/dt.json"), "boundary" if task == "boundary" else "segm")
    evaluation.params.vidIds = sorted(truth.getVidIds())
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
print(evaluation.stats[0])
"""
READ = """
import json, sys
with open(sys.argv[1]) as file:
    print(len(json.load(file)))
"""


class Run(NamedTuple):
    """One process."""

    seconds: float  # of the processor
    lines: list[str]  # what it printed


def run(args: argparse.Namespace) -> None:
    published = {"mask": args.published, "boundary": args.published_boundary}
    with tempfile.TemporaryDirectory() as temporary:
        folder = (args.folder or Path(temporary)).resolve()
        for loops in (LOOPS, boundary.LOOPS):
            print(f"{loops.name}: {loops.describe()}")
        print(
            f"{'case':7s}{'task':12s}{'ours':>8s}{'other':>8s}{'other/ours':>12s}{'files MB':>10s}{'memory':>9s}  other"
        )
        for case in args.cases:
            files = generate(case, folder)
            for task in args.tasks:
                print(measure(case, task, files, published, args.repeats), flush=True)


def measure(case: str, task: str, files: Path, published: Mapping[str, Path | None], repeats: int) -> str:
    """Row of one case and task."""
    name, other = opponent(task, files, published)
    ours = [sys.executable, "-c", OURS.format(script=SCRIPTS[task]), str(files)]
    rounds = [(process(ours), process(other) if other else None) for _ in range(repeats)]
    best, memory = (
        min(get(own) for own, _ in rounds) for get in (lambda own: own.seconds, lambda own: float(own.lines[1]))
    )
    size = sum((files / each).stat().st_size for each in inputs(task)) / 1e6
    row = f"{case:7s}{task:12s}{best:8.2f}"
    if other is None:
        return f"{row}{'':28s}{size:4.1f}{memory * 2**20 / 1e6 / size:8.1f}x  {name}"
    theirs = min((their for _, their in rounds if their), key=lambda their: their.seconds)
    answer = rounds[0][0].lines[0]
    if task in ("mask", "boundary"):
        name += f", AP {answer}" + ("" if answer == theirs.lines[0] else f" and theirs {theirs.lines[0]}")
    ratio = theirs.seconds / best
    return f"{row}{theirs.seconds:8.2f}{ratio:12.2f}{size:10.1f}{memory * 2**20 / 1e6 / size:8.1f}x  {name}"


def inputs(task: str) -> list[str]:
    """Files that a task reads."""
    return ["one.json"] if task == "results" else ["gt.json", "dt.json"]


def opponent(task: str, files: Path, published: Mapping[str, Path | None]) -> tuple[str, list[str] | None]:
    """What a task is compared with, and its command."""
    if task in ("submission", "results"):
        read = files / ("one.json" if task == "results" else "dt.json")
        return "json.load of the file", [sys.executable, "-c", READ, str(read)]
    code = published[task]
    if code is None:
        return "none: --published... was not given", None
    return "the published evaluator", [sys.executable, "-c", PUBLISHED, str(files), str(code.resolve()), task]


def process(command: list[str]) -> Run:
    """Run a program and count its seconds, those of starting Python included."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment.pop(
        "PYTHONDONTWRITEBYTECODE", None
    )  # compiled modules are kept for the next run, as they are for users
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(done.stderr)
    return Run(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout.splitlines())


def generate(case: str, folder: Path) -> Path:
    """Write gt.json, dt.json and one.json of a case, unless they are there."""
    target = folder / case
    if not (target / "dt.json").exists():
        target.mkdir(parents=True, exist_ok=True)
        script = GENERATE.format(size=CASES[case], target=str(target), videos=VIDEOS_AS_ONE)
        subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT / "tests" / "golden")
    return target
