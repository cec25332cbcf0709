from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from lbvq.inference.results import VideoPrediction
from lbvq.masks import compiled, rle
from lbvq.masks.tubes import MaskTubes
from mask2former.compiled import CSource

NAMES = ["cat", "dog", "duck"]


def prediction(**changes) -> VideoPrediction:
    masks = torch.from_numpy(np.random.default_rng(2).random((3, 4, 6, 8)) > 0.5)
    masks[1, 2] = False
    fields = dict(masks=masks, scores=[0.2, 0.9, 0.5], labels=[0, 2, 2], image_size=(6, 8), names=NAMES)
    return VideoPrediction(**{**fields, **changes})


def test_objects_are_sorted_by_score_and_numbered_from_the_best():
    masks = torch.from_numpy(np.random.default_rng(2).random((3, 4, 6, 8)) > 0.5)
    result = prediction(masks=masks)
    assert result.scores.tolist() == [0.9, 0.5, 0.2] and result.labels.tolist() == [2, 2, 0]
    assert result.ids.tolist() == [1, 2, 3]
    assert torch.equal(result.masks.to_dense(), masks[[1, 2, 0]])


def test_equal_scores_keep_their_order():
    assert prediction(scores=[0.5, 0.5, 0.5]).labels.tolist() == [0, 2, 2]


def test_selections_keep_identities():
    result = prediction()
    kept = result.keep(0.5)
    assert len(kept) == 2 and kept.ids.tolist() == [1, 2]
    assert result[[2, 0]].ids.tolist() == [1, 3]  # again best first
    assert result[1:].ids.tolist() == [2, 3] and result[np.array([False, True, False])].ids.tolist() == [2]
    assert len(result.keep(2)) == 0 and result.keep(2).num_frames == 4 and result.keep(2).to_json(1) == []


def test_iterating_gives_objects_with_names():
    result = prediction()
    assert [(item.id, item.name, item.score) for item in result] == [
        (1, "duck", 0.9),
        (2, "duck", 0.5),
        (3, "cat", 0.2),
    ]
    assert result[-1].masks == result.masks[2] and result[0].masks.shape == (1, 4, 6, 8)
    assert prediction(names=None)[0].name is None
    with pytest.raises(IndexError, match="object 3 does not exist"):
        result[3]


def test_frames_hold_all_objects_and_their_captions():
    frame = prediction().frame(2)
    assert frame.masks.shape == (3, 6, 8) and not frame.masks[0].any()
    assert frame.captions() == ["1 duck 0.90", "2 duck 0.50", "3 cat 0.20"]
    assert prediction(names=None).frame(0).captions()[0] == "1 class 2 0.90"


def test_results_file_reads_back_to_identical_masks(tmp_path):
    result = prediction()
    path = tmp_path / "results.json"
    path.write_text(json.dumps(result.to_json(7)))
    again = VideoPrediction.from_json(path, names=NAMES)
    assert again == result and again.names == tuple(NAMES)
    entry = json.loads(path.read_text())[0]
    assert sorted(entry) == ["category_id", "score", "segmentations", "video_id"]
    assert entry["video_id"] == 7 and entry["category_id"] == 3
    assert len(entry["segmentations"]) == 4 and all(mask["size"] == [6, 8] for mask in entry["segmentations"])
    assert rle.area(entry["segmentations"][2]) == 0  # an absent object is an empty mask, never null


def test_category_ids_map_there_and_back():
    result = prediction()
    for category_ids in ([10, 4, 77], {0: 10, 1: 4, 2: 77}):
        entries = result.to_json(1, category_ids)
        assert [entry["category_id"] for entry in entries] == [77, 77, 10]
        assert VideoPrediction.from_json(entries, category_ids=category_ids) == result
    with pytest.raises(ValueError, match="class index 2 has no category id"):
        result.to_json(1, [1, 2])
    with pytest.raises(ValueError, match="category_id 77 is not one of"):
        VideoPrediction.from_json(result.to_json(1, [10, 4, 77]), category_ids=[1, 2, 3])


