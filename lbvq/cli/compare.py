"""Compare two results files on the same ground truth: the work behind `lbvq compare`."""

from __future__ import annotations

import argparse
from pathlib import Path

METRICS = ("ytvis", "ovis", "hq_ytvis", "lvvis", "burst", "coco", "lvis")
EXAMPLES = """examples:
  lbvq compare old/results.json new/results.json --gt data/pets/annotations.json
  lbvq compare a.zip b.zip --gt annotations_valid.json --metric ovis --resamples 5000 --json difference.json

Intervals come from drawing the videos anew with replacement. When that of the difference holds zero, other videos could
have turned it around. Videos are ranked by the change of their own AP.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command line of `run`."""
    parser.add_argument("a", type=Path, help="results.json, also as .json.gz or in a .zip")
    parser.add_argument("b", type=Path, help="the other one")
    parser.add_argument("--gt", type=Path, required=True, metavar="FILE", help="annotations of both")
    parser.add_argument("--metric", choices=METRICS, default="ytvis", help="whose rules count (default ytvis)")
    parser.add_argument("--reference", action="store_true", help="those of the published evaluator, with its defects")
    parser.add_argument("--resamples", type=int, default=1000, metavar="N", help="draws of the videos (default 1000)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the draws (default 0)")
    parser.add_argument("--confidence", type=float, default=0.95, metavar="SHARE", help="of the intervals (0.95)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers, of all classes and videos")


def run(args: argparse.Namespace) -> int:
    """Print the comparison; raises ValueError, KeyError or OSError for what is wrong with files or numbers."""
    from lbvq.evaluation.comparison import compare_files, format_comparison
    from lbvq.files.json_files import to_json
    from lbvq.files.mask_file import read_mask_file
    from lbvq.files.writing import write_text

    if args.resamples < 1:
        raise ValueError(f"--resamples must be at least 1, got {args.resamples}")
    if not 0 < args.confidence < 1:
        raise ValueError(f"--confidence must be between 0 and 1, got {args.confidence}")
    if args.seed < 0:
        raise ValueError(f"--seed must not be negative, got {args.seed}")
    options = {"resamples": args.resamples, "seed": args.seed, "confidence": args.confidence}
    files = [read_mask_file(each) for each in (args.gt, args.a, args.b)]
    if isinstance(files[0].document, dict) and "sequences" in files[0].document:
        raise ValueError(f"{args.gt}: expected annotations in YouTube-VIS form (b2y_val.json), got BURST's own file")
    found = compare_files(args.metric, *files, reference=args.reference, **options)
    tasks = {task: comparison.to_dict() for task, comparison in found.items()}
    for task, content in tasks.items():
        print(f"{task}: a = {args.a}, b = {args.b}\n{format_comparison(content)}\n")
    if args.json:
        about = {"a": str(args.a), "b": str(args.b), "ground_truth": str(args.gt), "metric": args.metric}
        write_text(args.json, to_json({**about, "reference": args.reference, "tasks": tasks}, indent=2) + "\n")
    return 0
