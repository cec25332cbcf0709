"""Readers of annotation files: equal to the recorded records, tolerant of gaps, clear about mistakes."""

from __future__ import annotations

import json
import logging
import re

import pytest
from data_cases import recorded, square, write_video_file
from synth_vis_dataset import make

from lbvq.data.builtin import rows
from lbvq.data.catalog import DatasetCatalog, MetadataCatalog
from lbvq.data.coco import load_coco_json, load_lvis_json, register_coco_instances
from lbvq.data.ytvis import load_ytvis_json, register_ytvis_instances
from mask2former.structures import BoxMode


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recorded")
    make(folder)
    return folder


def plain(records, root):
    return json.loads(json.dumps(records, default=int).replace(str(root), "ROOT"))


def test_video_records_equal_the_recorded_ones(root):
    records = load_ytvis_json(root / "vis/train.json", root / "vis/images")
    assert plain(records, root) == recorded()["ytvis_dicts"]


def test_image_records_equal_the_recorded_ones(root):
    assert plain(load_coco_json(root / "coco/train.json", root / "coco/images"), root) == recorded()["coco_dicts"]


def test_log_lines_equal_the_recorded_ones(root, caplog):
    caplog.set_level(logging.INFO, logger="lbvq")
    load_ytvis_json(root / "vis/train.json", root / "vis/images", "ytvis_readers_log")
    load_coco_json(root / "coco/train.json", root / "coco/images", "coco_readers_log")
    got = [[record.levelname, record.getMessage().replace(str(root), "ROOT")] for record in caplog.records]
    want = [*recorded()["log"][:4], recorded()["log"][9]]
    (extra,) = [line for line in got if "polygons with fewer than 3 points" in line[1]]  # as published nothing is said
    assert extra[1].startswith("7 ") and extra[1].endswith("video 5, annotation 101, frame 1.")
    got.remove(extra)
    for ours, line in zip(got, want, strict=True):  # warnings go on with the name of the first culprit
        assert ours[0] == line[0] and ours[1].startswith(line[1])
    assert got[1][1].endswith("The first that does not: ROOT/vis/train.json: video 77, annotation 106.")
    assert re.search(r"The first: ROOT/vis/train\.json: video \d, annotation \d+, frame \d\.$", got[3][1])


def test_registering_fills_metadata_from_the_file(root):
    register_ytvis_instances("ytvis_readers", {}, root / "vis/train.json", root / "vis/images")
    register_coco_instances("coco_readers", {}, root / "coco/train.json", root / "coco/images")
    try:
        assert len(DatasetCatalog.get("ytvis_readers")) == 3 and len(DatasetCatalog.get("coco_readers")) == 3
        metadata, want = MetadataCatalog.get("ytvis_readers"), recorded()["ytvis_meta"]
        assert metadata.thing_classes == want["thing_classes"] and metadata.evaluator_type == want["evaluator_type"]
        assert {str(k): v for k, v in metadata.thing_dataset_id_to_contiguous_id.items()} == want["id_map"]
        assert MetadataCatalog.get("coco_readers").kind == "image"
    finally:
        for name in ("ytvis_readers", "coco_readers"):
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


@pytest.mark.parametrize("annotations", [None, []])
def test_a_file_without_annotations_gives_videos_without_objects(tmp_path, annotations):
    records = load_ytvis_json(write_video_file(tmp_path, annotations), tmp_path)
    assert [record["annotations"] for record in records] == [[[], []]]


def test_missing_crowd_flags_areas_and_boxes_are_no_obstacle(tmp_path):
    annotation = {"id": 3, "video_id": 1, "category_id": 1, "segmentations": [square(), None]}
    record = load_ytvis_json(write_video_file(tmp_path, [annotation]), tmp_path)[0]
    assert record["annotations"] == [[{"iscrowd": 0, "category_id": 0, "id": 3, "segmentation": square()}], []]


