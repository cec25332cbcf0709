"""LVIS AP against the installed `lvis` package on random images: empty masks, unknown categories, the limit of 300.

The package is an extra; without it these tests are skipped, and its numbers on a larger case are recorded, see
`test_open_vocabulary_metrics.py`.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import math

import numpy as np
import pytest

from lbvq.evaluation.lvis import LvisScorer
from lbvq.masks import rle

lvis = pytest.importorskip("lvis")

SIZE = (12, 12)
NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf", "AR@300", "ARs@300", "ARm@300", "ARl@300")
EMPTY = rle.encode(np.zeros(SIZE, bool))
FULL = rle.encode(np.ones(SIZE, bool))


@pytest.fixture(autouse=True)
def old_numpy(monkeypatch):
    """The package was written for numpy before 1.24."""
    monkeypatch.setattr(np, "float", float, raising=False)


def with_the_package(folder, truth, results):
    (folder / "gt.json").write_text(json.dumps(truth))
    logging.disable(logging.WARNING)
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = lvis.LVIS(str(folder / "gt.json"))
        evaluation = lvis.LVISEval(ground_truth, lvis.LVISResults(ground_truth, copy.deepcopy(results)), "segm")
        evaluation.run()
    logging.disable(logging.NOTSET)
    return evaluation.get_results()


def assert_equal_to_the_package(folder, truth, results):
    theirs, ours = with_the_package(folder, truth, results), LvisScorer(truth).update(results).compute()
    for name in NAMES:
        if theirs[name] == -1:
            assert math.isnan(ours[name]), name
        else:
            assert ours[name] == pytest.approx(100 * theirs[name], abs=1e-10), name


def rectangle(rng):
    mask = np.zeros(SIZE, bool)
    y, x, height, width = rng.randint(0, 8), rng.randint(0, 8), rng.randint(0, 5), rng.randint(1, 5)
    mask[y : y + height, x : x + width] = True  # one in five is empty
    return rle.encode(mask)


def annotation(number, image_id, category_id, mask, **more):
    box = rle.to_bbox(mask)
    entry = {"id": number, "image_id": image_id, "category_id": category_id, "segmentation": mask, "bbox": box}
    return {**entry, "area": rle.area(mask), **more}


def truth_of(annotations, num_images=1, **image):
    lists = {"neg_category_ids": [], "not_exhaustive_category_ids": [], "coco_url": "a/b.jpg", **image}
    images = [{"id": 1 + index, "height": SIZE[0], "width": SIZE[1], **lists} for index in range(num_images)]
    categories = [{"id": each, "name": f"class {each}", "frequency": "rcf"[each % 3]} for each in (1, 2, 3, 5)]
    return {"images": images, "categories": categories, "annotations": annotations}


def detection(category_id, mask, score, image_id=1):
    return {"image_id": image_id, "category_id": category_id, "score": score, "segmentation": mask}


@pytest.mark.parametrize("seed", range(6))
def test_random_images_score_as_the_package_says(seed, tmp_path):
    rng = np.random.RandomState(seed)
    annotations = [
        annotation(number, rng.randint(1, 5), int(rng.choice([1, 2, 3])), rectangle(rng), ignore=int(rng.rand() < 0.1))
        for number in range(1, 25)
    ]
    truth = truth_of(annotations, num_images=4)
    for image in truth["images"]:
        image["neg_category_ids"] = rng.choice([1, 2, 3, 5], rng.randint(0, 3), replace=False).tolist()
        image["not_exhaustive_category_ids"] = rng.choice([1, 2, 3, 5], rng.randint(0, 2), replace=False).tolist()
    results = []
    for _ in range(700 if seed == 0 else 80):  # about 330 of one image
        near = annotations[rng.randint(len(annotations))]
        mask = near["segmentation"] if rng.rand() < 0.5 else rectangle(rng)
        category = near["category_id"] if rng.rand() < 0.6 else int(rng.choice([1, 2, 3, 5, 9]))
        image = 1 if seed == 0 and rng.rand() < 0.5 else near["image_id"]
        results.append(detection(category, mask, round(float(rng.rand()), 1), image))
    assert_equal_to_the_package(tmp_path, truth, results)


def test_a_detection_without_a_pixel_does_not_exist(tmp_path):
    truth = truth_of([annotation(1, 1, 1, FULL)])
    results = [detection(1, EMPTY, 0.9), detection(1, FULL, 0.5)]
    assert LvisScorer(truth).update(results).compute()["AP"] == pytest.approx(100)
    assert_equal_to_the_package(tmp_path, truth, results)


def test_an_annotation_without_area_does_not_exist(tmp_path):
    truth = truth_of([annotation(1, 1, 1, FULL), annotation(2, 1, 2, EMPTY), annotation(3, 1, 1, FULL, area=0)])
    results = [detection(1, FULL, 0.5), detection(2, FULL, 0.9)]
    table = LvisScorer(truth).update(results).compute()
    assert table["AP"] == pytest.approx(100) and math.isnan(table["AP-class 2"])
    assert_equal_to_the_package(tmp_path, truth, results)
    del truth["annotations"][1]["area"]  # the package needs it; here the mask is measured
    assert LvisScorer(truth).update(results).compute()["AP"] == pytest.approx(100)


@pytest.mark.parametrize("others", [detection(9, FULL, 0.9), detection(1, EMPTY, 0.9)], ids=["unknown", "empty"])
def test_unknown_categories_and_empty_masks_are_among_the_300_of_an_image(others, tmp_path):
    truth = truth_of([annotation(1, 1, 1, FULL)])
    for count, expected in ((299, 100), (300, 0)):
        results = [others] * count + [detection(1, FULL, 0.5)]
        assert LvisScorer(truth).update(results).compute()["AP"] == pytest.approx(expected)
        assert_equal_to_the_package(tmp_path, truth, results)


def test_lvis_knows_no_crowds_but_annotations_to_ignore(tmp_path):
    """A crowd counts as an object; an annotation with `ignore` does not count, and can be found once."""
    for flag, expected in (({"iscrowd": 1}, 50.5), ({"ignore": 1}, 100)):
        truth = truth_of([annotation(1, 1, 1, FULL, **flag), annotation(2, 1, 1, rle.encode(np.eye(12, dtype=bool)))])
        results = [detection(1, truth["annotations"][1]["segmentation"], 0.9)]
        assert LvisScorer(truth).update(results).compute()["AP"] == pytest.approx(expected, abs=0.1)
        assert_equal_to_the_package(tmp_path, truth, results)
