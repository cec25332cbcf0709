"""The command line tools around results files, used as a user does, and the report they write."""

from __future__ import annotations

import csv
import gzip
import json
import math
import runpy
import shutil
import zipfile

import cv2
import numpy as np
import pytest
from helpers import GOLDEN, ROOT
from plain_tube_ap import as_files, random_case

from lbvq import rle
from lbvq.data.categories import category_table
from lbvq.evaluation import report
from lbvq.evaluation.analysis import MISSED, NOTHING, Analysis
from lbvq.evaluation.annotations import GroundTruth
from lbvq.evaluation.coco import score_coco
from lbvq.evaluation.mask_file import MaskFile, read_mask_file, write_mask_file
from lbvq.evaluation.splits import part_of, split_videos
from lbvq.evaluation.submission import SERVERS, check_submission
from lbvq.evaluation.tube_ap_settings import TubeApSettings
from lbvq.evaluation.video_metrics import VideoScorer


def run(tool, *arguments):
    """Exit code of tools/<tool>.py."""
    return runpy.run_path(str(ROOT / "tools" / f"{tool}.py"))["main"]([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    folder = tmp_path_factory.mktemp("case")
    content = json.loads(gzip.decompress((GOLDEN / "vis_eval_case.json.gz").read_bytes()))
    for name, part in (("gt", content["gt"]), ("dt", content["dt"])):
        (folder / f"{name}.json").write_text(json.dumps(part))
    return folder


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
    assert run("eval_json", *files, "--metric", metric, "--json", tmp_path / "out.json", *options) == 0
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
        assert run("eval_json", *files, *(("--reference",) if metric == "lvvis" else ())) == 0
        printed = capsys.readouterr().out
        assert expected is None or expected in printed


def test_eval_json_tells_what_is_wrong_and_fails(case, tmp_path, capsys):
    truth = json.loads((case / "gt.json").read_text())
    (tmp_path / "closed.json").write_text(json.dumps({**truth, "annotations": None}))
    assert run("eval_json", case / "dt.json", "--gt", tmp_path / "closed.json", "--metric", "ytvis") == 2
    assert "closed.json has no annotations to score with" in capsys.readouterr().err
    assert run("eval_json", tmp_path / "none.json", "--gt", case / "gt.json", "--metric", "ytvis") == 2
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
    assert run("eval_json", tmp_path / "dt.json", "--gt", tmp_path / "gt.json", *options) == 0
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
    assert run("eval_json", case / "dt.json", "--gt", case / "gt.json", *options) == 0
    folder = tmp_path / "report"
    assert "Report written to" in capsys.readouterr().out
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["results"]["segm"]["AP"] == pytest.approx(41.0691360113984)
    assert summary["results"]["segm"]["AP-cat9"] is None  # it has no track
    rows = {path.stem: list(csv.DictReader(path.open())) for path in folder.glob("*.csv")}
    assert set(rows) == set("summary classes precision_recall by_size by_length by_occlusion confusion tracks".split())
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
    assert frame[4, 8].argmax() == 1 and frame[4, 25].argmax() == 2  # green is wanted, red was found
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


# ---- make_split


def test_a_split_has_every_class_in_both_parts_and_no_video_twice(case):
    content = json.loads((case / "gt.json").read_text())
    split = split_videos(content, 0.3, seed=1)
    assert sorted(split.train + split.dev) == [video["id"] for video in content["videos"]]
    for category, (train, dev) in split.tracks.items():
        assert (train > 0 and dev > 0) or category == 9  # the one without any track
    assert 5 <= len(split.dev) <= 9


def test_a_split_depends_on_the_seed_and_not_on_the_order_of_the_file(case):
    content = json.loads((case / "gt.json").read_text())
    turned = {key: value[::-1] if isinstance(value, list) else value for key, value in content.items()}
    assert split_videos(content, 0.2, seed=3) == split_videos(turned, 0.2, seed=3)
    assert split_videos(content, 0.2, seed=3).dev != split_videos(content, 0.2, seed=4).dev


@pytest.mark.parametrize("share", [0, 1, -0.1])
def test_a_share_must_leave_videos_on_both_sides(share, case):
    with pytest.raises(ValueError, match="share must be between 0 and 1"):
        split_videos(json.loads((case / "gt.json").read_text()), share)


def test_make_split_writes_two_files_that_lose_nothing(case, tmp_path, capsys):
    arguments = (case / "gt.json", "--output", tmp_path / "splits", "--share", 0.25)
    assert run("make_split", *arguments) == 0
    assert "cat7" in capsys.readouterr().out
    whole = json.loads((case / "gt.json").read_text())
    parts = [json.loads(path.read_text()) for path in sorted((tmp_path / "splits").iterdir())]
    assert sorted(path.name for path in (tmp_path / "splits").iterdir()) == ["dev_seed0.json", "train_dev_seed0.json"]
    for key in ("videos", "annotations"):
        joined = sorted((entry for part in parts for entry in part[key]), key=lambda entry: entry["id"])
        assert joined == sorted(whole[key], key=lambda entry: entry["id"])
    for part in parts:
        assert {key: part[key] for key in ("categories", "info", "licenses")} == {
            key: whole[key] for key in ("categories", "info", "licenses")
        }
        own = {video["id"] for video in part["videos"]}
        assert all(entry["video_id"] in own for entry in part["annotations"])
    assert run("make_split", *arguments) == 2
    assert "exist already" in capsys.readouterr().err
    assert run("make_split", *arguments, "--overwrite") == 0


def test_files_without_annotations_cannot_be_split(case, tmp_path, capsys):
    truth = json.loads((case / "gt.json").read_text())
    (tmp_path / "valid.json").write_text(json.dumps({**truth, "annotations": []}))
    assert run("make_split", tmp_path / "valid.json", "--output", tmp_path) == 2
    assert "has no annotations; split a training file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", ['{"a": [{"size": [2, 2], "counts": [1, 3]}, null, {"size": [2, 2], "counts": "13"}]}']
)
def test_written_mask_files_are_what_was_read(text, tmp_path):
    (tmp_path / "a.json").write_text(text)
    file = read_mask_file(tmp_path / "a.json")
    assert file.document == {"a": [range(0, 1), None, range(1, 2)]}
    write_mask_file(tmp_path / "b.json", file.document, file)
    assert json.loads((tmp_path / "b.json").read_text()) == json.loads(text)
    assert part_of(file._replace(document={"videos": [], "annotations": [], "b": 1}), []) == {
        "videos": [],
        "annotations": [],
        "b": 1,
    }


# ---- check_submission


def test_a_right_submission_is_packed_as_the_servers_want_it(case, tmp_path, capsys):
    archive = tmp_path / "submission.zip"
    options = ("--gt", case / "gt.json", "--server", "ytvis")
    assert run("check_submission", case / "dt.json", *options, "--zip", archive) == 0
    assert "364 predictions, no fault found" in capsys.readouterr().out
    with zipfile.ZipFile(archive) as content:
        assert content.namelist() == ["results.json"]
        assert content.read("results.json") == (case / "dt.json").read_bytes()
    assert run("check_submission", archive, *options) == 0
    assert run("check_submission", case / "dt.json", *options, "--zip", archive) == 2
    assert "exists already" in capsys.readouterr().err


def test_a_data_set_without_annotations_is_enough_to_check(case, tmp_path):
    truth = json.loads((case / "gt.json").read_text())
    del truth["annotations"]
    (tmp_path / "valid.json").write_text(json.dumps(truth))
    assert check_submission(case / "dt.json", tmp_path / "valid.json", "ovis").faults == []


FAULTS = [
    ({"video_id": 1}, r"entry 1 \(video 1\): the data set has no video with this id"),
    ({"category_id": 3}, r"category_id 3 is not among the 5 of the data set \(1 to 9\)"),
    ({"category_id": 0}, "category_id 0 is not among"),
    ({"score": 1.5}, r"score must be in \[0, 1\], got 1.5"),
    ({"score": "1"}, "score must be a number"),
    ({"segmentations": []}, "expected .* segmentations, one per frame, got 0"),
    ({"segmentations": None}, "'segmentations' must be a list"),
    ({"score": ...}, "entry 1: lacks score"),
]


@pytest.mark.parametrize("change, message", FAULTS, ids=[str(change) for change, _ in FAULTS])
def test_faults_are_named_and_nothing_is_packed(change, message, case, tmp_path, capsys):
    results = json.loads((case / "dt.json").read_text())[:3]
    results[1] |= change
    if ... in change.values():
        del results[1]["score"]
    (tmp_path / "r.json").write_text(json.dumps(results))
    options = ("--gt", case / "gt.json", "--server", "ytvis", "--zip", tmp_path / "s.zip")
    assert run("check_submission", tmp_path / "r.json", *options) == 1
    assert not (tmp_path / "s.zip").exists()
    assert "so nothing was packed" in capsys.readouterr().out
    faults = check_submission(tmp_path / "r.json", case / "gt.json", "ytvis").faults
    assert len(faults) == 1
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(faults[0])


@pytest.mark.parametrize(
    "counts, message",
    [
        ("garbage!", "frame 0: .*characters|frame 0: .*"),
        ([9000, 5400], "frame 0: counts are a list; servers want the compressed string"),
    ],
)
def test_masks_that_a_server_cannot_read_are_faults(counts, message, case, tmp_path):
    results = json.loads((case / "dt.json").read_text())
    entry = next(each for each in results if each["segmentations"][0] is not None and each["height"] == 90)
    entry["segmentations"][0]["counts"] = counts
    (tmp_path / "r.json").write_text(json.dumps([entry]))
    (fault,) = check_submission(tmp_path / "r.json", case / "gt.json", "ytvis").faults
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(fault)


def test_null_frames_are_a_fault_only_where_the_server_fails_on_them(case, tmp_path):
    results = json.loads((case / "dt.json").read_text())
    for entry in results:
        del entry["height"]
    (tmp_path / "r.json").write_text(json.dumps(results))
    for server in ("ytvis", "ovis", "lvvis", "burst"):
        assert check_submission(tmp_path / "r.json", case / "gt.json", server).faults == []
    faults = check_submission(tmp_path / "r.json", case / "gt.json", "hq_ytvis", max_faults=4)
    assert len(faults.faults) == 4 and "is null; this server wants an encoded empty mask" in faults.faults[0]
    assert faults.remarks == ["stopped after 4 faults"]


def test_archives_of_another_layout_are_faults_and_can_be_packed_anew(case, tmp_path):
    with zipfile.ZipFile(tmp_path / "deep.zip", "w") as archive:
        archive.write(case / "dt.json", "folder/results.json")
    (fault,) = check_submission(tmp_path / "deep.zip", case / "gt.json", "ytvis").faults
    assert "must hold only results.json, at the top; found folder/results.json" in fault
    shutil.copy(case / "dt.json", tmp_path / "broken.zip")
    assert "not a zip archive" in check_submission(tmp_path / "broken.zip", case / "gt.json", "ytvis").faults[0]


def test_image_servers_check_images_and_how_many_predictions_they_have(tmp_path):
    images = [{"id": each, "height": 4, "width": 4} for each in (1, 2)]
    truth = {"images": images, "categories": [{"id": 1, "name": "x"}]}
    (tmp_path / "gt.json").write_text(json.dumps(truth))
    entry = {"image_id": 1, "category_id": 1, "score": 0.5, "segmentation": rle.encode(np.eye(4, dtype=bool))}
    for count, server, faults, remarks in ((301, "lvis", 1, 1), (300, "lvis", 0, 1), (101, "coco", 0, 2)):
        (tmp_path / "r.json").write_text(json.dumps([entry] * count))
        findings = check_submission(tmp_path / "r.json", tmp_path / "gt.json", server)
        assert (len(findings.faults), len(findings.remarks)) == (faults, remarks)
    (tmp_path / "r.json").write_text(json.dumps([{**entry, "image_id": 3}, {**entry, "segmentation": None}]))
    faults = check_submission(tmp_path / "r.json", tmp_path / "gt.json", "coco").faults
    assert "entry 0 (image 3): the data set has no image with this id" in faults[0]
    assert "has no segmentation" in faults[1]


def test_every_video_metric_and_image_metric_has_a_server():
    assert set(SERVERS) == {"ytvis", "ovis", "hq_ytvis", "lvvis", "burst", "coco", "lvis"}


# ---- COCO


def coco_files():
    images = [{"id": each, "height": 40, "width": 60} for each in (1, 2)]
    boxes = [(1, (2, 3, 10, 12)), (1, (30, 5, 20, 25)), (2, (0, 0, 40, 30))]
    polygons = [[x, y, x + w, y, x + w, y + h, x, y + h] for _, (x, y, w, h) in boxes]
    annotations = [
        {"id": n, "image_id": image, "category_id": 1, "iscrowd": 0, "bbox": list(box), "segmentation": [polygon]}
        | {"area": box[2] * box[3]}
        for n, ((image, box), polygon) in enumerate(zip(boxes, polygons, strict=True))
    ]
    results = [
        {"image_id": image, "category_id": 1, "score": 0.9 - n / 10, "bbox": list(box)}
        | {"segmentation": rle.to_rle([polygon], 40, 60)}
        for n, ((image, box), polygon) in enumerate(zip(boxes, polygons, strict=True))
    ]
    return {"images": images, "categories": [{"id": 1, "name": "x"}], "annotations": annotations}, results


def test_coco_scores_boxes_and_masks_and_finds_the_annotation_with_id_0():
    tables = score_coco(*coco_files())
    assert set(tables) == {"bbox", "segm"}
    for table in tables.values():
        assert (table["AP"], table["APs"], table["AP-x"]) == (pytest.approx(100),) * 3


def test_coco_equals_pycocotools_on_imperfect_results(capsys):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth, results = coco_files()
    for entry in truth["annotations"]:
        entry["id"] += 1
    shifted = rle.decode(results[0]["segmentation"])
    results[0]["segmentation"] = rle.encode(np.roll(shifted, 2, axis=1))
    results.append({**results[2], "image_id": 1, "score": 0.85})
    coco = COCO()
    coco.dataset = json.loads(json.dumps({**truth, "info": {}}))
    coco.createIndex()
    found = coco.loadRes([{key: value for key, value in entry.items() if key != "bbox"} for entry in results])
    theirs = COCOeval(coco, found, "segm")
    for step in (theirs.evaluate, theirs.accumulate, theirs.summarize):
        step()
    ours = list(score_coco(truth, results)["segm"].values())[:12]
    expected = [math.nan if value < 0 else 100 * value for value in theirs.stats]
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-10)
    assert 0 < ours[0] < 100


def test_coco_without_predictions_scores_0():
    truth, _ = coco_files()
    assert score_coco(truth, [])["segm"]["AP"] == 0


@pytest.mark.parametrize(
    "change, message",
    [
        ({"image_id": 9}, r"detection 1 \(image 9\): the ground truth has no image with this id"),
        ({"score": None}, r"detection 1 \(image 1\): 'score' must be a finite number"),
        ({"segmentation": {"size": [40, 60], "counts": "11"}}, r"detection 1 \(image 1\)"),
        ({"segmentation": {"size": [60, 40], "counts": "11"}}, r"detection 1 \(image 1\)"),
    ],
)
def test_bad_image_results_are_refused_by_their_place(change, message):
    truth, results = coco_files()
    results[1] |= change
    with pytest.raises(ValueError, match=message):
        score_coco(truth, results)
