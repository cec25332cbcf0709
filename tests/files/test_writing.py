"""Files appear whole or not at all, whatever ends the writing; nothing of a killed run stays."""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lbvq.files import writing
from lbvq.files.writing import atomic_path, remove_leftovers, write_text

KILLED = """
import os, signal, sys
from lbvq.files.writing import atomic_path
with atomic_path(sys.argv[1]) as part:
    part.mkdir() if len(sys.argv) > 2 else part.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
# A limit on the size of files stands for the full disk: both end in the same way, in the middle of a write.
TOO_LARGE = """
import resource, signal, sys, torch
from lbvq.engine.checkpoint import save_checkpoint
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
save_checkpoint(sys.argv[1], {"model": torch.zeros(100_000)})
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def run_python(code: str, *arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)


def left_by(folder: Path, name: str, host: str, process: int, kind: str = "part") -> Path:
    path = folder / f".{name}.{host}-{process}-0123abcd.{kind}"
    path.write_text("half")
    return path


def ended_process() -> int:
    child = subprocess.Popen(["true"])
    child.wait()
    return child.pid


def test_a_file_has_its_name_only_when_it_is_whole(tmp_path):
    with atomic_path(tmp_path / "new" / "a.json") as part:
        part.write_text("1")
        assert part.parent == tmp_path / "new" and part.suffix == ".json"
        assert not (tmp_path / "new" / "a.json").exists()
    assert names(tmp_path / "new") == ["a.json"] and (tmp_path / "new" / "a.json").read_text() == "1"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_keeps_the_old_file_and_leaves_no_part(tmp_path, error):
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(error), atomic_path(tmp_path / "a.txt") as part:
        part.write_text("new")
        raise error
    assert names(tmp_path) == ["a.txt"] and (tmp_path / "a.txt").read_text() == "old"


def test_a_folder_is_replaced_as_one(tmp_path):
    for text in ("old", "new"):
        with atomic_path(tmp_path / "frames") as part:
            part.mkdir()
            (part / f"{text}.txt").write_text(text)
    assert names(tmp_path) == ["frames"] and names(tmp_path / "frames") == ["new.txt"]


def test_a_file_is_on_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: calls.append("sync"))
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda *pair: (calls.append("move"), replace(*pair)))
    write_text(tmp_path / "a.txt", "text")
    assert calls == ["sync", "move", "sync"]


def test_writing_nothing_is_an_error(tmp_path):
    with pytest.raises(OSError, match=r"Nothing was written to .*a\.txt"), atomic_path(tmp_path / "a.txt"):
        pass


def test_a_link_stays_a_link_to_the_new_content(tmp_path):
    (tmp_path / "far").mkdir()
    write_text(tmp_path / "far" / "a.txt", "old")
    (tmp_path / "a.txt").symlink_to(tmp_path / "far" / "a.txt")
    write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").is_symlink() and (tmp_path / "far" / "a.txt").read_text() == "new"


def test_a_pipe_is_written_to_and_never_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE, text=True)
    write_text(tmp_path / "pipe", "text")
    assert reader.communicate(timeout=10)[0] == "text" and (tmp_path / "pipe").is_fifo()


def test_the_longest_name_of_a_file_can_be_written(tmp_path):
    name = "ä" * 120 + ".json"  # 245 bytes
    write_text(tmp_path / name, "text")
    assert names(tmp_path) == [name]


@pytest.mark.parametrize("as_folder", [[], ["folder"]])
def test_what_a_killed_run_left_is_removed_by_the_next_write_into_the_folder(tmp_path, as_folder):
    run_python(KILLED, tmp_path / "model_0000009.pth", *as_folder)
    assert len(names(tmp_path)) == 1
    write_text(tmp_path / "other.txt", "text")
    assert names(tmp_path) == ["other.txt"]


def test_only_abandoned_parts_are_removed(tmp_path):
    here, long_ago = writing._HOST, time.time() - 2 * writing._UNTOUCHED_SECONDS
    left_by(tmp_path, "a.txt", here, ended_process())
    left_by(tmp_path, "b.txt", here, os.getpid())  # an earlier process with the number of this one
    os.utime(left_by(tmp_path, "c.txt", "elsewhere", 1), (long_ago, long_ago))
    alive = left_by(tmp_path, "d.txt", here, os.getppid())
    remote = left_by(tmp_path, "e.txt", "elsewhere", 1)
    (tmp_path / ".hidden.part").write_text("a user's")
    with atomic_path(tmp_path / "f.txt") as part:
        part.write_text("text")
        remove_leftovers(tmp_path)
        assert part.exists()
    assert names(tmp_path) == sorted([".hidden.part", alive.name, remote.name, "f.txt"])


def test_a_killed_process_that_nobody_waited_for_counts_as_gone(tmp_path):
    child = subprocess.Popen(["true"])
    deadline = time.time() + 10
    while Path(f"/proc/{child.pid}/stat").exists() and " Z " not in Path(f"/proc/{child.pid}/stat").read_text():
        assert time.time() < deadline
        time.sleep(0.01)
    left_by(tmp_path, "a.txt", writing._HOST, child.pid)
    remove_leftovers(tmp_path)
    child.wait()
    assert names(tmp_path) == []


def test_an_old_folder_comes_back_when_its_replacement_was_killed(tmp_path):
    left_by(tmp_path, "frames", writing._HOST, ended_process(), kind="old")
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["frames"]
    left_by(tmp_path, "frames", writing._HOST, ended_process(), kind="old")
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["frames"]


def test_a_full_disk_is_named_and_keeps_the_old_file(tmp_path):
    (tmp_path / "model.pth").write_text("old")
    done = run_python(TOO_LARGE, tmp_path / "model.pth")
    last = done.stderr.splitlines()[-1]
    assert last.startswith("OSError: ") and "free some space" in last and str(tmp_path / "model.pth") in last
    assert names(tmp_path) == ["model.pth"] and (tmp_path / "model.pth").read_text() == "old"


def test_a_full_disk_behind_an_error_of_another_kind_is_found(tmp_path, monkeypatch):
    with pytest.raises(OSError, match="disk is full") as caught, atomic_path(tmp_path / "a.txt"):
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise RuntimeError("unexpected pos 64 vs 0") from error
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(RuntimeError, match="unexpected"), atomic_path(tmp_path / "a.txt"):
        raise RuntimeError("unexpected shape")
    monkeypatch.setattr(writing, "_LITTLE_SPACE", 2**60)  # as if the disk had less than that
    with pytest.raises(OSError, match="disk is full"), atomic_path(tmp_path / "a.txt"):
        raise RuntimeError("iostream error")
    assert names(tmp_path) == []


def test_a_missing_file_inside_the_block_is_no_full_disk(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "a.txt"):
        torch.load(tmp_path / "weights.pth")
