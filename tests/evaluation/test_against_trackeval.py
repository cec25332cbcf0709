"""Tube AP against the installed `trackeval`, whose YouTube-VIS metric has no detection limit and matches a crowd once.

The package is an extra (it brings its own OpenCV), so these tests are skipped without it; its numbers on the golden
case are also recorded, see `test_tube_ap_goldens.py`.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json

import numpy as np
import pytest
from helpers import GOLDEN
from make_vis_eval_case import build_golden

from lbvq.evaluation.burst import score_burst
from lbvq.evaluation.tube_ap import TubeAP

trackeval = pytest.importorskip("trackeval")

LABELS = {"all": "all", "area_s": "small", "area_m": "medium", "area_l": "large"}
QUIET = {"PRINT_CONFIG": False}


def evaluate_with_trackeval(dataset_class, folder, metrics, **config):
    settings = trackeval.Evaluator.get_default_eval_config()
    quiet = dict.fromkeys(
        ("USE_PARALLEL", "PRINT_RESULTS", "PRINT_CONFIG", "OUTPUT_SUMMARY", "OUTPUT_DETAILED", "PLOT_CURVES"), False
    )
    settings.update(quiet, TIME_PROGRESS=False, LOG_ON_ERROR=None, BREAK_ON_ERROR=True)
    data = dataset_class.get_default_dataset_config()
    data.update(GT_FOLDER=f"{folder}/gt/", TRACKERS_FOLDER=f"{folder}/tr/", OUTPUT_FOLDER=f"{folder}/out")
    data.update(TRACKERS_TO_EVAL=["x"], **QUIET, **config)
    with contextlib.redirect_stdout(io.StringIO()):
        results, _ = trackeval.Evaluator(settings).evaluate([dataset_class(data)], metrics)
    return next(iter(results.values()))["x"]["COMBINED_SEQ"]


def youtube_vis(folder, ground_truth, results):
    for place, content in (("gt/youtube_vis_val", ground_truth), ("tr/youtube_vis_val/x/data", results)):
        (folder / place).mkdir(parents=True)
        (folder / place / "file.json").write_text(json.dumps(content))
    areas = [[0, 128**2], [128**2, 256**2], [256**2, 1e5**2]]
    metric = trackeval.metrics.TrackMAP({"USE_TIME_RANGES": False, "AREA_RANGES": areas, **QUIET})
    return evaluate_with_trackeval(trackeval.datasets.YouTubeVIS, folder, [metric], SPLIT_TO_EVAL="val")


def golden_files():
    case = json.loads(gzip.decompress((GOLDEN / "vis_eval_case.json.gz").read_bytes()))
    return case["gt"], case["dt"]


def other_files(seed):
    """Another case; its first detection matches nothing, as trackeval does not count a first match as one."""
    ground_truth, results = build_golden(seed)
    unseen = {**results[0], "segmentations": [None] * len(results[0]["segmentations"]), "score": 0.001}
    return ground_truth, [unseen, *results]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [None, 1, 2])
def test_youtube_vis_numbers_are_equal(seed, tmp_path):
    files = golden_files() if seed is None else other_files(seed)
    theirs = youtube_vis(tmp_path, *files)
    ours = TubeAP(files[0], max_detections=(None,), crowd_takes_many=False).update(files[1]).compute()
    for category_id, name in ours.categories.items():
        for label, area in LABELS.items():
            if "TrackMAP" not in theirs.get(name, {}):
                continue
            for kind in ("AP", "AR"):
                recorded = np.mean(theirs[name]["TrackMAP"][f"{kind}_{label}"])
                assert ours.average(kind, area=area, category_ids=[category_id]) == pytest.approx(recorded, abs=1e-12)


def test_burst_numbers_are_equal(tmp_path):
    for place, name in (("gt", "burst_all_classes"), ("tr/x/data", "burst_predictions_burst")):
        (tmp_path / place).mkdir(parents=True)
        content = gzip.decompress((GOLDEN / "eval" / f"{name}.json.gz").read_bytes())
        (tmp_path / place / f"{name}.json").write_bytes(content)
    metrics = [trackeval.metrics.HOTA(QUIET), trackeval.metrics.TrackMAP(QUIET)]
    theirs = evaluate_with_trackeval(trackeval.datasets.BURST, tmp_path, metrics)
    truth, predictions = (tmp_path / place for place in ("gt/burst_all_classes.json", "tr/x/data"))
    ours = score_burst(truth, predictions / "burst_predictions_burst.json", reference=True)["per_class"]
    for name, table in ours.items():
        for metric in ("HOTA", "DetA", "AssA", "DetRe", "DetPr", "OWTA"):
            assert table[metric] == pytest.approx(100 * theirs[name]["HOTA"][metric].mean(), abs=1e-10)
        assert table["AP"] == pytest.approx(100 * theirs[name]["TrackMAP"]["AP_all"].mean(), abs=1e-10)