def test_one_video_is_chosen_from_a_file_of_many():
    first, second = prediction(), prediction(scores=[0.1, 0.2, 0.3])
    entries = first.to_json(1) + second.to_json(2)
    assert VideoPrediction.from_json(entries, video_id=2) == second
    with pytest.raises(ValueError, match="holds 2 videos"):
        VideoPrediction.from_json(entries)
    none = VideoPrediction.from_json(entries, video_id=3, image_size=(6, 8), num_frames=4)
    assert len(none) == 0 and none.masks.shape == (0, 4, 6, 8)


def test_null_masks_of_other_tools_are_read_as_absent():
    entries = prediction().to_json(1)
    entries[0]["segmentations"] = [None, *entries[0]["segmentations"][1:]]
    assert not VideoPrediction.from_json(entries).masks.visible()[0, 0]


def test_nothing_found_is_a_valid_prediction():
    output = {"image_size": (6, 8), "pred_scores": [], "pred_labels": [], "pred_masks": torch.zeros(0, 4, 6, 8) > 0}
    empty = VideoPrediction.from_output(output, NAMES)
    assert len(empty) == 0 and list(empty) == [] and empty.frame(1).masks.shape == (0, 6, 8)
    assert len(VideoPrediction.from_output({**output, "pred_masks": []})) == 0
    assert VideoPrediction.from_output({**output, "pred_masks": MaskTubes((6, 8), 4)}) == empty
    with pytest.raises(ValueError, match="lacks"):
        VideoPrediction.from_output({"instances": 1})


def test_duplicates_of_a_query_keep_the_best_class():
    masks = torch.from_numpy(np.random.default_rng(2).random((2, 4, 6, 8)) > 0.5)
    result = prediction(masks=masks[[0, 1, 0]], scores=[0.2, 0.5, 0.9])
    assert result.distinct().scores.tolist() == [0.9, 0.5]


def test_an_object_may_be_listed_with_several_classes_under_one_identity():
    masks = torch.from_numpy(np.random.default_rng(2).random((2, 4, 6, 8)) > 0.5)
    result = prediction(masks=masks[[0, 1, 0]], labels=[0, 2, 1], ids=[4, 7, 4])
    assert result.ids.tolist() == [7, 4, 4] and result.labels.tolist() == [2, 1, 0]
    assert result.distinct().ids.tolist() == [7, 4] and result[1:].ids.tolist() == [4, 4]
    with pytest.raises(ValueError, match="entries that share 4 need the same masks and different labels"):
        prediction(masks=masks[[0, 1, 0]], labels=[0, 2, 0], ids=[4, 7, 4])  # one class twice
    with pytest.raises(ValueError, match="differ from object to object"):
        prediction(masks=masks[[0, 1, 1]], labels=[0, 2, 1], ids=[4, 7, 4])  # of two objects


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"image_size": (8, 6)}, "size of the video"),
        ({"scores": [0.1, 0.2]}, "each of the 3 objects"),
        ({"scores": [0.1, float("nan"), 0.3]}, "finite"),
        ({"scores": ["a", "b", "c"]}, "scores must be numbers"),
        ({"labels": [0, 1]}, "each of the 3 objects"),
        ({"labels": [0, 1, -1]}, "from 0"),
        ({"labels": [0.0, 1.0, 2.0]}, "integers"),
        ({"labels": [0, 1, 3]}, "label 3 has no name"),
        ({"names": "abc"}, "sequence of str"),
        ({"ids": [1, 1, 2]}, "differ"),
        ({"masks": torch.zeros(3, 6, 8) > 0}, r"\(N, T, H, W\)"),
        ({"masks": torch.zeros(3, 4, 6, 8)}, "threshold"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes, reason):
    with pytest.raises(ValueError, match=reason):
        prediction(**changes)


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"score": "high"}, "entry 0: 'score' must be a finite number"),
        ({"score": float("inf")}, "finite|not JSON"),
        ({"category_id": 1.5}, "'category_id' must be an integer"),
        ({"category_id": 0}, "from 0"),
        ({"segmentations": None}, "must be a list"),
        ({"segmentations": [None]}, "list of 1 masks, got 4"),
        ({"segmentations": [{"size": [6, 8], "counts": "0"}] * 4}, "object 0, frame 0: the runs must add up"),
        ({"segmentations": [None] * 3 + [rle.encode(np.ones((8, 6), bool))]}, "frame 3: mask size"),
        ({"video_id": None}, "'video_id' must be an integer"),
    ],
)
def test_broken_entries_are_refused_with_the_place(change, reason, tmp_path):
    entries = prediction().to_json(1)
    entries[0].update(change)
    (tmp_path / "r.json").write_text(json.dumps(entries))
    for given in (entries, tmp_path / "r.json"):
        with pytest.raises(ValueError, match=reason):
            VideoPrediction.from_json(given, video_id=1 if "video_id" in change else None, image_size=(6, 8))


