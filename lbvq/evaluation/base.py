"""What every evaluator does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from lbvq.engine import comm

Results = dict[str, dict[str, float]]  # task -> metric -> number


class DatasetEvaluator(ABC):
    """Collects the outputs of a model on a data set and scores them.

    The protocol is that of detectron2, so evaluators of both projects can stand in for each other.
    """

    def check(self) -> None:  # noqa: B027  optional: evaluators of other projects do not have it
        """Raise now what `evaluate` would raise about the annotation file after hours; by default there is nothing."""

    @abstractmethod
    def reset(self) -> None:
        """Forget everything; called before the first `process`."""

    @abstractmethod
    def process(self, inputs: Any, outputs: Any) -> None:
        """Take one batch: what the model got and what it returned."""

    @abstractmethod
    def evaluate(self) -> Results:
        """Score what all processes have collected; {} on every process but the main one."""


class DatasetEvaluators(DatasetEvaluator):
    """Several evaluators as one."""

    def __init__(self, evaluators: Sequence[DatasetEvaluator]) -> None:
        """Take evaluators that score different tasks."""
        self._evaluators = list(evaluators)

    def check(self) -> None:
        """Check all."""
        for evaluator in self._evaluators:
            evaluator.check()

    def reset(self) -> None:
        """Reset all."""
        for evaluator in self._evaluators:
            evaluator.reset()

    def process(self, inputs: Any, outputs: Any) -> None:
        """Show the batch to all."""
        for evaluator in self._evaluators:
            evaluator.process(inputs, outputs)

    def evaluate(self) -> Results:
        """All results in one dict; two results of the same task are an error."""
        results: Results = {}
        for evaluator in self._evaluators:
            own = evaluator.evaluate() or {}
            twice = sorted(set(own) & set(results))
            if twice:
                raise ValueError(f"several evaluators report {twice}; give each its own task")
            results |= own
        return results if comm.is_main_process() else {}
