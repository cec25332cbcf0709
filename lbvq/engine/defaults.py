"""`DefaultTrainer`: everything a configuration says about training, put together; every part can be overridden."""

from __future__ import annotations

import inspect
import logging
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lbvq.files.class_list import ClassList, with_classes
from mask2former.bfloat16 import cpu_computes_in_bfloat16, wants_bfloat16

from . import comm
from .activation_checkpointing import enable_activation_checkpointing
from .checkpoint import Checkpointer, checkpoint_bytes, save_checkpoint
from .evaluate import inference_on_dataset, print_csv_format, verify_results
from .event_writers import TensorBoardWriter, WandbWriter, has_tensorboard
from .events import CommonMetricPrinter, EventWriter, JSONWriter
from .fine_tuning import EarlyStop, RestingBackbone
from .graceful_stop import GracefulStop
from .hooks import BestCheckpointer, EvalHook, IterationTimer, LRScheduler, PeriodicCheckpointer, PeriodicWriter
from .random_state import get_random_state, preserve_random_state, set_random_state
from .resumed_settings import compare_settings, flat_settings
from .run_folder import check_disk_space
from .solver import build_gradient_clipper, build_lr_scheduler, build_optimizer, scale_to_world_size
from .trainer import HookBase, TrainLoop, TrainStep
from .weights import compare_classes, load_start_files, unwrap

logger = logging.getLogger(__name__)


