"""Whatever a file holds either works or is refused by the names of file, video, annotation and frame."""

from __future__ import annotations

import copy
import gzip
import json
import re
import zipfile

import numpy as np
import pytest

from lbvq.evaluation import TubeAP, VideoScorer
from lbvq.evaluation.annotations import GroundTruth
from lbvq.files.mask_file import BLOCK_BYTES, read_mask_file
from lbvq.masks import rle

MASK = {"size": [4, 6], "counts": [2, 3, 4, 3, 12]}  # 6 pixels
OTHER = {"size": [4, 6], "counts": [8, 8, 8]}


def files():
    """Two videos of two frames with one object each, and perfect predictions."""
    videos = [{"id": each, "height": 4, "width": 6, "length": 2, "file_names": ["a.jpg", "b.jpg"]} for each in (3, 8)]
    annotations = [
        {
            "id": number,
            "video_id": video,
            "category_id": 5,
            "iscrowd": 0,
            "segmentations": [mask, None],
            "areas": [6, 0],
        }
        for number, video, mask in ((11, 3, MASK), (12, 8, OTHER))
    ]
    results = [
        {"video_id": video, "category_id": 5, "score": score, "segmentations": [rle.to_rle(mask, 4, 6), None]}
        for score, video, mask in ((0.9, 3, MASK), (0.8, 8, OTHER))
    ]
    return {"videos": videos, "categories": [{"id": 5, "name": "five"}], "annotations": annotations}, results


def score(ground_truth, results, **changes):
    return TubeAP(ground_truth, **changes).update(results).compute().summary()["AP"]


def written(folder, ground_truth, results):
    paths = folder / "truth.json", folder / "results.json"
    for path, content in zip(paths, (ground_truth, results), strict=True):
        path.write_text(json.dumps(content))
    return paths


# ---- what works


def test_the_untouched_files_score_100():
    assert score(*files()) == pytest.approx(100)


@pytest.mark.parametrize("missing", ["areas", "iscrowd", "id"])
def test_annotations_may_lack_areas_crowd_flag_and_id(missing):
    ground_truth, results = files()
    for entry in ground_truth["annotations"]:
        del entry[missing]
    assert score(ground_truth, results) == pytest.approx(100)


def test_missing_areas_are_measured_also_in_videos_without_predictions():
    ground_truth, results = files()
    for entry in ground_truth["annotations"]:
        del entry["areas"]
    table = TubeAP(ground_truth, area_ranges={"all": (0, 1e10), "small": (0, 7), "medium": (8, 20), "large": (20, 99)})
    averages = table.update(results[:1]).compute().averages()
    assert (averages["ARs"], averages["ARm"], averages["ARl"]) == (1, 0, -1)


@pytest.mark.parametrize("missing", ["height", "width", "length", "file_names"])
def test_videos_may_lack_what_the_masks_tell(missing):
    ground_truth, results = files()
    for video in ground_truth["videos"]:
        del video[missing]
    assert score(ground_truth, results) == pytest.approx(100)


@pytest.mark.parametrize("empty", [None, [], {}])
def test_frames_without_the_object_may_be_null_or_empty(empty):
    ground_truth, results = files()
    ground_truth["annotations"][0]["segmentations"][1] = empty
    results[0]["segmentations"][1] = empty
    assert score(ground_truth, results) == pytest.approx(100)


def test_an_encoded_empty_mask_is_the_same_as_none():
    ground_truth, results = files()
    results[0]["segmentations"][1] = rle.to_rle([], 4, 6)
    assert score(ground_truth, results) == pytest.approx(100)


def test_polygons_work():
    ground_truth, results = files()
    ground_truth["annotations"][0]["segmentations"][0] = [[1, 0, 4, 0, 4, 3, 1, 3]]
    mask = rle.to_rle([[1, 0, 4, 0, 4, 3, 1, 3]], 4, 6)
    results[0]["segmentations"][0] = mask
    assert score(ground_truth, results) == pytest.approx(100)


def test_no_prediction_scores_0_and_no_track_scores_nothing():
    ground_truth, results = files()
    assert score(ground_truth, []) == 0
    assert np.isnan(score({**ground_truth, "annotations": []}, results))
    assert np.isnan(score({**ground_truth, "annotations": None}, []))
    assert np.isnan(score({"videos": [], "categories": [], "annotations": []}, []))


