"""Splitting a training file, and checking and packing a submission, as a user does."""

from __future__ import annotations

import copy
import gzip
import json
import shutil
import tempfile
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from helpers import run_tool, write_evaluation_case
from hypothesis import given, settings
from hypothesis import strategies as st

from lbvq.evaluation.image_metrics import IMAGE_METRICS
from lbvq.evaluation.splits import part_of, split_videos
from lbvq.evaluation.submission import SERVERS, check_submission
from lbvq.evaluation.video_metrics import VideoScorer
from lbvq.files.mask_file import read_mask_file, write_mask_file
from lbvq.masks import rle


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return write_evaluation_case(tmp_path_factory.mktemp("case"))


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
    assert run_tool("make_split", *arguments) == 0
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
    assert run_tool("make_split", *arguments) == 2
    assert "exist already" in capsys.readouterr().err
    assert run_tool("make_split", *arguments, "--overwrite") == 0


def test_files_without_annotations_cannot_be_split(case, tmp_path, capsys):
    truth = json.loads((case / "gt.json").read_text())
    (tmp_path / "valid.json").write_text(json.dumps({**truth, "annotations": []}))
    assert run_tool("make_split", tmp_path / "valid.json", "--output", tmp_path) == 2
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
    assert run_tool("check_submission", case / "dt.json", *options, "--zip", archive) == 0
    assert "364 predictions, no fault found" in capsys.readouterr().out
    with zipfile.ZipFile(archive) as content:
        assert content.namelist() == ["results.json"]
        assert content.read("results.json") == (case / "dt.json").read_bytes()
    assert run_tool("check_submission", archive, *options) == 0
    assert run_tool("check_submission", case / "dt.json", *options, "--zip", archive) == 2
    assert "exists already" in capsys.readouterr().err


def test_a_data_set_without_annotations_is_enough_to_check(case, tmp_path):
    truth = json.loads((case / "gt.json").read_text())
    del truth["annotations"]
    (tmp_path / "valid.json").write_text(json.dumps(truth))
    assert check_submission(case / "dt.json", tmp_path / "valid.json", "ovis").faults == []


FAULTS = [
    ({"video_id": 1}, r"r\.json: detection 1 \(video 1\): .*gt\.json has no video with this id"),
    ({"video_id": ...}, "detection 1: 'video_id' must be an integer, got nothing"),
    ({"video_id": [2]}, r"detection 1: 'video_id' must be an integer, got \[2\]"),
    ({"category_id": 3}, r"category_id 3 is not among the 5 of the data set \(1 to 9\)"),
    ({"category_id": 0}, "category_id 0 is not among"),
    ({"category_id": 1.0}, "'category_id' must be an integer, got 1.0"),
    ({"category_id": [1]}, r"'category_id' must be an integer, got \[1\]"),
    ({"category_id": True}, "'category_id' must be an integer, got True"),
    ({"score": 1.5}, r"score must be in \[0, 1\], got 1.5"),
    ({"score": "1"}, "'score' must be a finite number, got '1'"),
    ({"score": 10**400}, "'score' must be a finite number, got a number of 401 digits"),
    ({"segmentations": []}, "expected .* segmentations, one per frame, got 0"),
    ({"segmentations": None}, "'segmentations' must be a list"),
    ({"segmentations": [[[1, 1, 8, 1, 8, 8]]]}, "frame 0: polygons are no form of results"),
    ({"score": ...}, r"detection 1 \(video \d+\): 'score' must be a finite number, got None"),
    ([], r"detection 1 must be a JSON object, got \[\]"),
]


