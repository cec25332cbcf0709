"""A model is scored for what its classes are called, whatever order and ids the data set has them in."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from lbvq.data.builtin import MetadataCatalog
from lbvq.data.catalog import Metadata
from lbvq.data.ytvis import register_ytvis_instances
from lbvq.evaluation import build_evaluator
from lbvq.evaluation.class_ids import ClassIds
from lbvq.files.class_list import ClassList
from lbvq.masks.tubes import MaskTubes

NAMES, IDS = ("cat", "dog", "Polar bear"), (2, 5, 9)


def metadata(name="zoo_val"):
    facts = {"thing_classes": list(NAMES), "thing_dataset_id_to_contiguous_id": dict(zip(IDS, range(3), strict=True))}
    return Metadata(name).set(**facts)


def test_without_categories_of_the_model_its_indices_are_those_of_the_data_set():
    ids = ClassIds(metadata())
    assert [ids[label] for label in range(3)] == list(IDS)
    with pytest.raises(ValueError, match=r"class index 3 is not among the 3 of zoo_val.*NUM_CLASSES"):
        ids[3]


@pytest.mark.parametrize("names, ids", [(NAMES, IDS), (NAMES, (1, 2, 3)), (("Cat", "dog", "polar_bear"), (7, 8, 9))])
def test_the_same_classes_are_matched_in_silence(names, ids, caplog):
    found = ClassIds(metadata(), ClassList(names, ids))
    assert [found[label] for label in range(3)] == list(IDS) and not caplog.records


def test_classes_in_another_order_are_matched_by_name(caplog):
    found = ClassIds(metadata(), ClassList(("polar bear", "cat", "dog"), (1, 2, 3)))
    assert [found[label] for label in range(3)] == [9, 2, 5] and "matched by name" in caplog.text


def test_classes_of_one_side_only_are_told(caplog):
    found = ClassIds(metadata(), ClassList(("owl", "dog"), (1, 2)))
    assert [found[label] for label in range(2)] == [None, 5]
    assert "1 of its classes are not in zoo_val and left out: owl." in caplog.text
    assert "2 classes of zoo_val are unknown to the model: cat, Polar bear." in caplog.text
    with pytest.raises(ValueError, match="not among"):
        found[2]


def test_no_common_class_is_an_error():
    with pytest.raises(ValueError, match=r"No class of the model \(owl, fox\) is one of zoo_val \(cat, dog"):
        ClassIds(metadata(), ClassList(("owl", "fox"), (1, 2)))


@pytest.fixture
def zoo(tmp_path):
    """A data set of one video with a cat and a polar bear."""
    name = f"zoo_{tmp_path.name}"
    masks = torch.zeros(2, 2, 8, 8, dtype=torch.bool)
    masks[0, :, :4], masks[1, :, 4:] = True, True
    tubes = MaskTubes.from_dense(masks)
    annotations = [
        {
            "id": n + 1,
            "video_id": 1,
            "category_id": each,
            "iscrowd": 0,
            "segmentations": tubes.rles(n),
            "areas": [32, 32],
        }
        for n, each in enumerate((2, 9))
    ]
    videos = [{"id": 1, "height": 8, "width": 8, "length": 2, "file_names": ["0.jpg", "1.jpg"]}]
    categories = [{"id": each, "name": label} for each, label in zip(IDS, NAMES, strict=True)]
    path = tmp_path / "zoo.json"
    path.write_text(json.dumps({"videos": videos, "categories": categories, "annotations": annotations}))
    register_ytvis_instances(name, {}, path, tmp_path)
    MetadataCatalog.get(name).set(**metadata().as_dict() | {"name": name})
    return name, masks


@pytest.mark.parametrize(
    "own, labels, scored",
    [
        (("polar bear", "cat"), [1, 0], 100.0),
        (("owl", "polar bear", "cat"), [2, 1], 100.0),
        (("cat", "polar bear"), [1, 0], 0.0),  # what each is called is wrong
    ],
)
def test_results_are_written_and_scored_by_the_names_of_the_model(zoo, tmp_path, own, labels, scored):
    name, masks = zoo
    categories = SimpleNamespace(NAMES=list(own), IDS=[])
    cfg = SimpleNamespace(OUTPUT_DIR=str(tmp_path), MODEL=SimpleNamespace(CATEGORIES=categories))
    evaluator = build_evaluator(cfg, name)
    evaluator.reset()
    output = {"image_size": (8, 8), "pred_scores": [0.9, 0.8], "pred_labels": labels, "pred_masks": masks}
    evaluator.process([{"video_id": 1}], output)
    assert evaluator.evaluate()["segm"]["AP"] == pytest.approx(scored)
    entries = json.loads((tmp_path / "inference" / "results.json").read_text())
    assert [entry["category_id"] for entry in entries] == ([2, 9] if scored else [9, 2])


def test_predictions_of_classes_that_the_data_set_lacks_are_left_out(zoo, tmp_path):
    name, masks = zoo
    categories = SimpleNamespace(NAMES=["owl", "cat"], IDS=[])
    cfg = SimpleNamespace(OUTPUT_DIR=str(tmp_path), MODEL=SimpleNamespace(CATEGORIES=categories))
    evaluator = build_evaluator(cfg, name)
    evaluator.reset()
    output = {"image_size": (8, 8), "pred_scores": [0.9, 0.8], "pred_labels": [0, 1], "pred_masks": masks}
    evaluator.process([{"video_id": 1}], output)
    evaluator.evaluate()
    entries = json.loads((tmp_path / "inference" / "results.json").read_text())
    assert [(entry["category_id"], entry["score"]) for entry in entries] == [(2, 0.8)]


def test_a_model_that_is_given_its_classes_as_text_is_not_matched(zoo, tmp_path):
    categories = SimpleNamespace(NAMES=["owl"], IDS=[])
    cfg = SimpleNamespace(OUTPUT_DIR=str(tmp_path), MODEL=SimpleNamespace(CATEGORIES=categories))
    assert build_evaluator(cfg, zoo[0], open_vocabulary=True)._classes is None
