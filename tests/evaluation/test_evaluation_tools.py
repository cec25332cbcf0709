"""The command line tools around results files, used as a user does, and the report they write."""

from __future__ import annotations

import csv
import json
import math

import cv2
import numpy as np
import pytest
from helpers import GOLDEN, run_tool, write_evaluation_case
from plain_tube_ap import as_files, random_case

from lbvq.data.categories import category_table
from lbvq.evaluation import report
from lbvq.evaluation.analysis import MISSED, NOTHING, Analysis
from lbvq.evaluation.annotations import GroundTruth
from lbvq.evaluation.tube_ap_settings import TubeApSettings
from lbvq.evaluation.video_metrics import VideoScorer
from lbvq.files.mask_file import MaskFile
from lbvq.masks import rle


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return write_evaluation_case(tmp_path_factory.mktemp("case"))


@pytest.fixture(scope="module")
def summaries():
    return json.loads((GOLDEN / "vis_eval_summaries.json").read_text())


# ---- eval_json


@pytest.mark.parametrize(
    "metric, options, golden, task",
    [
        ("ytvis", (), "youtubevos", "segm"),
        ("ovis", (), "ovis", "segm"),
        ("hq_ytvis", (), "hq_boundary", "boundary"),
        ("hq_ytvis", (), "hq_segm", "segm"),
        ("hq_ytvis", ("--reference",), "hq_boundary", "boundary"),
    ],
)
def test_eval_json_prints_and_writes_the_recorded_numbers(
    metric, options, golden, task, case, summaries, tmp_path, capsys
):
    files = (case / "dt.json", "--gt", case / "gt.json")
    assert run_tool("eval_json", *files, "--metric", metric, "--json", tmp_path / "out.json", *options) == 0
    numbers = json.loads((tmp_path / "out.json").read_text())[task]
    recorded = summaries[golden]["stats"]
    assert list(numbers.values())[: len(recorded)] == pytest.approx([100 * value for value in recorded], abs=1e-10)
    assert f"{100 * recorded[0]:.3f}" in capsys.readouterr().out


def test_eval_json_scores_lvvis_burst_and_lvis(tmp_path, capsys):
    golden = GOLDEN / "eval"
    for metric, truth, results, expected in (
        ("lvvis", "lvvis_eval_gt", "lvvis_eval_results", "14.785"),
        ("burst", "burst_b2y_val", "burst_results", None),
        ("burst", "burst_all_classes", "burst_predictions_burst", "36.502"),
        ("burst", "burst_all_classes", "burst_results", "36.502"),
        ("lvis", "lvis_eval_gt", "lvis_eval_results", "38.609"),
    ):
        files = (golden / f"{results}.json.gz", "--gt", golden / f"{truth}.json.gz", "--metric", metric)
        assert run_tool("eval_json", *files, *(("--reference",) if metric == "lvvis" else ())) == 0
        printed = capsys.readouterr().out
        assert expected is None or expected in printed


def test_eval_json_tells_what_is_wrong_and_fails(case, tmp_path, capsys):
    truth = json.loads((case / "gt.json").read_text())
    (tmp_path / "closed.json").write_text(json.dumps({**truth, "annotations": None}))
    assert run_tool("eval_json", case / "dt.json", "--gt", tmp_path / "closed.json", "--metric", "ytvis") == 2
    assert "closed.json has no annotations to score with" in capsys.readouterr().err
    assert run_tool("eval_json", tmp_path / "none.json", "--gt", case / "gt.json", "--metric", "ytvis") == 2
    assert "none.json" in capsys.readouterr().err


def test_base_and_novel_and_long_videos_are_reported_when_asked_for(tmp_path):
    categories = [{"id": each["id"], "name": each["name"]} for each in category_table("ytvis_2019")["categories"]]
    mask = {"size": [4, 4], "counts": [0, 8, 8]}
    videos = [{"id": each, "height": 4, "width": 4, "length": length} for each, length in ((1, 36), (2, 37))]
    annotations = [
        {"id": video["id"], "video_id": video["id"], "category_id": 6 * video["id"], "iscrowd": 0, "areas": None}
        | {"segmentations": [mask] * video["length"]}
        for video in videos
    ]
    results = [
        {"video_id": 1, "category_id": 6, "score": 0.5, "segmentations": [rle.to_rle(mask, 4, 4)] * 36},
        {"video_id": 2, "category_id": 6, "score": 0.9, "segmentations": [rle.to_rle(mask, 4, 4)] * 37},
    ]
    (tmp_path / "gt.json").write_text(
        json.dumps({"videos": videos, "categories": categories, "annotations": annotations})
    )
    (tmp_path / "dt.json").write_text(json.dumps(results))
    options = ("--metric", "ytvis", "--base-novel", "--long-videos", "--json", tmp_path / "out.json")
    assert run_tool("eval_json", tmp_path / "dt.json", "--gt", tmp_path / "gt.json", *options) == 0
    table = json.loads((tmp_path / "out.json").read_text())["segm"]
    assert (table["APn"], table["APb"]) == (pytest.approx(50), 0)  # 6 sedan is novel, 12 rabbit is base
    assert (table["AP_short"], table["AP_long"]) == (pytest.approx(100), 0)
    assert table["AP_short_long_mean"] == pytest.approx(50)


