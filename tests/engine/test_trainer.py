"""The training loop and its step, on models small enough to compute by hand."""

from __future__ import annotations

import copy
import functools
import itertools
import json
import signal

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

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
from lbvq.engine.trainer import HookBase, TrainLoop, TrainStep, split_batch


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


def make_step(model=None, learning_rate=0.1, **options):
    model = model or Regression()
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
    return TrainStep(model, samples(), optimizer, **options)


def make_trainer(**options):
    return TrainLoop(make_step(), **options)


def run_one_step(step):
    loop = TrainLoop(step)
    loop.train(0, 1)
    return loop.storage


def gradients(step):
    return [parameter.grad.clone() for parameter in step.model.parameters()]


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


class EmptyStep:
    """Learns nothing; writes down its calls."""

    data_time = 0.25

    def __init__(self):
        self.calls = []

    def __call__(self, iteration, after_backward):
        self.calls.append(("step", "", iteration))
        after_backward()
        return {"loss": torch.tensor(float(iteration))}


class FailingStep(EmptyStep):
    def __call__(self, iteration, after_backward):
        raise ZeroDivisionError


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


def test_total_loss_is_the_sum_and_all_names_are_stored():
    step = make_step()
    with torch.no_grad():
        want = {name: value.item() for name, value in step.model(next(samples())).items()}
    storage = run_one_step(step)
    assert list(storage.histories()) == ["rank_data_time", "data_time", "total_loss", "loss_square", "loss_abs"]
    latest = {name: value for name, (value, _) in storage.latest().items()}
    assert latest["loss_square"] == pytest.approx(want["loss_square"])
    assert latest["total_loss"] == pytest.approx(sum(want.values()))


def test_a_single_loss_is_stored_as_total_loss_only():
    class OneLoss(Regression):
        def forward(self, batch):
            return sum(super().forward(batch).values())

    assert list(run_one_step(make_step(OneLoss())).histories()) == ["rank_data_time", "data_time", "total_loss"]


def test_metrics_of_every_iteration_arrive_although_they_leave_the_device_together():
    trainer = make_trainer(metrics_period=4)
    trainer.register_hooks([PeriodicWriter([], period=7)])
    trainer.train(0, 10)
    assert [iteration for _, iteration in trainer.storage.history("total_loss").samples] == list(range(10))


@pytest.mark.parametrize("parts", [2, 3, 4, 6, 9])
def test_accumulated_gradients_equal_those_of_the_whole_batch(parts):
    whole, split = make_step(), make_step(accumulate_steps=parts)
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
    step = make_step(model, amp_dtype=torch.float16)
    step.grad_scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    seen = []

    def clip():
        seen.append(nn.utils.clip_grad_norm_(list(model.parameters()), 0.01).item())

    step.clip_gradients = clip
    plain = make_step()
    run_one_step(plain)
    want = torch.linalg.vector_norm(torch.cat([g.flatten() for g in gradients(plain)])).item()
    run_one_step(step)
    assert step.grad_scaler.get_scale() == 1024
    assert seen[0] == pytest.approx(want, rel=1e-2)
    assert torch.linalg.vector_norm(torch.cat([g.flatten() for g in gradients(step)])).item() == pytest.approx(0.01)


def test_loss_scaler_skips_a_step_with_infinite_gradients_and_lowers_its_scale():
    model = Regression()
    step = make_step(model, amp_dtype=torch.float16)
    model.layer.weight.register_hook(lambda grad: grad * float("inf"))
    before = copy.deepcopy(model.state_dict())
    run_one_step(step)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert step.grad_scaler.get_scale() == 32768


def test_bfloat16_runs_the_forward_pass_in_bfloat16_without_a_scaler():
    dtypes = []

    class Spy(Regression):
        def forward(self, batch):
            dtypes.append(self.layer(torch.stack(list(batch))).dtype)
            return super().forward(batch)

    step = make_step(Spy(), amp_dtype=torch.bfloat16)
    run_one_step(step)
    assert dtypes == [torch.bfloat16] and step.grad_scaler is None
    assert all(grad.dtype == torch.float32 for grad in gradients(step))


@pytest.mark.parametrize("amp_dtype", [None, torch.bfloat16])
def test_a_loss_that_is_not_finite_stops_before_the_weights_change(amp_dtype):
    class Broken(Regression):
        def forward(self, batch):
            losses = super().forward(batch)
            return {**losses, "loss_broken": losses["loss_abs"] * float("nan")}

    step = make_step(Broken(), amp_dtype=amp_dtype)
    before = copy.deepcopy(step.model.state_dict())
    with pytest.raises(FloatingPointError, match=r"iteration 0.*loss_broken"):
        run_one_step(step)
    assert all(torch.equal(before[name], value) for name, value in step.model.state_dict().items())


def test_with_loss_scaling_a_loss_that_is_not_finite_is_reported_when_metrics_are_moved():
    class Broken(Regression):
        def forward(self, batch):
            return {"loss_a": self.layer.weight.sum() * float("inf"), "loss_b": self.layer.bias.sum()}

    step = make_step(Broken(), amp_dtype=torch.float16)
    with pytest.raises(FloatingPointError, match="iteration 0"):
        run_one_step(step)


class AsIfOnADevice(TrainStep):
    """A step that takes the way of other devices than the CPU."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.device_type = "cuda"


class ReadNumbers(TorchDispatchMode):
    """Counts how often a number is taken out of a tensor: on a GPU the host waits for it."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


def test_a_step_on_a_device_reads_no_number_from_it():
    model = Regression()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    clip = functools.partial(nn.utils.clip_grad_norm_, list(model.parameters()), 0.01)
    counts = []
    for kind in (TrainStep, AsIfOnADevice):
        step = kind(model, samples(), optimizer, clip_gradients=clip, accumulate_steps=2)
        with ReadNumbers() as reads:
            step(0)
        counts.append(reads.count)
    assert counts == [2, 0]  # on the CPU both losses are looked at


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("amp_dtype", [None, torch.bfloat16, torch.float16])
def test_a_step_on_a_gpu_lets_the_host_wait_for_nothing(amp_dtype):
    model = Regression().to("cuda")
    batches = itertools.repeat([torch.randn(3, device="cuda") for _ in range(6)])
    step = TrainStep(model, batches, torch.optim.AdamW(model.parameters(), fused=True), amp_dtype=amp_dtype)
    step(0)  # the first one makes states
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(1)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_model_in_evaluation_mode_is_refused():
    step = make_step()
    step.model.eval()
    with pytest.raises(RuntimeError, match="evaluation mode"):
        run_one_step(step)


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
