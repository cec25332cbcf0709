"""CTVIS' tracker against a recorded run on made-up detections, and its rules by hand.

`ctvis_tracker.npz`: 30 frames, 12 queries, 6 classes; births, deaths, a gap longer than the memory, two tracks of one
frame that are dropped, and a duplicate.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import GOLDEN

from lbvq.modeling.ctvis import tracker as tracking
from lbvq.modeling.ctvis.tracker import (
    NO_TRACK,
    TrackRules,
    mask_overlaps,
    match,
    select_detections,
    start_tracker,
    track_frame,
    two_way_softmax,
)

RECORDED = np.load(GOLDEN / "ctvis_tracker.npz")
RULES = TrackRules(match_above=0.3, dead_after=5, cache=4)


def recorded_frames() -> list[dict[str, torch.Tensor]]:
    names = ("logits", "masks", "embeds")
    return [{name: torch.from_numpy(RECORDED[f"in_{name}"][t]) for name in names} for t in range(30)]


def follow(rules: TrackRules, frames: list[dict], state: dict | None = None) -> tuple[dict, list]:
    """The state afterwards, and of every frame (rows, queries)."""
    state, found = state or start_tracker(), []
    for frame in frames:
        kept = select_detections(rules, frame["logits"], frame["masks"])
        state, rows, queries = track_frame(rules, state, {**frame, "kept": kept})
        found.append((rows, queries))
    return state, found


def test_the_recorded_tracks():
    frames = recorded_frames()
    state, found = follow(RULES, frames)
    tracks = state["tracks"]
    got = (tracks["logits"] / tracks["counts"][:, None]).float()
    torch.testing.assert_close(got, torch.from_numpy(RECORDED["out_logits"]), atol=1e-6, rtol=0)
    masks = torch.zeros(RECORDED["out_masks"].shape)
    for t, (rows, queries) in enumerate(found):
        for row, query in zip(rows, queries, strict=True):
            masks[tracks["rows"] == row, t] = frames[t]["masks"][query]
    assert torch.equal(masks, torch.from_numpy(RECORDED["out_masks"]))
    assert state["num_rows"] > len(tracks["rows"]) == 6  # some were dropped


def test_a_state_is_left_as_it_is_and_can_be_gone_on_with():
    frames = recorded_frames()
    before, _ = follow(RULES, frames[:13])
    copy = {key: dict(value) if isinstance(value, dict) else value for key, value in before.items()}
    columns = {name: column.clone() for name, column in before["memory"].items()}
    one, _ = follow(RULES, frames[13:], before)
    other, _ = follow(RULES, frames[13:], copy)
    assert all(torch.equal(before["memory"][name], column) for name, column in columns.items())
    whole, _ = follow(RULES, frames)
    for state in (one, other):
        for table in ("memory", "tracks"):
            assert all(torch.equal(state[table][name], column) for name, column in whole[table].items())


def detection(vector: list[float]) -> dict[str, torch.Tensor]:
    """A frame with one query."""
    return {"logits": torch.tensor([[4.0, 0.0, 0.0]]), "masks": torch.ones(1, 2, 2), "embeds": torch.tensor([vector])}


APART = replace(RULES, least_cosine=0.5)


def test_a_single_detection_joins_a_track_however_unlike_unless_a_cosine_is_asked_for():
    frames = [detection([3.0, 0.0]), detection([0.0, 3.0])]
    published, _ = follow(RULES, frames)
    assert published["num_rows"] == 1
    corrected, found = follow(APART, frames)
    assert corrected["num_rows"] == 2
    assert [rows.tolist() for rows, _ in found] == [[0], [1]]


def test_a_like_detection_joins_although_a_cosine_is_asked_for():
    state, _ = follow(APART, [detection([3.0, 0.0]), detection([2.0, 1.0])])
    assert state["num_rows"] == 1


def test_similarity_is_the_mean_of_both_softmaxes():
    e = float(np.e)
    got = two_way_softmax(torch.tensor([[1.0, 0.0]]))
    assert got[0].tolist() == pytest.approx([(e / (e + 1) + 1) / 2, (1 / (e + 1) + 1) / 2])


def memory_of(means: list[list[float]], counts: list[int]) -> dict[str, torch.Tensor]:
    memory = tracking.empty_memory(RULES, len(means[0]))
    memory = tracking._with_new_rows(memory, torch.ones(len(means), dtype=torch.bool), torch.tensor(means))
    return {**memory, "means": torch.tensor(means), "counts": torch.tensor(counts)}


def test_appearances_decide_between_tracks_that_both_fit():
    memory = memory_of([[2.0, 0.0], [1.9, 0.0]], [1, 5])
    vectors = torch.tensor([[1.0, 0.0]])
    assert match(RULES, vectors, memory).tolist() == [1]
    assert match(replace(RULES, weigh_appearances=False), vectors, memory).tolist() == [0]


def test_a_track_that_does_not_fit_is_weighed_like_the_mean_of_those_that_do():
    """Rows 0.45 and 0.4 fit, with 1 and 3 appearances; the third, 0.25 x (1 + 3) / 2, is less than 0.4 x 3."""
    similarity = torch.tensor([[0.45, 0.4, 0.25]])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracking, "two_way_softmax", lambda _: similarity.clone())
        assert match(RULES, torch.zeros(1, 1), memory_of([[0.0]] * 3, [1, 3, 100])).tolist() == [1]
        patch.setattr(tracking, "two_way_softmax", lambda _: torch.tensor([[0.8, 0.31, 0.29]]))
        assert match(RULES, torch.zeros(1, 1), memory_of([[0.0]] * 3, [1, 1, 100])).tolist() == [0]


def test_a_chosen_track_is_worth_nothing_to_later_detections():
    memory = memory_of([[3.0, 0.0]], [1])
    assert match(RULES, torch.tensor([[3.0, 0.0], [2.9, 0.0]]), memory).tolist() == [0, NO_TRACK]


def test_the_mean_moves_by_the_likeness_to_recent_vectors():
    state, _ = follow(RULES, [detection([2.0, 0.0]), detection([0.0, 2.0]), detection([2.0, 2.0])])
    means = state["memory"]["means"]
    # orthogonal: no move; then cosines 0.7071 and 0.7071 with the two before
    share = 2**-0.5
    assert means[0].tolist() == pytest.approx([2.0, share * 2.0])


def test_only_the_last_vectors_are_compared_with():
    rules = replace(RULES, cache=1)
    state, _ = follow(rules, [detection([2.0, 0.0]), detection([0.0, 2.0]), detection([2.0, 2.0])])
    assert state["memory"]["recent"].shape == (1, 1, 2)
    assert state["memory"]["means"][0].tolist() == pytest.approx([2.0, 2**-0.5 * 2.0])
    state, _ = follow(rules, [detection([2.0, 0.0]), detection([0.0, 2.0]), detection([0.0, 1.0])])
    assert state["memory"]["means"][0].tolist() == pytest.approx([0.0, 1.0])  # as like the last as can be


def test_a_track_is_forgotten_after_too_many_frames_without_it():
    rules = replace(APART, dead_after=2)
    first, other = detection([5.0, 0.0]), detection([0.0, 5.0])
    for gap, rows in ((2, 2), (3, 3)):
        state, _ = follow(rules, [first, *[other] * gap, first])
        assert state["num_rows"] == rows
    assert state["tracks"]["counts"].tolist() == [1, 3, 1]  # what is dead is still reported


def test_short_tracks_are_dropped_and_come_back_in_a_new_row():
    rules = replace(APART, judge_after=2)
    short, long = detection([5.0, 0.0]), detection([0.0, 5.0])
    state, _ = follow(rules, [short, long, long])
    assert state["tracks"]["rows"].tolist() == [0, 1]  # nothing is judged yet
    state, _ = follow(rules, [long], state)
    assert state["tracks"]["rows"].tolist() == [1]
    state, found = follow(rules, [short], state)
    assert state["tracks"]["rows"].tolist() == [1, 2] and found[0][0].tolist() == [2]
    assert state["tracks"]["counts"].tolist() == [3, 1] and len(state["memory"]["rows"]) == 2


def test_detections_are_the_good_ones_without_repetitions_and_always_one():
    logits = torch.tensor([[0.0, 9.0], [9.0, 0.0], [5.0, 0.0], [-9.0, 9.0], [7.0, 0.0]])
    masks = torch.full((5, 2, 4), -1.0)
    masks[1, 0] = 1.0  # four cells
    masks[2, 0, :3] = 1.0  # three of them: IoU 0.75
    masks[4, 0, :2] = 1.0  # two of them: IoU 0.5 with the best, and would be 0.67 with the one that is dropped
    assert select_detections(RULES, logits, masks).tolist() == [1, 4]
    assert select_detections(RULES, logits[[3, 3]], masks[:2]).tolist() == [0]


def test_two_empty_masks_overlap_completely():
    masks = torch.zeros(3, 2, 2, dtype=torch.bool)
    masks[2, 0] = True
    overlaps = mask_overlaps(masks)
    assert overlaps[0, 1] == 1 and overlaps[0, 2] < 1e-6 and overlaps[2, 2] == 1


def test_a_first_frame_without_a_good_detection_begins_nothing():
    nothing = {**detection([1.0, 0.0]), "logits": torch.tensor([[-9.0, -9.0, 9.0]])}
    state, found = follow(RULES, [nothing])
    assert state["num_rows"] == 0 and len(found[0][0]) == 0
    state, _ = follow(RULES, [detection([1.0, 0.0])], state)
    assert state["num_rows"] == 1


def test_a_memory_of_nothing_is_refused():
    with pytest.raises(ValueError, match="maximum_cache"):
        TrackRules(cache=0)
