"""The training loop: `TrainLoop` owns the iteration and the numbers, `TrainStep` does one step when it is called.

    TrainLoop(TrainStep(model, loader, optimizer)).train(0, 1000)

A step is: next batch, losses of the model, backward pass, gradient clipping, optimizer step. Mixed precision, gradient
accumulation and data-parallel models are options of that one step. Everything else that happens in training (learning
rate, checkpoints, evaluation, logging) is a hook, see `hooks.py`.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .events import EventStorage
from .metrics import MetricBuffer

logger = logging.getLogger(__name__)


class HookBase:
    """Something that happens at fixed moments of training; override the moments you need.

    `self.trainer` is the trainer (a weak reference, so trainers are freed) and `self.trainer.iter` the iteration.
    """

    trainer: TrainLoop

    def before_train(self) -> None:
        """Called once before the first iteration."""

    def after_train(self) -> None:
        """Called once after the last iteration, also when training failed."""

    def before_step(self) -> None:
        """Called before each iteration."""

    def after_backward(self) -> None:
        """Called in each iteration when the gradients are there and the optimizer has not used them."""

    def after_step(self) -> None:
        """Called after each iteration."""

    def state_dict(self) -> dict[str, Any]:
        """Return what the hook must remember when training is resumed: plain values and tensors."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned; called only with a dictionary that is not empty."""


class Step(Protocol):
    """Does one step of training and returns the losses, detached and still on their device.

    Attributes:
        data_time: seconds the last call waited for its batch.
    """

    data_time: float

    def __call__(self, iteration: int, after_backward: Callable[[], None]) -> dict[str, Tensor]: ...


