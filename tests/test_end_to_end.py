"""The whole path on a CPU: synthetic videos, `train_net.py`, losses that fall, tube AP, resume, a drawn video."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import CONFIGS, ROOT

from lbvq.data.synthetic import write_dataset
from lbvq.engine.launch import find_free_port
from lbvq.video.reader import read_video

TINY = [  # a network that learns something in seconds
    *("MODEL.RESNETS.DEPTH", "18", "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", "1"),
    *("MODEL.MASK_FORMER.DEC_LAYERS", "2", "MODEL.LBVQ.DEC_LAYERS", "1", "MODEL.LBVQ.LAST_LAYER_NUM", "1"),
    *("MODEL.MASK_FORMER.TRAIN_NUM_POINTS", "128", "INPUT.SAMPLING_FRAME_NUM", "2"),
    *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.STEPS", "()", "SOLVER.WARMUP_ITERS", "2", "SOLVER.CHECKPOINT_PERIOD", "10"),
    *("INPUT.MIN_SIZE_TRAIN", "(48,)", "INPUT.MAX_SIZE_TRAIN", "64", "INPUT.MIN_SIZE_TEST", "48"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets")
    write_dataset(root, num_train=8, num_val=3)
    return root


def environment(data: Path) -> dict[str, str]:
    return {**os.environ, "DETECTRON2_DATASETS": str(data), "OMP_NUM_THREADS": "1"}


def train_net_command(output: Path, *opts: str, flags: tuple[str, ...] = (), starter: tuple[str, ...] = ()):
    config = CONFIGS / "synthetic" / "lbvq_R18_tiny.yaml"
    command = [sys.executable, *starter, str(ROOT / "train_net.py"), "--config-file", str(config), *flags]
    return [*command, "OUTPUT_DIR", str(output), *TINY, *opts]


def train_net(data: Path, output: Path, *opts: str, **options: tuple[str, ...]) -> subprocess.CompletedProcess:
    command = train_net_command(output, *opts, **options)
    return subprocess.run(command, env=environment(data), capture_output=True, text=True, timeout=600)


def metrics(output: Path) -> dict[int, dict[str, float]]:
    """Lines of metrics.json by iteration; of repeated iterations the last."""
    lines = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    return {line["iteration"]: {**line} for line in lines}


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    output = tmp_path_factory.mktemp("trained")
    process = train_net(data, output, "SOLVER.MAX_ITER", "30", "SOLVER.MAX_TO_KEEP", "1")
    assert process.returncode == 0, process.stdout + process.stderr
    return output


@pytest.mark.slow
def test_thirty_steps_lower_the_loss_and_give_a_tube_ap(trained):
    by_iteration = metrics(trained)
    assert by_iteration[29]["total_loss"] < by_iteration[19]["total_loss"]  # medians of 20 iterations
    assert {"loss_ce", "loss_dice_0", "loss_lbvq_mask", "loss_lbvq_sim"} <= set(by_iteration[29])
    results = json.loads((trained / "inference" / "metrics.json").read_text())
    assert 0 <= results["segm"]["AP"] <= 100 and by_iteration[30]["segm/AP"] == results["segm"]["AP"]


@pytest.mark.slow
def test_results_file_has_entries_of_every_video(trained, data):
    entries = json.loads((trained / "inference" / "results.json").read_text())
    videos = json.loads((data / "synthetic" / "val.json").read_text())["videos"]
    assert {entry["video_id"] for entry in entries} == {video["id"] for video in videos}
    assert all(len(entry["segmentations"]) == 10 for entry in entries)
    assert entries[0]["segmentations"][0]["size"] == [96, 128]


@pytest.mark.slow
def test_eval_only_gives_the_same_numbers(trained, data, tmp_path):
    weights = str(trained / "model_final.pth")
    process = train_net(data, tmp_path, "MODEL.WEIGHTS", weights, flags=("--eval-only",))
    assert process.returncode == 0, process.stdout + process.stderr
    results = [json.loads((folder / "inference" / "metrics.json").read_text()) for folder in (trained, tmp_path)]
    assert results[0] == results[1]
    assert "copypaste: Task: segm" in process.stdout


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_same_weights_with_another_number_of_workers(data, tmp_path):
    """One run of 30 iterations without loader processes; one that was stopped after 20 and went on with one."""
    common = ("DATASETS.TEST", "()", "SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR")
    for output, max_iter, workers in (("whole", "30", "0"), ("parts", "20", "0"), ("parts", "30", "1")):
        opts = ("SOLVER.MAX_ITER", max_iter, "DATALOADER.NUM_WORKERS", workers, *common)
        process = train_net(data, tmp_path / output, *opts, flags=("--resume",))
        assert process.returncode == 0, process.stdout + process.stderr
    whole, parts = (
        torch.load(tmp_path / output / "model_final.pth", weights_only=True)["model"] for output in ("whole", "parts")
    )
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.slow
def test_sigterm_to_the_whole_job_saves_before_it_ends(data, tmp_path):
    """The signal reaches the loader processes, too, as it does under SLURM."""
    opts = ("SOLVER.MAX_ITER", "100000", "DATALOADER.NUM_WORKERS", "2", "SOLVER.CHECKPOINT_PERIOD", "100000")
    with subprocess.Popen(
        train_net_command(tmp_path, *opts), env=environment(data), start_new_session=True, stdout=subprocess.DEVNULL
    ) as process:
        try:
            deadline = time.monotonic() + 240
            while not (tmp_path / "metrics.json").exists() or not (tmp_path / "metrics.json").stat().st_size:
                assert time.monotonic() < deadline and process.poll() is None
                time.sleep(0.1)
            os.killpg(process.pid, signal.SIGTERM)
            assert process.wait(120) == 0
        finally:
            process.kill()
    last = (tmp_path / "last_checkpoint").read_text()
    assert last.startswith("model_00000") and (tmp_path / last).exists()


@pytest.mark.slow
def test_two_processes_under_torchrun_train_and_share_the_evaluation(data, tmp_path):
    starter = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(find_free_port()))
    process = train_net(data, tmp_path, "SOLVER.MAX_ITER", "4", starter=starter)
    assert process.returncode == 0, process.stdout + process.stderr
    assert "AP" in json.loads((tmp_path / "inference" / "metrics.json").read_text())["segm"]
    entries = json.loads((tmp_path / "inference" / "results.json").read_text())
    assert len({entry["video_id"] for entry in entries}) == 3
    assert (tmp_path / "log.txt.rank1").exists()


@pytest.mark.slow
def test_quickstart_writes_results_a_table_and_a_video(tmp_path):
    command = [sys.executable, str(ROOT / "tools" / "quickstart.py"), "--folder", str(tmp_path)]
    command += ["--num-train", "4", "--num-val", "2", *TINY, "SOLVER.MAX_ITER", "2"]
    process = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True, timeout=600)
    assert process.returncode == 0, process.stdout + process.stderr
    assert (tmp_path / "output" / "inference" / "results.json").exists()
    assert "segm, held-out videos" in process.stdout and "held_out_videos.mp4" in process.stdout
    assert len(read_video(tmp_path / "held_out_videos.mp4")) == 10
