"""Readers of annotation files: equal to the recorded records, tolerant of gaps, clear about mistakes."""

from __future__ import annotations

import json
import logging

import pytest
from data_cases import recorded, square, write_video_file
from synth_vis_dataset import make

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
    want = recorded()["log"]
    assert got == [*want[:4], want[9]]


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


def test_a_frame_with_a_mask_but_a_null_box_is_skipped_only_where_boxes_are_needed(tmp_path):
    annotation = {
        "id": 3,
        "video_id": 1,
        "category_id": 1,
        "segmentations": [square()] * 2,
        "bboxes": [[1, 1, 4, 4], None],
    }
    path = write_video_file(tmp_path, [annotation])
    assert [len(each) for each in load_ytvis_json(path, tmp_path)[0]["annotations"]] == [1, 0]
    relaxed = load_ytvis_json(path, tmp_path, needs_boxes=False)[0]["annotations"]
    assert [len(each) for each in relaxed] == [1, 1] and relaxed[0][0]["bbox_mode"] == BoxMode.XYWH_ABS


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
    assert load_ytvis_json(tmp_path / "videos.json", "root")[0]["file_names"] == [
        "root/00012/0.jpg",
        "root/00012/1.jpg",
    ]


GOOD = {"id": 3, "video_id": 1, "category_id": 1, "segmentations": [square(), None]}


@pytest.mark.parametrize(
    "annotation, message",
    [
        ({**GOOD, "category_id": 9}, r"video 1, annotation 3 has category_id 9"),
        ({**GOOD, "segmentations": [square()]}, r"video 1, annotation 3 has 1 segmentations for the 2 frames"),
        ({**GOOD, "bboxes": [[0, 0, 1, 1]]}, r"video 1, annotation 3 has 1 bboxes for the 2 frames"),
        ({**GOOD, "segmentations": [7, None]}, r"video 1, annotation 3, frame 0: .* got int"),
        ({**GOOD, "segmentations": [{"size": [8, 10]}, None]}, r"annotation 3, frame 0, segmentation has no 'counts'"),
        ({**GOOD, "segmentations": [{"size": [8, 10], "counts": [3, 4]}, None]}, r"video 1, annotation 3, frame 0"),
        ({**GOOD, "segmentations": [{"size": [9, 10], "counts": [90]}, None]}, r"video 1, annotation 3, frame 0"),
        ({"id": 3, "video_id": 1, "category_id": 1}, r"video 1, annotation 3 must have a list 'segmentations'"),
        ({"id": 3, "category_id": 1}, r"annotation 3 has no 'video_id'"),
        ({"video_id": 1}, r"an annotation has no 'id'"),
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


@pytest.mark.parametrize("video", [{"length": 3}, {"length": 0}])
def test_a_wrong_length_is_an_error(tmp_path, video):
    with pytest.raises(ValueError, match=r"video 1 has length \d but 2 file_names"):
        load_ytvis_json(write_video_file(tmp_path, **video), tmp_path)


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
    with pytest.raises(ValueError, match=r"images.json: two annotations have the id 1"):
        load_coco_json(write_images(tmp_path, [annotation, annotation]), "root")


def test_an_image_annotation_without_mask_is_left_out_and_counted(tmp_path, caplog):
    annotation = {"id": 1, "image_id": 7, "category_id": 2, "bbox": [0, 0, 2, 2], "segmentation": [[1, 2, 3, 4]]}
    assert load_coco_json(write_images(tmp_path, [annotation]), "root")[0]["annotations"] == []
    assert "Filtered out 1 instances" in caplog.text


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
