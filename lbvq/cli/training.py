"""What a training run is made of: the body of `train_net.py`, of `lbvq train` and of `lbvq eval`."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch import nn

from lbvq.config import CfgNode
from lbvq.data import build_test_loader, build_train_loader
from lbvq.data.builtin import MetadataCatalog
from lbvq.data.checks import check_class_count, check_test_set, warn_of_many_objects
from lbvq.engine import comm
from lbvq.engine.checkpoint import Checkpointer
from lbvq.engine.defaults import DefaultTrainer
from lbvq.engine.evaluate import verify_results
from lbvq.engine.launch import launch
from lbvq.engine.run_folder import claimed, make_run_folder
from lbvq.engine.setup import default_setup, write_config
from lbvq.engine.slurm import submit
from lbvq.engine.weights import unwrap
from lbvq.evaluation import build_evaluator
from lbvq.files.class_list import ClassList, with_classes
from lbvq.files.data_entries import data_options
from lbvq.files.json_files import to_json
from lbvq.files.writing import write_text
from lbvq.inference.exported.runtimes import run_graphs
from lbvq.inference.frames import open_frames
from lbvq.modeling import as_tested
from lbvq.modeling.targets import fewest_queries
from lbvq.refine import build_refiner, refine_output
from lbvq.zoo import load_config
from mask2former.abilities import REFUSALS, has_ability, require
from mask2former.registry import build_model, model_class

METRICS, METRICS_BEFORE = "metrics.json", "metrics_before.json"  # of an evaluation, in OUTPUT_DIR/inference

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """Says where the engine gets its parts; override any of these for your own project."""

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """Build MODEL.META_ARCHITECTURE on MODEL.DEVICE."""
        for name in cfg.DATASETS.TEST:
            holds_images = MetadataCatalog.get(name).get("kind") == "image"
            require(model_class(cfg), "images" if holds_images else "video")
        model = build_model(cfg)
        run_graphs(model, cfg)
        logger.info("Model:\n%s", model)
        return model

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        """Endless batches of clips from DATASETS.TRAIN."""
        return build_train_loader(cfg)

    @classmethod
    def build_class_list(cls, cfg: CfgNode) -> ClassList | None:
        """Categories of the data set that is the target of training, to travel with the weights."""
        if is_open_vocabulary(cfg) or not cfg.DATASETS.TRAIN:
            return None
        return ClassList.from_metadata(MetadataCatalog.get(cfg.DATASETS.TARGET or cfg.DATASETS.TRAIN[-1]))

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        """One whole video at a time."""
        return build_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> Any:
        """Writes results.json, and computes AP when the annotations of the data set are there."""
        folder = Path(cfg.OUTPUT_DIR) / "inference"
        folder = folder if len(cfg.DATASETS.TEST) == 1 else folder / dataset_name
        report = Path(cfg.TEST.REPORT) if cfg.TEST.REPORT else None
        report = report / dataset_name if report and len(cfg.DATASETS.TEST) > 1 else report
        options = {"open_vocabulary": is_open_vocabulary(cfg), "analysis": cfg.TEST.ANALYSIS, "report": report}
        return build_evaluator(cfg, dataset_name, folder, **options)

    @classmethod
    def check_test_sets(cls, cfg: CfgNode) -> None:
        """Find out before the first step what evaluation would find out after the last: files, classes, annotations."""
        for name in cfg.DATASETS.TEST:
            try:
                check_test_set(cfg, name)
                comm.once_per_machine(cls.build_evaluator(cfg, name).check)
            except FileNotFoundError as error:
                raise FileNotFoundError(f"{error} (DATASETS.TEST () trains without evaluating.)") from error

    def check_training_data(self) -> None:
        """Compare what the training sets hold with what the model can learn."""
        names = self.cfg.DATASETS.TRAIN
        check_class_count(self.cfg, self.cfg.DATASETS.TARGET or (names if isinstance(names, str) else names[-1]))
        warn_of_many_objects(self.data_loader.object_counts, fewest_queries(unwrap(self.model)))

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: Sequence[Any] | None = None) -> dict[str, Any]:
        """Evaluate the model in the form in which it is tested."""
        return super().test(cfg, as_tested(unwrap(model)), evaluators)

    @classmethod
    def build_postprocess(cls, cfg: CfgNode, dataset_name: str) -> Any:
        """Mask refinement, if the configuration asks for it (`SAM True`, or REFINE.NAME)."""
        refiner = build_refiner(cfg)
        if refiner is None:
            return None
        threshold = cfg.REFINE.SCORE_THRESHOLD

        def refine(inputs: Any, output: Any) -> Any:
            if not isinstance(output, dict):
                raise ValueError(REFUSALS["refine"].format(name="this model"))
            return refine_output(output, open_frames(inputs[0]["file_names"]), refiner, threshold)

        return refine


def is_open_vocabulary(cfg: CfgNode) -> bool:
    """Whether the classes of the model are given as text, by the test set, and not by its weights."""
    return has_ability(model_class(cfg), "open_vocabulary")


def build_cfg(args: argparse.Namespace) -> CfgNode:
    """Defaults, then the YAML file, then the command line."""
    report = getattr(args, "report", None)
    options = [*data_options(getattr(args, "data", ())), *args.opts, *(["TEST.REPORT", report] if report else [])]
    cfg = load_config(args.config_file, options)
    cfg.freeze()
    return cfg


def evaluate_only(cfg: CfgNode, resume: bool) -> dict[str, Any]:
    """Evaluate MODEL.WEIGHTS, or with `resume` the last checkpoint of OUTPUT_DIR."""
    model = Trainer.build_model(cfg)
    checkpointer = Checkpointer(model, cfg.OUTPUT_DIR)
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    classes = checkpointer.report.classes if checkpointer.report else None
    if classes is not None and not is_open_vocabulary(cfg):
        cfg = with_classes(cfg, classes)  # what the weights say wins
    Trainer.check_test_sets(cfg)
    results = Trainer.test(cfg, model)
    if comm.is_main_process():
        verify_results(cfg.TEST.EXPECTED_RESULTS, results)
    return results


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Body of every process of the run."""
    cfg = build_cfg(args)
    make_run_folder(cfg.OUTPUT_DIR)
    overwrite = getattr(args, "overwrite", False)
    with nullcontext() if args.eval_only else claimed(cfg.OUTPUT_DIR, resume=args.resume, overwrite=overwrite):
        default_setup(cfg, args)
        try:
            return train_or_evaluate(cfg, args)
        except Exception:
            logger.debug("The run ended with an error:", exc_info=True)  # the console gets one sentence, the log all
            raise


