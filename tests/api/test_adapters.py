"""Predictions in the forms of other tools: supervision, CSV, COCO-video, and identities for anybody's masks."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

import lbvq
from lbvq.inference.results import VideoPrediction
from lbvq.inference.tracking import MaskTracker
from lbvq.masks.shapes import boxes_of, polygons_of

supervision = pytest.importorskip("supervision")


@pytest.fixture
def prediction() -> VideoPrediction:
    """Two objects in three frames of 6 x 8 pixels; the second one is hidden in the second frame."""
    masks = np.zeros((2, 3, 6, 8), bool)
    for t in range(3):
        masks[0, t, 1:3, t : t + 4] = True
    masks[1, 0, 4:6, 5:8] = masks[1, 2, 4, 7] = True
    return VideoPrediction(masks, [0.9, 0.4], [1, 0], (6, 8), names=["a, b", '"q"'], category_ids=[7, 3])


def random_masks(count: int = 5) -> np.ndarray:
    return np.random.default_rng(0).random((count, 9, 11)) > 0.8


def test_boxes_are_those_of_supervision_and_nan_without_a_pixel():
    masks = random_masks()
    assert np.array_equal(boxes_of(masks), supervision.mask_to_xyxy(masks))
    masks[2] = False
    assert np.isnan(boxes_of(masks)[2]).all() and not np.isnan(boxes_of(masks)[[0, 1, 3, 4]]).any()


def test_polygons_cover_the_mask_again_and_the_largest_comes_first():
    mask = np.zeros((9, 11), bool)
    mask[1:3, 1:4] = mask[4:9, 3:11] = True
    outlines = polygons_of(mask)
    assert [len(outline) for outline in outlines] == [4, 4] and outlines[0][:, 1].min() == 4
    painted = sum(supervision.polygon_to_mask(outline, (11, 9)) for outline in outlines)
    assert np.array_equal(painted > 0, mask)
    assert polygons_of(np.zeros((3, 3), bool)) == []


@pytest.mark.parametrize("compact", [False, True])
def test_detections_of_supervision_hold_the_visible_objects(prediction, compact):
    detections = prediction.frame(0).to_supervision(compact=compact)
    assert detections.tracker_id.tolist() == [1, 2] and detections.class_id.tolist() == [1, 0]
    assert detections.xyxy.tolist() == [[0, 1, 3, 2], [5, 4, 7, 5]] and detections.confidence.tolist() == [0.9, 0.4]
    assert detections.data["class_name"].tolist() == ['"q"', "a, b"]
    assert np.array_equal(np.asarray(detections.mask), prediction.frame(0).masks)
    hidden = prediction.frame(1).to_supervision(compact=compact)
    assert len(hidden) == 1 and hidden.tracker_id.tolist() == [1]
    assert len(prediction.keep(2).frame(1).to_supervision(compact=compact)) == 0


def test_a_table_has_a_row_for_every_object_in_every_frame_that_shows_it(prediction, tmp_path):
    prediction.to_csv(tmp_path / "objects.csv")
    with open(tmp_path / "objects.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["frame"], row["id"]) for row in rows] == [("0", "1"), ("0", "2"), ("1", "1"), ("2", "1"), ("2", "2")]
    last = {"frame": "2", "id": "2", "class": "a, b", "score": "0.4", "x": "7", "y": "4", "width": "1", "height": "1"}
    assert rows[-1] == {**last, "area": "1"}


def test_coco_video_is_read_by_pycocotools_and_gives_the_masks_back(prediction, tmp_path):
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(prediction.to_coco_video(4, "clip")))
    coco = COCO(str(path))
    assert coco.loadImgs([2])[0]["file_name"] == "clip/00001.jpg"
    assert {row["id"]: row["name"] for row in coco.dataset["categories"]} == {7: "a, b", 3: '"q"'}
    annotations = coco.loadAnns(coco.getAnnIds(imgIds=[3]))
    assert [row["instance_id"] for row in annotations] == [1, 2] and [row["category_id"] for row in annotations] == [
        3,
        7,
    ]
    for n, row in enumerate(annotations):
        assert np.array_equal(coco.annToMask(row), prediction.frame(2).masks[n])
        assert row["area"] == coco_mask.area(row["segmentation"])
    with pytest.raises(ValueError, match="3 frames, and 1 file names"):
        prediction.to_coco_video(file_names=["a.jpg"])


# -- identities -------------------------------------------------------------------------------------------------------


def bar(column: int, width: int = 6) -> np.ndarray:
    mask = np.zeros((8, 40), bool)
    mask[2:6, column : column + width] = True
    return mask


def test_objects_keep_their_numbers_whatever_their_order():
    ids = MaskTracker().step(np.stack([bar(0), bar(20)]))
    assert ids.tolist() == [1, 2]
    tracker = MaskTracker()
    steps = [[0, 20], [21, 1], [2, 30, 22]]
    numbers = [tracker.step(np.stack([bar(column) for column in columns])).tolist() for columns in steps]
    assert numbers == [[1, 2], [2, 1], [1, 3, 2]]


def test_the_overlap_is_greatest_in_sum_and_not_one_after_the_other():
    """The second mask overlaps both old ones; the better single pair would leave the first without."""
    tracker = MaskTracker(least_overlap=0.2)
    tracker.step(np.stack([bar(0, 10), bar(6, 10)]))
    assert tracker.step(np.stack([bar(4, 10), bar(9, 10)])).tolist() == [1, 2]


@pytest.mark.parametrize(("gap", "number"), [(2, 1), (3, 2)])
def test_an_object_may_be_hidden_for_two_frames(gap, number):
    tracker = MaskTracker()
    tracker.step(bar(0)[None])
    for _ in range(gap):
        assert tracker.step(np.zeros((1, 8, 40), bool)).tolist() == [0]  # an empty mask is no object
    assert tracker.step(bar(0)[None]).tolist() == [number]


@pytest.mark.parametrize(("time", "number"), [(0.5, 1), (0.51, 2)])
def test_with_times_a_gap_is_measured_in_them(time, number):
    tracker = MaskTracker(longest_gap=0.5)
    tracker.step(bar(0)[None], time=0.0)
    assert tracker.step(bar(0)[None], time=time).tolist() == [number]


def test_an_object_keeps_its_class_unless_that_does_not_matter():
    for within, number in ((True, 2), (False, 1)):
        tracker = MaskTracker(within_class=within)
        tracker.step(bar(0)[None], [3])
        assert tracker.step(bar(0)[None], [4]).tolist() == [number]


def test_track_takes_what_other_tools_give_and_what_comes_from_here(prediction):
    frames = [prediction.frame(t) for t in range(3)]
    ours = [frame.ids.tolist() for frame in lbvq.track(frames)]
    assert ours == [[1, 2], [1, 0], [1, 3]]  # the second object is elsewhere when it comes back
    theirs = [frame.tracker_id.tolist() for frame in lbvq.track(frame.to_supervision() for frame in frames)]
    assert theirs == [[1, 2], [1], [1, 3]]
    compact = lbvq.track(frame.to_supervision(compact=True) for frame in frames)
    assert [frame.tracker_id.tolist() for frame in compact] == theirs
    dicts = lbvq.track(({"masks": frame.masks, "score": 1} for frame in frames), times=[0.0, 0.1, 0.2])
    assert [(frame["ids"].tolist(), frame["score"]) for frame in dicts][2] == ([1, 3], 1)
    assert [len(frame) for frame in lbvq.track([supervision.Detections.empty()] * 2)] == [0, 0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MaskTracker().step(np.ones((1, 2))), "masks must be"),
        (lambda: MaskTracker().step(np.ones((1, 2, 2))), "bool"),
        (lambda: MaskTracker().step(bar(0)[None], [1, 2]), "one label for each of 1"),
        (lambda: MaskTracker(least_overlap=0), "least_overlap"),
        (lambda: MaskTracker(longest_gap=float("nan")), "longest_gap"),
        (lambda: list(lbvq.track([{"mask": 1}])), "frame 0 lacks 'masks'"),
        (lambda: list(lbvq.track([{"masks": bar(0)[None]}] * 2, times=[0.0])), "fewer times"),
        (lambda: list(lbvq.track([{"masks": bar(0)[None]}] * 2, times=[1.0, 1.0])), "rise"),
        (lambda: list(lbvq.track([{"masks": bar(0)[None]}, {"masks": bar(0)[None, :4]}])), "size of the frames before"),
        (lambda: list(lbvq.track([supervision.Detections(np.ones((1, 4)))])), "1 detections without masks"),
    ],
)
def test_what_cannot_be_tracked_is_refused(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()
