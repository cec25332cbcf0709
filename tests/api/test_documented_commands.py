"""Commands of the documents that need neither published files, training nor a server are run as they stand.

A small network takes the place of published weights. The others are taken by their parsers, see `test_code_blocks.py`;
those of docs/own_data.md run in `test_own_data_journey.py`.
"""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
from pathlib import Path

import pytest
from golden_fill import frames
from helpers import run_tool
from report_case import write_report_case
from vit_models import TINY, VIDEOMT, cfg_of, tiny

from lbvq.__main__ import main
from lbvq.inference.predictor import VideoPredictor
from lbvq.video.writer import write_video

BLOCKS = runpy.run_path(str(Path(__file__).with_name("test_code_blocks.py")))
RUN = re.compile(r"lbvq (list|info|compare|predict(?!.* --(weights|config-file) ))|python tools/eval_json\.py")
COMMANDS = [
    (document, command)
    for document in BLOCKS["DOCUMENTS"]
    for command in BLOCKS["commands"](document)
    if RUN.match(command)
]
FILES = re.compile(r"--(?:output|json|analysis|report) ((?:[\w.]+ ?)+)")  # what a command is told to write


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The files that the documents name, and a small network for every name of a model."""
    write_video(tmp_path / "video.mp4", list(frames(4, 48, 64, seed=1).permute(0, 2, 3, 1).numpy()), 5)
    write_report_case(tmp_path)
    (tmp_path / "gt.json").rename(tmp_path / "valid.json")
    (tmp_path / "frames").rename(tmp_path / "JPEGImages")
    (tmp_path / "valid").mkdir()
    shutil.move(tmp_path / "JPEGImages", tmp_path / "valid")
    for name in ("results.json", "a.json", "b.json"):
        shutil.copy(tmp_path / "dt.json", tmp_path / name)
    model, cfg = tiny(), cfg_of({**VIDEOMT, **TINY}, INPUT__MIN_SIZE_TEST=0)
    monkeypatch.setattr(VideoPredictor, "from_config", classmethod(lambda cls, *args: cls(model, cfg=cfg)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_some_commands_are_run():
    assert {document for document, _ in COMMANDS} >= {"README.md", "docs/evaluation.md"} and len(COMMANDS) >= 6


@pytest.mark.parametrize("document, command", COMMANDS)
def test_a_command_does_what_the_document_says(document, command, folder):
    before = set(folder.iterdir())
    program, *words = shlex.split(command)
    code = main(words) if program == "lbvq" else run_tool(Path(words[0]).stem, *words[1:])
    assert code == 0
    told = {name for names in FILES.findall(f"{command} ") for name in names.split()}
    told |= {"video_segmented.mp4"} if words[0] == "predict" and not told else set()
    assert {path.name for path in set(folder.iterdir()) - before} == told
