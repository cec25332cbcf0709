"""Command line, logs, seeds and the report of the environment."""

from __future__ import annotations

import importlib.metadata
import logging
import random
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import project

from lbvq.config import get_cfg
from lbvq.engine.environment import OPTIONAL, PACKAGES, environment_report, git_revision
from lbvq.engine.random_state import get_random_state, preserve_random_state, seed_all_rng, set_random_state
from lbvq.engine.setup import default_argument_parser, default_setup, setup_logger
from lbvq.files import writing


def draw():
    return random.random(), random.gauss(0, 1), np.random.rand(), np.random.normal(), torch.rand(1).item()


@pytest.fixture(autouse=True)
def _close_log_files():
    yield
    for name in ("lbvq", "mask2former", "__main__", "lbvq.test_setup"):
        logger = logging.getLogger(name)
        for handler in list(logger.handlers):
            logger.removeHandler(handler)
            handler.close()
        logger.propagate = True
        logger.setLevel(logging.NOTSET)


def test_published_command_line_is_understood():
    line = "--config-file a.yaml --num-gpus 8 --resume --num-machines 2 --machine-rank 1 --dist-url tcp://h:1"
    args = default_argument_parser().parse_args([*line.split(), "MODEL.WEIGHTS", "w.pth", "SOLVER.STEPS", "(1, 2)"])
    assert (args.config_file, args.num_gpus, args.num_machines, args.machine_rank) == ("a.yaml", 8, 2, 1)
    assert args.resume and not args.eval_only and args.dist_url == "tcp://h:1"
    assert args.opts == ["MODEL.WEIGHTS", "w.pth", "SOLVER.STEPS", "(1, 2)"]


def test_equal_seeds_give_equal_numbers():
    seed_all_rng(5)
    first = draw()
    assert seed_all_rng(5) == 5 and draw() == first
    assert 0 <= seed_all_rng(None) < 2**31


def test_random_state_survives_a_checkpoint_file_that_is_read_safely(tmp_path):
    seed_all_rng(1)
    draw()  # leaves half a pair of normal numbers behind in python and numpy
    torch.save(get_random_state(), tmp_path / "state.pth")
    want = [draw() for _ in range(3)]
    seed_all_rng(2)
    set_random_state(torch.load(tmp_path / "state.pth", weights_only=True))
    assert [draw() for _ in range(3)] == want


def test_preserve_random_state_hides_what_was_drawn_inside():
    seed_all_rng(3)
    want = draw()
    seed_all_rng(3)
    with preserve_random_state():
        draw()
    assert draw() == want


def test_setup_writes_logs_and_a_configuration_that_merges_back(tmp_path, capsys):
    cfg = get_cfg()
    cfg.OUTPUT_DIR, cfg.SEED = str(tmp_path / "out"), 7
    config_file = tmp_path / "mine.yaml"
    config_file.write_text("SEED: 7\n")
    args = default_argument_parser().parse_args(["--config-file", str(config_file)])
    default_setup(cfg, args)
    first = draw()
    log = (tmp_path / "out" / "log.txt").read_text()
    for part in ("Rank of this process: 0 of 1", "source revision", "Command line:", "SEED: 7", "Full configuration"):
        assert part in log
    assert "\x1b" not in log and "\x1b" not in capsys.readouterr().out
    again = get_cfg()
    again.merge_from_file(str(tmp_path / "out" / "config.yaml"))
    assert again == cfg
    default_setup(cfg, args)
    assert draw() == first


def test_what_a_killed_run_was_writing_is_gone_when_the_next_one_starts(tmp_path):
    child = subprocess.Popen(["true"])
    child.wait()
    (tmp_path / f".model_0004999.pth.{writing._HOST}-{child.pid}-0123abcd.part.pth").write_text("half")
    cfg = get_cfg()
    cfg.OUTPUT_DIR = str(tmp_path)
    default_setup(cfg, default_argument_parser().parse_args([]))
    assert not list(tmp_path.glob(".model*"))


PEAK = """
from lbvq.engine.memory import peak_memory_mib
before = peak_memory_mib()
block = bytearray(b"x") * (64 << 20)
print(before, peak_memory_mib() - before)
"""


def test_the_peak_of_memory_is_that_of_the_process_alone():
    """A process starts with the mark of the one that began it, this one, if the system is asked in the wrong way."""
    run = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    before, grown = map(float, run.stdout.split())
    assert before < 100 and 60 < grown < 100


def test_only_process_0_writes_to_the_console_and_each_has_a_file(tmp_path, capsys):
    setup_logger(tmp_path, 1, "lbvq.test_setup").info("from process 1")
    setup_logger(tmp_path, 0, "lbvq.test_setup").warning("from process 0")
    assert re.fullmatch(
        r"\[\d\d/\d\d \d\d:\d\d:\d\d lbvq\.test_setup\]: WARNING from process 0\n", capsys.readouterr().out
    )
    assert "from process 1" in (tmp_path / "log.txt.rank1").read_text()
    assert re.fullmatch(
        r"\[\d\d/\d\d \d\d:\d\d:\d\d\] lbvq\.test_setup WARNING: from process 0\n", (tmp_path / "log.txt").read_text()
    )


def test_setting_up_a_logger_twice_does_not_write_twice(tmp_path, capsys):
    for _ in range(2):
        logger = setup_logger(tmp_path, 0, "lbvq.test_setup")
    logger.info("once")
    assert capsys.readouterr().out.count("once") == 1
    assert (tmp_path / "log.txt").read_text().count("once") == 1


def test_wrong_float_precision_is_refused(tmp_path):
    cfg = get_cfg()
    cfg.OUTPUT_DIR, cfg.FLOAT32_PRECISION = str(tmp_path), "fast"
    with pytest.raises(ValueError, match="FLOAT32_PRECISION"):
        default_setup(cfg, default_argument_parser().parse_args([]))


def test_report_names_versions_and_the_source_revision(tmp_path):
    report = environment_report()
    assert f"torch  {torch.__version__.split('+')[0]}" in re.sub(" +", "  ", report)
    assert git_revision(tmp_path) == "unknown (not a git checkout)"


def test_the_report_knows_what_the_project_needs_and_what_its_extras_are_for():
    def names(lines):
        return {re.match(r"[\w-]+", line)[0].lower().replace("_", "-") for line in lines}

    needed, extras = project()["dependencies"], project()["optional-dependencies"]
    assert {name.lower().replace("_", "-") for name in PACKAGES} == names(needed) | {"lbvq"}
    for_users = names(
        line for extra, lines in extras.items() if extra not in ("docs", "dev", "notebooks") for line in lines
    )
    assert set(OPTIONAL) == for_users


def test_the_report_names_extras_only_where_they_are_installed(monkeypatch):
    versions = {"timm": "1.0.9"}

    def version(name):
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    rows = dict(re.split(" {2,}", line, maxsplit=1) for line in environment_report().splitlines())
    assert rows["timm"] == "1.0.9" and rows["numpy"] == "not installed" and "wandb" not in rows


def test_git_revision_tells_of_uncommitted_changes(tmp_path):
    def git(*arguments):
        subprocess.run(
            ["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", *arguments],
            check=True,
            capture_output=True,
        )

    git("init")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-m", "first")
    clean = git_revision(tmp_path)
    assert re.fullmatch("[0-9a-f]{40}", clean)
    (tmp_path / "file").write_text("2")
    assert git_revision(tmp_path) == f"{clean} + uncommitted changes"