@pytest.mark.parametrize("change, message", FAULTS, ids=[f"{change!s:.40}" for change, _ in FAULTS])
def test_faults_are_named_and_nothing_is_packed(change, message, case, tmp_path, capsys):
    results = json.loads((case / "dt.json").read_text())[:3]
    results[1] = {key: each for key, each in (results[1] | change).items() if each is not ...} if change else change
    (tmp_path / "r.json").write_text(json.dumps(results))
    options = ("--gt", case / "gt.json", "--server", "ytvis", "--zip", tmp_path / "s.zip")
    assert run_tool("check_submission", tmp_path / "r.json", *options) == 1
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
    text = (case / "dt.json").read_bytes()
    with zipfile.ZipFile(tmp_path / "deep.zip", "w") as archive:
        archive.writestr("folder/results.json", text)
        archive.writestr("__MACOSX/folder/._results.json", b"\0\5\x16\7")
    (tmp_path / "mark.json").write_bytes(b"\xef\xbb\xbf" + text)
    (tmp_path / "wide.json").write_text(text.decode(), encoding="utf-16")
    (tmp_path / "packed.json.gz").write_bytes(gzip.compress(text))
    faults = {
        "deep.zip": "must hold only results.json, at the top; found folder/results.json, __MACOSX",
        "mark.json": "written with a byte order mark; servers read UTF-8",
        "wide.json": "written with utf-16; servers read UTF-8",
        "packed.json.gz": "servers want a .zip archive with results.json",
    }
    wanted = VideoScorer("ytvis", case / "gt.json").update(case / "dt.json").compute().tables["segm"]["AP"]
    for name, fault in faults.items():
        findings = check_submission(tmp_path / name, case / "gt.json", "ytvis")
        assert (findings.num_entries, findings.faults) == (364, []) and fault in findings.layout[0]
        options = ("--gt", case / "gt.json", "--server", "ytvis")
        assert run_tool("check_submission", tmp_path / name, *options) == 1
        archive = tmp_path / f"{name}.mended.zip"
        assert run_tool("check_submission", tmp_path / name, *options, "--zip", archive) == 0
        with zipfile.ZipFile(archive) as content:
            assert content.namelist() == ["results.json"] and content.read("results.json") == text
        for path in (tmp_path / name, archive):
            assert VideoScorer("ytvis", case / "gt.json").update(path).compute().tables["segm"]["AP"] == wanted
    shutil.copy(case / "dt.json", tmp_path / "broken.zip")
    assert "not a zip archive" in check_submission(tmp_path / "broken.zip", case / "gt.json", "ytvis").faults[0]


@pytest.mark.parametrize("server", sorted(SERVERS))
def test_an_empty_list_is_a_fault_since_the_servers_readers_fail_on_it(server, tmp_path, capsys):
    items = [{"id": 1, "height": 10, "width": 10, "length": 1}]
    truth = {"videos": items, "images": items, "categories": [{"id": 1, "name": "a"}]}
    (tmp_path / "gt.json").write_text(json.dumps(truth))
    (tmp_path / "r.json").write_text("[]")
    options = ("--gt", tmp_path / "gt.json", "--server", server, "--zip", tmp_path / "s.zip")
    assert run_tool("check_submission", tmp_path / "r.json", *options) == 1
    assert "there is no prediction" in capsys.readouterr().out and not (tmp_path / "s.zip").exists()


def test_repeated_predictions_and_more_than_are_counted_are_remarked(case):
    results = json.loads((case / "dt.json").read_text())
    findings = check_submission(case / "dt.json", case / "gt.json", "ytvis")
    counts = Counter(entry["video_id"] for entry in results)
    many = [video for video, count in counts.items() if count > 100]
    assert len(many) == 1 and f"1 videos have more than 100 predictions, the first is {many[0]}" in str(
        findings.remarks
    )
    seen, repeated = {}, []
    for index, entry in enumerate(results):
        key = json.dumps([entry["video_id"], entry["category_id"], entry["segmentations"]])
        if seen.setdefault(key, index) != index:
            repeated.append((index, seen[key]))
    text = f"{len(repeated)} predictions have the video, class and masks of an earlier one"
    assert repeated and f"{text}, which counts as false; the first is {repeated[0][0]}, like {repeated[0][1]}" in str(
        findings.remarks
    )


def test_an_annotation_file_that_is_broken_is_an_error_and_no_fault_of_the_results(case, tmp_path, capsys):
    (tmp_path / "gt.json").write_text('{"videos": 7}')
    options = ("--gt", tmp_path / "gt.json", "--server", "ytvis")
    assert run_tool("check_submission", case / "dt.json", *options) == 2
    assert "gt.json must have a list 'videos', got int" in capsys.readouterr().err


VALUES = st.one_of(
    *(st.none(), st.booleans(), st.integers(-3, 12), st.sampled_from([10**30, 10**400, 0.5, 2.0, 1e300, -1.5])),
    *(st.text(max_size=3), st.lists(st.integers(0, 9), max_size=3), st.just({}), st.just([[0, 0, 3, 0, 3, 3]])),
    *(st.just({"size": [4, 4], "counts": "04d0"}), st.just({"size": [4, 4], "counts": [0, 16]})),
)
KEYS = ("video_id", "image_id", "category_id", "score", "segmentations", "segmentation", "bbox")
PATHS = st.sampled_from(
    [
        *((), *((key,) for key in KEYS), ("segmentation", "counts")),
        *(("segmentations", 0), ("segmentations", 0, "size"), ("segmentations", 0, "counts")),
    ]
)


def change_at(node, path, value):
    """Set what a path leads to, if it leads anywhere."""
    key, *rest = path
    if not isinstance(node, dict) and not (isinstance(node, list) and key == 0 and node):
        return
    if not rest:
        node[key] = value
    elif isinstance(node, list) or key in node:
        change_at(node[key], rest, value)


