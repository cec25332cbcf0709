from __future__ import annotations

import importlib
import re
import shlex
import subprocess
import sys

import pytest

import lbvq
from lbvq.__main__ import COMMANDS, main

MODULES = {"stream": "live", "list": "list_models", "extract-frames": "extract_frames"}


def test_list_shows_published_models_and_configurations(capsys):
    assert main(["list", "lbvq_r50_ytvis19"]) == 0
    said = capsys.readouterr().out
    assert "lbvq_r50_ytvis19" in said and "AP 52.2" in said and "youtubevis_2019/lbvq_R50_bs8.yaml" in said
    assert "r101" not in said
    assert main(["list"]) == 0
    assert "ovis/lbvq_R50_bs8.yaml" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("videomt_small_ytvis19", "by itself, 96 MB"),
        ("lbvq_r50_ytvis19", "Google Drive"),
        ("ctvis_r50_ytvis19", "by hand"),
    ],
)
def test_list_says_how_the_weights_of_a_model_come(capsys, name, way):
    assert main(["list", name]) == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith(name + " ")]
    assert way in row


def test_info_names_the_versions(capsys):
    assert main(["info"]) == 0
    said = capsys.readouterr().out
    assert "torch" in said and "pycocotools" in said
    assert {"loops of masks", "loops of boundaries"} <= set(re.findall(r"^(.+): (?:not )?in C", said, re.MULTILINE))


@pytest.mark.parametrize("arguments", [[], ["segment"], ["list", "a", "b"], ["info", "x"]])
def test_wrong_command_lines_end_with_code_2(capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2 and "usage: lbvq" in capsys.readouterr().err


def test_predict_reports_a_missing_file(capsys):
    config = "synthetic/lbvq_R18_tiny"
    assert main(["predict", "--config-file", config, "--input", "gone.mp4", "--output", "o.json"]) == 2
    assert "no file or folder gone.mp4" in capsys.readouterr().err


def test_the_package_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "lbvq", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert all(command in done.stdout for command in ("predict", "list", "info"))


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0 and capsys.readouterr().out == f"lbvq {lbvq.__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_every_command_has_two_examples_that_can_be_parsed(name, capsys, monkeypatch):
    with pytest.raises(SystemExit):
        main([name, "--help"])
    examples = re.findall(rf"^  lbvq {name}\b(.*)$", capsys.readouterr().out, re.MULTILINE)
    assert len(examples) >= 2
    module = importlib.import_module(f"lbvq.cli.{MODULES.get(name, name)}")
    ran = []
    monkeypatch.setattr(module, "run", lambda args: ran.append(args) or 0)
    for example in examples:
        words = shlex.split(re.split(r" {3,}|>", example)[0])  # what follows is an explanation, or a file of the shell
        assert main([name, *words]) == 0, example
    assert len(ran) == len(examples)
