"""One step of training, on models small enough to compute by hand."""

from __future__ import annotations

import copy
import functools
import itertools

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from training_steps import Regression, make_step, samples

from lbvq.engine.trainer import TrainLoop, TrainStep, split_batch


def run_one_step(step):
    loop = TrainLoop(step)
    loop.train(0, 1)
    return loop.storage


def gradients(step):
    return [parameter.grad.clone() for parameter in step.model.parameters()]


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


def test_a_model_that_asks_is_told_the_iteration_before_every_step():
    class Counting(Regression):
        iteration = 0

        def forward(self, batch):
            seen.append(self.iteration)
            return super().forward(batch)

    seen = []
    TrainLoop(make_step(Counting())).train(5, 8)
    assert seen == [5, 6, 7]


def test_a_model_in_evaluation_mode_is_refused():
    step = make_step()
    step.model.eval()
    with pytest.raises(RuntimeError, match="evaluation mode"):
        run_one_step(step)
