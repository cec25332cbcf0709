from __future__ import annotations

import subprocess
import sys

import pytest

from lbvq.__main__ import main


def test_list_shows_published_models_and_configurations(capsys):
    assert main(["list", "lbvq_r50_ytvis19"]) == 0
    said = capsys.readouterr().out
    assert "lbvq_r50_ytvis19" in said and "AP 52.2" in said and "youtubevis_2019/lbvq_R50_bs8.yaml" in said
    assert "r101" not in said
    assert main(["list"]) == 0
    assert "ovis/lbvq_R50_bs8.yaml" in capsys.readouterr().out


def test_info_names_the_versions(capsys):
    assert main(["info"]) == 0
    said = capsys.readouterr().out
    assert "torch" in said and "pycocotools" in said


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
