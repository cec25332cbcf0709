"""The masks of a step: of all objects, or of those that are in its frames."""

from __future__ import annotations

import torch

from lbvq.modeling.online.segmenter import StepMasks, StepStore

MAPS = torch.arange(24.0).view(2, 3, 2, 2)  # two frames of three maps
SPARSE = StepMasks(MAPS, torch.tensor([2, 0]), rows=torch.tensor([4, 1]), num_objects=6)


def test_objects_that_are_not_there_have_zeros():
    logits = SPARSE.logits(torch.tensor([1, 3, 4, 1]))
    assert torch.equal(logits, torch.stack((MAPS[:, 0], torch.zeros(2, 2, 2), MAPS[:, 2], MAPS[:, 0])))
    assert torch.equal(SPARSE.logits()[[1, 4]], logits[[0, 2]]) and SPARSE.logits().shape == (6, 2, 2, 2)
    assert SPARSE.logits(torch.tensor([3])).abs().sum() == 0 and len(SPARSE) == 6


def test_those_that_are_there_come_alone():
    logits, rows = SPARSE.of_frames()
    assert rows.tolist() == [4, 1] and torch.equal(logits, MAPS[:, [2, 0]].transpose(0, 1))
    dense = StepMasks(MAPS, torch.tensor([[1.0, 0.0, 1.0]]))
    assert dense.of_frames()[1] is None and len(dense) == 1
    assert torch.equal(dense.of_frames()[0][0], MAPS[:, 0] + MAPS[:, 2])


def test_a_store_gives_back_what_both_kinds_of_steps_had():
    dense = [StepMasks(MAPS + t, torch.full((2, 3), 1.0 + t)) for t in range(3)]
    grown = [
        StepMasks(MAPS[:1], torch.tensor([1]), torch.tensor([0]), 1),
        StepMasks(MAPS, torch.tensor([0, 2]), torch.tensor([2, 0]), 3),
        StepMasks(MAPS[1:], torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), 3),
    ]
    for steps, rows in ((dense, torch.tensor([1])), (grown, torch.tensor([0, 2]))):
        for budget in (1.0, 0.0):  # in memory, and in a file
            with StepStore(budget) as store:
                for step in steps:
                    store.append(step)
                assert store.num_frames == sum(len(step.features) for step in steps)
                for step, logits in zip(steps, store.logits(rows), strict=True):
                    assert torch.equal(logits, step.logits(rows))