def test_the_long_video_split_equals_files_with_only_those_videos():
    ground_truth, results = as_files(random_case(4, num_videos=8), rle.encode)
    scores = VideoScorer("ytvis", ground_truth, long_videos=2).update(results).compute().tables["segm"]
    for suffix, wanted in (("short", lambda length: length <= 2), ("long", lambda length: length > 2)):
        own = {video["id"] for video in ground_truth["videos"] if wanted(video["length"])}
        part = {
            **ground_truth,
            "videos": [video for video in ground_truth["videos"] if video["id"] in own],
            "annotations": [entry for entry in ground_truth["annotations"] if entry["video_id"] in own],
        }
        kept = [entry for entry in results if entry["video_id"] in own]
        alone = VideoScorer("ytvis", part).update(kept).compute().tables["segm"]
        for name in ("AP", "AP50", "APs", "AR1", "AR100"):
            np.testing.assert_equal(scores[f"{name}_{suffix}"], alone[name])


# ---- report


def test_the_report_holds_every_table_and_draws_the_worst_tubes(case, tmp_path, capsys):
    truth = json.loads((case / "gt.json").read_text())
    for video in truth["videos"]:
        for name in video["file_names"]:
            path = tmp_path / "frames" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), np.full((video["height"], video["width"], 3), 128, np.uint8))
    options = ("--metric", "ovis", "--report", tmp_path / "report", "--frames", tmp_path / "frames")
    assert run_tool("eval_json", case / "dt.json", "--gt", case / "gt.json", *options) == 0
    folder = tmp_path / "report"
    assert "Report written to" in capsys.readouterr().out
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["results"]["segm"]["AP"] == pytest.approx(41.0691360113984)
    assert summary["results"]["segm"]["AP-cat9"] is None  # it has no track
    rows = {path.stem: list(csv.DictReader(path.open())) for path in folder.glob("*.csv")}
    wanted = "by_size by_length by_occlusion by_num_objects by_camera_motion".split()
    assert set(rows) == {*"summary classes precision_recall confusion tracks".split(), *wanted}
    assert len(rows["tracks"]) == 104 and len(rows["precision_recall"]) == 101 and len(rows["classes"]) == 5
    occlusion = {row["range"]: float(row["AP"]) for row in rows["by_occlusion"]}
    assert occlusion["heavy"] == pytest.approx(26.9077873257156)
    assert {row["range"]: row["tracks"] for row in rows["by_size"]}["all"] == "81"  # 104 without 23 crowds
    page = (folder / "report.md").read_text()
    pictures = [line.split("](")[1][:-1] for line in page.splitlines() if line.startswith("![")]
    assert len([name for name in pictures if name.startswith("worst/")]) == 24
    for name in pictures:
        assert cv2.imread(str(folder / name)) is not None, name


def test_worst_tubes_show_both_outlines(tmp_path):
    truth = GroundTruth(_one_video("cat", [(4, 4, 10, 10)]))
    results = [_result("cat", (20, 4, 10, 10))]
    cv2.imwrite(str(tmp_path / "0.png"), np.zeros((40, 60, 3), np.uint8))
    found = Analysis(truth, MaskFile("dt", results, [], []), TubeApSettings()).detections[0]
    frame = report._draw_tube(truth.videos[1], truth.tracks[0].masks, found.masks, tmp_path)[0]
    assert frame[4, 8].argmax() == 1 and frame[4, 25].argmax() == 0  # green is wanted, red was found
    assert report._draw_tube(truth.videos[1], truth.tracks[0].masks, None, tmp_path / "elsewhere") is None


CLASSES = {"cat": 1, "dog": 2}


def _rectangle(x, y, width, height):
    mask = np.zeros((40, 60), bool)
    mask[y : y + height, x : x + width] = True
    return mask


def _one_video(name, boxes, crowd=0):
    annotations = [
        {"id": index, "video_id": 1, "category_id": CLASSES[name], "iscrowd": crowd}
        | {"segmentations": [rle.encode(_rectangle(*box))]}
        for index, box in enumerate(boxes, start=1)
    ]
    video = {"id": 1, "height": 40, "width": 60, "length": 1, "file_names": ["0.png"]}
    categories = [{"id": each, "name": own} for own, each in CLASSES.items()]
    return {"videos": [video], "categories": categories, "annotations": annotations}


def _result(name, box, score=0.9):
    masks = [rle.encode(_rectangle(*box))]
    return {"video_id": 1, "category_id": CLASSES[name], "score": score, "segmentations": masks}


