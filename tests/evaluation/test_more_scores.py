"""HOTA, IDF1, J and F, and AP of groups of videos: cases by hand, and the package trackeval where it is installed."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from helpers import run_tool
from plain_tube_ap import as_files, random_case
from small_tubes import box, files, tracking_of

from lbvq.evaluation.analysis import Analysis
from lbvq.evaluation.annotations import GroundTruth, read_predictions
from lbvq.evaluation.camera_motion import background_shift, camera_motion
from lbvq.evaluation.davis import contour_accuracy, contours, region_similarity, score_davis
from lbvq.evaluation.tube_ap import TubeAP
from lbvq.evaluation.tube_ap_settings import TubeApSettings
from lbvq.files.mask_file import MaskFile
from lbvq.masks import rle

LEFT, RIGHT = [box(0)] * 6, [box(20)] * 6


# ---- HOTA and IDF1


def test_perfect_tracks_score_100():
    scores = tracking_of(*files([(1, LEFT, False), (2, RIGHT, False)], [(1, 0.9, LEFT), (2, 0.8, RIGHT)]))
    assert [scores[name] for name in ("HOTA", "DetA", "AssA", "IDF1")] == pytest.approx([100] * 4)
    assert [row["class"] for row in scores["per_class"]] == ["class 1", "class 2"]


def test_switched_identities_keep_detection_and_halve_association():
    """Each pair of tracks shares 3 of 9 frames (6 + 6 - 3): AssA 1/3; of 12 frames 6 keep their identity."""
    swapped = [(1, 0.9, LEFT[:3] + RIGHT[3:]), (1, 0.8, RIGHT[:3] + LEFT[3:])]
    scores = tracking_of(*files([(1, LEFT, False), (1, RIGHT, False)], swapped))
    assert (scores["DetA"], scores["AssA"]) == (pytest.approx(100), pytest.approx(100 / 3))
    assert scores["HOTA"] == pytest.approx(100 * np.sqrt(1 / 3))
    assert (scores["IDF1"], scores["IDP"], scores["IDR"]) == (pytest.approx(50),) * 3


def test_low_scores_can_be_left_out_and_empty_masks_are_no_objects():
    empty = [np.zeros((12, 40), bool)] * 6
    case = files([(1, LEFT, False)], [(1, 0.9, LEFT), (1, 0.8, empty), (1, 0.1, RIGHT)])
    assert tracking_of(*case)["DetA"] == pytest.approx(50)
    assert tracking_of(*case, min_score=0.5)["DetA"] == pytest.approx(100)


def test_crowds_and_what_lies_on_them_do_not_count():
    scores = tracking_of(*files([(1, LEFT, False), (1, RIGHT, True)], [(1, 0.9, LEFT), (1, 0.8, RIGHT)]))
    assert scores["HOTA"] == scores["IDF1"] == pytest.approx(100)


def test_without_tracks_there_is_nothing_to_score():
    truth, predictions = files([(1, LEFT, True)], [(1, 0.9, RIGHT)])
    assert np.isnan(tracking_of(truth, predictions)["HOTA"])


# ---- J and F


def test_j_and_f_of_equal_and_of_empty_masks_are_1():
    masks = np.stack((box(0), np.zeros((12, 40), bool)))
    np.testing.assert_allclose(region_similarity(masks, masks), np.eye(2))
    np.testing.assert_allclose(contour_accuracy(masks, masks), np.eye(2))


def test_contours_are_where_the_mask_changes_to_the_right_or_below():
    rows = contours(box(2, 1, 2, 2, (4, 6))[None])[0].astype(int).tolist()
    assert rows == [[0, 1, 1, 1, 0, 0], [0, 1, 0, 1, 0, 0], [0, 1, 1, 1, 0, 0], [0] * 6]
    assert not contours(np.ones((1, 4, 6), bool)).any()  # the border of the image is none


def test_a_contour_may_be_off_by_a_share_of_the_diagonal():
    shift = [
        contour_accuracy(box(10, 10, 40, 40, (120, 160))[None], box(10 + x, 10, 40, 40, (120, 160))[None])[0, 0]
        for x in (0, 2, 4)
    ]
    assert shift[0] == shift[1] == 1 and shift[2] < 0.7  # 0.008 * 200 pixels, rounded up: 2


def test_every_object_takes_one_prediction_of_any_class():
    truth, predictions = files(
        [(1, LEFT, False), (1, RIGHT, False)], [(2, 0.3, LEFT), (1, 0.9, RIGHT[:3] + [box(30)] * 3)]
    )
    scores = score_davis(truth, read_predictions(predictions, truth))
    assert [row["prediction"] for row in scores["objects"]] == [0, 1]
    assert [row["J"] for row in scores["objects"]] == pytest.approx([100, 50])
    assert scores["J_recall"] == pytest.approx(75) and scores["J&F"] == pytest.approx((scores["J"] + scores["F"]) / 2)
    assert score_davis(truth, [])["objects"][0] | {"F": 0, "J": 0} == {
        **{"video_id": 7, "annotation": 1, "prediction": None},
        **dict.fromkeys(("J", "F", "J_recall", "F_recall"), 0),
    }


# ---- groups of videos


def test_ap_by_number_of_objects_is_that_of_the_videos_alone():
    truth, results = as_files(random_case(5, num_videos=8), rle.encode)
    analysis = Analysis(GroundTruth(truth), MaskFile.of(results, "predictions"), TubeApSettings())
    numbers = {each["id"]: 0 for each in truth["videos"]}
    for each in truth["annotations"]:
        numbers[each["video_id"]] += not each["iscrowd"]
    rows = {row["range"]: row for row in analysis.by_num_objects()}
    assert sum(row["videos"] for row in rows.values()) == sum(number > 0 for number in numbers.values())
    for name, own in (("1", {1}), ("2", {2}), ("3 to 4", {3, 4})):
        videos = [video for video, number in numbers.items() if number in own]
        expected = TubeAP(truth).update(results).compute(videos).average()
        assert rows[name]["videos"] == len(videos)
        assert rows[name]["AP"] == pytest.approx(100 * expected) if expected >= 0 else np.isnan(rows[name]["AP"])


def moving_scene(folder, step, frames=4, size=(120, 160)):
    """A textured world seen by a camera that moves `step` pixels per frame, and an object that moves on its own."""
    rng = np.random.RandomState(0)
    texture = cv2.GaussianBlur(rng.randint(0, 256, (300, 400, 3)).astype(np.uint8), (0, 0), 2)
    texture = cv2.normalize(texture, None, 0, 255, cv2.NORM_MINMAX)
    masks, names = [], []
    for t in range(frames):
        image = texture[50 + step * t : 50 + step * t + size[0], 60 : 60 + size[1]].copy()
        mask = box(20 + 12 * t, 30, 40, 40, size)
        image[mask] = (250, 20, 20)
        names.append(f"v/{t}.png")
        (folder / "v").mkdir(exist_ok=True)
        cv2.imwrite(str(folder / names[-1]), image)
        masks.append(mask)
    truth, results = as_files(
        {"videos": {7: (*size, frames)}, "categories": [1]}
        | {"tracks": [{"video": 7, "category": 1, "masks": masks, "crowd": False}]}
        | {"detections": [{"video": 7, "category": 1, "score": 0.9, "masks": masks}]},
        rle.encode,
    )
    truth["videos"][0]["file_names"] = names
    return truth, results


@pytest.mark.parametrize("step, name", [(0, "still"), (3, "fast")])
def test_camera_motion_is_that_of_the_background(step, name, tmp_path):
    truth, results = moving_scene(tmp_path, step)
    assert camera_motion(GroundTruth(truth), tmp_path)[7] == pytest.approx(100 * step / 200, abs=0.1)
    analysis = Analysis(GroundTruth(truth), MaskFile.of(results, "predictions"), TubeApSettings())
    rows = {row["range"]: row["videos"] for row in analysis.by_camera_motion(tmp_path)}
    assert rows == {"still": 0, "slow": 0, "fast": 0, name: 1}
    assert analysis.by_camera_motion(tmp_path / "nowhere") == []


def test_the_shift_of_equal_images_is_zero():
    image = np.random.RandomState(0).randint(0, 256, (40, 60)).astype(np.uint8)
    assert background_shift([image] * 2, [np.zeros((40, 60), bool)] * 2) == pytest.approx(0, abs=1e-3)


# ---- the command


def test_eval_json_writes_all_of_it(tmp_path, capsys):
    truth, results = moving_scene(tmp_path, 3)
    for name, content in (("gt", truth), ("dt", results)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    options = ("--analysis", tmp_path / "analysis.json", "--davis", tmp_path / "davis.json", "--frames", tmp_path)
    assert run_tool("eval_json", tmp_path / "dt.json", "--gt", tmp_path / "gt.json", "--metric", "ytvis", *options) == 0
    analysis, davis = (json.loads((tmp_path / name).read_text()) for name in ("analysis.json", "davis.json"))
    assert analysis["tracking"]["HOTA"] == davis["J&F"] == pytest.approx(100)
    assert {name: len(rows) > 0 for name, rows in analysis["by"].items()} == {
        "size": True,
        "length": True,
        "occlusion": False,
        "num_objects": True,
        "camera_motion": True,
    }
    text = capsys.readouterr().out
    assert "HOTA 100.000" in text and "J&F 100.000" in text