def test_predictions_on_a_video_without_tracks_are_false():
    ground_truth, results = files()
    ground_truth["annotations"] = ground_truth["annotations"][:1]
    results[1]["score"] = 1.0
    assert score(ground_truth, results) == pytest.approx(50)


def test_unknown_categories_of_predictions_are_ignored_with_a_warning(caplog):
    ground_truth, results = files()
    results += [{**results[0], "category_id": 6, "score": 1.0}]
    assert score(ground_truth, results) == pytest.approx(100)
    assert "category ids that ground truth does not list were ignored: 6 (detection 2)" in caplog.text


def test_archives_and_every_way_of_writing_json_are_read(tmp_path):
    ground_truth, results = files()
    text = json.dumps(results)
    (tmp_path / "plain.json").write_text(text)
    (tmp_path / "compact.json").write_text(json.dumps(results, separators=(",", ":")))
    (tmp_path / "indented.json").write_text(json.dumps(results, indent=3))
    (tmp_path / "sorted.json").write_text(json.dumps(results, sort_keys=True))
    (tmp_path / "escaped.json").write_text(text.replace("counts", "count\\u0073"))
    (tmp_path / "packed.json.gz").write_bytes(gzip.compress(text.encode()))
    with zipfile.ZipFile(tmp_path / "packed.zip", "w") as archive:
        archive.writestr("results.json", text)
    for path in tmp_path.iterdir():
        assert score(ground_truth, path) == pytest.approx(100), path.name


def test_masks_that_cross_the_blocks_of_a_file_are_found(tmp_path):
    ground_truth, results = files()
    ground_truth["info"] = {"note": "x" * (BLOCK_BYTES - 300)}
    path = tmp_path / "truth.json"
    for padding in range(0, 300, 23):
        path.write_text(json.dumps({"info": {"note": "x" * (BLOCK_BYTES - 300 + padding)}, **ground_truth}))
        file = read_mask_file(path)
        assert len(file.texts) == 2
        assert score(path, results) == pytest.approx(100)


def test_text_that_looks_like_a_mark_or_a_number_does_not_confuse_the_reader(tmp_path):
    ground_truth, results = files()
    ground_truth["categories"][0]["name"] = 'NaN, NaN and {"size": [1, 2], "counts": "3"} of Infinity'
    path, _ = written(tmp_path, ground_truth, results)
    truth = GroundTruth(path)
    assert truth.category_name(5) == ground_truth["categories"][0]["name"]
    assert score(path, results) == pytest.approx(100)


@pytest.mark.parametrize(
    "path, value",
    [
        (("videos", 0, "height"), 4.0),
        (("videos", 0, "length"), 2.0),
        (("annotations", 0, "iscrowd"), None),
        (("annotations", 0, "video_id"), 3.0),
        (("categories", 0, "id"), 5.0),
        (("videos", 0, "file_names"), ["D:\\data\\1\\0.jpg", "D:\\data\\1\\1.jpg"]),
    ],
    ids=str,
)
def test_whole_numbers_with_a_point_null_flags_and_paths_of_windows_are_read(path, value, tmp_path):
    ground_truth, results = files()
    change(ground_truth, path, value)
    assert score(*written(tmp_path, ground_truth, results)) == pytest.approx(100)


def test_objects_of_videos_that_the_file_does_not_list_are_left_out_and_the_first_is_named(caplog):
    ground_truth, results = files()
    lost = {**ground_truth["annotations"][0], "id": 13, "video_id": 9}
    assert score({**ground_truth, "annotations": [*ground_truth["annotations"], lost]}, results) == pytest.approx(100)
    assert "contains 3 annotations, but only 2 of them match" in caplog.text
    assert "The first that does not: ground truth: video 9, annotation 13" in caplog.text


def test_two_tracks_of_a_video_with_one_id_are_refused():
    ground_truth, results = files()
    ground_truth["annotations"].append(ground_truth["annotations"][0])
    with pytest.raises(ValueError, match="ground truth: video 3 has two annotations with the id 11"):
        score(ground_truth, results)


# ---- published behaviour on request


