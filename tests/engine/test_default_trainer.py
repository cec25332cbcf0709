"""DefaultTrainer: everything of a configuration together, and runs that are killed and go on."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys

import pytest
import resumable_run
import torch
from helpers import ROOT
from resumable_run import NoisyNet, Trainer, make_cfg, make_trainer

from lbvq.engine.defaults import training_amp_dtype
from lbvq.engine.evaluate import UnexpectedResultsError
from lbvq.engine.hooks import EvalHook, IterationTimer, LRScheduler, PeriodicCheckpointer, PeriodicWriter


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """As in the processes that are killed: another number of threads sums in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run_script(folder, *opts, **environment):
    command = [sys.executable, resumable_run.__file__, str(folder), *opts]
    variables = {**os.environ, **environment, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120)


def losses_by_iteration(trainer):
    return {iteration: value for value, iteration in trainer.storage.history("total_loss").samples}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    trainer = make_trainer(make_cfg(tmp_path_factory.mktemp("uninterrupted")))
    trainer.train()
    return trainer


def test_hooks_stand_in_the_published_order(uninterrupted):
    published = [IterationTimer, LRScheduler, PeriodicCheckpointer, EvalHook, PeriodicWriter]
    assert [type(hook) for hook in uninterrupted._hooks if type(hook) in published] == published


def test_files_and_content_are_the_published_ones(uninterrupted):
    folder = uninterrupted.cfg.OUTPUT_DIR
    names = sorted(name for name in os.listdir(folder) if name.endswith(".pth"))
    assert names == [*(f"model_{i:07d}.pth" for i in (5, 11, 17, 23, 29)), "model_final.pth"]
    with open(os.path.join(folder, "last_checkpoint")) as file:
        assert file.read() == "model_final.pth"
    checkpoint = torch.load(os.path.join(folder, "model_0000011.pth"), weights_only=True)
    assert set(checkpoint) == {"model", "trainer", "iteration"} and checkpoint["iteration"] == 11
    trainer = checkpoint["trainer"]
    assert trainer["iteration"] == trainer["_trainer"]["iteration"] == 11
    assert trainer["hooks"]["LRScheduler"]["last_epoch"] == 12
    assert set(trainer["_trainer"]) == {"iteration", "optimizer"}


def test_metrics_file_has_training_and_evaluation_lines(uninterrupted):
    with open(os.path.join(uninterrupted.cfg.OUTPUT_DIR, "metrics.json")) as file:
        lines = [json.loads(line) for line in file]
    by_iteration = {line["iteration"]: line for line in lines}
    assert {"total_loss", "loss_square", "loss_abs", "lr", "time", "data_time", "rank_data_time", "eta_seconds"} < set(
        by_iteration[19]
    )
    assert set(by_iteration[30]) == {"iteration", "segm/AP"}


@pytest.mark.parametrize("killed_in", [6, 14, 29])
def test_after_kill_9_a_resumed_run_has_the_same_losses(tmp_path, uninterrupted, killed_in):
    process = run_script(tmp_path, KILL_AT=str(killed_in))
    assert process.returncode == -9
    resumed = make_trainer(make_cfg(tmp_path), True)
    assert resumed.start_iter == killed_in // 6 * 6
    resumed.train()
    want = losses_by_iteration(uninterrupted)
    assert losses_by_iteration(resumed) == {i: loss for i, loss in want.items() if i >= resumed.start_iter}
    for name, value in uninterrupted.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name])


def test_after_sigterm_nothing_is_lost_and_the_exit_is_clean(tmp_path, uninterrupted):
    process = run_script(tmp_path, KILL_AT="9", KILL_WITH="SIGTERM")
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000009.pth"
    resumed = make_trainer(make_cfg(tmp_path), True)
    resumed.train()
    want = losses_by_iteration(uninterrupted)
    assert losses_by_iteration(resumed) == {i: loss for i, loss in want.items() if i >= 10}


def test_evaluation_does_not_change_training(tmp_path, uninterrupted):
    never = make_trainer(make_cfg(tmp_path, "DATASETS.TEST", "()"))
    assert never.train() == {}
    assert losses_by_iteration(never) == losses_by_iteration(uninterrupted)