def train_or_evaluate(cfg: CfgNode, args: argparse.Namespace) -> dict[str, Any]:
    """Do what the command line asks for and write the metrics down; {} on all processes but the first."""
    if args.eval_only:
        results = evaluate_only(cfg, args.resume)
    else:
        Trainer.check_test_sets(cfg)
        trainer = Trainer(cfg)
        trainer.check_training_data()
        if trainer.class_list is not None:
            write_config(with_classes(cfg, trainer.class_list), replace=True)
        trainer.resume_or_load(resume=args.resume)
        if getattr(args, "score_before", False) and trainer.start_iter == 0:
            _say_what_is_random(trainer)
            _write_metrics(cfg, Trainer.test(cfg, trainer.model), METRICS_BEFORE)
        results = trainer.train()
    _write_metrics(cfg, results, METRICS)
    return results


def _say_what_is_random(trainer: Trainer) -> None:
    """Scores before training are of what training starts from, which may have parts that nothing has taught yet."""
    report = trainer.checkpointer.report
    if report is None or report.lacks_parts:
        parts = "all of it" if report is None else "its classifier" if report.new_classifier else "some of it"
        logger.warning("The AP before training is of a model of which %s still has random values.", parts)


def _write_metrics(cfg: CfgNode, results: dict[str, Any], name: str) -> None:
    """Write the results of an evaluation beside its results file, on process 0."""
    if comm.is_main_process() and results:
        path = Path(cfg.OUTPUT_DIR) / "inference" / name
        write_text(path, to_json(results, indent=2) + "\n")
        logger.info("Metrics written to %s", path)


def start(args: argparse.Namespace) -> None:
    """Run `main` in as many processes as the command line asks for, or submit it as a SLURM job."""
    if args.slurm is not None:
        job = submit(main, args, Path(build_cfg(args).OUTPUT_DIR) / "slurm")
        print(f"Submitted job {job.job_id}, its output goes to {job.paths.stdout}")
        return
    launch(
        main,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )
