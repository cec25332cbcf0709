"""One query per object for a whole clip: equal to the published matching, and its rules by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fixed_points import fixed_rand
from helpers import GOLDEN

from lbvq.modeling.clips.consistent import ConsistentMatcher, first_frames

COSTS = {"cost_class": 2.0, "cost_mask": 5.0, "cost_dice": 5.0}


def frame(ids, labels, masks):
    return {"ids": torch.tensor(ids), "labels": torch.tensor(labels), "masks": torch.as_tensor(masks).float()}


def outputs(logits):
    """Class logits alone decide: all masks are the same."""
    logits = torch.as_tensor(logits).float()
    return {"pred_logits": logits, "pred_masks": torch.zeros(*logits.shape[:2], 4, 4)}


def matcher(num_frames, **options):
    return ConsistentMatcher(num_frames=num_frames, num_points=8, **COSTS, **options)


def test_first_frames_by_hand():
    ids = torch.tensor([[3, -1, -1], [3, 5, -1], [-1, 5, -1]])
    assert first_frames(ids).tolist() == [0, 1, 3]
    assert first_frames(torch.zeros(2, 0, dtype=torch.int64)).tolist() == []


def test_an_object_keeps_the_query_of_the_frame_it_appears_in():
    """In frame 1 the scores have moved to other queries: the object of frame 0 keeps query 1, the new one takes 0."""
    masks = torch.zeros(2, 4, 4)
    targets = [frame([7, -1], [0, 1], masks), frame([7, 9], [0, 1], masks)]
    logits = [[[0, 0, 9], [9, 0, 0], [0, 0, 9]], [[0, 5, 0], [0, 9, 0], [9, 0, 0]]]
    matches = matcher(2)(outputs(logits), targets)
    assert [(q.tolist(), g.tolist()) for q, g in matches] == [([1, 0], [0, 1])] * 2


def test_a_taken_query_is_given_away_twice_only_on_request():
    masks = torch.zeros(2, 4, 4)
    targets = [frame([7, -1], [0, 0], masks), frame([7, 9], [0, 0], masks)]
    logits = [[[9, 0], [0, 9]], [[9, 0], [0, 9]]]
    assert matcher(2)(outputs(logits), targets)[0][0].tolist() == [0, 1]
    assert matcher(2, reuse_queries=True)(outputs(logits), targets)[0][0].tolist() == [0, 0]


def test_an_object_that_no_frame_shows_stays_unmatched():
    targets = [frame([-1, 4], [0, 0], torch.zeros(2, 4, 4))]
    queries, objects = matcher(1)(outputs([[[9, 0], [0, 9]]]), targets)[0]
    assert (queries.tolist(), objects.tolist()) == ([0], [1])


def test_objects_without_a_free_query_stay_unmatched():
    masks = torch.zeros(3, 4, 4)
    targets = [frame([1, 2, -1], [0, 0, 0], masks), frame([1, 2, 3], [0, 0, 0], masks)]
    queries, objects = matcher(2)(outputs(torch.zeros(2, 2, 2)), targets)[0]
    assert sorted(queries.tolist()) == [0, 1] and sorted(objects.tolist()) == [0, 1]


def test_a_clip_without_objects_has_an_empty_match():
    targets = [frame([], [], torch.zeros(0, 4, 4))] * 2
    targets = [{**target, "labels": torch.zeros(0, dtype=torch.int64)} for target in targets]
    assert [(len(q), len(g)) for q, g in matcher(2)(outputs(torch.zeros(2, 2, 2)), targets)] == [(0, 0)] * 2


def test_clips_of_another_length_are_refused():
    with pytest.raises(ValueError, match="3 frames are no clips of 2"):
        matcher(2)(outputs(torch.zeros(3, 2, 2)), [frame([1], [0], torch.zeros(1, 4, 4))] * 3)


@pytest.mark.parametrize("name", ["dvis_plus", "dvis"])
def test_the_matches_are_the_published_ones(name):
    """Two clips of four frames; DVIS lets later frames take queries again, DVIS++ and VidEoMT do not."""
    recorded = np.load(GOLDEN / "consistent_matcher.npz")
    ids = recorded[f"{name}/ids"].reshape(2, 4, -1)
    masks = torch.from_numpy(np.unpackbits(recorded[f"{name}/gt_packed"], axis=-1)).float()
    targets = [
        {
            "ids": torch.from_numpy(ids[v, t]),
            "labels": torch.from_numpy(recorded[f"{name}/labels"]),
            "masks": masks[v, t],
        }
        for v in range(2)
        for t in range(4)
    ]
    found = {
        "pred_logits": torch.from_numpy(recorded[f"{name}/logits"]),
        "pred_masks": torch.from_numpy(recorded[f"{name}/masks"]),
    }
    with fixed_rand():
        matches = ConsistentMatcher(num_frames=4, num_points=256, reuse_queries=name == "dvis", **COSTS)(found, targets)
    for v in range(2):
        for queries, objects in matches[4 * v : 4 * v + 4]:
            assert queries.tolist() == recorded[f"{name}/video{v}_q"].tolist()
            assert objects.tolist() == recorded[f"{name}/video{v}_t"].tolist()