def test_resuming_a_finished_run_only_evaluates(tmp_path):
    opts = ("SOLVER.MAX_ITER", "4", "SOLVER.STEPS", "(3,)")
    first = make_trainer(make_cfg(tmp_path, *opts))
    first.train()
    again = make_trainer(make_cfg(tmp_path, *opts), True)
    assert again.start_iter == 4 and "AP" in again.train()["segm"]
    assert "total_loss" not in again.storage.histories()


def test_resume_without_a_checkpoint_is_a_new_run(tmp_path):
    assert make_trainer(make_cfg(tmp_path), True).start_iter == 0


def test_weights_are_loaded_without_states(tmp_path):
    source = NoisyNet()
    torch.save({"model": source.state_dict(), "iteration": 99}, tmp_path / "w.pth")
    trainer = make_trainer(make_cfg(tmp_path / "run", "MODEL.WEIGHTS", str(tmp_path / "w.pth")))
    assert trainer.start_iter == 0
    assert torch.equal(trainer.model.layers[0].weight, source.layers[0].weight)


def test_another_number_of_processes_starts_the_data_anew_with_a_warning(tmp_path, caplog):
    first = make_trainer(make_cfg(tmp_path, "SOLVER.MAX_ITER", "6", "SOLVER.STEPS", "(3,)"))
    first.train()
    resumed = make_trainer(make_cfg(tmp_path), True)
    resumed._process_states = resumed._process_states * 2
    with caplog.at_level(logging.WARNING, logger="lbvq"):
        logging.getLogger("lbvq").propagate = True
        resumed.train()
    assert "written by 2 processes, this run has 1" in caplog.text


def test_no_checkpoint_is_written_after_a_loss_that_is_not_finite(tmp_path):
    trainer = make_trainer(make_cfg(tmp_path))
    trainer.step.device_type = "cuda"  # where a loss is not looked at in its own iteration
    trainer.model.layers[-1].bias.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="iteration 0"):
        trainer.train()
    assert trainer.iter == 5 and not list(tmp_path.glob("*.pth"))


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    cfg = make_cfg(tmp_path, "SOLVER.MAX_TO_KEEP", "2", "SOLVER.BEST_METRIC", "segm/AP")
    make_trainer(cfg).train()
    assert sorted(path.name for path in tmp_path.glob("*.pth")) == [
        "model_0000023.pth",
        "model_0000029.pth",
        "model_best.pth",
        "model_final.pth",
    ]
    best = torch.load(tmp_path / "model_best.pth", weights_only=True)
    assert set(best) == {"model", "scores"} and "segm/AP" in best["scores"]


def test_expected_results_are_verified_after_training(tmp_path):
    opts = ("SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "()", "TEST.EXPECTED_RESULTS", "[['segm', 'AP', 1000.0, 1.0]]")
    with pytest.raises(UnexpectedResultsError, match="segm/AP"):
        make_trainer(make_cfg(tmp_path, *opts)).train()


def test_several_test_sets_are_reported_by_name_and_one_directly():
    model = NoisyNet()
    assert set(Trainer.test(make_cfg("unused"), model)) == {"segm"}
    both = Trainer.test(make_cfg("unused", "DATASETS.TEST", "('a', 'without_evaluator')"), model)
    assert set(both["a"]) == {"segm"} and both["without_evaluator"] == {}
    assert Trainer.test(make_cfg("unused", "DATASETS.TEST", "()"), model) == {}
    assert model.training


@pytest.mark.parametrize("has_instructions", [True, False])
def test_mixed_precision_on_the_cpu(has_instructions, monkeypatch):
    monkeypatch.setattr("lbvq.engine.defaults.cpu_computes_in_bfloat16", lambda: has_instructions)
    want = torch.bfloat16 if has_instructions else None
    cpu = torch.device("cpu")
    on = ("SOLVER.AMP.ENABLED", "True")
    assert training_amp_dtype(make_cfg("unused"), cpu) is None
    assert training_amp_dtype(make_cfg("unused", *on), cpu) is None  # float16 needs a GPU
    assert training_amp_dtype(make_cfg("unused", *on, "SOLVER.AMP.DTYPE", "bfloat16"), cpu) == want
    assert training_amp_dtype(make_cfg("unused", *on), torch.device("cuda")) == torch.float16
    with pytest.raises(ValueError, match="DTYPE"):
        training_amp_dtype(make_cfg("unused", "SOLVER.AMP.DTYPE", "float8"), cpu)
