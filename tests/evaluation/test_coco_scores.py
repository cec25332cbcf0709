"""Box and mask AP on images."""

from __future__ import annotations

import json
import logging
import math

import numpy as np
import pytest

from lbvq.evaluation.coco import score_coco
from lbvq.masks import rle


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


def test_masks_are_scored_where_all_results_have_them_and_asking_for_them_names_the_one_that_has_none():
    truth, results = coco_files()
    results[1]["segmentation"] = None
    assert set(score_coco(truth, results)) == {"bbox"}
    with pytest.raises(ValueError, match=r"detection 1 \(image 1\): has no 'segmentation'"):
        score_coco(truth, results, ["segm"])


def test_results_of_categories_that_the_ground_truth_lacks_change_no_score_and_are_named(caplog):
    truth, results = coco_files()
    with caplog.at_level(logging.WARNING):
        tables = score_coco(truth, [*results, {**results[0], "category_id": 77, "score": 1.0}])
    assert tables == score_coco(truth, results)
    assert "categories that the ground truth does not list were ignored: 77" in caplog.text


@pytest.mark.parametrize(
    "change, message",
    [
        ({"image_id": 9}, r"detection 1 \(image 9\): the ground truth has no image with this id"),
        ({"score": None}, r"detection 1 \(image 1\): 'score' must be a finite number"),
        ({"segmentation": {"size": [40, 60], "counts": "11"}}, r"detection 1 \(image 1\)"),
        ({"segmentation": {"size": [60, 40], "counts": "11"}}, r"detection 1 \(image 1\)"),
        ({"segmentation": [[0, 0, 9, 0, 9, 9]]}, r"detection 1 \(image 1\): polygons are no form of results"),
    ],
)
def test_bad_image_results_are_refused_by_their_place(change, message):
    truth, results = coco_files()
    results[1] |= change
    with pytest.raises(ValueError, match=message):
        score_coco(truth, results)
