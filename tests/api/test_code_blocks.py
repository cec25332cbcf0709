"""Every block of code in the Markdown files: Python runs, commands are taken by the parsers of the programs they call.

A block without a language is of commands, one of `text` is neither. A block with `<!-- not run: why -->` above it only
has to compile.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import runpy
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from golden_fill import frames
from helpers import ROOT
from vit_models import TINY, VIDEOMT, cfg_of, tiny

import lbvq
from lbvq.__main__ import COMMANDS
from lbvq.video.writer import write_video

DOCUMENTS = [
    *("README.md", "INSTALL.md", "CONTRIBUTING.md", "datasets/README.md"),
    *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
]
BLOCK = re.compile(r"(<!-- not run: [^\n]+ -->\n)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OTHERS = {"git", "ffmpeg", "jupyter", "cd", "."}  # programs of others, which are not asked
EXTRAS = set(re.findall(r"^([\w-]+) = \[", (ROOT / "pyproject.toml").read_text().partition("optional-dep")[2], re.M))
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


class Parsed(BaseException):
    """The arguments of a command were taken."""


def blocks(document: str, language: str) -> list[tuple[bool, str]]:
    """(whether it is run, content) of the blocks of a language."""
    text = (ROOT / document).read_text(encoding="utf-8")
    return [(not mark, content) for mark, name, content in BLOCK.findall(text) if name == language]


def commands(document: str) -> list[str]:
    """Lines of the blocks of commands, one for each program in a line."""
    lines = "".join(content for _, content in blocks(document, "")).replace("\\\n", " ").splitlines()
    found = []
    for line in lines:
        words = shlex.split(line, comments=True)
        while words:
            end = next((index for index, word in enumerate(words) if word in ("|", "&&")), len(words))
            found += [shlex.join(words[:end])] if end else []
            words = words[end + 1 :]
    return found


def check(command: str) -> None:
    """Let the program of a command take its arguments; raises SystemExit or AssertionError if it does not."""
    program, *words = shlex.split(command)
    if program == "make":
        assert {word for word in words if "=" not in word} <= TARGETS, command
    elif program in ("pip", "pipx"):
        named = re.findall(r"\[([\w,-]+)\]", command)
        assert {extra for names in named for extra in names.split(",")} <= EXTRAS, command
    elif program == "lbvq":
        check_lbvq(words)
    elif program == "torchrun":
        start = next(index for index, word in enumerate(words) if word in ("-m", "train_net.py"))
        check(shlex.join(["python", *words[start:]]))
    elif program == "python" and words[:2] == ["-m", "lbvq"]:
        check_lbvq(words[2:])
    elif program == "python" and words[0] == "-m":
        assert importlib.util.find_spec(words[1]), command
    elif program == "python" and words[0] == "-c":
        compile(words[1], command, "exec")
    elif program == "python" and words[0].endswith(".py"):
        check_script(words)
    else:
        assert program in OTHERS, f"what is {command!r}?"


def check_lbvq(words: list[str]) -> None:
    def parse(parser: argparse.ArgumentParser, arguments: list[str]) -> None:
        real(parser, arguments)
        raise Parsed

    real = argparse.ArgumentParser.parse_intermixed_args
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_intermixed_args", parse)
        with pytest.raises(Parsed):
            COMMANDS[words[0]](argparse.ArgumentParser(prog=words[0]), words[1:])


def check_script(words: list[str]) -> None:
    def parse(parser: argparse.ArgumentParser, arguments: list[str] | None = None) -> None:
        real(parser, arguments)
        raise Parsed

    real = argparse.ArgumentParser.parse_args
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", words)
        patch.setattr(argparse.ArgumentParser, "parse_args", parse)
        with pytest.raises(Parsed):
            runpy.run_path(str(ROOT / words[0]), run_name="__main__")


@pytest.mark.parametrize("document", [name for name in DOCUMENTS if commands(name)])
def test_commands_are_taken_by_their_programs(document):
    for command in commands(document):
        try:
            check(command)
        except SystemExit as stop:
            pytest.fail(f"{document}: {command}: exit code {stop.code}")


@pytest.mark.parametrize(
    "command",
    ["lbvq predict --no-such-option", "python train_net.py --num-gpus many", "make nothing", "nobody knows this"],
)
def test_a_command_that_its_program_does_not_take_is_noticed(command):
    with pytest.raises((SystemExit, AssertionError)):
        check(command)


class Detector:
    """Masks of one object that stays where it is."""

    def __call__(self, frame: np.ndarray) -> object:
        supervision = pytest.importorskip("supervision")
        mask = np.zeros((1, *frame.shape[:2]), bool)
        mask[:, 4:20, 4:20] = True
        return supervision.Detections(xyxy=np.array([[4.0, 4, 20, 20]]), mask=mask)


def names_in_blocks() -> dict[str, object]:
    """What blocks of Python may use without making it."""
    mask = np.zeros((1, 2, 8, 8), bool)
    mask[:, :, 2:5, 2:5] = True
    pair = ({"masks": mask, "labels": [0], "scores": [0.9]}, {"masks": mask, "labels": [0]})
    return {"frames": frames(4, 48, 64, seed=1).permute(0, 2, 3, 1).numpy(), "detector": Detector(), "pairs": [pair]}


def use_a_small_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put it in place of published weights, wherever a predictor is made from the name of a model."""
    model, cfg = tiny(), cfg_of({**VIDEOMT, **TINY}, INPUT__MIN_SIZE_TEST=0)
    for name in ("VideoPredictor", "StreamPredictor"):
        real = getattr(lbvq, name)

        class Small(real):
            def __new__(cls, *args: object, made: type = real, **settings: object) -> object:
                return made(model, cfg=cfg, **settings)

            from_pretrained = classmethod(lambda cls, *args, **settings: cls(**settings))

        monkeypatch.setattr(lbvq, name, Small, raising=False)


@pytest.mark.parametrize("document", [name for name in DOCUMENTS if blocks(name, "python")])
def test_python_runs(document, monkeypatch, tmp_path):
    use_a_small_network(monkeypatch)
    names = names_in_blocks()
    monkeypatch.chdir(tmp_path)
    write_video(Path("video.mp4"), list(names["frames"]), 5)
    for is_run, content in blocks(document, "python"):
        code = compile(content, document, "exec")
        if is_run:
            exec(code, names)