def test_a_track_with_id_0_is_found_unless_the_published_behaviour_is_wanted():
    ground_truth, results = files()
    ground_truth["annotations"][0]["id"] = 0
    assert score(ground_truth, results) == pytest.approx(100)
    table = VideoScorer("ytvis", ground_truth, reference=True).update(results).compute().tables["segm"]
    assert table["AR100"] == pytest.approx(50)


def test_another_number_of_frames_is_refused_unless_the_published_behaviour_is_wanted():
    """As published the frames are paired up to the end of the shorter list; the rest is dropped."""
    ground_truth, results = files()
    longer = copy.deepcopy(results)
    longer[0]["segmentations"] += [rle.to_rle(OTHER, 4, 6)]
    with pytest.raises(ValueError, match=r"predictions: detection 0 \(video 3\): expected 2 segmentations, .* got 3"):
        score(ground_truth, longer)
    table = VideoScorer("ytvis", ground_truth, reference=True).update(longer).compute().tables["segm"]
    assert table["AP"] == pytest.approx(100)
    ground_truth["annotations"][1]["segmentations"] = [None, OTHER, OTHER]
    with pytest.raises(ValueError, match="ground truth: video 8, annotation 12: expected 2 segmentations"):
        TubeAP(ground_truth)
    table = VideoScorer("ytvis", ground_truth, reference=True).update(results).compute().tables["segm"]
    assert table["AP"] < 60


def test_refined_masks_are_used_for_masks_and_boundaries_but_as_published_only_for_boundaries():
    """`segmentations` is something else, `segmentations_refined` is what was predicted."""
    ground_truth, results = files()
    for entry, other in zip(ground_truth["annotations"], (OTHER, MASK), strict=True):
        entry["segmentations_refined"], entry["segmentations"] = entry["segmentations"], [other, None]
    tables = VideoScorer("hq_ytvis", ground_truth).update(results).compute().tables
    assert (tables["segm"]["AP"], tables["boundary"]["AP"]) == (pytest.approx(100), pytest.approx(100))
    tables = VideoScorer("hq_ytvis", ground_truth, reference=True).update(results).compute().tables
    assert (tables["segm"]["AP"], tables["boundary"]["AP"]) == (0, 0)  # the smaller of both overlaps counts
    for entry, own in zip(ground_truth["annotations"], (MASK, OTHER), strict=True):
        entry["segmentations_refined"], entry["segmentations"] = [MASK if own is OTHER else OTHER, None], [own, None]
    tables = VideoScorer("hq_ytvis", ground_truth, reference=True).update(results).compute().tables
    assert (tables["segm"]["AP"], tables["boundary"]["AP"]) == (pytest.approx(100), 0)


def test_occlusion_of_objects_that_are_never_visible_is_0_and_missing_occlusion_is_reported(caplog):
    ground_truth, results = files()
    ground_truth["annotations"][0]["occlusion"] = [None, None]
    table = VideoScorer("ovis", ground_truth).update(results).compute().tables["segm"]
    assert (table["AP"], table["AR_light"]) == (pytest.approx(100), pytest.approx(100))
    assert np.isnan(table["AR_heavy"])
    assert "1 annotations have no 'occlusion'" in caplog.text


# ---- what is refused


def change(target, path, value):
    *parents, last = path
    for key in parents:
        target = target[key]
    if value is KeyError:
        del target[last]
    else:
        target[last] = value


