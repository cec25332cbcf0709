"""Evaluation: CPU seconds and memory from files to numbers, beside the published code.

    python tools/benchmark.py eval
    python tools/benchmark.py eval --published cocoapi/PythonAPI/pycocotools --published-boundary cocoapi_hq/...

Case A has 300 videos of 30 frames, 751 tracks and 3000 predictions, case B has 100 videos and 6000 predictions. Every
measurement is a process of its own; seconds are those of all its threads and children, the best of some repeats, and
memory is what was added to the freshly imported program. The recorded column was measured once with the published
youtubevos code, and with that of HQ-YTVIS for boundaries, on a machine with two shared cores; it includes reading the
files and starting Python. With --published... the published code runs here and now (it needs its folder with
ytvos.py and ytvoseval.py, and is patched for today's numpy), from files to numbers, as ours.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CASES = {"A": (300, 30, 180, 320, 40, 10), "B": (100, 30, 180, 320, 3, 60)}
RECORDED = {  # CPU seconds, and AP to check
    ("A", "mask"): (4.3, 0.377888),
    ("A", "boundary"): (26.8, 0.290659),
    ("B", "mask"): (6.0, 0.370464),
    ("B", "boundary"): (41.0, 0.317458),
}

GENERATE = """
import json
from make_vis_eval_case import build_bench
for name, content in zip(("gt", "dt"), build_bench(*{size})):
    with open({target!r} + "/" + name + ".json", "w") as file:
        json.dump(content, file)
"""
MEASURE = """
import contextlib, io, json, resource, sys
import numpy as np
from lbvq.engine.memory import peak_memory_mib
folder, task, published = sys.argv[1:4]
{prepare}
def usage():
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
    return seconds, peak_memory_mib()
before = usage()
{evaluate}
after = usage()
print(json.dumps({{"cpu": after[0] - before[0], "megabytes": after[1] - before[1], "AP": float(precision)}}))
"""
OURS = (
    "from lbvq.evaluation.tube_ap import TubeAP\nsettings = {'boundary_ratio': 0.02} if task == 'boundary' else {}",
    "precision = TubeAP(folder + '/gt.json', **settings).update(folder + '/dt.json').compute().stats[0]",
)
PUBLISHED = (
    """
for name, kind in (("float", float), ("int", int), ("bool", bool), ("object", object)):
    if name not in np.__dict__:
        setattr(np, name, kind)
linspace = np.linspace
np.linspace = lambda start, stop, num=50, **options: linspace(start, stop, int(num), **options)
import pycocotools
pycocotools.__path__.append(published)
from pycocotools.ytvos import YTVOS
from pycocotools.ytvoseval import YTVOSeval
options = {"get_boundary": True} if task == "boundary" else {}
""",
    """
with contextlib.redirect_stdout(io.StringIO()):
    truth = YTVOS(folder + "/gt.json", **options)
    evaluation = YTVOSeval(truth, truth.loadRes(folder + "/dt.json"), "boundary" if task == "boundary" else "segm")
    evaluation.params.vidIds = sorted(truth.getVidIds())
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
precision = evaluation.stats[0]
""",
)


def run(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = (args.folder or Path(temporary)).resolve()
        print(f"{'case':5s}{'task':10s}{'code':11s}{'CPU s':>8s}{'ratio':>8s}{'MB':>8s}{'files MB':>10s}{'AP':>11s}")
        for case in args.cases:
            files = generate(case, folder)
            size = sum(path.stat().st_size for path in files.iterdir()) / 1e6
            for task in args.tasks:
                published = args.published if task == "mask" else args.published_boundary
                measure_task(case, task, files, size, published, args.repeats)


def measure_task(case: str, task: str, files: Path, size: float, published: Path | None, repeats: int) -> None:
    """Print the rows of one case and task; ratios are to our seconds."""
    ours = best(OURS, files, task, "", repeats)
    seconds, precision = RECORDED[case, task]
    rows: list[tuple[str, dict[str, Any]]] = [("ours", ours)]
    if published is not None:
        rows.append(("published", best(PUBLISHED, files, task, str(published.resolve()), max(1, repeats // 2))))
    rows.append(("recorded", {"cpu": seconds, "megabytes": None, "AP": precision}))
    for name, row in rows:
        memory = "" if row["megabytes"] is None else f"{row['megabytes']:.0f}"
        ratio = f"{row['cpu'] / ours['cpu']:7.1f}x"
        print(f"{case:5s}{task:10s}{name:11s}{row['cpu']:8.2f}{ratio}{memory:>8s}{size:10.1f}{row['AP']:11.6f}")


def generate(case: str, folder: Path) -> Path:
    """Write gt.json and dt.json of a case, unless they are there."""
    target = folder / case
    if not (target / "dt.json").exists():
        target.mkdir(parents=True, exist_ok=True)
        script = GENERATE.format(size=CASES[case], target=str(target))
        subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT / "tests" / "golden")
    return target


def best(code: tuple[str, str], files: Path, task: str, published: str, repeats: int) -> dict[str, Any]:
    """Run in fresh processes and return the numbers of the one that took least."""
    script = MEASURE.format(prepare=code[0], evaluate=code[1])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    runs = []
    for _ in range(repeats):
        command = [sys.executable, "-c", script, str(files), task, published]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if done.returncode:
            raise SystemExit(done.stderr)
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    return min(runs, key=lambda numbers: numbers["cpu"])