@pytest.mark.parametrize("compiles", ["0", "1"])
@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ('{"size": [2, 3], "counts": "123"}', None),
        ('{"counts": "123", "size":[2,3]}', None),
        ('{"size": [2, 3], "counts": "\\u0031\\u0032\\u0033"}', None),  # JSON may write any character so
        ('{"size": [2, 3], "counts": "1R03"}', None),  # a digit more than needed
        ('{"size": [2, 3], "counts": [1, 2, 3]}', None),
        ('{"size": [2, 3], "counts": "124"}', "object 0, frame 1: the runs must add up to 2 x 3 = 6 pixels"),
        ('{"size": [2, 3], "counts": "1\\n"}', "object 0, frame 1: 'counts' holds the character"),
        ('{"size": [2, 3], "counts": "1\n"}', "not valid JSON"),
        ('{"size": [2, 3], "counts": "1\\x"}', "not valid JSON"),
        ('{"size": [2, 3], "counts": [1, 2, 3,]}', "not valid JSON"),
        ('{"size": [2, 3], "counts": [1, 5.0]}', "object 0, frame 1: 'counts' must be a non-empty list of integers"),
        ('{"size": [3, 2], "counts": "123"}', r"object 0, frame 1: mask size must be 2 x 3 .*, got 3 x 2"),
        ('{"size": [2.0, 3], "counts": "123"}', r"object 0, frame 1: 'size' must be two integers"),
        ('{"size": [2, 3, 4], "counts": "123"}', r"object 0, frame 1: 'size' must be two integers"),
        ('{"size": [2, x], "counts": "123"}', "not valid JSON"),
    ],
)
def test_masks_of_files_may_be_written_in_many_ways(written, reason, compiles, tmp_path, monkeypatch):
    monkeypatch.setattr(compiled, "LOOPS", CSource("loops", compiled.SOURCE, compiled.FLAGS))
    monkeypatch.setenv("LBVQ_COMPILE", compiles)
    path = tmp_path / "r.json"
    usual = '{"size": [2, 3], "counts": "123"}'
    masks = f"[{usual}, {written}, null]"
    path.write_text(f'[{{"video_id": 1, "score": 0.5, "category_id": 1, "segmentations": {masks}}}]')
    if reason is None:
        found = VideoPrediction.from_json(path)
        assert [mask and mask["counts"] for mask in found.masks.rles(0)] == ["123", "123", None]
    else:
        with pytest.raises(ValueError, match=rf"r\.json: .*{reason}"):
            VideoPrediction.from_json(path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_results_saved_by_windows_are_read_and_broken_ones_are_named(encoding, tmp_path):
    path = tmp_path / "r.json"
    path.write_text(json.dumps(prediction().to_json(1)), encoding=encoding)
    assert VideoPrediction.from_json(path) == prediction()
    entry = prediction().to_json(1)[0]
    huge = {"score": 10**400}, {"category_id": 10**30}, {"category_id": 0}, {"segmentations": [{"size": [6, 8]}] * 4}
    for text in ("[" * 100_000, "[NaN]", "", *(json.dumps([{**entry, **change}]) for change in huge)):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"r\.json"):
            VideoPrediction.from_json(path)


@pytest.mark.parametrize("entries", [{}, [1], [{"video_id": 1}], 3])
def test_files_that_are_no_results_are_refused(entries):
    with pytest.raises(ValueError, match=r"expected|lacks"):
        VideoPrediction.from_json(entries)
