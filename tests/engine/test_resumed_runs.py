"""Runs that go on: finished ones, changed settings, damaged checkpoints, Ctrl-C; and categories in what they save."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import resumable_run
import torch
from helpers import ROOT
from resumable_run import Trainer, make_cfg, make_trainer

from lbvq.engine.checkpoint import checkpoints_of
from lbvq.engine.random_state import seed_all_rng
from lbvq.engine.resumed_settings import KEPT
from lbvq.engine.weight_files import read_weights
from lbvq.files.class_list import ClassList


def weights(folder, name="model_final.pth"):
    return torch.load(Path(folder) / name, weights_only=True)["model"]


@pytest.fixture
def finished(tmp_path):
    """A run of 8 iterations with checkpoints after 4 and 8."""
    make_trainer(make_cfg(tmp_path, *SHORT)).train()
    return tmp_path


SHORT = ("SOLVER.MAX_ITER", 8, "SOLVER.STEPS", (6,), "SOLVER.CHECKPOINT_PERIOD", 4, "DATASETS.TEST", ())


def test_resuming_a_finished_run_says_so_and_changes_nothing(finished, caplog):
    before = weights(finished)
    trainer = make_trainer(make_cfg(finished, *SHORT), True)
    trainer.train()
    assert "is already finished: it has done 8 of SOLVER.MAX_ITER 8 iterations" in caplog.text
    assert all(torch.equal(value, before[name]) for name, value in weights(finished).items())


CHANGES = {
    "SOLVER.BASE_LR": 0.5,
    "SOLVER.BACKBONE_MULTIPLIER": 0.3,
    "SOLVER.DETECTOR_MULTIPLIER": 0.3,
    "SOLVER.LLRD": 0.3,
    "SOLVER.MOMENTUM": 0.1,
    "SOLVER.WEIGHT_DECAY": 0.8,
    "SOLVER.WEIGHT_DECAY_NORM": 0.9,
    "SOLVER.WEIGHT_DECAY_EMBED": 0.9,
    "SEED": 77,
    "MODEL.WEIGHTS": "not_read.pth",
}


def test_every_setting_that_is_said_to_have_no_effect_has_none(tmp_path, caplog):
    """All at once: the resumed run ends with the weights of the one that was never interrupted."""
    assert set(CHANGES) == set(KEPT)
    sgd = ("SOLVER.OPTIMIZER", "SGD")
    make_trainer(make_cfg(tmp_path / "whole", *SHORT, *sgd)).train()
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    for name in ("model_final.pth", "model_0000007.pth"):
        (tmp_path / "parts" / name).unlink()
    changed = [word for pair in CHANGES.items() for word in pair]
    make_trainer(make_cfg(tmp_path / "parts", *SHORT, *sgd, *changed), True).train()
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())
    message = next(record.message for record in caplog.records if "NO effect" in record.message)
    assert all(f"{key} " in message for key in CHANGES if key != "MODEL.WEIGHTS")


def test_a_setting_that_is_said_to_be_followed_is(finished, caplog):
    before = weights(finished)
    make_trainer(make_cfg(finished, *SHORT, "SOLVER.MAX_ITER", 12, "SOLVER.GAMMA", 0.5), True).train()
    assert "followed from here on: SOLVER.MAX_ITER 8 -> 12, SOLVER.GAMMA 0.1 -> 0.5" in caplog.text
    assert not torch.equal(weights(finished)["layers.0.weight"], before["layers.0.weight"])
    group = torch.load(finished / "model_final.pth", weights_only=True)["trainer"]["_trainer"]["optimizer"]
    assert group["param_groups"][0]["lr"] == pytest.approx(0.01 * 0.5)


def test_another_optimizer_is_refused(finished):
    with pytest.raises(ValueError, match=r"cannot change SOLVER\.OPTIMIZER"):
        make_trainer(make_cfg(finished, *SHORT, "SOLVER.OPTIMIZER", "SGD", "SOLVER.MAX_ITER", 12), True)


def truncated(path):
    path.write_bytes(path.read_bytes()[:-300])


def emptied(path):
    path.write_bytes(b"")


def flipped(path):
    """One bit in the values of a tensor, which torch itself does not notice."""
    data = bytearray(path.read_bytes())
    place = data.index(weights(path.parent, path.name)["layers.0.weight"].numpy().tobytes()) + 2
    data[place] ^= 1
    path.write_bytes(bytes(data))
    torch.load(path, weights_only=True)


def without_state(path):
    torch.save({"model": weights(path.parent, path.name)}, path)


def damaged_note(path):
    (path.parent / "last_checkpoint").write_bytes(b"\xff\0")
    truncated(path)


@pytest.mark.parametrize("damage", [truncated, emptied, flipped, Path.unlink, damaged_note])
def test_a_damaged_newest_checkpoint_is_passed_over_with_a_warning(finished, damage, caplog):
    whole = weights(finished)
    damage(finished / "model_final.pth")
    (finished / "model_0000007.pth").unlink()  # the same iteration as model_final
    trainer = make_trainer(make_cfg(finished, *SHORT), True)
    assert trainer.start_iter == 4
    assert "model_final.pth" in caplog.text or damage is damaged_note
    trainer.train()
    assert all(torch.equal(value, whole[name]) for name, value in weights(finished).items())


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_anew(finished):
    for path in finished.glob("*.pth"):
        truncated(path)
    with pytest.raises(ValueError, match=r"model_final\.pth is damaged"):
        make_trainer(make_cfg(finished, *SHORT), True)


def test_checkpoints_without_the_note_are_found(finished):
    (finished / "last_checkpoint").unlink()
    (finished / "model_best.pth").write_bytes(b"no place to resume from")
    assert [path.name for path in checkpoints_of(finished)] == [
        "model_final.pth",
        "model_0000007.pth",
        "model_0000003.pth",
    ]
    assert make_trainer(make_cfg(finished, *SHORT), True).start_iter == 8


def run_script(folder, **environment):
    command = [sys.executable, resumable_run.__file__, str(folder)]
    return subprocess.Popen(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_ctrl_c_saves_like_sigterm(tmp_path):
    process = run_script(tmp_path, KILL_AT="14", KILL_WITH="SIGINT")
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0 and "Saved iteration 14; continue with --resume." in output
    assert "Once more Ctrl-C ends it at once" in output
    assert read_weights(tmp_path / "model_0000014.pth").rest["iteration"] == 14


def test_a_second_ctrl_c_ends_at_once(monkeypatch):
    """A step that hangs: the first signal is kept for its end, one moments later is the same, a later one ends it."""
    hook = resumable_run.Trainer.build_hooks.__globals__["GracefulStop"](lambda name: None, (signal.SIGINT,))
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    hook.trainer = type("Trainer", (), {"iter": 3, "max_iter": 9})()
    hook.before_train()
    try:
        signal.raise_signal(signal.SIGINT)
        now += 0.2  # from the terminal, and from the process that started this one
        signal.raise_signal(signal.SIGINT)
        assert hook.received == signal.SIGINT
        now += 2
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        hook.after_train()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


# -- categories -------------------------------------------------------------------------------------------------------

PETS = ClassList(("cat", "dog"), (3, 7))


class NamedTrainer(Trainer):
    @classmethod
    def build_class_list(cls, cfg):
        return PETS


def named_trainer(folder, *opts):
    seed_all_rng(3)
    return NamedTrainer(make_cfg(folder, *SHORT, *opts))


def test_categories_travel_with_every_file_of_a_run(tmp_path):
    trainer = named_trainer(tmp_path, "DATASETS.TEST", ("fake",), "SOLVER.BEST_METRIC", "segm/AP")
    assert ClassList.from_config(trainer.cfg) == PETS
    trainer.resume_or_load(False)
    trainer.train()
    for name in ("model_0000003", "model_final", "model_best"):
        assert ClassList.from_plain(read_weights(tmp_path / f"{name}.pth").rest["categories"], "") == PETS


def test_weights_of_other_classes_of_the_same_number_are_named(tmp_path, caplog):
    trainer = named_trainer(tmp_path / "pets")
    trainer.resume_or_load(False)
    trainer.train()
    path = tmp_path / "other.pth"
    content = torch.load(tmp_path / "pets" / "model_final.pth", weights_only=True)
    torch.save({**content, "categories": {"names": ["owl", "fox"], "ids": [1, 2]}}, path)
    named_trainer(tmp_path / "new", "MODEL.WEIGHTS", str(path)).resume_or_load(False)
    assert "is one of 2 classes (owl, fox)" in caplog.text and "2 classes (cat, dog)" in caplog.text
    caplog.clear()
    torch.save({**content, "categories": {"names": ["Cat", "dog"], "ids": [1, 2]}}, path)  # only spelt in another way
    named_trainer(tmp_path / "new", "MODEL.WEIGHTS", str(path)).resume_or_load(False)
    assert "is one of" not in caplog.text
