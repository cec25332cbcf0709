"""Samplers and batch plans give the recorded sequences."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice

import pytest
from helpers import GOLDEN

from lbvq.data.batches import arrival_order, grouped_batches, mixed_batches, plain_batches, with_seeds
from lbvq.data.build import TrainingSet, make_plan
from lbvq.data.record_store import RecordStore
from lbvq.data.samplers import InferenceSampler, RepeatFactorTrainingSampler, TrainingSampler, repeat_factors

RECORDED = json.loads((GOLDEN / "samplers.json").read_text())


def ids(case):
    return "-".join(f"{key}{value}" for key, value in case.items() if isinstance(value, (int, bool)))


@pytest.mark.parametrize("case", RECORDED["training"], ids=ids)
def test_training_orders_equal_the_recorded_ones(case):
    sampler = TrainingSampler(
        case["size"], seed=case["seed"], shuffle=case["shuffle"], rank=case["rank"], world_size=case["world"]
    )
    assert list(islice(sampler, len(case["first"]))) == case["first"]


@pytest.mark.parametrize("case", RECORDED["repeat_factor"], ids=ids)
def test_repeat_factor_orders_equal_the_recorded_ones(case):
    sampler = RepeatFactorTrainingSampler(
        case["factors"], seed=case["seed"], rank=case["rank"], world_size=case["world"]
    )
    assert list(islice(sampler, len(case["first"]))) == case["first"]


@pytest.mark.parametrize("case", RECORDED["repeat_factor_values"])
def test_repeat_factors_equal_the_recorded_ones(case):
    assert repeat_factors(case["category_ids"], case["thresh"], sqrt=case["sqrt"]).tolist() == case["factors"]


def test_repeat_factors_below_one_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        RepeatFactorTrainingSampler([1.0, 0.5], seed=0)


@pytest.mark.parametrize("case", RECORDED["inference"], ids=ids)
def test_test_shares_equal_the_recorded_ones(case):
    for rank, (start, stop) in enumerate(case["ranges"]):
        sampler = InferenceSampler(case["size"], rank=rank, world_size=case["world"])
        assert list(sampler) == list(range(start, stop)) and len(sampler) == stop - start


@pytest.mark.parametrize("case", RECORDED["workers"], ids=ids)
def test_plain_batches_equal_the_recorded_ones_for_any_number_of_workers(case):
    sampler = TrainingSampler(case["size"], seed=case["seed"])
    assert list(islice(plain_batches(sampler, case["batch"]), len(case["batches"]))) == case["batches"]


@pytest.mark.parametrize("case", RECORDED["aspect_ratio"], ids=ids)
def test_grouped_batches_equal_the_recorded_ones(case):
    arriving = arrival_order(TrainingSampler(case["size"], seed=case["seed"]), case["batch"], case["workers"])
    batches = grouped_batches(arriving, [w > h for w, h in case["wh"]], case["batch"])
    assert list(islice(batches, len(case["batches"]))) == case["batches"]


def test_mixing_single_elements_equals_the_recorded_order():
    case = next(case for case in RECORDED["combined"] if case["batch"] == 1)
    sources = [([number] for number in range(1000)) for _ in range(2)]
    mixed = mixed_batches(sources, case["ratios"], 1, case["seed"])
    got = [[f"{'ab'[source]}{index}" for source, index in batch] for batch in islice(mixed, len(case["batches"]))]
    assert got == case["batches"]


def test_every_data_set_has_a_pool_of_its_own_so_batches_are_mixed():
    sources = [plain_batches(iter(range(10**6)), 4) for _ in range(2)]
    batches = list(islice(mixed_batches(sources, [1.0, 0.75], 4, seed=3), 500))
    assert all(len(batch) == 4 for batch in batches)
    assert any(len({source for source, _ in batch}) == 2 for batch in batches)
    drawn = Counter(source for batch in batches for source, _ in batch)
    assert abs(drawn[0] / 2000 - 1 / 1.75) < 0.04
    for source in range(2):  # nothing is skipped or repeated
        seen = [index for batch in batches for each, index in batch if each == source]
        assert seen == list(range(len(seen)))


def test_a_data_set_with_ratio_zero_is_never_drawn():
    sources = [([0] for _ in range(10**6)), ([1] for _ in range(10**6))]
    assert all(batch == [(0, 0)] for batch in islice(mixed_batches(sources, [1.0, 0.0], 1, seed=0), 200))


def test_seeds_depend_on_the_place_in_the_plan_and_on_the_process():
    picks = [pick for rank in range(2) for batch in with_seeds([[(0, 5), (1, 5)], [(0, 5)]], 9, rank) for pick in batch]
    assert len({pick.seed for pick in picks}) == 6 and picks[2].seed == (9, 0, 2)


def test_a_stream_that_ends_ends_the_batches():
    assert list(plain_batches(range(5), 2)) == [[0, 1], [2, 3]]
    assert list(arrival_order(range(5), 2, 2)) == [0, 2, 1, 3, 4]
    assert list(grouped_batches([0, 1, 2], [True, False, True], 2)) == [[0, 2]]


def test_training_needs_records():
    with pytest.raises(ValueError, match=r"DATASETS\.TRAIN"):
        TrainingSampler(0, seed=0)


def planned(sets, seed=3):
    plan = make_plan(seed, 0, sets=sets, ratios=[1.0] * len(sets), batch_size=1, grouping=False, rank=0, world_size=1)
    return [batch[0] for batch in islice(plan, 200)]


def test_two_data_sets_of_one_size_come_in_different_orders():
    """With one seed for both, record n of one would always come with record n of the other."""
    sets = [
        TrainingSet(name, RecordStore.from_records([{"video_id": n} for n in range(10)]), [True] * 10)
        for name in ("one", "other")
    ]
    picks = planned(sets)
    orders = [[pick[1] for pick in picks if pick[0] == number][:10] for number in (0, 1)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(10))
    assert orders[0] != orders[1]
