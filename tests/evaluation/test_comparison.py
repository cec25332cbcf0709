"""The bootstrap over videos, and two results side by side."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers import run_tool
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_tube_ap import as_files, random_case

from lbvq.__main__ import main
from lbvq.cli.compare import METRICS
from lbvq.evaluation.bootstrap import Interval, draw_videos, mean_over_categories, weighted_ap
from lbvq.evaluation.coco import score_coco
from lbvq.evaluation.comparison import Comparison, compare_files, judge_files
from lbvq.evaluation.image_metrics import IMAGE_METRICS
from lbvq.evaluation.tube_ap import TubeAP
from lbvq.evaluation.video_metrics import VIDEO_METRICS
from lbvq.files.mask_file import MaskFile
from lbvq.masks import rle

seeds = st.integers(0, 2**31 - 1)


def random_files(seed, num_videos=4):
    """A random small world in which no two scores are equal."""
    case = random_case(seed, num_videos=num_videos)
    rng = np.random.RandomState(seed)
    for detection, score in zip(case["detections"], rng.permutation(len(case["detections"])), strict=True):
        detection["score"] = (score + 1.0) / (len(case["detections"]) + 1)
    return as_files(case, rle.encode)


def as_mask_files(*contents):
    return [MaskFile.of(content, f"file {index}") for index, content in enumerate(contents)]


def judged(truth, results):
    videos, found = judge_files("ytvis", *as_mask_files(truth), as_mask_files(results))
    return np.array(sorted(videos)), found[0]["segm"]


def repeated(truth, results, counts):
    """Both files with every video as often as `counts` (id -> number) says, copies behind each other."""
    copies = {video: [100 * video + copy for copy in range(count)] for video, count in counts.items()}
    videos = [{**each, "id": copy} for each in truth["videos"] for copy in copies[each["id"]]]
    tracks = [{**each, "video_id": copy} for each in truth["annotations"] for copy in copies[each["video_id"]]]
    tracks = [{**each, "id": index} for index, each in enumerate(tracks, start=1)]
    drawn = [{**each, "video_id": copy} for each in results for copy in copies[each["video_id"]]]
    return {**truth, "videos": videos, "annotations": tracks}, drawn


@given(seeds)
@settings(max_examples=8, deadline=None)
def test_weights_give_what_files_with_repeated_videos_give(seed):
    truth, results = random_files(seed)
    videos, outcomes = judged(truth, results)
    weights = draw_videos(len(videos), 6, seed % 100)
    ap = weighted_ap(outcomes, videos, weights)
    for row, own in zip(weights.tolist(), ap, strict=True):
        files = repeated(truth, results, dict(zip(videos.tolist(), row, strict=True)))
        naive = TubeAP(files[0]).update(files[1]).compute()
        for k, category in enumerate(naive.categories):
            for s, iou in enumerate(naive.settings.iou_thresholds):
                expected = naive.average(iou=iou, category_ids=[category])
                assert own[s, k] == pytest.approx(expected, abs=1e-12) if expected >= 0 else np.isnan(own[s, k])
        assert np.nan_to_num(mean_over_categories(own.mean(0)), nan=-1) == pytest.approx(naive.average())


@given(seeds)
@settings(max_examples=8, deadline=None)
def test_every_video_once_gives_ap_and_the_interval_contains_it(seed):
    truth, results = random_files(seed)
    ap = TubeAP(truth).update(results).compute().average()
    rows = compare_files("ytvis", *as_mask_files(truth, results, results[::2]), resamples=20, seed=seed)[
        "segm"
    ].to_dict()
    row = rows["scores"]["AP"]
    assert np.nan_to_num(row["a"]["value"], nan=-100) == pytest.approx(100 * ap)
    for each in [*rows["scores"].values(), *rows["per_class"]]:
        for name in ("a", "b", "difference"):
            own = each[name]
            assert np.isnan(own["low"]) or own["low"] <= own["value"] <= own["high"]
        assert np.isnan(ap) or each["difference"]["value"] == pytest.approx(
            each["b"]["value"] - each["a"]["value"], nan_ok=True
        )


def test_an_interval_is_widened_to_its_value():
    assert Interval.of(5.0, np.array([1.0, 2.0, np.nan])).to_dict()["high"] == 5
    row = Interval.of(0.0, np.linspace(-1, 1, 201), 0.5)
    assert (row.low, row.high, row.above) == (pytest.approx(-0.5), pytest.approx(0.5), pytest.approx(0.5))


def test_draws_depend_on_the_seed_alone_and_draw_as_many_videos_as_there_are():
    first, again, other = draw_videos(30, 50, 1), draw_videos(30, 50, 1), draw_videos(30, 50, 2)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any() and (first.sum(1) == 30).all()
    assert first.mean() == 1 and 0.3 < (first == 0).mean() < 0.42  # (1 - 1/n)^n of the videos are not drawn
    assert draw_videos(0, 3).shape == (3, 0)


def box(x):
    mask = np.zeros((10, 40), bool)
    mask[:8, x : x + 8] = True
    return rle.encode(mask)


def scene(num_videos=30, wrong=()):
    """One object per video; b finds it everywhere, a in all videos but those in `wrong`."""
    videos = [
        {"id": v, "height": 10, "width": 40, "length": 1, "file_names": [f"v{v}/0.jpg"]} for v in range(num_videos)
    ]
    tracks = [
        {"id": v + 1, "video_id": v, "category_id": 1, "iscrowd": 0, "segmentations": [box(0)]}
        for v in range(num_videos)
    ]
    results = [
        [
            {"video_id": v, "category_id": 1, "score": 0.9, "segmentations": [box(20 if v in own else 0)]}
            for v in range(num_videos)
        ]
        for own in (wrong, ())
    ]
    return {"videos": videos, "categories": [{"id": 1, "name": "cat"}], "annotations": tracks}, *results


def test_equal_results_differ_by_nothing():
    truth, _, b = scene()
    content = compare_files("ytvis", *as_mask_files(truth, b, b), resamples=50)["segm"].to_dict()
    assert content["scores"]["AP"]["difference"] == {"value": 0, "low": 0, "high": 0, "above_zero": 0.5}
    assert content["changed_most"] == []


def test_the_videos_that_changed_are_named_and_explain_the_difference():
    truth, a, b = scene(wrong=(3, 7))
    comparison = compare_files("ytvis", *as_mask_files(truth, a, b), resamples=200)["segm"]
    content = comparison.to_dict()
    assert content["changed_most"] == [3, 7]
    first = content["per_video"][0]
    assert (first["name"], first["a"], first["b"], first["difference"]) == ("v3", 0, *[pytest.approx(100)] * 2)
    assert first["influence"] > 0 and content["per_video"][5]["influence"] <= 0
    row = content["scores"]["AP"]["difference"]
    assert row["value"] > 0 and row["low"] == 0 and row["above_zero"] > 0.9  # some draws lack both
    assert content == Comparison(comparison.videos, comparison.a, comparison.b, resamples=200).to_dict()
    other = Comparison(comparison.videos, comparison.a, comparison.b, resamples=200, seed=1).to_dict()
    assert other["scores"]["AP"]["difference"]["above_zero"] != row["above_zero"] or other != content


# ---- images


def image_files(seed):
    """A random world of one frame per video as COCO files."""
    truth, results = random_files(seed)
    annotations = [
        {"id": each["id"], "image_id": each["video_id"], "category_id": each["category_id"], "iscrowd": each["iscrowd"]}
        | {"segmentation": mask, "bbox": rle.to_bbox(mask), "area": rle.area(mask)}
        for each in truth["annotations"]
        if (mask := each["segmentations"][0]) and rle.area(mask)
    ]
    found = [
        {"image_id": each["video_id"], "category_id": each["category_id"], "score": each["score"], "segmentation": mask}
        for each in results
        if (mask := each["segmentations"][0])
    ]
    images = [{key: each[key] for key in ("id", "height", "width")} for each in truth["videos"]]
    return {"images": images, "categories": truth["categories"], "annotations": annotations}, found


@pytest.mark.parametrize("metric", ["coco", "lvis"])
@pytest.mark.parametrize("seed", range(3))
def test_images_give_the_numbers_of_their_metrics(metric, seed):
    truth, results = image_files(seed)
    if metric == "lvis":
        for image in truth["images"]:
            image |= {"neg_category_ids": [], "not_exhaustive_category_ids": []}
        for category in truth["categories"]:
            category["frequency"] = "f"
    ours = compare_files(metric, *as_mask_files(truth, results, results[1:]), resamples=5)["segm"].to_dict()
    theirs = IMAGE_METRICS[metric](truth, results)["segm"]
    for name in ("AP", "AP50", "AP75"):
        assert ours["scores"][name]["a"]["value"] == pytest.approx(theirs[name], nan_ok=True)


def test_boxes_without_masks_are_compared_too():
    truth, results = image_files(1)
    boxes = [{**each, "bbox": rle.to_bbox(each["segmentation"]), "segmentation": None} for each in results]
    boxes = [each for each in boxes if each["bbox"][2] > 0]
    ours = compare_files("coco", *as_mask_files(truth, boxes, boxes), resamples=5)
    assert list(ours) == ["bbox"]
    assert ours["bbox"].to_dict()["scores"]["AP"]["b"]["value"] == pytest.approx(score_coco(truth, boxes)["bbox"]["AP"])


# ---- the command


def test_compare_prints_and_writes_every_class_and_video(tmp_path, capsys):
    for name, content in zip(("gt", "a", "b"), scene(wrong=(3, 7)), strict=True):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    files = [str(tmp_path / name) for name in ("a.json", "b.json")]
    options = ["--gt", str(tmp_path / "gt.json"), "--resamples", "100", "--json", str(tmp_path / "out.json")]
    assert main(["compare", *files, *options]) == 0
    text = capsys.readouterr().out
    written = json.loads((tmp_path / "out.json").read_text())["tasks"]["segm"]
    assert [row["video_id"] for row in written["per_video"][:2]] == written["changed_most"] == [3, 7]
    assert len(written["per_video"]) == 30 and "3 v3" in text and f"{written['scores']['AP']['a']['value']:.3f}" in text
    assert run_tool("eval_json", files[0], "--gt", options[1], "--metric", "ytvis") == 0
    assert f"{written['scores']['AP']['a']['value']:.3f}" in capsys.readouterr().out


def test_every_metric_of_the_evaluator_can_be_chosen():
    assert set(METRICS) == {*VIDEO_METRICS, *IMAGE_METRICS}


def test_files_that_have_no_task_in_common_are_refused():
    truth, results = image_files(1)
    boxes = [{**each, "bbox": [0, 0, 2, 2], "segmentation": None} for each in results]
    with pytest.raises(ValueError, match="nothing in common"):
        compare_files("coco", *as_mask_files(truth, results, boxes))


@pytest.mark.parametrize("option", [("--resamples", "0"), ("--confidence", "1"), ("--seed", "-1")])
def test_numbers_that_make_no_sense_are_refused_by_name(option, tmp_path, capsys):
    assert main(["compare", "a.json", "b.json", "--gt", "gt.json", *option]) == 2
    assert option[0] in capsys.readouterr().err
