"""OUTPUT_DIR: one training at a time, nothing replaced without being told to, known before the first step."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple

import pytest
import torch
from helpers import ROOT
from torch import nn

from lbvq.engine.checkpoint import Checkpointer, checkpoint_bytes
from lbvq.engine.resumed_settings import compare_settings, flat_settings
from lbvq.engine.run_folder import check_disk_space, claimed, make_run_folder, set_aside

HOLD = """
import sys, time
from lbvq.engine.run_folder import claimed
with claimed(sys.argv[1], resume=False, overwrite=False):
    print("holding", flush=True)
    time.sleep(600)
"""


def a_finished_run(folder):
    checkpointer = Checkpointer(nn.Linear(2, 2), folder)
    checkpointer.save("model_0000001", iteration=1)
    checkpointer.save("model_final", iteration=3)
    (folder / "metrics.json").write_text("old")
    (folder / "inference").mkdir()
    (folder / "inference" / "results.json").write_text("old")
    (folder / "mine.txt").write_text("kept")


def test_a_new_run_does_not_replace_a_training(tmp_path):
    a_finished_run(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(FileExistsError, match=r"model_final\.pth and 1 more.*--resume.*--overwrite.*OUTPUT_DIR"):
        with claimed(tmp_path, resume=False, overwrite=False):
            raise AssertionError("began")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_overwrite_deletes_the_training_and_nothing_else(tmp_path, caplog):
    a_finished_run(tmp_path)
    with claimed(tmp_path, resume=False, overwrite=True):
        left = sorted(path.name for path in tmp_path.rglob("*") if path.is_file() and not path.name.startswith("."))
    assert left == ["mine.txt"] and "deleted 5 files" in caplog.text


def test_resume_leaves_everything_in_place(tmp_path):
    a_finished_run(tmp_path)
    with claimed(tmp_path, resume=True, overwrite=False):
        assert (tmp_path / "metrics.json").read_text() == "old"


def test_numbers_of_a_run_without_a_checkpoint_are_kept_apart(tmp_path):
    for number in range(2):
        (tmp_path / "metrics.json").write_text(f"run {number}")
        with claimed(tmp_path, resume=False, overwrite=False):
            assert not (tmp_path / "metrics.json").exists()
    assert (tmp_path / "metrics.json.1").read_text() == "run 0"
    assert (tmp_path / "metrics.json.2").read_text() == "run 1"
    set_aside(tmp_path / "gone.json")


def test_two_trainings_do_not_share_a_folder_and_a_killed_one_leaves_it_free(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    try:
        assert process.stdout.readline() == b"holding\n"
        for resume in (False, True):
            with pytest.raises(OSError, match=f"Another training writes to .*process {process.pid} on"):
                with claimed(tmp_path, resume=resume, overwrite=True):
                    raise AssertionError("began")
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    with claimed(tmp_path, resume=False, overwrite=False):
        pass
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", "/proc/run"):
        with pytest.raises(OSError, match=r"OUTPUT_DIR .* (is a file|cannot be written)"):
            make_run_folder(folder)


def test_what_a_killed_run_left_is_removed_at_the_start(tmp_path):
    process = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    host = "".join(c for c in os.uname().nodename if c.isalnum() or c == "_")[:40]
    part = tmp_path / f".model_final.pth.{host}-{process.stdout.strip()}-01234567.part.pth"
    part.write_bytes(b"half")
    make_run_folder(tmp_path)
    assert not part.exists()


# -- disk -------------------------------------------------------------------------------------------------------------


def test_the_size_of_a_checkpoint_is_foreseen(tmp_path):
    model = nn.Sequential(nn.Linear(300, 300), nn.BatchNorm1d(300))
    for optimizer, copies in (
        (torch.optim.AdamW(model.parameters()), 3),
        (torch.optim.SGD(model.parameters(), 0.1, momentum=0.9), 2),
        (torch.optim.SGD(model.parameters(), 0.1), 1),
    ):
        model(torch.ones(2, 300)).sum().backward()
        optimizer.step()
        path = tmp_path / "a.pth"
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)
        want = checkpoint_bytes(model, optimizer)
        assert want > 300 * 300 * 4 * copies and abs(path.stat().st_size - want) < 10_000


def test_space_for_checkpoints_is_checked_before_training(tmp_path, monkeypatch, caplog):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 5_000_000_000))
    check_disk_space(tmp_path, 1_000_000_000, 5)
    assert not caplog.records
    check_disk_space(tmp_path, 1_000_000_000, 6)
    assert "6 checkpoints of about 1.00 GB do not fit" in caplog.text and "SOLVER.MAX_TO_KEEP" in caplog.text
    with pytest.raises(OSError, match=r"a checkpoint needs about 6\.00 GB and the disk has 5\.00 GB left"):
        check_disk_space(tmp_path, 6_000_000_000, 1)


# -- settings ---------------------------------------------------------------------------------------------------------

BEFORE = {"SOLVER.BASE_LR": 0.1, "SOLVER.MAX_ITER": 4, "SOLVER.OPTIMIZER": "ADAMW", "SEED": 1, "MODEL.WEIGHTS": "a"}


def test_settings_are_flat_and_plain():
    assert flat_settings({"A": {"B": (1, (2,))}, "C": None}) == {"A.B": [1, [2]], "C": None}


def test_a_resumed_run_names_the_settings_that_it_does_not_follow(caplog):
    compare_settings(BEFORE, {**BEFORE, "MODEL.WEIGHTS": "b", "NEW": 1})
    assert not caplog.records
    compare_settings(BEFORE, {**BEFORE, "SOLVER.BASE_LR": 0.01, "SOLVER.MAX_ITER": 8, "SEED": 2})
    kept, followed = (record.message for record in caplog.records)
    assert "NO effect: SOLVER.BASE_LR 0.1 -> 0.01, SEED 1 -> 2." in kept
    assert "followed from here on: SOLVER.MAX_ITER 4 -> 8." in followed


def test_a_resumed_run_refuses_what_its_state_does_not_fit():
    with pytest.raises(ValueError, match=r"cannot change SOLVER\.OPTIMIZER 'ADAMW' -> 'SGD'"):
        compare_settings(BEFORE, {**BEFORE, "SOLVER.OPTIMIZER": "SGD"})