class DefaultTrainer(TrainLoop):
    """Trains what a configuration describes.

    A subclass says how to build the model, the loaders and the evaluator (`train_net.py` does); optimizer, schedule,
    hooks and writers have defaults that it may replace as well.

        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=True)
        results = trainer.train()

    A resumed run goes on exactly: weights, optimizer, schedule, loss scale, the random generators of every process, and
    the place in the data, if the loader has `state_dict()` and `load_state_dict(state)`.

    Args:
        cfg: the whole configuration; `SOLVER.REFERENCE_WORLD_SIZE` may change the copy kept in `self.cfg`.
    """

    def __init__(self, cfg: Any) -> None:
        cfg = scale_to_world_size(cfg, comm.get_world_size())
        self.cfg = cfg
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        if cfg.SOLVER.ACTIVATION_CHECKPOINTING:
            enable_activation_checkpointing(model)
        super().__init__(self.build_step(cfg, model, data_loader, optimizer))
        self.class_list = comm.all_gather(self.build_class_list(cfg))[0]  # not every process reads all data
        if self.class_list is not None:
            self.cfg = with_classes(cfg, self.class_list)
            model.config = self.cfg
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = Checkpointer(model, cfg.OUTPUT_DIR, trainer=self)
        self.max_iter = cfg.SOLVER.MAX_ITER
        self._process_states: list[dict[str, Any]] = []  # of all processes, while saving or after loading
        self._last_eval_results: dict[str, Any] = {}
        self.register_hooks(self.build_hooks())

    step: TrainStep

    @property
    def model(self) -> nn.Module:
        """The model as it is trained, perhaps inside DDP."""
        return self.step.model

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """What `build_optimizer` returned."""
        return self.step.optimizer

    @property
    def data_loader(self) -> Any:
        """What `build_train_loader` returned."""
        return self.step.data_loader

    # -- parts -------------------------------------------------------------------------------------------------------

    @classmethod
    def build_model(cls, cfg: Any) -> nn.Module:
        """Return the model on its device, with random weights."""
        raise NotImplementedError("A trainer must define build_model(cfg).")

    @classmethod
    def build_train_loader(cls, cfg: Any) -> Any:
        """Return an endless iterable of training batches for this process."""
        raise NotImplementedError("A trainer must define build_train_loader(cfg).")

    @classmethod
    def build_class_list(cls, cfg: Any) -> ClassList | None:
        """Return the categories that are trained, None when they are not known; asked for after the train loader."""
        return None

    @classmethod
    def build_test_loader(cls, cfg: Any, dataset_name: str) -> Any:
        """Return a sized iterable of this process's share of a test set."""
        raise NotImplementedError("A trainer that evaluates must define build_test_loader(cfg, dataset_name).")

    @classmethod
    def build_evaluator(cls, cfg: Any, dataset_name: str) -> Any:
        """Return the evaluator of a data set; NotImplementedError skips the set with a warning."""
        raise NotImplementedError("A trainer that evaluates must define build_evaluator(cfg, dataset_name).")

    @classmethod
    def build_postprocess(cls, cfg: Any, dataset_name: str) -> Any:
        """Return `f(inputs, outputs) -> outputs` applied before evaluation, or None."""
        return None

    @classmethod
    def build_optimizer(cls, cfg: Any, model: nn.Module) -> torch.optim.Optimizer:
        """Return the optimizer of `cfg.SOLVER`."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: Any, optimizer: torch.optim.Optimizer) -> Any:
        """Return the learning rate schedule of `cfg.SOLVER`; it is stepped once per iteration."""
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_step(cls, cfg: Any, model: nn.Module, data_loader: Any, optimizer: torch.optim.Optimizer) -> TrainStep:
        """Return what is done in every iteration; the place for another kind of step, derived from `TrainStep`."""
        finds_unused = cfg.SOLVER.FIND_UNUSED_PARAMETERS or cfg.FIND_UNUSED_PARAMETERS
        return TrainStep(
            create_ddp_model(model, find_unused_parameters=finds_unused),
            data_loader,
            optimizer,
            clip_gradients=build_gradient_clipper(cfg, optimizer),
            amp_dtype=training_amp_dtype(cfg, next(model.parameters()).device),
            accumulate_steps=cfg.SOLVER.ACCUMULATE_STEPS,
        )

    def build_hooks(self) -> list[HookBase]:
        """Return the hooks in the published order, then ours."""
        solver = self.cfg.SOLVER
        hooks: list[HookBase] = [
            IterationTimer(),
            LRScheduler(self.optimizer, self.scheduler),
            PeriodicCheckpointer(
                self.save,
                solver.CHECKPOINT_PERIOD,
                max_to_keep=solver.MAX_TO_KEEP,
                delete=self.checkpointer.delete,
            ),
            EvalHook(self.cfg.TEST.EVAL_PERIOD, self._evaluate),
        ]
        if solver.BEST_METRIC:
            hooks.append(BestCheckpointer(solver.BEST_METRIC, self._save_weights))
        if solver.EARLY_STOP:
            hooks.append(EarlyStop(solver.BEST_METRIC, self.cfg.TEST.EVAL_PERIOD, solver.EARLY_STOP))
        if solver.REST_BACKBONE_ITERS:
            hooks.append(RestingBackbone(self.model, solver.REST_BACKBONE_ITERS))
        hooks.append(PeriodicWriter(self.build_writers() if comm.is_main_process() else []))
        hooks.append(GracefulStop(self.save, (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)))
        return hooks

    def build_writers(self) -> list[EventWriter]:
        """Return the writers of process 0: console, metrics.json, TensorBoard if installed, W&B if configured."""
        output_dir = Path(self.cfg.OUTPUT_DIR)
        output_dir.mkdir(parents=True, exist_ok=True)
        writers: list[EventWriter] = [CommonMetricPrinter(self.max_iter), JSONWriter(output_dir / "metrics.json")]
        if has_tensorboard():
            writers.append(TensorBoardWriter(output_dir))
        if self.cfg.WANDB_PROJECT:
            writers.append(WandbWriter(self.cfg.WANDB_PROJECT, output_dir, to_plain(self.cfg)))
        return writers

    # -- training ----------------------------------------------------------------------------------------------------

    def resume_or_load(self, resume: bool = True) -> None:
        """Go on from the last checkpoint in OUTPUT_DIR if `resume` and there is one, else load MODEL.WEIGHTS."""
        resumed = resume and self.checkpointer.has_checkpoint()
        self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume, allow_missing="new_modules")
        load_start_files(self.checkpointer.model, self.checkpointer.report)
        self.start_iter = self.iter + 1 if resumed else 0
        compare_classes(self.checkpointer.report, self.class_list)
        if self.start_iter >= self.max_iter:
            logger.warning(
                "The run in %s is already finished: it has done %d of SOLVER.MAX_ITER %d iterations. Nothing is "
                "trained, only evaluated; with a larger SOLVER.MAX_ITER it goes on.",
                self.cfg.OUTPUT_DIR,
                self.start_iter,
                self.max_iter,
            )

    def train(self) -> dict[str, Any]:  # type: ignore[override]  # as published
        """Train to SOLVER.MAX_ITER and return the last evaluation, checked against TEST.EXPECTED_RESULTS."""
        self._check_disk_space()
        super().train(self.start_iter, self.max_iter)
        if comm.is_main_process() and not self.stopped:
            verify_results(self.cfg.TEST.EXPECTED_RESULTS, self._last_eval_results)
        return self._last_eval_results

    def _check_disk_space(self) -> None:
        """Know before the first step whether the checkpoints fit on the disk."""
        steps, period = self.max_iter - self.start_iter, self.cfg.SOLVER.CHECKPOINT_PERIOD
        if not comm.is_main_process() or steps <= 0:
            return
        periodic = steps // period
        if self.cfg.SOLVER.MAX_TO_KEEP:
            periodic = min(periodic, self.cfg.SOLVER.MAX_TO_KEEP + 1)  # an old one goes when the new one is complete
        check_disk_space(self.cfg.OUTPUT_DIR, checkpoint_bytes(self.model, self.optimizer), periodic + 1)

    def before_train(self) -> None:
        super().before_train()
        self._restore_process_state()

    # -- evaluation --------------------------------------------------------------------------------------------------

    @classmethod
    def test(cls, cfg: Any, model: nn.Module, evaluators: Sequence[Any] | None = None) -> dict[str, Any]:
        """Evaluate on every set of DATASETS.TEST.

        Args:
            cfg: configuration.
            model: the model, which may be wrapped in DDP.
            evaluators: one per data set; None builds them.

        Returns:
            On process 0 the results of the data set, or {name: results} when there are several; {} elsewhere. The
            random generators are left as they were, so that evaluation does not change the training that follows.
        """
        names = list(cfg.DATASETS.TEST)
        if evaluators is not None and len(evaluators) != len(names):
            raise ValueError(f"{len(names)} test sets need as many evaluators, got {len(evaluators)}.")
        model = unwrap(model)
        results: dict[str, Any] = {}
        with preserve_random_state():
            for index, name in enumerate(names):
                evaluator = None if evaluators is None else evaluators[index]
                results[name] = cls._test_one(cfg, model, name, evaluator)
        return next(iter(results.values())) if len(results) == 1 else results

    @classmethod
    def _test_one(cls, cfg: Any, model: nn.Module, name: str, evaluator: Any) -> dict[str, Any]:
        if evaluator is None:
            try:
                evaluator = cls.build_evaluator(cfg, name)
            except NotImplementedError as error:
                logger.warning("No evaluator for %s: %s", name, error)
                return {}
        results = inference_on_dataset(
            model,
            cls.build_test_loader(cfg, name),
            evaluator,
            postprocess=cls.build_postprocess(cfg, name),
            amp_dtype=torch.float16 if cfg.TEST.AMP.ENABLED else None,
            cpu_bfloat16=wants_bfloat16(cfg.TEST.AMP.CPU),
        )
        if comm.is_main_process() and results:
            logger.info("Evaluation results for %s:", name)
            print_csv_format(results)
        return results

    def _evaluate(self) -> dict[str, Any]:
        if not self.cfg.DATASETS.TEST:
            return {}
        self._last_eval_results = self.test(self.cfg, self.model)
        return self._last_eval_results

    # -- state -------------------------------------------------------------------------------------------------------

    def save(self, name: str) -> None:
        """Write a checkpoint from which training can go on; every process must call this.

        FloatingPointError, and no file, when the weights cannot be trusted because a loss was not finite.
        """
        self.flush()
        self._process_states = comm.gather(self._process_state())
        self.checkpointer.save(name, iteration=self.iter, **self._categories())
        self._process_states = []
        comm.synchronize()  # nobody runs ahead and is killed while the file is unfinished

    def _save_weights(self, name: str, scores: Mapping[str, float]) -> None:
        """Write weights that are not a place to resume from."""
        path = Path(self.cfg.OUTPUT_DIR) / f"{name}.pth"
        state = unwrap(self.model).state_dict()
        save_checkpoint(path, {"model": state, "scores": dict(scores), **self._categories()})

    def _categories(self) -> dict[str, Any]:
        return {} if self.class_list is None else {"categories": self.class_list.to_plain()}

    def _process_state(self) -> dict[str, Any]:
        state: dict[str, Any] = {"random": get_random_state()}
        if hasattr(self.data_loader, "state_dict"):
            state["data_loader"] = self.data_loader.state_dict()
        return state

    def _restore_process_state(self) -> None:
        """Put this process's place in the data and its random generators where the checkpoint left them."""
        states, self._process_states = self._process_states, []
        if not states:
            return
        same_processes = len(states) == comm.get_world_size()
        state = states[comm.get_rank()] if same_processes else states[0]
        if "data_loader" in state and hasattr(self.data_loader, "load_state_dict"):
            self.data_loader.load_state_dict(state["data_loader"])
        else:
            logger.warning("The data loader cannot go on where it was; it starts anew.")
        _ = self.step.batches  # starting the workers may draw a random number, so it comes first
        if same_processes:
            set_random_state(state["random"])
        else:
            logger.warning(
                "The checkpoint was written by %d processes, this run has %d: random numbers start anew.",
                len(states),
                comm.get_world_size(),
            )

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        state["_trainer"] = {"iteration": self.iter, **self.step.state_dict()}  # as published
        state["settings"] = flat_settings(self.cfg)
        if self._process_states:
            state["processes"] = self._process_states
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        compare_settings(state.get("settings", {}), flat_settings(self.cfg))
        super().load_state_dict(state)
        self.step.load_state_dict(state["_trainer"])
        self._process_states = state.get("processes", [])


