"""Tube AP against the installed `trackeval`, whose YouTube-VIS metric has no detection limit and matches a crowd once.

The package is an extra (it brings its own OpenCV), so these tests are skipped without it; its numbers on the golden
case are also recorded, see `test_tube_ap_goldens.py`.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from helpers import GOLDEN
from make_vis_eval_case import build_golden
from small_tubes import box, files, tracking_of

from lbvq.evaluation.annotations import GroundTruth, read_predictions
from lbvq.evaluation.burst import score_burst
from lbvq.evaluation.davis import score_davis
from lbvq.evaluation.tube_ap import TubeAP
from lbvq.files.mask_file import MaskFile
from lbvq.masks import rle

trackeval = pytest.importorskip("trackeval")

LABELS = {"all": "all", "area_s": "small", "area_m": "medium", "area_l": "large"}
QUIET = MappingProxyType({"PRINT_CONFIG": False})  # not a dict: the package adds its defaults to one it is given


def burst_table():
    """Their file of categories, without which they cannot score BURST."""
    table = Path(trackeval.__file__).parent / "datasets/burst_helpers/tao_categories.json"
    if not table.is_file():
        pytest.skip("trackeval before 1.2 lacks the categories of BURST")
    return table


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
    burst_table()
    for place, name in (("gt", "burst_all_classes"), ("tr/x/data", "burst_predictions_burst")):
        (tmp_path / place).mkdir(parents=True)
        content = gzip.decompress((GOLDEN / "eval" / f"{name}.json.gz").read_bytes())
        (tmp_path / place / f"{name}.json").write_bytes(content)
    metrics = [trackeval.metrics.HOTA({**QUIET}), trackeval.metrics.TrackMAP({**QUIET})]
    theirs = evaluate_with_trackeval(trackeval.datasets.BURST, tmp_path, metrics)
    truth, predictions = (tmp_path / place for place in ("gt/burst_all_classes.json", "tr/x/data"))
    ours = score_burst(truth, predictions / "burst_predictions_burst.json", reference=True)["per_class"]
    for name, table in ours.items():
        for metric in ("HOTA", "DetA", "AssA", "DetRe", "DetPr", "OWTA"):
            assert table[metric] == pytest.approx(100 * theirs[name]["HOTA"][metric].mean(), abs=1e-10)
        assert table["AP"] == pytest.approx(100 * theirs[name]["TrackMAP"]["AP_all"].mean(), abs=1e-10)


def burst_files(folder, truth, predictions):
    for place, content in (("gt", truth), ("tr/x/data", predictions)):
        (folder / place).mkdir(parents=True)
        (folder / place / "file.json").write_text(json.dumps(content))
    return folder / "gt/file.json", folder / "tr/x/data/file.json"


def assert_burst_is_equal(folder, truth, predictions):
    files = burst_files(folder, truth, predictions)
    metrics = [trackeval.metrics.HOTA({**QUIET}), trackeval.metrics.TrackMAP({**QUIET})]
    theirs = evaluate_with_trackeval(trackeval.datasets.BURST, folder, metrics)
    ours = score_burst(*files, reference=True)["per_class"]
    assert set(ours) == {name for name in theirs if not name.startswith("cls_comb")}
    for name, table in ours.items():
        for metric in ("HOTA", "DetA", "AssA", "DetRe", "DetPr", "OWTA"):
            expected = 100 * theirs[name]["HOTA"][metric].mean()
            assert table[metric] == pytest.approx(expected, abs=1e-10), (name, metric)
        expected = 100 * theirs[name]["TrackMAP"]["AP_all"].mean()
        assert table["AP"] == pytest.approx(max(0, expected), abs=1e-10), (name, "AP")


def sequence(number, num_frames, categories, tracks, **lists):
    """One sequence of 10 x 10 pixels; `tracks` are {id: {frame: (mask, more)}}."""
    frames = [{} for _ in range(num_frames)]
    for track, masks in tracks.items():
        for frame, (mask, more) in masks.items():
            frames[frame][track] = {"rle": rle.encode(mask)["counts"], **more}
    paths = [f"frame{10 * t:04d}.jpg" for t in range(num_frames)]
    entry = {"id": number, "seq_name": f"s{number}", "dataset": "d", "width": 10, "height": 10}
    entry |= {"annotated_image_paths": paths, "segmentations": frames, "track_category_ids": categories}
    return {**entry, "neg_category_ids": [], "not_exhaustive_category_ids": [], **lists}


def document(*sequences):
    table = burst_table()
    names = [{"id": each["id"], "name": each["name"]} for each in json.loads(table.read_text())]
    return {"split": "val", "sequences": list(sequences), "categories": names}


# 347 cup, into which 720 mug is merged although it is a distractor; 529, a distractor into which 967 is merged
BURST_CATEGORIES = (4, 13, 347, 720, 529, 967)


def shapes(rng):
    """A few rectangles that overlap by exactly 0.8, 0.85 and so on, so that many matches are equally good."""
    mask = np.zeros((10, 10), bool)
    mask[: rng.choice([2, 4]), : rng.choice([5, 8, 10])] = True
    mask.ravel()[: rng.choice([0, 0, 17, 19, 20])] = True
    return mask


@pytest.mark.parametrize("seed", range(5))
def test_burst_numbers_of_random_sequences_with_many_ties_are_equal(seed, tmp_path):
    rng = np.random.RandomState(seed)
    sides = ([], [])
    for number in (1, 2, 3):
        lists = {
            key: [int(each) for each in rng.choice(BURST_CATEGORIES, 2)]
            for key in ("neg_category_ids", "not_exhaustive_category_ids")
        }
        for side, num_tracks in zip(sides, (4, 9), strict=True):
            order = [str(each) for each in 1 + rng.permutation(num_tracks)]
            categories = {each: int(rng.choice(BURST_CATEGORIES)) for each in order}
            tracks = {}
            for each in order:
                shown = [t for t in range(4) if rng.rand() < 0.7]
                more = {"score": float(rng.choice([0.5, 0.9]))} if side is sides[1] else {}
                tracks[each] = {t: (shapes(rng), more) for t in shown}
            side.append(sequence(number, 4, categories, tracks, **lists))
            for frame in side[-1]["segmentations"]:  # an order of its own in every frame
                items = list(frame.items())
                frame.clear()
                frame.update(items[each] for each in rng.permutation(len(items)))
    assert_burst_is_equal(tmp_path, document(*sides[0]), document(*sides[1]))


def test_burst_keeps_the_best_300_predictions_of_a_frame_best_first(tmp_path):
    whole, part = np.ones((10, 10), bool), np.tri(10, dtype=bool)
    truth = sequence(1, 1, {"1": 4, "2": 4}, {"1": {0: (whole, {})}, "2": {0: (part, {})}})
    scores = [0.5] * 150 + [0.9] * 200
    tracks = {str(1 + k): {0: (whole if k % 3 else part, {"score": score})} for k, score in enumerate(scores)}
    predictions = sequence(1, 1, dict.fromkeys(tracks, 4), tracks)
    assert_burst_is_equal(tmp_path, document(truth), document(predictions))
    listed = [
        {"video_id": 1, "category_id": 1, "score": each[0][1]["score"]}
        | {"segmentations": [{"size": [10, 10], "counts": rle.encode(each[0][0])["counts"]}]}
        for each in tracks.values()
    ]
    (tmp_path / "listed.json").write_text(json.dumps(listed))
    small = {**document(truth), "categories": [{"id": 4, "name": "airplane"}]}
    (tmp_path / "truth.json").write_text(json.dumps(small))
    own = score_burst(tmp_path / "truth.json", tmp_path / "tr/x/data/file.json")["per_class"]
    assert score_burst(tmp_path / "truth.json", tmp_path / "listed.json")["per_class"] == own


@pytest.mark.parametrize("pixels, found_by_theirs", [(80, 7), (85, 7), (90, 8), (95, 9)])
def test_overlaps_of_exactly_a_threshold_count_unless_the_published_sums_are_wanted(pixels, found_by_theirs, tmp_path):
    """IoU 0.85 reaches 8 of 10 thresholds, but the published 0.85 is a little larger."""
    mask = np.zeros(100, bool)
    mask[:pixels] = True
    truth = sequence(1, 1, {"1": 4}, {"1": {0: (np.ones((10, 10), bool), {})}})
    predictions = sequence(1, 1, {"1": 4}, {"1": {0: (mask.reshape(10, 10), {})}})
    files = burst_files(tmp_path, document(truth), document(predictions))
    assert score_burst(*files)["AP"]["all"] == pytest.approx(2 * pixels - 90)
    assert score_burst(*files, reference=True)["AP"]["all"] == pytest.approx(10 * found_by_theirs)


def test_a_category_that_is_merged_into_a_distractor_is_no_class(tmp_path):
    mask = np.ones((10, 10), bool)
    one = sequence(1, 1, {"1": 967, "2": 4}, {"1": {0: (mask, {})}, "2": {0: (mask, {})}})
    for reference in (False, True):
        (tmp_path / f"{reference}").mkdir()
        scores = score_burst(*burst_files(tmp_path / f"{reference}", document(one), document(one)), reference=reference)
        assert list(scores["per_class"]) == ["airplane"] and scores["AP"]["uncommon"] != scores["AP"]["uncommon"]


def test_where_some_of_300_go_the_best_come_first(tmp_path):
    """Two tracks of one mean score: the file lists the wrong one first, but in a full frame the right one leads."""
    right, wrong = np.ones((10, 10), bool), np.eye(10, dtype=bool)
    truth = sequence(1, 2, {"1": 4}, {"1": {0: (right, {}), 1: (right, {})}})
    tracks = {"1": {0: (wrong, {"score": 0.25}), 1: (wrong, {"score": 0.75})}}
    tracks |= {"2": {0: (right, {"score": 0.75}), 1: (right, {"score": 0.25})}}
    tracks |= {str(number): {0: (wrong, {"score": 0.125})} for number in range(3, 310)}
    predictions = sequence(1, 2, {**dict.fromkeys(tracks, 13), "1": 4, "2": 4}, tracks)
    assert_burst_is_equal(tmp_path, document(truth), document(predictions))
    scores = score_burst(tmp_path / "gt/file.json", tmp_path / "tr/x/data/file.json")
    assert scores["per_class"]["airplane"]["AP"] == pytest.approx(100)


# ---- tracking and DAVIS on any data set


def without_crowds(seed, num_videos=4):
    """Part of a case without crowds and encoded empty masks, which the package counts as objects."""
    truth, results = build_golden(seed)
    videos = {each["id"] for each in truth["videos"][:num_videos]}
    truth["videos"] = truth["videos"][:num_videos]
    truth["annotations"] = [{**each, "iscrowd": 0} for each in truth["annotations"] if each["video_id"] in videos]
    results = [each for each in results if each["video_id"] in videos]
    for each in [*truth["annotations"], *results]:
        each["segmentations"] = [
            None if mask is None or not rle.area(rle.to_rle(mask, *mask["size"])) else mask
            for mask in each["segmentations"]
        ]
    return truth, results


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_hota_and_idf1_equal_those_of_trackeval(seed, tmp_path):
    truth, results = without_crowds(seed)
    for place, content in (("gt/youtube_vis_val", truth), ("tr/youtube_vis_val/x/data", results)):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "file.json").write_text(json.dumps(content))
    metrics = [trackeval.metrics.HOTA(), trackeval.metrics.Identity(dict(QUIET))]
    theirs = evaluate_with_trackeval(trackeval.datasets.YouTubeVIS, tmp_path, metrics, SPLIT_TO_EVAL="val")
    ours = tracking_of(GroundTruth(truth), MaskFile.of(results, "predictions"))
    assert ours["per_class"]
    for row in ours["per_class"]:
        own = theirs[row["class"]]
        for name in ("HOTA", "DetA", "AssA"):
            assert row[name] == pytest.approx(100 * np.mean(own["HOTA"][name]), abs=1e-9)
        for name in ("IDF1", "IDP", "IDR"):
            assert row[name] == pytest.approx(100 * own["Identity"][name], abs=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_j_and_f_equal_those_of_trackeval(seed):
    pytest.importorskip("skimage")  # the package uses it for this metric alone and does not ask for it
    rng = np.random.RandomState(seed)
    size, length = (60, 90), 5
    tubes = [[rng.randint(0, 60), rng.randint(0, 40), rng.randint(8, 25), rng.randint(8, 20)] for _ in range(3)]
    wanted = [[box(x + 2 * t, y, w, h, size) for t in range(length)] for x, y, w, h in tubes]
    found = [[box(x + 2 * t + rng.randint(-3, 4), y, w, h + 2, size) for t in range(length)] for x, y, w, h in tubes]
    wanted[0][2], found[1][3] = (np.zeros(size, bool),) * 2
    truth, predictions = files([(1, masks, False) for masks in wanted], [(1, 0.5, masks) for masks in found])
    ours = score_davis(truth, read_predictions(predictions, truth))

    def encode(masks, t):
        rles = [rle.encode(own[t]) for own in masks]
        return [{**each, "counts": each["counts"].encode()} for each in rles]

    data = {"num_timesteps": length, "num_tracker_ids": 3, "num_gt_ids": 3}
    data |= {key: [np.arange(3)] * length for key in ("gt_ids", "tracker_ids")}
    data |= {
        key: [encode(masks, t) for t in range(length)] for key, masks in (("gt_dets", wanted), ("tracker_dets", found))
    }
    metric = trackeval.metrics.JAndF()
    metric.optim_type = "J&F"
    theirs = metric.eval_sequence(data)
    for name, own in (
        ("J", "J-Mean"),
        ("F", "F-Mean"),
        ("J&F", "J&F"),
        ("J_recall", "J-Recall"),
        ("F_recall", "F-Recall"),
    ):
        assert ours[name] == pytest.approx(100 * theirs[own])