def test_a_mask_whose_box_is_null_is_left_out_only_where_boxes_are_needed_and_that_is_said(tmp_path, caplog):
    annotation = {
        "id": 3,
        "video_id": 1,
        "category_id": 1,
        "segmentations": [square()] * 2,
        "bboxes": [[1, 1, 4, 4], None],
    }
    path = write_video_file(tmp_path, [annotation])
    found = load_ytvis_json(path, tmp_path)[0]["annotations"]
    assert [len(each) for each in found] == [1, 1] and found[0][0]["bbox_mode"] == BoxMode.XYWH_ABS
    assert caplog.text == ""
    strict = load_ytvis_json(path, tmp_path, needs_boxes=True)[0]["annotations"]
    assert [len(each) for each in strict] == [1, 0]
    assert "1 masks whose box is null were left out" in caplog.text and "annotation 3, frame 1" in caplog.text
    assert {row.name for row in rows() if row.options.get("needs_boxes")} == {
        row.name for row in rows() if row.name.split("_")[0] in ("ytvis", "ovis", "hq") and "synthetic" not in row.name
    }


@pytest.mark.parametrize("boxes", [[[0, 0, 0, 0]] * 2, [[5, 5, -4, 4]] * 2, [[1, 1, 4, 0], [1, 1, -4, -4]]])
def test_boxes_without_area_beside_masks_are_made_from_the_masks_and_that_is_said(tmp_path, boxes, caplog):
    annotation = {"id": 3, "video_id": 1, "category_id": 1, "segmentations": [square()] * 2, "bboxes": boxes}
    record = load_ytvis_json(write_video_file(tmp_path, [annotation]), tmp_path)[0]
    assert [[sorted(each) for each in frame] for frame in record["annotations"]] == [
        [["category_id", "id", "iscrowd", "segmentation"]]
    ] * 2
    assert "2 boxes have no area although their masks have one" in caplog.text and "frame 0" in caplog.text


def test_an_encoded_empty_mask_beside_a_null_box_shows_nothing(tmp_path, caplog):
    masks = [{"size": [8, 10], "counts": [80]}] * 2
    annotation = {"id": 3, "video_id": 1, "category_id": 1, "segmentations": masks, "bboxes": [None, None]}
    assert load_ytvis_json(write_video_file(tmp_path, [annotation]), tmp_path)[0]["annotations"] == [[], []]
    assert caplog.text == ""


def test_refined_masks_are_preferred_where_they_are_asked_for(tmp_path):
    annotation = {"id": 3, "video_id": 1, "category_id": 1, "segmentations": [square(4), square(4)]}
    path = write_video_file(tmp_path, [{**annotation, "segmentations_refined": [square(5), square(5)]}])
    refined = load_ytvis_json(path, tmp_path, segmentations_key="segmentations_refined")[0]
    assert refined["annotations"][0][0]["segmentation"] == square(5)
    assert load_ytvis_json(path, tmp_path)[0]["annotations"][0][0]["segmentation"] == square(4)
    write_video_file(tmp_path, [annotation])
    fallback = load_ytvis_json(path, tmp_path, segmentations_key="segmentations_refined")[0]
    assert fallback["annotations"][0][0]["segmentation"] == square(4)


def test_the_length_decides_how_many_frames_there_are(tmp_path):
    record = load_ytvis_json(write_video_file(tmp_path, length=1), tmp_path)[0]
    assert record["length"] == 1 and len(record["file_names"]) == 1 and record["annotations"] == [[]]