@given(st.lists(st.tuples(PATHS, VALUES), max_size=2), st.sampled_from(sorted(SERVERS)))
@settings(max_examples=120, deadline=None)
def test_what_passes_the_check_can_be_scored(changes, server):
    """And every refusal is a ValueError that names the file."""
    items = [{"id": 1, "height": 4, "width": 4, "length": 1}]
    truth = {"videos": items, "images": items, "annotations": []}
    truth["categories"] = [{"id": 1, "name": "a", "frequency": "r", "partition": 0}]
    mask = rle.encode(np.eye(4, dtype=bool))
    entry = {"video_id": 1, "image_id": 1, "category_id": 1, "score": 0.5, "segmentation": mask}
    entry["bbox"] = [0, 0, 4, 4]
    entry["segmentations"] = [mask]
    content = json.loads(json.dumps([entry]))
    for path, value in changes:
        change_at(content, (0, *path), copy.deepcopy(value))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "gt.json").write_text(json.dumps(truth))
        results = Path(folder) / "r.json"
        results.write_text(json.dumps(content))
        findings = check_submission(results, Path(folder) / "gt.json", server)
        try:
            if server in IMAGE_METRICS:
                IMAGE_METRICS[server](Path(folder) / "gt.json", results)
            else:
                VideoScorer(server, Path(folder) / "gt.json").update(results)
        except ValueError as error:
            assert findings.faults and str(results) in str(error)
        for fault in findings.faults:
            assert str(results) in fault


def test_image_servers_check_images_and_how_many_predictions_they_have(tmp_path):
    images = [{"id": each, "height": 4, "width": 4} for each in (1, 2)]
    truth = {"images": images, "categories": [{"id": 1, "name": "x"}]}
    (tmp_path / "gt.json").write_text(json.dumps(truth))
    entry = {"image_id": 1, "category_id": 1, "score": 0.5, "segmentation": rle.encode(np.eye(4, dtype=bool))}
    for count, server, faults, remarks in ((301, "lvis", 1, 2), (300, "lvis", 0, 2), (101, "coco", 0, 3)):
        (tmp_path / "r.json").write_text(json.dumps([entry] * count))
        findings = check_submission(tmp_path / "r.json", tmp_path / "gt.json", server)
        assert (len(findings.faults), len(findings.remarks)) == (faults, remarks)
    (tmp_path / "r.json").write_text(json.dumps([{**entry, "image_id": 3}, {**entry, "segmentation": None}]))
    faults = check_submission(tmp_path / "r.json", tmp_path / "gt.json", "coco").faults
    assert "detection 0 (image 3): " in faults[0] and "gt.json has no image with this id" in faults[0]
    assert "has no 'segmentation'" in faults[1]


def test_every_video_metric_and_image_metric_has_a_server():
    assert set(SERVERS) == {"ytvis", "ovis", "hq_ytvis", "lvvis", "burst", "coco", "lvis"}


def videos_of_classes(numbers):
    """Content with a video for every entry of `numbers` (class -> how many), one track each."""
    videos = [{"id": index} for index in range(1, sum(numbers.values()) + 1)]
    classes = [name for name, number in numbers.items() for _ in range(number)]
    annotations = [{"id": v["id"], "video_id": v["id"], "category_id": c} for v, c in zip(videos, classes, strict=True)]
    return {"videos": videos, "categories": [{"id": each} for each in numbers], "annotations": annotations}


@pytest.mark.parametrize("seed", range(5))
def test_every_class_gives_its_share_and_one_of_a_single_video_none(seed):
    split = split_videos(videos_of_classes({1: 20, 2: 10, 3: 4, 4: 2, 5: 1}), 0.2, seed)
    assert split.tracks == {1: (16, 4), 2: (8, 2), 3: (3, 1), 4: (2, 0), 5: (1, 0)}


@pytest.mark.parametrize("seed", range(8))
def test_rare_classes_are_served_before_common_ones(seed):
    """Two of ten videos of class 1 show class 2 as well; whatever class 1 draws, class 2 is on both sides."""
    content = videos_of_classes({1: 10})
    content["categories"].append({"id": 2})
    content["annotations"] += [{"id": 20 + v, "video_id": v, "category_id": 2} for v in (4, 7)]
    assert split_videos(content, 0.5, seed).tracks == {1: (5, 5), 2: (1, 1)}


def test_a_class_never_loses_its_last_training_video():
    split = split_videos(videos_of_classes({1: 2, 2: 3}), 0.9, seed=0)
    assert split.tracks == {1: (1, 1), 2: (1, 2)}