def test_confused_classes_missed_tracks_and_inventions_are_counted():
    truth = GroundTruth(_one_video("cat", [(0, 0, 10, 10), (20, 0, 10, 10), (40, 0, 10, 10)]))
    results = [
        _result("cat", (0, 0, 10, 10)),
        _result("dog", (20, 0, 10, 9)),
        _result("dog", (0, 0, 10, 10), score=0.5),  # its track is taken
        _result("dog", (0, 25, 10, 10)),
        _result("cat", (40, 0, 10, 10), score=0.1),  # below the smallest score
    ]
    analysis = Analysis(truth, MaskFile("dt", results, [], []), TubeApSettings(), min_score=0.3)
    assert analysis.confusion() == {"cat": {"cat": 1, "dog": 1, MISSED: 1}, "dog": {}, NOTHING: {"dog": 2}}
    reports = analysis.tracks()
    assert [report.iou for report in reports] == [1, 0, 1]
    assert [report.iou_any for report in reports] == [1, pytest.approx(0.9), 1]
    assert reports[1].category_any == CLASSES["dog"] and math.isnan(reports[1].score)


def test_predictions_on_crowds_are_neither_right_nor_inventions():
    truth = GroundTruth(_one_video("cat", [(0, 0, 10, 10)], crowd=1))
    results = [_result("cat", (0, 0, 10, 10)), _result("dog", (0, 0, 10, 10))]
    analysis = Analysis(truth, MaskFile("dt", results, [], []), TubeApSettings())
    assert analysis.confusion() == {"cat": {}, "dog": {}, NOTHING: {}}


def test_an_analysis_of_nothing_works():
    analysis = Analysis(GroundTruth(_one_video("cat", [])), MaskFile("dt", [], [], []), TubeApSettings())
    assert analysis.tracks() == [] and analysis.by_occlusion() == []
    assert all(math.isnan(row["AP"]) for row in [*analysis.by_size(), *analysis.by_length()])


def test_the_numbers_of_the_report_are_those_of_the_videos(tmp_path):
    """Two tracks of three frames, one found; one of a single frame that nobody found."""
    content = _one_video("cat", [(0, 0, 10, 10), (20, 0, 10, 10), (40, 0, 10, 10)])
    content["videos"][0].update(length=3, file_names=["0.png", "1.png", "2.png"])
    for row in content["annotations"]:
        row["segmentations"] = row["segmentations"] * 3
    content["annotations"][1]["category_id"] = CLASSES["dog"]
    content["annotations"][2]["segmentations"][1:] = [None, None]
    results = [_result("cat", (0, 0, 10, 10)), _result("cat", (20, 0, 10, 8))]
    for row in results:
        row["segmentations"] = row["segmentations"] * 3
    (tmp_path / "gt.json").write_text(json.dumps(content))
    (tmp_path / "dt.json").write_text(json.dumps(results))
    arguments = (tmp_path / "dt.json", "--gt", tmp_path / "gt.json", "--metric", "ytvis")
    assert run_tool("eval_json", *arguments, "--report", tmp_path / "report") == 0

    def table(name):
        with open(tmp_path / "report" / f"{name}.csv", newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    confusion = {row.pop("track"): {name: int(count) for name, count in row.items()} for row in table("confusion")}
    assert confusion["cat"] == {"cat": 1, "dog": 0, MISSED: 1}
    assert confusion["dog"] == {"cat": 1, "dog": 0, MISSED: 0}
    lengths = {row["range"]: int(row["tracks"]) for row in table("by_length")}
    assert lengths == {"all": 3, "1 to 5": 3, "6 to 10": 0, "11 to 20": 0, "21 to 36": 0, "from 37": 0}
    tracks = [(row["annotation"], row["visible_frames"], row["best_iou"]) for row in table("tracks")]
    assert tracks == [("1", "3", "1.0"), ("2", "3", "0.0"), ("3", "1", "0.0")]
    of_any_class = [float(row["best_iou_of_any_class"]) for row in table("tracks")]
    assert of_any_class == [1, pytest.approx(0.8), 0]
    page = (tmp_path / "report" / "report.md").read_text()
    worst = page[page.lower().index("worst") :]
    assert worst.index("dog") < worst.index("cat")  # found equally little, and longer


def test_worst_tracks_are_the_least_found_first(tmp_path):
    content = _one_video("cat", [(0, 0, 10, 10), (20, 0, 10, 10), (40, 0, 10, 10)])
    results = [_result("cat", (0, 0, 10, 10)), _result("cat", (20, 0, 10, 6))]
    analysis = Analysis(GroundTruth(content), MaskFile("dt", results, [], []), TubeApSettings())
    worst = report._write_tracks(tmp_path, analysis)
    assert [each.track for each in worst] == [2, 1, 0]
