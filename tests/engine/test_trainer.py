"""The training loop and its step, on models small enough to compute by hand."""

from __future__ import annotations

import copy
import itertools
import json
import signal

import pytest
import torch
from torch import nn

from lbvq.engine.activation_checkpointing import enable_activation_checkpointing
from lbvq.engine.events import EventStorage, JSONWriter
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
from lbvq.engine.trainer import HookBase, SimpleTrainer, TrainerBase, split_batch


class Regression(nn.Module):
    """Two losses of a linear layer; a sample is a vector of 3."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 1)

    def forward(self, batch):
        error = self.layer(torch.stack(list(batch)))
        return {"loss_square": error.square().mean(), "loss_abs": 0.5 * error.abs().mean()}


def samples(seed=0):
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield [torch.randn(3, generator=generator) for _ in range(6)]


def make_trainer(model=None, learning_rate=0.1, **options):
    model = model or Regression()
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
    return SimpleTrainer(model, samples(), optimizer, **options)


def run_one_step(trainer):
    with EventStorage(0) as trainer.storage:
        trainer.run_step()
        trainer.flush_metrics()
    return trainer.storage


def gradients(trainer):
    return [parameter.grad.clone() for parameter in trainer.model.parameters()]


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

    def after_step(self):
        self._record("after_step")


class EmptyStepTrainer(TrainerBase):
    def run_step(self):
        self.calls.append(("run_step", "", self.iter))


def test_hooks_are_called_in_order_and_iter_equals_max_iter_at_the_end():
    trainer = EmptyStepTrainer()
    trainer.calls = []
    trainer.register_hooks([Recorder("a", trainer.calls), None, Recorder("b", trainer.calls)])
    trainer.train(3, 5)
    step = [("before_step", "a"), ("before_step", "b"), ("run_step", ""), ("after_step", "a"), ("after_step", "b")]
    want = [("before_train", "a", 3), ("before_train", "b", 3)]
    want += [(*call, 3) for call in step] + [(*call, 4) for call in step]
    want += [("after_train", "a", 5), ("after_train", "b", 5)]
    assert trainer.calls == want


def test_a_finished_run_trains_nothing_but_still_ends_properly():
    trainer = EmptyStepTrainer()
    trainer.calls = []
    trainer.register_hooks([Recorder("a", trainer.calls)])
    trainer.train(7, 7)
    assert trainer.calls == [("before_train", "a", 7), ("after_train", "a", 7)]


def test_after_train_runs_when_a_step_fails():
    trainer = EmptyStepTrainer()
    trainer.calls = []
    trainer.register_hooks([Recorder("a", trainer.calls)])
    trainer.run_step = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        trainer.train(0, 5)
    assert trainer.calls[-1] == ("after_train", "a", 0)


def test_total_loss_is_the_sum_and_all_names_are_stored():
    trainer = make_trainer()
    with torch.no_grad():
        want = {name: value.item() for name, value in trainer.model(next(samples())).items()}
    storage = run_one_step(trainer)
    assert list(storage.histories()) == ["rank_data_time", "data_time", "total_loss", "loss_square", "loss_abs"]
    latest = {name: value for name, (value, _) in storage.latest().items()}
    assert latest["loss_square"] == pytest.approx(want["loss_square"])
    assert latest["total_loss"] == pytest.approx(sum(want.values()))


def test_a_single_loss_is_stored_as_total_loss_only():
    class OneLoss(Regression):
        def forward(self, batch):
            return sum(super().forward(batch).values())

    assert list(run_one_step(make_trainer(OneLoss())).histories()) == ["rank_data_time", "data_time", "total_loss"]


def test_metrics_of_every_iteration_arrive_although_they_leave_the_device_together():
    trainer = make_trainer(metrics_period=4)
    trainer.register_hooks([PeriodicWriter([], period=7)])
    trainer.train(0, 10)
    assert [iteration for _, iteration in trainer.storage.history("total_loss").samples] == list(range(10))


@pytest.mark.parametrize("parts", [2, 3, 4, 6, 9])
def test_accumulated_gradients_equal_those_of_the_whole_batch(parts):
    whole, split = make_trainer(), make_trainer(accumulate_steps=parts)
    losses_whole, losses_split = run_one_step(whole).latest(), run_one_step(split).latest()
    for a, b in zip(gradients(whole), gradients(split), strict=True):
        torch.testing.assert_close(a, b)
    assert losses_split["total_loss"] == pytest.approx(losses_whole["total_loss"])


@pytest.mark.parametrize(
    "size, count, want", [(5, 2, [3, 2]), (2, 4, [1, 1]), (4, 1, [4]), (6, 3, [2, 2, 2]), (0, 2, [])]
)
def test_split_batch_keeps_order_and_makes_no_empty_part(size, count, want):
    parts = split_batch(list(range(size)), count)
    assert [len(part) for part in parts] == want
    assert list(itertools.chain(*parts)) == list(range(size))


def test_clipping_sees_true_gradients_with_loss_scaling():
    """With a loss scale of 1024 the norm before clipping must be the true one, and the limit must hold afterwards."""
    model = Regression()
    trainer = make_trainer(model, amp_dtype=torch.float16)
    trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    seen = []

    def clip():
        seen.append(nn.utils.clip_grad_norm_(list(model.parameters()), 0.01).item())

    trainer.clip_gradients = clip
    plain = make_trainer()
    run_one_step(plain)
    want = torch.linalg.vector_norm(torch.cat([g.flatten() for g in gradients(plain)])).item()
    run_one_step(trainer)
    assert trainer.grad_scaler.get_scale() == 1024
    assert seen[0] == pytest.approx(want, rel=1e-2)
    assert torch.linalg.vector_norm(torch.cat([g.flatten() for g in gradients(trainer)])).item() == pytest.approx(0.01)


def test_loss_scaler_skips_a_step_with_infinite_gradients_and_lowers_its_scale():
    model = Regression()
    trainer = make_trainer(model, amp_dtype=torch.float16)
    model.layer.weight.register_hook(lambda grad: grad * float("inf"))
    before = copy.deepcopy(model.state_dict())
    run_one_step(trainer)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert trainer.grad_scaler.get_scale() == 32768


def test_bfloat16_runs_the_forward_pass_in_bfloat16_without_a_scaler():
    dtypes = []

    class Spy(Regression):
        def forward(self, batch):
            dtypes.append(self.layer(torch.stack(list(batch))).dtype)
            return super().forward(batch)

    trainer = make_trainer(Spy(), amp_dtype=torch.bfloat16)
    run_one_step(trainer)
    assert dtypes == [torch.bfloat16] and trainer.grad_scaler is None
    assert all(grad.dtype == torch.float32 for grad in gradients(trainer))


@pytest.mark.parametrize("amp_dtype", [None, torch.bfloat16])
def test_a_loss_that_is_not_finite_stops_before_the_weights_change(amp_dtype):
    class Broken(Regression):
        def forward(self, batch):
            losses = super().forward(batch)
            return {**losses, "loss_broken": losses["loss_abs"] * float("nan")}

    trainer = make_trainer(Broken(), amp_dtype=amp_dtype)
    before = copy.deepcopy(trainer.model.state_dict())
    with pytest.raises(FloatingPointError, match=r"iteration 0.*loss_broken"):
        run_one_step(trainer)
    assert all(torch.equal(before[name], value) for name, value in trainer.model.state_dict().items())


def test_with_loss_scaling_a_loss_that_is_not_finite_is_reported_when_metrics_are_moved():
    class Broken(Regression):
        def forward(self, batch):
            return {"loss_a": self.layer.weight.sum() * float("inf"), "loss_b": self.layer.bias.sum()}

    trainer = make_trainer(Broken(), amp_dtype=torch.float16)
    with pytest.raises(FloatingPointError, match="iteration 0"):
        run_one_step(trainer)


def test_a_model_in_evaluation_mode_is_refused():
    trainer = make_trainer()
    trainer.model.eval()
    with pytest.raises(RuntimeError, match="evaluation mode"):
        run_one_step(trainer)


def test_lr_scheduler_stores_the_rate_the_step_used():
    trainer = make_trainer()
    schedule = torch.optim.lr_scheduler.LambdaLR(trainer.optimizer, lambda iteration: 0.5**iteration)
    trainer.register_hooks([LRScheduler(trainer.optimizer, schedule)])
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
    trainer = make_trainer()
    trainer.register_hooks([EvalHook(0, lambda: calls.append(1))])
    trainer.run_step = lambda: 1 / 0
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


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.calls = 0

    def forward(self, x, *, scale):
        self.calls += 1
        return x + scale * torch.nn.functional.dropout(self.inner(x).relu(), 0.5, self.training)


class Stack(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.blocks = nn.ModuleList([Block() for _ in range(3)])
        self.mlp = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))

    def forward(self, x):
        for block in self.blocks:
            x = block(x, scale=0.5)
        return self.mlp(x).square().mean()


def test_activation_checkpointing_changes_neither_names_nor_gradients():
    plain, thrifty = Stack(), Stack()
    names = enable_activation_checkpointing(thrifty)
    assert names == ["blocks.0", "blocks.1", "blocks.2"]
    assert list(plain.state_dict()) == list(thrifty.state_dict())
    thrifty = copy.deepcopy(thrifty)
    x = torch.randn(5, 4)
    for model in (plain, thrifty):
        torch.manual_seed(2)
        model(x).backward()
    for a, b in zip(plain.parameters(), thrifty.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    assert plain.blocks[0].calls == 1 and thrifty.blocks[0].calls == 2
    thrifty.eval()(x)
    assert thrifty.blocks[0].calls == 3


def test_activation_checkpointing_leaves_trained_batch_statistics_alone():
    model = nn.ModuleDict({"stage": nn.Sequential(*[nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))] * 2)})
    assert enable_activation_checkpointing(model) == []
