"""C sources that are compiled when they are needed: once, by whoever comes first, and never to anyone's harm."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from mask2former import compiled
from mask2former.compiled import CSource, cache_folder

ANSWER = "int answer(void) { return 42; }\n"
REAL_COMPILER = next(filter(None, map(shutil.which, compiled.COMPILERS)), None)
needs_compiler = pytest.mark.skipif(REAL_COMPILER is None, reason="needs a C compiler")


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    """Folders for what is kept, and for what is not, of this test alone."""
    monkeypatch.delenv(compiled.SWITCH, raising=False)
    monkeypatch.delenv("VIS_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "answer.c"
    path.write_text(ANSWER)
    return path


def pretend_compiler(tmp_path, monkeypatch, script):
    """The only compiler from now on; returns a file with a line for every call of it."""
    programs, calls = tmp_path / "programs", tmp_path / "calls"
    programs.mkdir(exist_ok=True)
    (programs / "cc").write_text(f'#!/bin/sh\necho "$@" >> {calls}\n{script}\n')
    (programs / "cc").chmod(0o755)
    tools = os.pathsep.join((str(programs), os.defpath))
    monkeypatch.setenv("PATH", tools)
    return calls


def files_in(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


@needs_compiler
def test_a_source_is_compiled_once(source, tmp_path, monkeypatch):
    calls = pretend_compiler(tmp_path, monkeypatch, f'exec {REAL_COMPILER} "$@"')
    for _ in range(2):
        assert CSource("answer", source).load().answer() == 42
    assert len(calls.read_text().splitlines()) == 1
    assert len(files_in(cache_folder())) == 1 and files_in(tmp_path / "temporary") == []
    assert (cache_folder() / "compiled").stat().st_mode & 0o777 == 0o700


@needs_compiler
def test_another_source_other_flags_and_another_compiler_make_another_file(source, tmp_path, monkeypatch):
    source.write_text("int answer(void) { return ANSWER; }\n")
    assert CSource("answer", source, ["-DANSWER=1"]).load().answer() == 1
    assert CSource("answer", source, ["-DANSWER=2"]).load().answer() == 2
    source.write_text("int answer(void) { return -ANSWER; }\n")
    assert CSource("answer", source, ["-DANSWER=2"]).load().answer() == -2
    pretend_compiler(tmp_path, monkeypatch, f'exec {REAL_COMPILER} "$@" -UANSWER -DANSWER=3')
    assert CSource("answer", source, ["-DANSWER=2"]).load().answer() == -3
    assert len(files_in(cache_folder())) == 4


OTHER_PROCESS = (
    "import sys; from pathlib import Path; from mask2former.compiled import CSource;"
    "sys.stdin.read(1); print(CSource('answer', Path(sys.argv[1])).load().answer())"
)


@needs_compiler
def test_processes_may_compile_at_the_same_time(source):
    command = [sys.executable, "-c", OTHER_PROCESS, str(source)]
    running = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    for process in running:  # they wait for each other, so that all find an empty folder
        process.stdin.write("\n")
        process.stdin.flush()
    assert [process.communicate()[0].strip() for process in running] == ["42"] * 4
    assert len(files_in(cache_folder())) == 1


@needs_compiler
def test_a_compiler_that_cannot_clone_functions_makes_plain_ones(source, tmp_path, monkeypatch):
    source.write_text("#ifdef MAY_CLONE\n#error cannot\n#endif\n" + ANSWER)
    assert CSource("answer", source).load().answer() == 42


@needs_compiler
def test_a_compiler_that_can_clone_functions_is_told_so(source):
    source.write_text("#ifdef MAY_CLONE\nint answer(void) { return 1; }\n#endif\n")
    assert CSource("answer", source).load().answer() == 1


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo it is broken >&2; exit 1", "cannot compile .*it is broken"),
        ("exit 0", "cannot compile"),
        ("sleep 5", "was not done with .*answer.c after 0.2 seconds"),
        ('while [ "$1" != -o ]; do shift; done; echo nonsense > "$2"', "invalid ELF|file too short|not a mach-o"),
    ],
)
def test_a_broken_compiler_is_said_once(source, tmp_path, monkeypatch, caplog, script, reason):
    monkeypatch.setattr(compiled, "_PATIENCE", 0.2)
    calls = pretend_compiler(tmp_path, monkeypatch, script)
    loops = CSource("answer", source)
    with caplog.at_level("INFO", "mask2former.compiled"):
        assert [loops.load(), loops.load()] == [None, None]
    (said,) = [each for each in caplog.messages if "not in C" in each]
    assert said.startswith("answer: not in C, ") and loops.describe() == said[len("answer: ") :].replace(",", ":", 1)
    assert re.search(reason, said, re.IGNORECASE | re.DOTALL)
    assert len(calls.read_text().splitlines()) <= 2


def test_without_a_compiler_there_is_no_library(source, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    loops = CSource("answer", source)
    assert loops.load() is None
    assert loops.describe() == "not in C: there is no C compiler (cc, gcc, clang)"


@needs_compiler
def test_a_cache_that_cannot_be_written_is_replaced_by_a_temporary_folder(source, tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file where a folder should be")
    for _ in range(2):
        assert CSource("answer", source).load().answer() == 42
    (folder,) = (tmp_path / "temporary").iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700 and len(files_in(folder)) == 1
    shutil.rmtree(folder)
    folder.write_text("another one")
    assert "lbvq-" in CSource("answer", source).describe()


@needs_compiler
def test_whoever_has_no_home_folder_uses_a_temporary_one(source, tmp_path, monkeypatch):
    def fail():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", fail)
    assert CSource("answer", source).load().answer() == 42
    assert len(files_in(tmp_path / "temporary")) == 1


@needs_compiler
def test_nothing_is_left_where_a_library_cannot_be_put(source, tmp_path):
    subprocess.run([sys.executable, "-c", OTHER_PROCESS, str(source)], input=b"\n", check=True)
    (path,) = (cache_folder() / "compiled").iterdir()
    path.unlink()
    path.mkdir(mode=0o700)  # what has its name cannot be replaced
    assert CSource("answer", source).load().answer() == 42
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    assert len(files_in(tmp_path / "temporary")) == 1


@needs_compiler
@pytest.mark.parametrize("value", ["0", "off", "False"])
def test_it_can_be_switched_off(source, monkeypatch, value):
    assert CSource("answer", source).load() is not None
    monkeypatch.setenv("LBVQ_COMPILE", value)
    assert CSource("answer", source).describe() == "not in C: LBVQ_COMPILE turns it off"
    monkeypatch.setenv("LBVQ_COMPILE", "1")
    assert CSource("answer", source).load() is not None


@needs_compiler
@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_others_can_write_is_not_loaded(source, tmp_path, kind):
    CSource("answer", source).load()
    folder = cache_folder() / "compiled"
    (path,) = folder.iterdir()
    path.unlink()  # it is in use
    path.write_bytes(b"something of theirs")
    (folder if kind == "folder" else path).chmod(0o777)
    assert CSource("answer", source).load().answer() == 42
    if kind == "folder":
        assert path.read_bytes() == b"something of theirs" and len(files_in(tmp_path / "temporary")) == 1
    else:
        assert path.stat().st_mode & 0o777 == 0o600 and path.read_bytes() != b"something of theirs"


@needs_compiler
@pytest.mark.skipif(getattr(os, "getuid", lambda: 1)() != 0, reason="needs the administrator's rights")
@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_belongs_to_others_is_not_loaded(source, tmp_path, kind):
    CSource("answer", source).load()
    folder = cache_folder() / "compiled"
    (path,) = folder.iterdir()
    os.chown(folder if kind == "folder" else path, 54321, -1)
    assert CSource("answer", source).load().answer() == 42
    assert path.stat().st_uid == 0 and len(files_in(tmp_path / "temporary")) == (kind == "folder")


@needs_compiler
def test_little_work_is_done_before_anything_is_compiled(source):
    loops = CSource("answer", source, worth=100)
    assert [loops.load(work) is None for work in (0, 60, 0, 39, 0)] == [True] * 5
    assert loops.load(1).answer() == loops.load(0).answer() == 42
    again = CSource("answer", source, worth=100)
    assert again.load(0).answer() == 42  # it takes no time any more


def test_places_of_the_cache(monkeypatch, tmp_path):
    assert cache_folder() == tmp_path / "cache" / "lbvq"
    monkeypatch.setenv("VIS_CACHE_DIR", str(tmp_path / "vis"))
    assert cache_folder() == tmp_path / "vis"
    monkeypatch.delenv("VIS_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert cache_folder() == tmp_path / ".cache" / "lbvq"