class TrainLoop:
    """Calls a step again and again, with hooks around it.

    Args:
        step: what is done in an iteration, usually a `TrainStep`.
        metrics_period: iterations between the moments at which losses leave the device.

    Attributes:
        iter: current iteration, counted from 0 and over resumed runs; equals `max_iter` after a finished run.
        stopped: True when training was asked to end early, see `stop`.
        storage: the numbers of this run; new for each call of `train`.
        metrics: losses that are still on the device, see `flush`.
    """

    def __init__(self, step: Step, *, metrics_period: int = 20) -> None:
        self.step = step
        self.metrics_period = metrics_period
        self.metrics = MetricBuffer()
        self._hooks: list[HookBase] = []
        self.iter = 0
        self.start_iter = 0
        self.max_iter = 0
        self.stopped = False
        self.storage = EventStorage()

    def __init_subclass__(cls) -> None:
        """Refuse the former way to change a step, which nothing would call."""
        if "run_step" in vars(cls):
            raise TypeError(f"{cls.__name__}.run_step is never called; give the loop another step, see TrainStep.")

    def register_hooks(self, hooks: Iterable[HookBase | None]) -> None:
        """Add hooks to the end of the list; every callback goes through the list in order. None is skipped."""
        for hook in hooks:
            if hook is not None:
                hook.trainer = weakref.proxy(self)
                self._hooks.append(hook)

    def train(self, start_iter: int, max_iter: int) -> None:
        """Run the iterations from `start_iter` to `max_iter - 1`."""
        logger.info("Starting training from iteration %d", start_iter)
        self.iter = self.start_iter = start_iter
        self.max_iter = max_iter
        self.stopped = False
        with EventStorage(start_iter) as self.storage:
            try:
                self.before_train()
                while self.iter < max_iter and not self.stopped:
                    self._iterate()
                    if not self.stopped or self.iter + 1 == max_iter:
                        self.iter += 1
                self.flush()
            except Exception:
                logger.error("Exception during training, in iteration %d.", self.iter)
                logger.debug("Where it comes from:", exc_info=True)  # for the log file; the console gets a sentence
                raise
            finally:
                self.after_train()

    def _iterate(self) -> None:
        self.before_step()
        losses = self.step(self.iter, self.after_backward)
        self.metrics.add(self.iter, losses, self.step.data_time)
        if (self.iter + 1) % self.metrics_period == 0:
            self.flush()
        self.after_step()

    def flush(self) -> None:
        """Put losses that are still on the device into the storage; all processes must call this together.

        FloatingPointError if one of them is not finite.
        """
        self.metrics.flush(self.storage)

    def stop(self) -> None:
        """End training after the current iteration; hooks of this iteration that follow still run."""
        self.stopped = True

    def before_train(self) -> None:
        for hook in self._hooks:
            hook.before_train()

    def after_train(self) -> None:
        self.storage.iter = self.iter
        for hook in self._hooks:
            hook.after_train()

    def before_step(self) -> None:
        self.storage.iter = self.iter
        for hook in self._hooks:
            hook.before_step()

    def after_backward(self) -> None:
        for hook in self._hooks:
            hook.after_backward()

    def after_step(self) -> None:
        for hook in self._hooks:
            hook.after_step()

    def state_dict(self) -> dict[str, Any]:
        """Return the iteration just finished and the states of the hooks, see `_named_hooks`."""
        states = {name: hook.state_dict() for name, hook in self._named_hooks().items()}
        return {"iteration": self.iter, "hooks": {name: state for name, state in states.items() if state}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state; hooks that are new here keep theirs, saved ones that no longer exist are reported."""
        self.iter = state["iteration"]
        hooks = self._named_hooks()
        for name, hook_state in state.get("hooks", {}).items():
            if name in hooks:
                hooks[name].load_state_dict(hook_state)
            else:
                logger.warning("The checkpoint has a state for the hook %s, which this run does not use.", name)

    def _named_hooks(self) -> dict[str, HookBase]:
        """The hooks by the name of their class, as published; the second one of a class is called `Name#2`."""
        named: dict[str, HookBase] = {}
        count: Counter[str] = Counter()
        for hook in self._hooks:
            name = type(hook).__qualname__
            count[name] += 1
            named[name if count[name] == 1 else f"{name}#{count[name]}"] = hook
        return named


class TrainStep:
    """One step of training for a model that returns its losses.

    Args:
        model: `model(batch)` returns {name: weighted scalar} (or one scalar); may be wrapped in DDP.
        data_loader: iterable of batches without end; a batch is a list of samples.
        optimizer: steps once per iteration.
        clip_gradients: called between backward pass and step, with gradients that are not scaled; None: no clipping.
        amp_dtype: torch.float16 (with loss scaling) or torch.bfloat16; None computes in full precision.
        accumulate_steps: passes a batch is split into; gradients are those of the mean over its samples.

    Attributes:
        data_time: seconds the last call waited for its batch.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[Sequence[Any]],
        optimizer: torch.optim.Optimizer,
        *,
        clip_gradients: Callable[[], Any] | None = None,
        amp_dtype: torch.dtype | None = None,
        accumulate_steps: int = 1,
    ) -> None:
        if accumulate_steps < 1:
            raise ValueError(f"accumulate_steps must be at least 1, got {accumulate_steps}.")
        model.train()
        self.model = model
        self.data_loader = data_loader
        self.optimizer = optimizer
        self.clip_gradients = clip_gradients
        self.accumulate_steps = accumulate_steps
        self.device_type = next(model.parameters()).device.type
        self.amp_dtype = amp_dtype
        self.grad_scaler = torch.amp.GradScaler(self.device_type) if amp_dtype == torch.float16 else None
        self.data_time = 0.0
        self._batches: Iterator[Sequence[Any]] | None = None

    @property
    def batches(self) -> Iterator[Sequence[Any]]:
        """The iterator over the loader; made at first use, when worker processes start."""
        if self._batches is None:
            self._batches = iter(self.data_loader)
        return self._batches

    def __call__(self, iteration: int, after_backward: Callable[[], None] | None = None) -> dict[str, Tensor]:
        """Do one step.

        Args:
            iteration: for messages, and for a model that has an attribute `iteration`.
            after_backward: called when the gradients are there and the optimizer has not used them.

        Returns:
            {name: scalar} losses of this process, float32, detached, on the device; nothing has waited for them.

        Raises:
            FloatingPointError: on the CPU, a loss is not finite; the weights are as before. On other devices reading
                a number would make the host wait for all that was asked of them, so this is found at the next flush.
        """
        if not self.model.training:
            raise RuntimeError("The model is in evaluation mode; something called eval() and did not undo it.")
        start = time.perf_counter()
        batch = self.next_batch()
        self.data_time = time.perf_counter() - start
        _tell_iteration(self.model, iteration)
        self.optimizer.zero_grad(set_to_none=True)
        losses = self._backward(batch)
        if self.device_type == "cpu" and self.grad_scaler is None:
            _check_finite(losses, iteration)
        if after_backward is not None:
            after_backward()
        self._optimizer_step()
        return losses

    def next_batch(self) -> Sequence[Any]:
        """Wait for the next batch."""
        return next(self.batches)

    def _backward(self, batch: Sequence[Any]) -> dict[str, Tensor]:
        """Leave the gradients of the mean over the batch in the parameters; return the detached losses."""
        parts = split_batch(batch, self.accumulate_steps)
        sums: dict[str, Tensor] = {}
        for index, part in enumerate(parts):
            share = len(part) / len(batch) if len(parts) > 1 else 1.0
            with self._no_gradient_exchange() if index < len(parts) - 1 else contextlib.nullcontext():
                losses = self._losses(part)
                total: Any = sum(losses.values()) * share
                (self.grad_scaler.scale(total) if self.grad_scaler else total).backward()
            for name, loss in losses.items():
                mine = loss.detach().float() * share
                sums[name] = sums[name] + mine if name in sums else mine
        return sums

    def _losses(self, part: Sequence[Any]) -> dict[str, Tensor]:
        autocast: contextlib.AbstractContextManager = contextlib.nullcontext()
        if self.amp_dtype is not None:
            autocast = torch.amp.autocast(self.device_type, dtype=self.amp_dtype)
        with autocast:
            losses = self.model(part)
        return {"total_loss": losses} if isinstance(losses, Tensor) else losses

    def _no_gradient_exchange(self) -> contextlib.AbstractContextManager:
        return self.model.no_sync() if isinstance(self.model, DistributedDataParallel) else contextlib.nullcontext()

    def _optimizer_step(self) -> None:
        if self.grad_scaler is not None:
            self.grad_scaler.unscale_(self.optimizer)  # clipping needs the true gradients
        if self.clip_gradients is not None:
            self.clip_gradients()
        if self.grad_scaler is None:
            self.optimizer.step()
        else:
            self.grad_scaler.step(self.optimizer)  # skips the step when a gradient is infinite or NaN
            self.grad_scaler.update()

    def state_dict(self) -> dict[str, Any]:
        state = {"optimizer": self.optimizer.state_dict()}
        if self.grad_scaler is not None:
            state["grad_scaler"] = self.grad_scaler.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        if self.grad_scaler is not None and state.get("grad_scaler"):
            self.grad_scaler.load_state_dict(state["grad_scaler"])