def create_ddp_model(model: nn.Module, *, find_unused_parameters: bool = False) -> nn.Module:
    """Wrap a model for data-parallel training; the model itself when this process is alone."""
    if comm.get_world_size() == 1:
        return model
    device = next(model.parameters()).device
    # each process keeps its own batch statistics; the keyword has a new name in newer versions of torch
    new_name = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    no_sync: dict[str, Any] = {"forward_sync_buffers" if new_name else "broadcast_buffers": False}
    return DistributedDataParallel(
        model,
        device_ids=[device.index] if device.type == "cuda" else None,
        find_unused_parameters=find_unused_parameters,
        **no_sync,
    )


def training_amp_dtype(cfg: Any, device: torch.device) -> torch.dtype | None:
    """Return the dtype of autocast in training, None for full precision."""
    amp = cfg.SOLVER.AMP
    if amp.DTYPE not in ("float16", "bfloat16"):
        raise ValueError(f"SOLVER.AMP.DTYPE must be 'float16' or 'bfloat16', got {amp.DTYPE!r}.")
    if not amp.ENABLED:
        return None
    if device.type == "cpu" and amp.DTYPE == "float16":
        logger.warning("Mixed precision in float16 needs a GPU: training in full precision on the CPU.")
        return None
    if device.type == "cpu" and not cpu_computes_in_bfloat16():
        logger.warning("This CPU has no bfloat16 instructions: training in full precision, which is faster here.")
        return None
    return torch.float16 if amp.DTYPE == "float16" else torch.bfloat16


def to_plain(node: Any) -> Any:
    """Turn a configuration into nested dictionaries, for programs that know nothing of it."""
    if isinstance(node, Mapping):
        return {key: to_plain(value) for key, value in node.items()}
    return node
