"""Matching queries between frames: by hand, and where there is little or nothing to match."""

from __future__ import annotations

import pytest
import torch

from lbvq.modeling.online.tracking import (
    Memory,
    add_logits,
    assign_queries,
    cosine_similarity,
    keep_finite,
    mean_probabilities,
)

NAN, INF = float("nan"), float("inf")


def entry(value: float, score: float) -> dict[str, torch.Tensor]:
    return {"reid": torch.full((1, 2), value), "scores": torch.tensor([score])}


def test_shuffled_queries_find_their_tracks():
    tracks = torch.randn(12, 16, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    assert torch.equal(assign_queries(cosine_similarity(tracks, 3 * tracks[order])), order.argsort())


def test_the_best_sum_wins_not_the_best_pair():
    assert assign_queries(torch.tensor([[0.9, 0.8], [0.8, 0.1]])).tolist() == [1, 0]


def test_similarity_is_the_cosine():
    similarity = cosine_similarity(torch.tensor([[2.0, 0.0]]), torch.tensor([[3.0, 3.0], [-1.0, 0.0]]))
    assert similarity.tolist() == [pytest.approx([2**-0.5, -1.0])]


@pytest.mark.parametrize("bad", [[0.0, 0.0], [NAN, 1.0], [INF, 1.0], [-INF, NAN]])
def test_a_query_that_cannot_be_compared_takes_what_is_left(bad):
    tracks = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    queries = torch.tensor([bad, [0.0, 2.0], [3.0, 0.1]])
    assert assign_queries(cosine_similarity(tracks, queries)).tolist() == [2, 1, 0]
    assert assign_queries(cosine_similarity(queries, tracks)).tolist() == [2, 1, 0]


def test_nothing_but_bad_numbers_still_gives_every_track_a_query():
    assert sorted(assign_queries(cosine_similarity(torch.full((3, 4), NAN), torch.full((3, 4), NAN))).tolist()) == [
        0,
        1,
        2,
    ]


@pytest.mark.parametrize("count", [0, 1])
def test_no_query_and_one_query(count):
    assert assign_queries(cosine_similarity(torch.ones(count, 4), -torch.ones(count, 4))).tolist() == list(range(count))


def test_rows_that_are_not_finite_are_not_taken_over():
    rows = keep_finite(torch.tensor([[1.0, NAN], [2.0, 3.0]]), torch.tensor([[7.0, 8.0], [9.0, 9.0]]))
    assert rows.tolist() == [[7.0, 8.0], [2.0, 3.0]]


def test_the_oldest_entry_weighs_most_as_published():
    memory = [entry(0.0, 0.5), entry(6.0, 0.25), entry(12.0, 0.0)]  # newest first: weights 1/3 + 0.5, 2/3 + 0.25, 1
    weights = [1 / 3 + 0.5, 2 / 3 + 0.25, 1.0]
    want = (weights[1] * 6 + weights[2] * 12) / sum(weights)
    assert Memory(5).recall(memory, "reid")[0].tolist() == pytest.approx([want, want])


def test_the_newest_entry_can_weigh_most():
    memory = [entry(0.0, 0.0), entry(6.0, 0.0), entry(12.0, 0.0)]
    got = Memory(5, newest_weighs_most=True).recall(memory, "reid")
    assert got[0].tolist() == pytest.approx([(2 / 3 * 6 + 1 / 3 * 12) / 2] * 2)


def test_one_entry_is_recalled_as_it_is():
    assert torch.equal(Memory(5).recall([entry(4.0, 0.0)], "reid"), torch.full((1, 2), 4.0))


def test_a_full_memory_forgets_the_oldest_and_leaves_the_old_list_alone():
    memory, rules = [], Memory(2)
    for value in (1.0, 2.0, 3.0):
        before = list(memory)
        longer = rules.add(memory, torch.tensor([0.5]), reid=torch.full((1, 2), value))
        assert memory == before
        memory = longer
    assert [each["reid"][0, 0].item() for each in memory] == [3.0, 2.0]


def test_what_is_not_finite_is_not_remembered():
    memory = Memory(3).add([entry(4.0, 0.5)], torch.tensor([NAN]), reid=torch.tensor([[NAN, 1.0]]))
    assert memory[0]["reid"].tolist() == [[4.0, 4.0]] and memory[0]["scores"].tolist() == [0.0]
    memory = Memory(3).add([], torch.tensor([NAN]), reid=torch.tensor([[INF, 1.0]]))
    assert memory[0]["reid"].tolist() == [[0.0, 0.0]]


def test_class_probabilities_are_those_of_the_mean_logits():
    first, second = torch.tensor([[0.0, 2.0, 1.0]]), torch.tensor([[4.0, 2.0, 1.0]])
    state = add_logits({}, first)
    state = add_logits(state, second)
    torch.testing.assert_close(mean_probabilities(state), torch.tensor([[2.0, 2.0, 1.0]]).softmax(-1)[:, :2])


def test_logits_that_are_not_finite_do_not_count():
    logits = torch.tensor([[0.0, 2.0, 1.0], [0.0, NAN, 1.0]])
    state = add_logits(add_logits({}, logits), torch.tensor([[NAN] * 3] * 2))
    got = mean_probabilities(state)
    torch.testing.assert_close(got[0], logits[0].softmax(-1)[:2])
    assert got[1].tolist() == [0.0, 0.0]  # never seen: worth nothing