def _tell_iteration(model: nn.Module, iteration: int) -> None:
    """Let a model know how far training is, if it has an attribute for that."""
    model = model.module if isinstance(model, DistributedDataParallel) else model
    if hasattr(model, "iteration"):
        model.iteration = iteration


def _check_finite(losses: dict[str, Tensor], iteration: int) -> None:
    values = {name: loss.item() for name, loss in losses.items()}
    if not math.isfinite(sum(values.values())):
        raise FloatingPointError(f"Loss became infinite or NaN at iteration {iteration}: {values}")


def split_batch(batch: Sequence[Any], count: int) -> list[Sequence[Any]]:
    """Split a batch into at most `count` parts of nearly equal size, in order; never an empty part.

    A batch that has no length (not a list of samples) can only stay whole.
    """
    if count == 1:
        return [batch]
    size, rest = divmod(len(batch), count)
    parts, begin = [], 0
    for index in range(count):
        end = begin + size + (index < rest)
        if end > begin:
            parts.append(batch[begin:end])
        begin = end
    return parts


def __getattr__(name: str) -> Any:
    """Say what replaced the former classes."""
    if name in ("SimpleTrainer", "TrainerBase"):
        raise ImportError(f"{name} is gone: a step is TrainStep(model, loader, optimizer), the loop TrainLoop(step).")
    raise AttributeError(f"module {__name__} has no attribute {name}")