BAD_RESULTS = [
    ((0, "video_id"), 4, "results.json: detection 0 (video 4): .*truth.json has no video with this id"),
    ((1, "video_id"), KeyError, "results.json: detection 1: 'video_id' must be an integer, got nothing"),
    ((1, "video_id"), "8", "results.json: detection 1: 'video_id' must be an integer, got '8'"),
    ((1, "category_id"), None, "results.json: detection 1 (video 8): 'category_id' must be an integer, got None"),
    ((1, "score"), KeyError, "results.json: detection 1 (video 8): 'score' must be a finite number, got None"),
    ((1, "score"), "0.5", "results.json: detection 1 (video 8): 'score' must be a finite number, got '0.5'"),
    ((1, "score"), float("nan"), "results.json: not valid JSON: the word NaN"),
    ((1, "segmentations"), KeyError, "detection 1 (video 8): 'segmentations' must be a list .* got nothing"),
    ((1, "segmentations"), None, "detection 1 (video 8): 'segmentations' must be a list .* got nothing"),
    ((1, "segmentations", 0, "size"), [6, 4], "detection 1 (video 8), frame.* size (6, 4) .* the video's (4, 6)"),
    ((1, "segmentations", 0, "size"), KeyError, "(video 8), frame 0: a mask needs 'size' and 'counts'"),
    ((1, "segmentations", 0), 7, "(video 8), frame 0: .*int"),
    ((1, "segmentations", 0), [[0, 0, 3, 0, 3, 3]], "(video 8), frame 0: polygons are no form of results"),
    ((1, "segmentations", 0), 0, "(video 8), frame 0: .*int"),
    ((1, "category_id"), 5.0, "detection 1 (video 8): 'category_id' must be an integer, got 5.0"),
    ((1, "category_id"), [5], "detection 1 (video 8): 'category_id' must be an integer, got [5]"),
    ((1, "video_id"), 10**400, "results.json: detection 1: 'video_id' must be an integer .* a number of 401 digits"),
    ((1, "score"), 10**400, "results.json: detection 1 (video 8): 'score' must be .* a number of 401 digits"),
    ((1, "segmentations", 0, "size"), [4.0, 6.0], "(video 8), frame.* size must be two integers"),
    ((1,), "detection", "results.json: detection 1 must be a JSON object, got 'detection'"),
]


@pytest.mark.parametrize(
    "path, value, message", BAD_RESULTS, ids=[f"{path[1:]}-{value!s:.20}" for path, value, _ in BAD_RESULTS]
)
def test_bad_results_are_refused_by_file_video_and_frame(path, value, message, tmp_path):
    ground_truth, results = files()
    change(results, path, value)
    truth_path, results_path = written(tmp_path, ground_truth, results)
    with pytest.raises(ValueError, match=re.sub(r"[()\[\]]", r"\\\g<0>", message)):
        score(truth_path, results_path)


BAD_TRUTH = [
    (("videos",), KeyError, "truth.json must have a list 'videos', got nothing"),
    (("categories",), None, "truth.json must have a list 'categories', got nothing"),
    (("annotations",), {}, "truth.json: 'annotations' must be a list or null, got dict"),
    (("videos", 0, "id"), 8, "truth.json: two entries have the video id 8"),
    (("videos", 0, "length"), 0, "truth.json: video 3: 'length' must be a positive number of frames, got 0"),
    (("videos", 0, "height"), -4, "truth.json: video 3: size must be positive"),
    (("videos", 0, "height"), 10**400, "truth.json: video 3: size must be positive"),
    (("videos", 0, "width"), 1.5, "truth.json: video 3: size must be two integers"),
    (("videos", 0, "width"), "6", "truth.json: video 3: size must be two integers"),
    (("videos", 0, "id"), "vid_3", "truth.json: video at position 0: 'id' must be an integer, got 'vid_3'"),
    (("videos", 0, "id"), -3, "truth.json: video at position 0: 'id' must be an integer from 0 on, got -3"),
    (("videos", 0, "length"), 3, "truth.json: video 3 has length 3 but 2 file_names"),
    (("videos", 0, "file_names"), ["a", "../b"], "truth.json: video 3: file name '../b' leads out"),
    (("videos", 0, "neg_category_ids"), [[5]], "truth.json: video 3: 'neg_category_ids' must be a list of ids"),
    (("categories", 0, "name"), "\ud800", "truth.json: category 5: .* is not valid Unicode"),
    (("annotations", 1, "id"), -1, "annotation at position 1: 'id' must be an integer from 0 on, got -1"),
    (("annotations", 1), [], "truth.json: annotation at position 1 must be a JSON object"),
    (("annotations", 1, "areas"), [-5, None], "video 8, annotation 12: 'areas' must be a list of numbers or nulls"),
    (("annotations", 1, "category_id"), 6, "video 8, annotation 12: category_id 6 is not among the file's 5"),
    (("annotations", 1, "iscrowd"), 2, "video 8, annotation 12: 'iscrowd' must be 0 or 1, got 2"),
    (("annotations", 1, "areas"), "8", "video 8, annotation 12: 'areas' must be a list of numbers or nulls"),
    (("annotations", 1, "occlusion"), ["some", None], "video 8, annotation 12: 'occlusion' must list"),
    (("annotations", 1, "segmentations"), KeyError, "video 8, annotation 12: 'segmentations' must be a list"),
    (
        ("annotations", 1, "segmentations", 0),
        [[1, 2, 3]],
        "video 8, annotation 12, frame 0: polygon 0 must have at least",
    ),
]


