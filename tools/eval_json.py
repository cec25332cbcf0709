"""Score a results file without a model.

    python tools/eval_json.py results.json --gt valid.json --metric ytvis
    python tools/eval_json.py results.zip --gt annotations_valid.json --metric ovis --report report --frames ovis/valid
    python tools/eval_json.py results.json --gt burst/all_classes.json --metric burst --task class_guided

Metrics: ytvis (YouTube-VIS 2019/21/22), ovis (with occlusion ranges), hq_ytvis (Tube-Mask and Tube-Boundary AP), lvvis
(base and novel), burst (tube AP from a b2y file; HOTA and AP of the benchmark from its own files), coco, lvis.
Published evaluators have defects; --reference reproduces their numbers, see lbvq/evaluation/video_metrics.py.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lbvq.data.catalog import LONG_VIDEO_FRAMES
from lbvq.engine.user_errors import user_command
from lbvq.evaluation.analysis import Analysis
from lbvq.evaluation.annotations import read_predictions
from lbvq.evaluation.davis import score_davis
from lbvq.evaluation.image_metrics import IMAGE_METRICS
from lbvq.evaluation.tables import format_results
from lbvq.evaluation.video_metrics import VIDEO_METRICS, VideoScorer, metric_settings, read_ground_truth
from lbvq.files.json_files import to_json
from lbvq.files.mask_file import read_mask_file
from lbvq.files.writing import write_text

METRICS = (*VIDEO_METRICS, *IMAGE_METRICS)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="results.json, also as .json.gz or in a .zip")
    parser.add_argument("--gt", type=Path, required=True, help="annotation file (BURST: also the folder)")
    parser.add_argument("--metric", choices=METRICS, required=True)
    parser.add_argument("--reference", action="store_true", help="reproduce the published evaluator with its defects")
    parser.add_argument("--base-novel", action="store_true", help="base and novel classes apart (YouTube-VIS 2019/21)")
    parser.add_argument(
        "--long-videos",
        type=int,
        nargs="?",
        const=LONG_VIDEO_FRAMES,
        metavar="FRAMES",
        help=f"videos of more than so many frames apart, as YouTube-VIS 2022 does (default {LONG_VIDEO_FRAMES})",
    )
    parser.add_argument("--task", default="class_guided", help="of BURST: class_guided, exemplar_guided or open_world")
    parser.add_argument(
        "--analysis",
        type=Path,
        nargs="?",
        const=True,
        metavar="FILE",
        help="print where AP is lost, and write every error; takes a few times as long as scoring",
    )
    parser.add_argument(
        "--davis",
        type=Path,
        nargs="?",
        const=True,
        metavar="FILE",
        help="print J and F of DAVIS, and write them for every object; decodes every mask, which takes long",
    )
    parser.add_argument(
        "--report", type=Path, metavar="DIR", help="write a page to look at, tables, curves and pictures"
    )
    parser.add_argument(
        "--frames", type=Path, metavar="DIR", help="the videos' frames: draw the worst tubes, measure camera motion"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers")
    args = parser.parse_args(arguments)
    for name in ("report", "analysis", "davis"):
        if getattr(args, name) and args.metric not in VIDEO_METRICS:
            parser.error(f"--{name} is there for {', '.join(VIDEO_METRICS)}")
    if args.frames and not (args.report or args.analysis):
        parser.error("--frames needs --report or --analysis")
    return args


def is_burst_format(path: Path) -> bool:
    return path.is_dir() or (isinstance(content := read_mask_file(path).document, Mapping) and "sequences" in content)


def score_burst_files(args: argparse.Namespace) -> dict[str, Any]:
    """The benchmark's own evaluation: a table with one column per group of classes."""
    from lbvq.evaluation.burst import score_burst

    if args.report or args.analysis or args.davis:
        text = "annotations in YouTube-VIS form (b2y_val.json), not BURST's own files"
        raise ValueError(f"--report, --analysis and --davis need {text}")
    scores = score_burst(args.gt, args.results, args.task, reference=args.reference)
    per_class = scores.pop("per_class", {})
    tables = {
        f"{args.task} ({group})": {metric: row[group] for metric, row in scores.items()}
        for group in ("all", "common", "uncommon")
    }
    tables[f"{args.task} (all)"] |= {f"AP-{name}": row["AP"] for name, row in per_class.items()}
    return tables


def score_videos(args: argparse.Namespace) -> dict[str, Any]:
    ground_truth = read_ground_truth(args.metric, args.gt, reference=args.reference)
    if not ground_truth.has_annotations:
        raise ValueError(f"{args.gt} has no annotations to score with; tools/check_submission.py packs results")
    options = {"reference": args.reference, "base_novel": args.base_novel or None, "long_videos": args.long_videos}
    scorer = VideoScorer(args.metric, ground_truth, **options)
    predictions = read_mask_file(args.results)
    scores = scorer.update(predictions, str(args.results)).compute()
    ours, published = (metric_settings(args.metric, reference=each)["segm"] for each in (args.reference, True))
    if ours.crowd_is_ignored != published.crowd_is_ignored and any(track.is_crowd for track in ground_truth.tracks):
        print("Note: the ground truth has crowd tracks, which the published evaluator counts; see --reference.")
    analysis = Analysis(ground_truth, predictions, scores.main.settings) if args.analysis or args.report else None
    if analysis and args.analysis:
        print(analysis.summary())
        if args.analysis is not True:
            write_text(args.analysis, to_json(analysis.to_dict(args.frames)) + "\n")
    if args.davis:
        davis = score_davis(ground_truth, read_predictions(predictions, ground_truth))
        print("  ".join(f"{name} {davis[name]:.3f}" for name in ("J&F", "J", "F", "J_recall", "F_recall")))
        if args.davis is not True:
            write_text(args.davis, to_json(davis) + "\n")
    if args.report:
        from lbvq.evaluation.report import write_report

        about = {"results": args.results, "ground truth": args.gt, "metric": args.metric, "reference": args.reference}
        about = {key: str(value) for key, value in about.items()}
        page = write_report(
            args.report, scores, ground_truth, predictions, frames=args.frames, about=about, analysis=analysis
        )
        print(f"Report written to {page}")
    return scores.tables


@user_command
def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    if args.metric in IMAGE_METRICS:
        tables = IMAGE_METRICS[args.metric](args.gt, args.results)
    elif VIDEO_METRICS[args.metric].own_files and is_burst_format(args.gt):
        tables = score_burst_files(args)
    else:
        tables = score_videos(args)
    print(format_results(tables))
    if args.json:
        write_text(args.json, to_json(tables, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
