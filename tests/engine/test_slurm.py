"""Jobs through submitit; its local executor stands for the cluster."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time

import distributed_workers
import pytest
from helpers import ROOT

from lbvq.engine import slurm


def test_parameters_get_submitits_names():
    assert slurm.parse_slurm_parameters("partition=gpu,time=60") == {"slurm_partition": "gpu", "timeout_min": 60}
    assert slurm.parse_slurm_parameters("") == {}
    with pytest.raises(ValueError, match=r"names partition, account.*got 'nodes=2'"):
        slurm.parse_slurm_parameters("nodes=2")
    with pytest.raises(ValueError, match="time must be a whole number"):
        slurm.parse_slurm_parameters("time=2h")


def test_missing_package_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ImportError, match=r"lbvq\[slurm\]"):
        slurm.submit(distributed_workers.slurm_main, argparse.Namespace(), tmp_path)


@pytest.mark.slow
def test_a_preempted_job_saves_stops_and_is_requeued_with_resume(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests'}")
    args = argparse.Namespace(folder=str(tmp_path), resume=False, slurm="time=5", num_gpus=2, num_machines=1)
    job = slurm.submit(distributed_workers.slurm_main, args, tmp_path / "jobs", cluster="local")
    try:
        deadline = time.monotonic() + 90
        while len(list(tmp_path.glob("ready*"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        for ready in tmp_path.glob("ready*"):  # as SLURM does before it takes the machine away
            os.kill(int(ready.read_text()), signal.SIGUSR2)
        assert job._process.wait(90) == 0  # the local executor starts a requeued job again
    finally:
        if job._process.poll() is None:
            job.cancel()
    names = {path.name for path in tmp_path.iterdir()}
    for rank in (0, 1):
        assert {f"started_resume=False_rank{rank}_of_2", f"stopped{rank}"} <= names
        assert f"started_resume=True_rank{rank}_of_2" in names
