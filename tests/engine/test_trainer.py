"""The training loop and its hooks."""

from __future__ import annotations

import json
import signal

import pytest
import torch
from torch import nn
from training_steps import EmptyStep, FailingStep, make_trainer

from lbvq.engine.events import JSONWriter
from lbvq.engine.graceful_stop import GracefulStop
from lbvq.engine.hooks import (
    BestCheckpointer,
    EvalHook,
    IterationTimer,
    LRScheduler,
    PeriodicCheckpointer,
    PeriodicWriter,
    flatten_results,
)
from lbvq.engine.trainer import HookBase, TrainLoop


class Recorder(HookBase):
    def __init__(self, name, calls):
        self.name, self.calls = name, calls

    def _record(self, moment):
        self.calls.append((moment, self.name, self.trainer.iter))

    def before_train(self):
        self._record("before_train")

    def after_train(self):
        self._record("after_train")

    def before_step(self):
        self._record("before_step")

    def after_backward(self):
        self._record("after_backward")

    def after_step(self):
        self._record("after_step")


def test_hooks_are_called_in_order_and_iter_equals_max_iter_at_the_end():
    trainer = TrainLoop(EmptyStep())
    calls = trainer.step.calls
    trainer.register_hooks([Recorder("a", calls), None, Recorder("b", calls)])
    trainer.train(3, 5)
    step = [("before_step", "a"), ("before_step", "b"), ("step", ""), ("after_backward", "a"), ("after_backward", "b")]
    step += [("after_step", "a"), ("after_step", "b")]
    want = [("before_train", "a", 3), ("before_train", "b", 3)]
    want += [(*call, 3) for call in step] + [(*call, 4) for call in step]
    want += [("after_train", "a", 5), ("after_train", "b", 5)]
    assert calls == want


def test_the_loop_stores_what_the_step_returns_under_its_iteration():
    trainer = TrainLoop(EmptyStep(), metrics_period=3)
    trainer.train(5, 10)
    want = [(float(iteration), iteration) for iteration in range(5, 10)]
    assert trainer.storage.history("total_loss").samples == want
    assert trainer.storage.history("data_time").samples == [(0.25, iteration) for iteration in range(5, 10)]


def test_a_step_of_another_kind_is_given_to_the_loop_and_the_old_way_refused():
    with pytest.raises(TypeError, match=r"Mine\.run_step is never called; give the loop another step"):
        type("Mine", (TrainLoop,), {"run_step": lambda self: None})
    with pytest.raises(ImportError, match="SimpleTrainer is gone: a step is TrainStep"):
        from lbvq.engine.trainer import SimpleTrainer  # noqa: F401


def test_a_finished_run_trains_nothing_but_still_ends_properly():
    trainer = TrainLoop(EmptyStep())
    trainer.register_hooks([Recorder("a", trainer.step.calls)])
    trainer.train(7, 7)
    assert trainer.step.calls == [("before_train", "a", 7), ("after_train", "a", 7)]


def test_after_train_runs_when_a_step_fails():
    trainer = TrainLoop(FailingStep())
    trainer.register_hooks([Recorder("a", trainer.step.calls)])
    with pytest.raises(ZeroDivisionError):
        trainer.train(0, 5)
    assert trainer.step.calls[-1] == ("after_train", "a", 0)


def test_metrics_of_every_iteration_arrive_although_they_leave_the_device_together():
    trainer = make_trainer(metrics_period=4)
    trainer.register_hooks([PeriodicWriter([], period=7)])
    trainer.train(0, 10)
    assert [iteration for _, iteration in trainer.storage.history("total_loss").samples] == list(range(10))


def test_lr_scheduler_stores_the_rate_the_step_used():
    trainer = make_trainer()
    optimizer = trainer.step.optimizer
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda iteration: 0.5**iteration)
    trainer.register_hooks([LRScheduler(optimizer, schedule)])
    trainer.train(0, 3)
    assert trainer.storage.history("lr").samples == [(0.1, 0), (0.05, 1), (0.025, 2)]


def test_lr_scheduler_reports_the_largest_group_or_the_most_common_rate():
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(4)]
    one_each = torch.optim.SGD([{"params": [p], "lr": lr} for p, lr in zip(parameters, (1, 2, 2, 3), strict=True)])
    assert LRScheduler._representative_group(one_each) == 1
    grouped = torch.optim.SGD([{"params": parameters[:1], "lr": 1}, {"params": parameters[1:], "lr": 2}])
    assert LRScheduler._representative_group(grouped) == 1


def test_iteration_timer_begins_with_the_third_iteration_of_a_run(caplog):
    trainer = make_trainer()
    trainer.register_hooks([IterationTimer()])
    with caplog.at_level("INFO", logger="lbvq.engine.hooks"):
        trainer.train(4, 10)
    assert [iteration for _, iteration in trainer.storage.history("time").samples] == [6, 7, 8, 9]
    assert "Overall training speed: 4 iterations" in caplog.text