@pytest.mark.parametrize(
    "path, value, message", BAD_TRUTH, ids=[f"{path}-{value!s:.20}" for path, value, _ in BAD_TRUTH]
)
def test_bad_ground_truth_is_refused_by_file_video_and_annotation(path, value, message, tmp_path):
    ground_truth, results = files()
    change(ground_truth, path, value)
    truth_path, results_path = written(tmp_path, ground_truth, results)
    with pytest.raises(ValueError, match=message.replace("(", r"\(").replace(")", r"\)")):
        score(truth_path, results_path)


BAD_COUNTS = [
    [5, 5],
    [30],
    [25, -1],
    [],
    [1.5, 22.5],
    ["24"],
    None,
    "",
    "P",
    "!!",
    "é",
    "0\\",
    'a"b',
    "o" * 40,
    "0" * 500,
]


@pytest.mark.parametrize("counts", BAD_COUNTS, ids=map(repr, BAD_COUNTS))
@pytest.mark.parametrize("from_file", [True, False])
def test_broken_masks_are_refused_by_their_place_in_both_files(counts, from_file, tmp_path):
    """Runs that do not fill the frame would be uninitialised memory for pycocotools, or an endless loop."""
    for side, where in (("results", r"detection 1 \(video 8\), frame 0"), ("truth", "video 8, annotation 12, frame 0")):
        ground_truth, results = files()
        target = results[1] if side == "results" else ground_truth["annotations"][1]
        target["segmentations"][0] = {"size": [4, 6], "counts": counts}
        paths = written(tmp_path, ground_truth, results) if from_file else (ground_truth, results)
        with pytest.raises(ValueError, match=where):
            score(*paths)


def test_a_broken_mask_leaves_nothing_of_its_file_behind():
    ground_truth, results = files()
    ap = TubeAP(ground_truth).update(results[:1])
    results[1]["segmentations"][0] = {"size": [4, 6], "counts": [1]}
    with pytest.raises(ValueError, match="detection 1"):
        ap.update(results)
    assert ap.compute().average("AR") == pytest.approx(0.5)


def test_huge_frames_are_refused_before_memory_is_taken():
    ground_truth, results = files()
    results[0]["segmentations"][0] = {"size": [10**6, 10**6], "counts": [10**12]}
    with pytest.raises(ValueError, match=r"detection 0 \(video 3\), frame 0: size must be positive and at most"):
        score(ground_truth, results)


@pytest.mark.parametrize(
    "content, message",
    [
        ('[{"video_id": 3', "not valid JSON: .*line 1 column 16"),
        ("{}", "results must be a list of objects, got dict"),
        ("", "not valid JSON"),
    ],
)
def test_broken_files_are_refused_by_name_and_line(content, message, tmp_path):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(ValueError, match=rf"results\.json: {message}"):
        TubeAP(files()[0]).update(tmp_path / "results.json")


def test_archives_without_exactly_one_json_file_are_refused(tmp_path):
    for names in ([], ["a.json", "b.json"], ["a.txt"]):
        with zipfile.ZipFile(tmp_path / "r.zip", "w") as archive:
            for name in names:
                archive.writestr(name, "[]")
        with pytest.raises(ValueError, match=r"r\.zip: expected exactly one \.json file inside"):
            TubeAP(files()[0]).update(tmp_path / "r.zip")
    (tmp_path / "broken.zip").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"broken\.zip: the archive cannot be read"):
        TubeAP(files()[0]).update(tmp_path / "broken.zip")


def test_other_ground_truth_or_settings_cannot_be_merged():
    ground_truth, results = files()
    ap = TubeAP(ground_truth).update(results)
    for other in (TubeAP({**ground_truth, "annotations": []}), TubeAP(ground_truth, boundary_ratio=0.02)):
        with pytest.raises(ValueError, match="cannot merge"):
            ap.merge(other)
