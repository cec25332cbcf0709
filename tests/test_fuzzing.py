"""Damaged files are read or refused in one sentence, and the program that looks for others notices what it should."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from random import Random

import fuzz_probes
import pytest
from helpers import ROOT, run_tool
from hypothesis import given, settings
from hypothesis import strategies as st

from lbvq.fuzz.run import Tally, Worker, damaged_files, format_table, read_seeds
from lbvq.fuzz.targets import all_targets
from lbvq.fuzz.worker import judge

MENDED = sorted(all_targets())
OUTCOME = {
    "good": "accepted",
    "refuses": "refused",
    "unnamed": "unnamed",
    "untyped": "untyped",
    "unicode": "untyped",
    "wrong": "untyped",
    "dies": "signal",
    "spins": "hang",
    "too_large": "memory",
}


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seeds")
    return {name: read_seeds(target, folder / name) for name, target in all_targets().items()}


@pytest.mark.parametrize("name", MENDED)
def test_a_damaged_file_is_read_or_refused_with_its_name(name, seeds, tmp_path):
    target = all_targets()[name]

    @settings(max_examples=60, deadline=None, derandomize=True, database=None)
    @given(st.sampled_from(seeds[name]), st.integers(0, 2**32))
    def check(seed, number):
        path = tmp_path / f"damaged_{seed[0]}"
        path.write_bytes(target.mutate(seed[1], Random(number)))
        outcome, message = judge(target, path)
        assert outcome in ("accepted", "refused"), message

    check()


@pytest.mark.parametrize("name", sorted(all_targets()))
def test_most_files_to_start_from_are_valid(name, seeds, tmp_path):
    outcomes = Counter()
    for file_name, content in seeds[name]:
        path = tmp_path / file_name
        path.write_bytes(content)
        outcomes[judge(all_targets()[name], path)[0]] += 1
    assert outcomes["accepted"] > outcomes.total() / 2, outcomes


def test_an_input_depends_on_the_seed_and_its_number_alone(tmp_path):
    target = all_targets()["images"]
    every = [path.read_bytes() for path in damaged_files(target, _made(tmp_path / "a"), seed=3, limit=30)]
    again = [path.read_bytes() for path in damaged_files(target, _made(tmp_path / "b"), seed=3, limit=30)]
    other = [path.read_bytes() for path in damaged_files(target, _made(tmp_path / "c"), seed=4, limit=30)]
    assert every == again != other


def test_the_worker_tells_refusals_from_faults_and_survives_them(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests'}")
    fuzz_probes.write_seeds(tmp_path)
    with Worker("probe", ["fuzz_probes"]) as worker:
        found = {name: worker.read(tmp_path / name)[0] for name in fuzz_probes.FILES}
    assert found == OUTCOME


def test_the_tool_reads_files_and_prints_a_table(tmp_path, capsys):
    assert run_tool("fuzz", "--inputs", 12, "--target", "images", "--keep", tmp_path / "kept") == 0
    row = capsys.readouterr().out.splitlines()[-1].split()
    assert row[:2] == ["images", "12"]
    assert sum(map(int, row[2:])) == 12
    assert not (tmp_path / "kept").exists()


def test_a_table_has_a_column_for_every_outcome():
    tally = Tally("images", Counter(accepted=3, hang=1))
    assert not tally.is_clean
    assert format_table([tally]).splitlines()[1].split() == ["images", "4", "3", "0", "0", "1", "0", "0", "0"]


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