def test_windows_paths_keep_folder_and_file(tmp_path):
    content = json.loads(write_video_file(tmp_path).read_text())
    content["videos"][0]["file_names"] = ["D:\\data\\00012\\0.jpg", "D:\\data\\00012\\1.jpg"]
    (tmp_path / "videos.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"videos\.json: video 1: file name 'D:.* leads out of the folder of images"):
        load_ytvis_json(tmp_path / "videos.json", "root")
    record = load_ytvis_json(tmp_path / "videos.json", "root", windows_paths=True)[0]
    assert record["file_names"] == ["root/00012/0.jpg", "root/00012/1.jpg"]
    assert all(row.options["windows_paths"] for row in rows() if row.categories == "lvvis" and row.kind == "video")


LEADING_OUT = [
    "../a.jpg",
    "a/../../b.jpg",
    "/etc/x.jpg",
    "C:/x.jpg",
    "c:x.jpg",
    "a\\b.jpg",
    "..",
    ".",
    "",
    "a\0.jpg",
    7,
]


@pytest.mark.parametrize("name", LEADING_OUT)
def test_names_of_files_that_leave_the_folder_of_images_are_refused_by_name(tmp_path, name):
    content = json.loads(write_video_file(tmp_path).read_text())
    content["videos"][0]["file_names"] = ["a/0.png", name]
    (tmp_path / "videos.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"videos\.json: video 1: .*file"):
        load_ytvis_json(tmp_path / "videos.json", tmp_path)
    path = write_images(tmp_path, [], file_name=name)
    for load in (load_coco_json, load_lvis_json):
        with pytest.raises(ValueError, match=r"images\.json: image 7: .*file"):
            load(path, tmp_path)


def test_paths_of_windows_may_not_climb_either(tmp_path):
    content = json.loads(write_video_file(tmp_path).read_text())
    content["videos"][0]["file_names"] = ["D:\\a\\..\\0.jpg"] * 2
    (tmp_path / "videos.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"file name '\.\./0\.jpg' leads out"):
        load_ytvis_json(tmp_path / "videos.json", "root", windows_paths=True)


def test_the_address_of_an_lvis_image_may_not_climb(tmp_path):
    path = write_images(tmp_path, [], coco_url="http://images.example/../x.jpg")
    content = json.loads(path.read_text())
    del content["images"][0]["file_name"]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"images\.json: image 7: file name '\.\./x\.jpg' leads out"):
        load_lvis_json(path, "coco")


GOOD = {"id": 3, "video_id": 1, "category_id": 1, "segmentations": [square(), None]}


@pytest.mark.parametrize(
    "annotation, message",
    [
        ({**GOOD, "category_id": 9}, r"video 1, annotation 3: category_id 9 is not among the file's 1"),
        ({**GOOD, "category_id": [1]}, r"video 1, annotation 3: 'category_id' must be an integer, got \[1\]"),
        ({**GOOD, "segmentations": [square()]}, r"video 1, annotation 3: expected 2 segmentations, .* got 1"),
        ({**GOOD, "segmentations": [square()] * 3}, r"video 1, annotation 3: expected 2 segmentations, .* got 3"),
        ({**GOOD, "bboxes": [[0, 0, 1, 1]]}, r"video 1, annotation 3: expected 2 bboxes, .* got 1"),
        ({**GOOD, "bboxes": [[0, 0, "1", 1], None]}, r"annotation 3, frame 0: a box must be 4 finite numbers"),
        ({**GOOD, "bboxes": [[0, 0, 1], None]}, r"annotation 3, frame 0: a box must be 4 finite numbers"),
        ({**GOOD, "iscrowd": 2}, r"video 1, annotation 3: 'iscrowd' must be 0 or 1, got 2"),
        ({**GOOD, "id": "3"}, r"annotation at position 0: 'id' must be an integer, got '3'"),
        ({**GOOD, "id": -1}, r"annotation at position 0: 'id' must be an integer from 0 on, got -1"),
        ({**GOOD, "video_id": "vid_1"}, r"annotation 3: 'video_id' must be an integer, got 'vid_1'"),
        ({"id": 3, "video_id": 1, "category_id": 1, "segmentation": square()}, "has one 'segmentation'; an object of"),
        ({**GOOD, "segmentations": [7, None]}, r"video 1, annotation 3, frame 0: .* got int"),
        ({**GOOD, "segmentations": [{"size": [8, 10]}, None]}, r"annotation 3, frame 0, segmentation has no 'counts'"),
        ({**GOOD, "segmentations": [{"size": [8, 10], "counts": [3, 4]}, None]}, r"video 1, annotation 3, frame 0"),
        ({**GOOD, "segmentations": [{"size": [9, 10], "counts": [90]}, None]}, r"video 1, annotation 3, frame 0"),
        ({"id": 3, "video_id": 1, "category_id": 1}, r"annotation 3: 'segmentations' must be a list .* nothing"),
        ({"id": 3, "category_id": 1}, r"annotation 3: 'video_id' must be an integer, got nothing"),
        (["x"], r"annotation at position 0 must be a JSON object"),
    ],
)
def test_a_wrong_annotation_is_named_with_file_video_and_id(tmp_path, annotation, message):
    path = write_video_file(tmp_path, [annotation])
    with pytest.raises(ValueError, match=message) as caught:
        load_ytvis_json(path, tmp_path)
    assert str(path) in str(caught.value)


def test_two_annotations_of_a_video_with_one_id_are_an_error(tmp_path):
    with pytest.raises(ValueError, match="video 1 has two annotations with the id 3"):
        load_ytvis_json(write_video_file(tmp_path, [GOOD, GOOD]), tmp_path)


@pytest.mark.parametrize(
    "video, message",
    [
        ({"length": 3}, "video 1 has length 3 but 2 file_names"),
        ({"length": 0}, "video 1: 'length' must be a positive number of frames, got 0"),
        ({"length": "2"}, "video 1: 'length' must be a positive number of frames, got '2'"),
        ({"height": -5}, "video 1: size must be positive"),
        ({"width": 1.5}, "video 1: size must be two integers"),
        ({"width": "10"}, "video 1: size must be two integers"),
        ({"height": 10**6, "width": 10**6}, "video 1: size must be positive and at most"),
        ({"id": "vid_1"}, "video at position 0: 'id' must be an integer, got 'vid_1'"),
    ],
)
def test_a_wrong_video_is_named(tmp_path, video, message):
    path = write_video_file(tmp_path, **video)
    with pytest.raises(ValueError, match=message) as caught:
        load_ytvis_json(path, tmp_path)
    assert str(path) in str(caught.value)


def test_numbers_with_a_point_null_flags_and_missing_ids_are_no_obstacle(tmp_path):
    annotation = {"video_id": 1.0, "category_id": 1.0, "iscrowd": None, "segmentations": [square(), None]}
    record = load_ytvis_json(write_video_file(tmp_path, [annotation], width=10.0, length=2.0), tmp_path)[0]
    assert (record["width"], type(record["width"]), record["length"]) == (10, int, 2)
    assert record["annotations"][0] == [{"iscrowd": 0, "category_id": 0, "id": 1, "segmentation": square()}]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_files_saved_by_windows_are_read(tmp_path, encoding):
    path = write_video_file(tmp_path)
    path.write_text(path.read_text(), encoding=encoding)
    assert len(load_ytvis_json(path, tmp_path)) == 1


def test_nan_is_not_json(tmp_path):
    path = write_video_file(tmp_path, [{**GOOD, "bboxes": [[1, 1, float("nan"), 4], None]}])
    with pytest.raises(ValueError, match=r"videos\.json: not valid JSON: the word NaN is not JSON"):
        load_ytvis_json(path, tmp_path)


def test_a_polygon_that_is_left_out_of_a_mask_is_counted_and_named(tmp_path, caplog):
    annotation = {**GOOD, "segmentations": [[*square(), [1, 2, 3, 4]], [[1, 2, 3, 4, 5]]]}
    record = load_ytvis_json(write_video_file(tmp_path, [annotation]), tmp_path)[0]
    assert [len(frame) for frame in record["annotations"]] == [1, 0]
    assert "1 polygons with fewer than 3 points" in caplog.text and "annotation 3, frame 0." in caplog.text
    assert "Filtered out 1 instances" in caplog.text and "annotation 3, frame 1." in caplog.text


@pytest.mark.parametrize("key, link", [("images", "video_id"), ("annotations", "track_id")])
def test_a_coco_file_of_videos_says_that_its_tracks_are_lost(tmp_path, key, link, caplog):
    annotation = {"id": 1, "image_id": 7, "category_id": 2, "segmentation": square()}
    content = json.loads(write_images(tmp_path, [annotation]).read_text())
    content[key][0][link] = 4
    (tmp_path / "images.json").write_text(json.dumps(content))
    load_coco_json(tmp_path / "images.json", "root")
    assert f"1 of its {key} have a '{link}'" in caplog.text and "tracks are not trained on" in caplog.text


def test_a_file_of_the_other_form_says_which_reader_it_is_for(tmp_path):
    with pytest.raises(ValueError, match=r"images\.json .* in COCO form, for register_coco_instances"):
        load_ytvis_json(write_images(tmp_path, []), tmp_path)
    with pytest.raises(ValueError, match=r"videos\.json .* in YouTube-VIS form, for register_ytvis_instances"):
        load_coco_json(write_video_file(tmp_path), tmp_path)


def test_a_missing_file_says_where_data_belong(tmp_path):
    with pytest.raises(FileNotFoundError, match="DETECTRON2_DATASETS"):
        load_ytvis_json(tmp_path / "nothing.json", tmp_path)


@pytest.mark.parametrize("text, message", [("{", "not valid JSON"), ("[]", "must hold a JSON object, got a list")])
def test_a_broken_file_is_named(tmp_path, text, message):
    (tmp_path / "broken.json").write_text(text)
    with pytest.raises(ValueError, match=rf"broken.json.*{message}"):
        load_coco_json(tmp_path / "broken.json", tmp_path)


def test_categories_must_be_those_of_the_data_set(tmp_path):
    path = write_video_file(tmp_path)
    with pytest.raises(
        ValueError, match=r"videos.json has 1 categories .* 40 of 'ytvis_2019_train'.*'person', got 'thing'"
    ):
        load_ytvis_json(path, tmp_path, "ytvis_2019_train")


def test_a_file_without_categories_takes_those_of_the_data_set(tmp_path):
    content = json.loads(write_video_file(tmp_path, [{**GOOD, "category_id": 40}]).read_text())
    del content["categories"]
    (tmp_path / "videos.json").write_text(json.dumps(content))
    record = load_ytvis_json(tmp_path / "videos.json", tmp_path, "ytvis_2021_val")[0]
    assert record["annotations"][0][0]["category_id"] == 39
    with pytest.raises(ValueError, match="list 'categories'"):
        load_ytvis_json(tmp_path / "videos.json", tmp_path)


def write_images(folder, annotations, **image):
    entry = {"id": 7, "file_name": "7.jpg", "height": 8, "width": 10, **image}
    content = {
        "images": [entry],
        "categories": [{"id": 4, "name": "a"}, {"id": 2, "name": "b"}],
        "annotations": annotations,
    }
    (folder / "images.json").write_text(json.dumps(content))
    return folder / "images.json"


def test_images_may_be_without_annotations(tmp_path):
    assert load_coco_json(write_images(tmp_path, None), "root") == [
        {"file_name": "root/7.jpg", "height": 8, "width": 10, "image_id": 7, "annotations": []}
    ]


def test_two_image_annotations_with_one_id_are_an_error(tmp_path):
    annotation = {"id": 1, "image_id": 7, "category_id": 2, "segmentation": square()}
    with pytest.raises(ValueError, match=r"images.json: image 7 has two annotations with the id 1"):
        load_coco_json(write_images(tmp_path, [annotation, annotation]), "root")


def test_an_image_annotation_without_mask_is_left_out_and_counted(tmp_path, caplog):
    annotation = {"id": 1, "image_id": 7, "category_id": 2, "bbox": [0, 0, 2, 2], "segmentation": [[1, 2, 3, 4]]}
    assert load_coco_json(write_images(tmp_path, [annotation]), "root")[0]["annotations"] == []
    assert "Filtered out 1 instances" in caplog.text and "image 7, annotation 1." in caplog.text


def test_lvis_records_tell_what_was_looked_for(tmp_path):
    annotations = [
        {"id": 1, "image_id": 7, "category_id": 4, "bbox": [1, 1, 4, 4], "segmentation": square()},
        {"id": 2, "image_id": 7, "category_id": 4, "iscrowd": 1, "bbox": [1, 1, 4, 4], "segmentation": square()},
    ]
    extra = {"neg_category_ids": [4], "not_exhaustive_category_ids": [2]}
    path = write_images(tmp_path, annotations, coco_url="http://images.example/train2017/0007.jpg", **extra)
    content = json.loads(path.read_text())
    del content["images"][0]["file_name"]
    path.write_text(json.dumps(content))
    record = load_lvis_json(path, "coco")[0]
    assert record["file_name"] == "coco/train2017/0007.jpg"
    assert record["neg_category_ids"] == [1] and record["not_exhaustive_category_ids"] == [2]
    assert [each["category_id"] for each in record["annotations"]] == [1]