def test_periodic_checkpointer_names_and_final():
    saved, deleted = [], []
    trainer = make_trainer()
    trainer.register_hooks([PeriodicCheckpointer(saved.append, 2, max_to_keep=2, delete=deleted.append)])
    trainer.train(0, 7)
    assert saved == ["model_0000001", "model_0000003", "model_0000005", "model_final"]
    assert deleted == ["model_0000001"]


def test_evaluation_at_its_period_and_once_at_the_end():
    calls = []
    trainer = make_trainer()
    results = {"segm": {"AP": 1.0}}
    trainer.register_hooks([EvalHook(2, lambda: calls.append(trainer.iter) or results)])
    trainer.train(0, 6)
    assert calls == [1, 3, 6]  # not at 5: the end follows at once
    assert [iteration for _, iteration in trainer.storage.history("segm/AP").samples] == [1, 3, 6]


def test_no_evaluation_after_a_failed_training():
    calls = []
    trainer = TrainLoop(FailingStep())
    trainer.register_hooks([EvalHook(0, lambda: calls.append(1))])
    with pytest.raises(ZeroDivisionError):
        trainer.train(0, 1)
    assert calls == []


def test_results_are_flattened_and_words_among_them_refused():
    assert flatten_results({"a": {"segm": {"AP": 1}}, "b": 2}) == {"a/segm/AP": 1.0, "b": 2.0}
    with pytest.raises(ValueError, match="segm/AP must be a number, got 'high'"):
        flatten_results({"segm": {"AP": "high"}})


def test_best_checkpointer_saves_only_improvements_and_remembers_across_resume():
    scores = iter([10.0, 8.0, float("nan"), 12.0])
    saved = []
    trainer = make_trainer()
    best = BestCheckpointer("segm/AP", lambda name, info: saved.append((name, info["segm/AP"], info["iteration"])))
    trainer.register_hooks([EvalHook(1, lambda: {"segm": {"AP": next(scores)}}), best])
    trainer.train(0, 4)
    assert saved == [("model_best", 10.0, 0), ("model_best", 12.0, 4)]
    again = BestCheckpointer("segm/AP", lambda *_: saved.append("wrong"))
    again.load_state_dict(best.state_dict())
    resumed = make_trainer()
    resumed.register_hooks([EvalHook(0, lambda: {"segm": {"AP": 11.0}}), again])
    resumed.train(4, 5)
    assert "wrong" not in saved


class Counter(HookBase):
    """Counts its steps, in strides."""

    def __init__(self, stride):
        self.stride, self.total = stride, 0

    def after_step(self):
        self.total += self.stride

    def state_dict(self):
        return {"total": self.total}

    def load_state_dict(self, state):
        self.total = state["total"]


def test_two_hooks_of_one_class_keep_their_own_states():
    first = make_trainer()
    first.register_hooks([Counter(1), IterationTimer(), Counter(10)])
    first.train(0, 3)
    state = first.state_dict()
    assert state["hooks"] == {"Counter": {"total": 3}, "Counter#2": {"total": 30}}
    resumed, hooks = make_trainer(), [Counter(1), Counter(10)]
    resumed.register_hooks(hooks)
    resumed.load_state_dict(state)
    assert [hook.total for hook in hooks] == [3, 30]


def test_an_older_checkpoint_knows_one_hook_of_a_class(caplog):
    resumed, hooks = make_trainer(), [Counter(1), Counter(10)]
    resumed.register_hooks(hooks)
    resumed.load_state_dict({"iteration": 2, "hooks": {"Counter": {"total": 3}, "Gone": {"a": 1}}})
    assert [hook.total for hook in hooks] == [3, 0]
    assert "state for the hook Gone" in caplog.text


def test_writer_hook_writes_every_period_and_at_the_end(tmp_path):
    trainer = make_trainer()
    evaluate = EvalHook(0, lambda: {"segm": {"AP": 1.0}})
    trainer.register_hooks([evaluate, PeriodicWriter([JSONWriter(tmp_path / "metrics.json")], period=4)])
    trainer.train(0, 6)
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [3, 5, 6]
    assert "total_loss" in lines[1] and lines[2] == {"iteration": 6, "segm/AP": 1.0}


def test_sigterm_saves_and_stops_after_the_iteration_and_nothing_is_evaluated():
    saved, evaluated = [], []
    trainer = make_trainer()

    class Kill(HookBase):
        def before_step(self):
            if self.trainer.iter == 2:
                signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    stop = GracefulStop(saved.append)
    trainer.register_hooks([EvalHook(0, lambda: evaluated.append(1)), PeriodicWriter([]), Kill(), stop])
    trainer.train(0, 100)
    assert saved == ["model_0000002"] and trainer.stopped and trainer.iter == 2 and not evaluated
    assert len(trainer.storage.history("total_loss").samples) == 3
    assert signal.getsignal(signal.SIGTERM) is before


def test_sigterm_during_the_last_evaluation_exits_at_once():
    trainer = make_trainer()
    evaluate = EvalHook(0, lambda: signal.raise_signal(signal.SIGTERM))
    trainer.register_hooks([evaluate, GracefulStop(lambda name: None)])
    with pytest.raises(SystemExit) as info:
        trainer.train(0, 2)
    assert info.value.code == 0
