"""Commands end in one sentence and exit code 2 where a user is the cause, and in a traceback where we are."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import ROOT
from torch.multiprocessing import ProcessRaisedException
from torch.utils.data import DataLoader, Dataset

from lbvq.config import UnknownKeyError
from lbvq.engine.user_errors import user_command, user_sentence

COMMANDS = sorted(
    [ROOT / "train_net.py", ROOT / "lbvq" / "__main__.py"]
    + [path for folder in ("tools", "datasets", "demo") for path in (ROOT / folder).glob("*.py")]
)


def raising(error):
    def main():
        raise error

    return user_command(main)


@pytest.fixture(autouse=True)
def no_option(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["command"])
    monkeypatch.setenv("LBVQ_TRACEBACK", "0")  # taken back afterwards, whatever a command sets


@pytest.mark.parametrize(
    "error, sentence",
    [
        (ValueError("x must be 1, got 2"), "x must be 1, got 2"),
        (KeyError("no data set is called 'a'"), "no data set is called 'a'"),
        (KeyError("id"), "the key 'id' is missing"),
        (UnknownKeyError("There is no key A.B"), "There is no key A.B"),
        (FileNotFoundError(2, "No such file or directory", "a.pth"), "[Errno 2] No such file or directory: 'a.pth'"),
        (ImportError("pip install it"), "pip install it"),
        (FloatingPointError("Loss became infinite"), "Loss became infinite"),
        (MemoryError(), "MemoryError"),
        (torch.OutOfMemoryError("CUDA out of memory"), "CUDA out of memory"),
        (UnicodeDecodeError("utf-8", b"a", 0, 1, "bad"), "'utf-8' codec can't decode byte 0x61 in position 0: bad"),
    ],
)
def test_what_a_user_causes_is_one_sentence(error, sentence, capsys):
    assert raising(error)() == 2
    assert capsys.readouterr().err == f"error: {sentence}\n"


@pytest.mark.parametrize("error", [TypeError("x"), AttributeError("y"), IndexError("z"), RuntimeError("w")])
def test_a_fault_of_the_program_keeps_its_traceback(error):
    with pytest.raises(type(error)):
        raising(error)()


def test_the_traceback_is_shown_on_demand(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["command", "--traceback", "x"])
    with pytest.raises(ValueError):
        raising(ValueError("x"))()
    assert sys.argv == ["command", "x"]  # the parser of the command need not know it
    monkeypatch.setenv("LBVQ_TRACEBACK", "1")
    with pytest.raises(ValueError):
        raising(ValueError("x"))()


def test_an_interrupted_command_says_so(capsys):
    assert raising(KeyboardInterrupt())() == 130
    assert capsys.readouterr().err == "interrupted\n"


class Broken(Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise FileNotFoundError(2, "No such file\n  or directory", "frame.jpg")


def test_an_error_in_a_loader_worker_is_told_without_the_text_of_its_traceback():
    with pytest.raises(FileNotFoundError) as info:
        next(iter(DataLoader(Broken(), num_workers=1)))
    assert "Traceback" in str(info.value)
    assert user_sentence(info.value).startswith("[Errno 2] No such file")


@pytest.mark.parametrize(
    "last_lines, sentence",
    [
        ("ValueError: first\nsecond\n", "first\nsecond"),
        ("lbvq.config.node.UnknownKeyError: There is no key\n", "There is no key"),
        ("lbvq.engine.evaluate.UnexpectedResultsError: AP is 3\n", "AP is 3"),
        ("MemoryError\n", "MemoryError"),
        ("TypeError: ours\n", None),
        ("gone.module.Error: x\n", None),
    ],
)
def test_an_error_in_a_process_of_a_run_is_told_by_its_last_line(last_lines, sentence):
    text = "\n\n-- Process 1 terminated with the following error:\nTraceback (most recent call last):\n"
    text += '  File "a.py", line 3, in f\n    raise ValueError("x: y")\n'
    assert user_sentence(ProcessRaisedException(text + last_lines, 1, 123)) == sentence


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_goes_through_the_one_handler(path: Path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    *_, last = [node for node in tree.body if isinstance(node, ast.If)]
    called = ast.unparse(last.body[-1])
    name = called.removeprefix("sys.exit(").removesuffix("())")
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert called == f"sys.exit({name}())" and name in functions
    assert "user_command" in [ast.unparse(decorator) for decorator in functions[name].decorator_list]
    caught = [
        handler
        for node in ast.walk(functions[name])
        if isinstance(node, ast.Try)
        for handler in node.handlers
        if any(isinstance(inner, ast.Return) for inner in ast.walk(handler))
    ]
    assert not caught, "errors of users end in the one handler"


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--config-file", "nope.yaml"], "nope.yaml is no file"),
        (["--config-file", "synthetic/lbvq_R18_tiny", "SOLVER.MAX_ITRE=3"], "nearest one is SOLVER.MAX_ITER"),
    ],
)
def test_train_net_ends_in_a_sentence(arguments, sentence, tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "train_net.py"), *arguments], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: ") and sentence in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
