"""The evaluation loop and what is done with its numbers."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from lbvq.engine.evaluate import (
    UnexpectedResultsError,
    inference_on_dataset,
    print_csv_format,
    verify_results,
)


class Doubler(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.frozen = nn.Dropout().eval()

    def forward(self, inputs):
        if self.training or torch.is_grad_enabled():
            raise RuntimeError("evaluated in training mode or with gradients")
        return [2 * value for value in inputs]


class Collector:
    def __init__(self):
        self.seen = ["something old"]

    def reset(self):
        self.seen = []

    def process(self, inputs, outputs):
        self.seen.append((inputs, outputs))

    def evaluate(self):
        return {"task": {"count": float(len(self.seen))}}


def test_every_batch_goes_through_model_postprocess_and_evaluator():
    model, evaluator = Doubler(), Collector()
    results = inference_on_dataset(
        model, [[1], [2]], evaluator, postprocess=lambda inputs, outputs: [*outputs, inputs[0]]
    )
    assert results == {"task": {"count": 2.0}}
    assert evaluator.seen == [([1], [2, 1]), ([2], [4, 2])]


def test_an_empty_loader_is_evaluated_to_nothing():
    evaluator = Collector()
    assert inference_on_dataset(Doubler(), [], evaluator) == {"task": {"count": 0.0}}
    assert inference_on_dataset(Doubler(), [], None) == {}


def test_each_module_gets_its_own_mode_back_also_after_an_error():
    model = Doubler().train()
    model.frozen.eval()
    with pytest.raises(TypeError):
        inference_on_dataset(model, [None], Collector())
    assert model.training and model.layer.training and not model.frozen.training
    assert torch.is_grad_enabled()


def test_the_summary_counts_the_timed_batches(caplog):
    with caplog.at_level(logging.INFO, logger="lbvq.engine.evaluate"):
        logging.getLogger("lbvq").propagate = True
        inference_on_dataset(Doubler(), [[1]] * 8, Collector())
    assert "Start inference on 8 batches" in caplog.text
    assert "Total inference pure compute time" in caplog.text and "on 1 devices" in caplog.text


def test_csv_format_leaves_out_single_classes(caplog):
    with caplog.at_level(logging.INFO, logger="lbvq.engine.evaluate"):
        logging.getLogger("lbvq").propagate = True
        print_csv_format({"segm": {"AP": 12.34567, "AP50": 30.1, "AP-cat": 1.0}, "speed": 2})
    assert caplog.messages == [
        "copypaste: Task: segm",
        "copypaste: AP,AP50",
        "copypaste: 12.3457,30.1000",
        "copypaste: speed=2",
    ]


def test_expected_results_are_compared_with_their_tolerance():
    results = {"segm": {"AP": 40.4}}
    assert verify_results([], results) and verify_results([["segm", "AP", 40.0, 0.5]], results)


@pytest.mark.parametrize(
    "row, message",
    [
        (["segm", "AP", 39.0, 0.5], "segm/AP is 40.4, expected 39.0"),
        (["segm", "AR", 39.0, 0.5], "segm/AR was not computed"),
        (["bbox", "AP", 39.0, 0.5], "bbox/AP was not computed"),
        (["segm", "broken", 1.0, 0.5], "segm/broken is nan"),
    ],
)
def test_results_that_differ_from_the_expected_ones_are_named(row, message):
    with pytest.raises(UnexpectedResultsError, match=message):
        verify_results([row], {"segm": {"AP": 40.4, "broken": float("nan")}})
