"""Several processes on the CPU, over gloo."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import distributed_workers
import pytest
import torch
from helpers import ROOT

from lbvq.engine.launch import find_free_port, launch


@pytest.fixture(autouse=True)
def _one_thread_each(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def load(folder, rank):
    return torch.load(folder / f"rank{rank}.pt", weights_only=True)


def test_launch_numbers_the_processes_and_they_can_talk(tmp_path):
    launch(distributed_workers.exercise_comm, 2, args=(str(tmp_path),))
    first, second = load(tmp_path, 0), load(tmp_path, 1)
    assert [first["rank"], second["rank"]] == [first["local_rank"], second["local_rank"]] == [0, 1]
    assert first["world"] == second["local_size"] == 2
    assert first["all_gather"] == second["all_gather"] == [{"rank": 0}, {"rank": 1}]
    assert first["gather"] == [0, 10] and second["gather"] == []
    assert first["broadcast"] == second["broadcast"] == [1, "x"]
    assert first["any"] == second["any"] == [True, False]
    assert first["seed"] == second["seed"]


@pytest.mark.parametrize("accumulate_steps", [1, 2])
def test_two_processes_give_the_gradients_of_one_with_the_same_global_batch(tmp_path, accumulate_steps):
    """Also after three steps, so the weights of process 0 were sent at the start and all steps agree."""
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    distributed_workers.train_and_save(str(tmp_path / "one"), 1)
    launch(distributed_workers.train_and_save, 2, args=(str(tmp_path / "two"), accumulate_steps))
    alone, first, second = load(tmp_path / "one", 0), load(tmp_path / "two", 0), load(tmp_path / "two", 1)
    for kind in ("gradients", "weights"):
        for a, b, c in zip(alone[kind], first[kind], second[kind], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
            assert torch.equal(b, c)
    for name, samples in alone["losses"].items():
        torch.testing.assert_close(torch.tensor(first["losses"][name]), torch.tensor(samples), rtol=1e-5, atol=1e-6)
    assert second["names"] == ["rank_data_time"] and second["losses"] == {}


def test_an_error_in_one_process_ends_all_and_is_shown(tmp_path):
    with pytest.raises(Exception, match="broken on purpose"):
        launch(distributed_workers.fail_in_process_1, 2, args=(str(tmp_path),))


def test_all_processes_stop_together_when_one_gets_sigterm(tmp_path):
    launch(distributed_workers.train_until_terminated, 2, args=(str(tmp_path),))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "saved_model_0000019_by_0_2",
        "saved_model_0000019_by_1_0",
    ]


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
import distributed_workers
from lbvq.engine.launch import launch

if __name__ == "__main__":
    launch(distributed_workers.{function}, {processes}, args=({folder!r},))
"""


def write_script(tmp_path, function, processes):
    script = tmp_path / "script.py"
    text = SCRIPT.format(tests=str(ROOT / "tests"), function=function, processes=processes, folder=str(tmp_path))
    script.write_text(text)
    return script


def test_torchrun_starts_the_same_script(tmp_path):
    script = write_script(tmp_path, "exercise_comm", 1)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-port", str(find_free_port()), str(script)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    assert load(tmp_path, 0)["all_gather"] == load(tmp_path, 1)["all_gather"] == [{"rank": 0}, {"rank": 1}]
    assert load(tmp_path, 1)["local_rank"] == 1


def test_sigterm_to_the_launching_process_reaches_the_others(tmp_path):
    script = write_script(tmp_path, "wait_for_sigterm", 2)
    process = subprocess.Popen([sys.executable, str(script)])
    try:
        deadline = time.monotonic() + 60
        while len(list(tmp_path.glob("ready*"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
    assert len(list(tmp_path.glob("got_SIGTERM*"))) == 2


def test_launch_alone_calls_the_function_here_and_returns_its_result():
    assert launch(len, 1, args=([1, 2],)) == 2
    assert launch(len, 0, args=([],)) == 0


def test_wrong_machine_numbers_are_refused():
    with pytest.raises(ValueError, match="--machine-rank must be in"):
        launch(len, 1, num_machines=2, machine_rank=2, dist_url="tcp://localhost:1", args=([],))
    with pytest.raises(ValueError, match="--dist-url"):
        launch(len, 1, num_machines=2, machine_rank=0, args=([],))
