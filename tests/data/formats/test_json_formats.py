"""labelme, Label Studio, COCO with videos, SA-V, Scalabel, LV-VIS, BURST and YouTube-VIS, by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from label_cases import EMPTY, FULL, burst, classes, dense, note, read, ytvis

from lbvq.data.formats.label_studio.brush import decode_brush


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


# ---- labelme


def frame(shapes: list[dict], name: str = "0.png", height: int = 10, width: int = 20) -> dict:
    sides = {"imageHeight": height, "imageWidth": width}
    return {"version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": name, "imageData": None, **sides}


def polygon(label: str, left: float, group: int | None) -> dict:
    points = [[left, 2], [left + 4, 2], [left + 4, 6], [left, 6]]
    return {"label": label, "points": points, "group_id": group, "shape_type": "polygon", "flags": {}}


def test_a_labelme_group_is_one_object_and_its_shapes_in_one_frame_are_parts(tmp_path):
    write(tmp_path / "a/0.json", frame([polygon("dog", 0, 1), polygon("dog", 10, 1), polygon("cat", 5, 1)]))
    write(tmp_path / "a/1.json", frame([polygon("dog", 2, 1)], "..\\\\pictures\\\\1.png"))
    labels = read(tmp_path, "labelme")
    (video,) = labels.videos
    assert video.name == "a" and classes(labels) == {1: "dog", 2: "cat"}
    assert dense(video, 1)[0].sum() == 32 and dense(video, 1)[1].sum() == 16
    assert [each.name for each in video.frames] == ["a/0.png", "pictures/1.png"] and note(labels, "parts of one") == 1


def test_labelme_shapes_without_a_group_are_objects_of_one_frame(tmp_path):
    for t in range(2):
        write(tmp_path / f"{t}.json", frame([polygon("dog", t, None)]))
    labels = read(tmp_path, "labelme")
    assert len(labels.videos[0].tracks) == 2 and note(labels, "do not say whose") == 2


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ({"label": "a", "points": [[0, 0], [1, "x"]], "group_id": 1}, "'points' are pairs of numbers"),
        ({"label": 3, "points": [[0, 0]] * 3, "group_id": 1}, "'label' is a text"),
        ({"points": [[0, 0]] * 3}, "has no 'label'"),
        (polygon("a", 0, "one"), "'group_id' is a whole number"),
        ({"label": "a", "points": [[0, 0]], "shape_type": "mask", "mask": "!!"}, "no base64"),
    ],
)
def test_a_broken_labelme_shape_is_refused_with_file_and_number(tmp_path, shape, words):
    write(tmp_path / "0.json", frame([polygon("a", 0, 1), shape]))
    with pytest.raises(ValueError, match=f"0.json, shape 1.*{words}"):
        read(tmp_path, "labelme")


# ---- Label Studio


def task(results: list[dict], image: str = "/data/upload/1/0a1b2c3d-f0.png", **more: Any) -> dict:
    return {"id": 1, "data": {"image": image}, "annotations": [{"id": 1, "result": results, **more}]}


def region(kind: str, value: dict, number: str = "r") -> dict:
    sides = {"original_width": 20, "original_height": 10, "image_rotation": 0}
    return {"id": number, "type": f"{kind}labels", "value": {**value, f"{kind}labels": ["dog"]}, **sides}


def test_label_studio_shapes_are_per_cent_of_the_picture(tmp_path):
    square = {"points": [[0, 20], [20, 20], [20, 60], [0, 60]], "closed": True}
    box = {"x": 50, "y": 0, "width": 10, "height": 100, "rotation": 0}
    turned = {"x": 50, "y": 0, "width": 10, "height": 20, "rotation": 90}
    round_ = {"x": 50, "y": 50, "radiusX": 20, "radiusY": 40, "rotation": 0}
    shapes = [region("polygon", square, "a"), region("rectangle", box, "b"), region("rectangle", turned, "c")]
    shapes += [region("ellipse", round_, "d"), region("keypoint", {"x": 1, "y": 1, "width": 1}, "e")]
    labels = read(write(tmp_path / "tasks.json", [task(shapes)]), "label_studio")
    areas = [int(track_masks[0].sum()) for track_masks in (dense(labels.videos[0], n) for n in (1, 2, 3, 4))]
    assert areas[:3] == [16, 20, 4] and abs(areas[3] - np.pi * 16) < 3
    assert dense(labels.videos[0], 3)[0][:2, 8:10].all()  # turned clockwise about its upper left corner
    assert note(labels, "keypoint") == 1 and labels.videos[0].frames[0].name == "f0.png"


def test_of_several_annotations_the_marked_and_not_cancelled_one_is_read(tmp_path):
    box = {"x": 0, "y": 0, "width": 50, "height": 100, "rotation": 0}
    entry = task([region("rectangle", box)], was_cancelled=True)
    wide, narrow = ({**box, "width": width} for width in (100, 10))
    entry["annotations"].append({"id": 2, "result": [region("rectangle", wide)]})
    entry["annotations"].append({"id": 3, "result": [region("rectangle", narrow)], "ground_truth": True})
    labels = read(write(tmp_path / "t.json", [entry]), "label_studio")
    assert dense(labels.videos[0], 1)[0].sum() == 20 and note(labels, "second opinions") == 2


def test_single_values_and_runs_of_a_brush_are_unpacked():
    """4 bits of length everywhere: one run of 4 zeros, then 8 single values of which two are fourth channels."""
    bits = f"{12:032b}{7:05b}" + f"{3:04b}" * 4 + "1" + "00" + f"{3:04b}" + f"{0:08b}"
    bits += "0" + "11" + f"{7:04b}" + "".join(f"{value:08b}" for value in (9, 9, 9, 255, 0, 0, 0, 0))
    code = [int(bits[k : k + 8].ljust(8, "0"), 2) for k in range(0, len(bits), 8)]
    assert decode_brush(code, (1, 3), "x").tolist() == [[False, True, False]]
    with pytest.raises(ValueError, match="x: the brush ends inside its code"):
        decode_brush(code[:-4], (1, 3), "x")
    with pytest.raises(ValueError, match="12 values of 8 bits, 2 x 3 pixels need 24"):
        decode_brush(code, (2, 3), "x")


# ---- COCO


def coco(**lists: list) -> dict:
    images = [{"id": k, "file_name": f"v/{k}.png", "height": 2, "width": 3} for k in (10, 9, 2)]
    return {"images": images, "annotations": [], "categories": [{"id": 4, "name": "dog"}], **lists}


def mark(number: int, image: int, **more: Any) -> dict:
    return {"id": number, "image_id": image, "category_id": 4, "segmentation": FULL, "iscrowd": 0, **more}


@pytest.mark.parametrize("key", ["track_id", "instance_id", "attributes"])
def test_coco_tracks_by_any_of_their_keys_and_frames_in_natural_order(tmp_path, key):
    entries = [mark(k, image, **{key: {"track_id": 6} if key == "attributes" else 6}) for k, image in ((1, 9), (2, 10))]
    labels = read(write(tmp_path / "c.json", coco(annotations=entries)), "coco")
    (video,) = labels.videos
    assert [each.name for each in video.frames] == ["v/2.png", "v/9.png", "v/10.png"]
    assert list(dense(video, 6)) == [1, 2] and classes(labels) == {6: "dog"} and list(labels.categories) == [4]


def test_coco_videos_by_id_are_ordered_by_frame_id(tmp_path):
    images = [
        {"id": k, "file_name": f"{k}.png", "height": 2, "width": 3, "video_id": 1 + k % 2, "frame_id": 9 - k}
        for k in range(4)
    ]
    content = coco(images=images, videos=[{"id": 1, "name": "a"}, {"id": 2, "name": "b"}])
    labels = read(write(tmp_path / "c.json", content), "coco")
    assert {v.name: [f.number for f in v.frames] for v in labels.videos} == {"a": [7, 9], "b": [6, 8]}


def test_what_coco_has_no_mask_for_and_whose_image_is_missing_is_counted(tmp_path):
    entries = [mark(1, 9, segmentation=[], bbox=[0, 0, 1, 1]), mark(2, 77), mark(3, 9, segmentation=[[1, 1, 2]])]
    labels = read(write(tmp_path / "c.json", coco(annotations=[*entries, mark(4, 9, iscrowd=1)])), "coco")
    assert note(labels, "a box but no mask") == note(labels, "not in the file") == note(labels, "three points") == 1
    assert [track.is_crowd for track in labels.videos[0].tracks] == [True] and note(labels, "do not say whose") == 1


def test_a_track_of_two_classes_keeps_the_first_and_it_is_said(tmp_path):
    entries = [mark(1, 2, track_id=1), mark(2, 9, track_id=1, category_id=5)]
    categories = [{"id": 5, "name": "cat"}, {"id": 4, "name": "dog"}]
    labels = read(write(tmp_path / "c.json", coco(annotations=entries, categories=categories)), "coco")
    assert classes(labels) == {1: "dog"} and note(labels, "another class") == 1


# ---- SA-V, Scalabel, BURST


def test_sa_v_frames_are_every_fourth_of_the_video_and_both_files_are_one_video(tmp_path):
    base = {"video_id": "sav_1", "video_height": 2.0, "video_width": 3.0, "video_frame_count": 9.0}
    write(tmp_path / "sav_1_manual.json", {**base, "masklet": [[FULL], [EMPTY], [FULL]], "masklet_id": [4]})
    write(tmp_path / "sav_1_auto.json", {**base, "masklet": [[FULL, FULL]] * 3, "masklet_id": [4, 5]})
    labels = read(tmp_path, "sav")
    (video,) = labels.videos
    assert [each.number for each in video.frames] == [0, 4, 8] and video.num_source_frames == 9
    assert sorted(len(track.masks) for track in video.tracks) == [2, 3, 3] and note(labels, "without a pixel") == 1


def test_curves_of_scalabel_polygons_bulge(tmp_path):
    straight = {"vertices": [[0, 0], [10, 0], [10, 10], [0, 10]], "types": "LLLL", "closed": True}
    curved = {"vertices": [[0, 0], [10, 0], [20, 2], [20, 8], [10, 10], [0, 10]], "types": "LLCCLL", "closed": True}
    size = {"width": 30, "height": 12}
    frames = [
        {"name": f"{k}.jpg", "videoName": "v", "frameIndex": k, "size": size}
        | {"labels": [{"id": 7, "category": "car", "poly2d": [shape]}]}
        for k, shape in ((1, curved), (0, straight))
    ]
    labels = read(write(tmp_path / "b.json", frames), "scalabel")
    masks = dense(labels.videos[0], 7)
    assert masks[0].sum() == 100 and 150 < masks[1].sum() < 170  # a third of 10 x 10 less than twice the width
    assert [each.number for each in labels.videos[0].frames] == [0, 1] and classes(labels) == {7: "car"}


def test_burst_keeps_its_annotated_frames(tmp_path):
    labels = read(write(tmp_path / "all_classes.json", burst()), "burst")
    (video,) = labels.videos
    assert [each.name for each in video.frames] == ["YFCC/abc/0.jpg", "YFCC/abc/2.jpg"]
    assert classes(labels) == {3: "person"} and video.num_source_frames == 3 and note(labels, "no mask") == 1


# ---- YouTube-VIS and LV-VIS


def test_youtube_vis_without_annotations_and_with_a_byte_order_mark(tmp_path):
    path = write(tmp_path / "a.json", {**ytvis(), "annotations": None})
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read(path, "ytvis").videos[0].tracks == []


def test_lv_vis_paths_and_sizes_are_repaired_from_the_image(tmp_path):
    content = ytvis(height=3, width=2, file_names=["C:\\data\\d\\0.jpg", "C:\\data\\d\\1.jpg"])
    content["categories"][0]["partition"] = 0
    content["annotations"][0]["segmentations"] = [{"size": [3, 2], "counts": FULL["counts"]}, None]
    labels = read(write(tmp_path / "a.json", content), "lvvis", size_of=lambda *_: (2, 3))
    assert labels.videos[0].size == (2, 3) and dense(labels.videos[0], 8)[0].shape == (2, 3)
    assert labels.videos[0].frames[0].name.endswith("d/0.jpg")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"segmentations": [FULL]}, "1 segmentations for 2 frames"),
        ({"segmentations": [{"size": [9, 9], "counts": "1"}, None]}, "mask size must be 2 x 3"),
        ({"category_id": 9}, "there is no category 9"),
        ({"id": "x"}, "whole number from 0 on, got 'x'"),
    ],
)
def test_broken_youtube_vis_annotations_are_refused(tmp_path, change, words):
    content = ytvis()
    content["annotations"][0] |= change
    with pytest.raises(ValueError, match=words):
        read(write(tmp_path / "a.json", content), "ytvis")
