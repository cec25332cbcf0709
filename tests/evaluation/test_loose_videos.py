"""Tube AP of predictions and targets that are no files, video after video."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lbvq.evaluation.tube_ap import TubeAP
from lbvq.inference.results import VideoPrediction

SIZE = (3, 12, 16)  # T, H, W


def videos(count: int = 4) -> tuple[list[dict], list[dict]]:
    """Predictions and targets as arrays: random boxes, the predicted ones a little off."""
    generator = np.random.default_rng(0)
    predictions, targets = [], []
    for _ in range(count):
        wanted, found = np.zeros((3, *SIZE), bool), np.zeros((4, *SIZE), bool)
        for n in range(3):
            y, x = generator.integers(0, 8, 2)
            wanted[n, :, y : y + 5, x : x + 8] = True
            found[n, :, y : y + 5, x : x + int(generator.integers(4, 9))] = True
        found[3, 0, 0, 0] = True
        targets.append({"masks": wanted, "labels": np.array([0, 1, 1])})
        predictions.append({"masks": found, "labels": np.array([0, 1, 1, 0]), "scores": generator.random(4)})
    return predictions, targets


def from_files(predictions: list[dict], targets: list[dict]) -> TubeAP:
    """The same through the content of files."""
    truth, results = (
        {"videos": [], "annotations": [], "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]},
        [],
    )
    for video_id, (found, wanted) in enumerate(zip(predictions, targets, strict=True), 1):
        truth["videos"].append({"id": video_id, "length": SIZE[0], "height": SIZE[1], "width": SIZE[2]})
        tubes = VideoPrediction(wanted["masks"], np.ones(len(wanted["labels"])), wanted["labels"], SIZE[1:])
        for entry in tubes.to_json(video_id):
            number = len(truth["annotations"]) + 1
            truth["annotations"].append({**entry, "id": number, "iscrowd": 0})
        results += VideoPrediction(found["masks"], found["scores"], found["labels"], SIZE[1:]).to_json(video_id)
    return TubeAP(truth).update(results)


@pytest.mark.parametrize("form", ["one by one", "all at once", "tensors", "objects"])
def test_every_form_scores_as_files_do(form):
    predictions, targets = videos()
    want = from_files(predictions, targets).compute().summary()
    assert 0 < want["AP"] < 100
    if form == "tensors":
        predictions, targets = (
            [{key: torch.from_numpy(value) for key, value in each.items()} for each in every]
            for every in (predictions, targets)
        )
    if form == "objects":
        predictions = [VideoPrediction(each["masks"], each["scores"], each["labels"], SIZE[1:]) for each in predictions]
        targets = [VideoPrediction(each["masks"], np.ones(3), each["labels"], SIZE[1:]) for each in targets]
    ap = TubeAP()
    if form == "all at once":
        ap.update(predictions, targets)
    else:
        for found, wanted in zip(predictions, targets, strict=True):
            ap.update(found, wanted)
    got = ap.compute().summary()
    assert got == pytest.approx(want, nan_ok=True, abs=0)


def test_the_same_video_twice_is_refused_and_leaves_no_trace():
    predictions, targets = videos(2)
    ap = TubeAP()
    ap.update({**predictions[0], "video_id": 7}, {**targets[0], "video_id": 7})
    before = ap.compute().summary()
    with pytest.raises(ValueError, match="video 7 was given before"):
        ap.update({**predictions[1], "video_id": 7}, targets[1])
    assert ap.compute().summary() == pytest.approx(before, nan_ok=True, abs=0)
    assert list(ap.update(predictions[1], targets[1]).ground_truth.videos) == [7, 8]


def test_crowds_are_those_of_the_targets():
    predictions, targets = videos(1)
    counts = TubeAP().update(predictions, targets).compute().summary()["AP"]
    one = VideoPrediction(targets[0]["masks"], [1, 1, 1], targets[0]["labels"], SIZE[1:])
    assert TubeAP().update(predictions, one[2:]).ground_truth.tracks[0].is_crowd is False
    flags = TubeAP().update(predictions, {**targets[0], "iscrowd": [0, 1, 0]}).ground_truth.tracks
    assert [track.is_crowd for track in flags] == [False, True, False]
    only_crowd = [{**targets[0], "iscrowd": [1, 1, 1]}]
    assert counts > 0 and np.isnan(TubeAP().update(predictions, only_crowd).compute().summary()["AP"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found, wanted: ([found], []), "a target for every video, got 1 and 0"),
        (lambda found, wanted: ({**found, "video_id": 1}, {**wanted, "video_id": 2}), "different videos"),
        (lambda found, wanted: ({**found, "boxes": 1}, wanted), "prediction 0 must have"),
        (lambda found, wanted: ({"masks": found["masks"], "labels": found["labels"]}, wanted), "scores"),
        (lambda found, wanted: ({**found, "masks": found["masks"][:, :2]}, wanted), "masks of predictions are"),
        (lambda found, wanted: ({**found, "masks": found["masks"][0]}, wanted), r"must be \(N, T, H, W\)"),
        (
            lambda found, wanted: ({**found, "scores": np.full(4, np.nan)}, wanted),
            "prediction 0: scores must be finite",
        ),
        (lambda found, wanted: (found, {**wanted, "iscrowd": [1]}), "iscrowd must be"),
        (lambda found, wanted: ("results.json", wanted), "must be a video or a list of videos"),
        (lambda found, wanted: ([1], wanted), "must be a VideoPrediction or a dict"),
    ],
)
def test_what_does_not_belong_together_is_refused(change, message):
    predictions, targets = videos(1)
    with pytest.raises((ValueError, TypeError), match=message):
        TubeAP().update(*change(predictions[0], targets[0]))


def test_ground_truth_comes_either_first_or_with_the_predictions():
    predictions, targets = videos(1)
    with pytest.raises(ValueError, match="there is no ground truth"):
        TubeAP().update([])
    with pytest.raises(ValueError, match="known from the beginning"):
        TubeAP({"videos": [], "categories": [], "annotations": []}).update(predictions, targets)


def test_a_name_for_messages_may_still_come_second():
    with pytest.raises(ValueError, match=r"^mine"):
        TubeAP({"videos": [], "categories": [], "annotations": []}).update([{}], "mine")
