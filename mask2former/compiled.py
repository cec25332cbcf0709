"""Inner loops in C, compiled by the machine's own compiler when they are first needed, where it has one.

    LOOPS = CSource("loops of masks", Path(__file__).with_name("runs.c"))
    library = LOOPS.load()  # a ctypes.CDLL, or None: then numpy or torch does the same

A source is compiled once, in a second or two, into the user's cache folder, see `cache_folder`. The file is named
after everything it depends on, so that none is used with another source, compiler or kind of machine; it is complete or
not there, so that processes may compile at the same time; and it is loaded only if nobody else can have put it there.
Whatever fails, or `LBVQ_COMPILE=0` in the environment, gives None, and the log says why, once.

A home folder may be shared by machines with different processors. A source therefore never asks for those of the
compiling machine (`-march=native`): where wide instructions pay, it has a function compiled for several kinds, one of
which is chosen while loading, by `__attribute__((target_clones(...)))` under `#ifdef MAY_CLONE`. `MAY_CLONE` is defined
where the compiler takes that.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import shutil
import sys
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

COMPILERS = ("cc", "gcc", "clang")
SWITCH = "LBVQ_COMPILE"
_FLAGS = ("-O3", "-fPIC", "-shared")
_PATIENCE = 120  # seconds, for a compiler that hangs
_OTHERS_MAY_WRITE = 0o022
_NOTHING, _LOOKED, _COMPILED = range(3)  # how much was tried

logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Where things are kept that can be made again: $VIS_CACHE_DIR, else $XDG_CACHE_HOME/lbvq, else ~/.cache/lbvq."""
    if os.environ.get("VIS_CACHE_DIR"):
        return Path(os.environ["VIS_CACHE_DIR"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lbvq"


class CSource:
    """A C source without dependencies, and the library that is made of it."""

    def __init__(self, name: str, path: Path, flags: Sequence[str] = (), *, worth: int = 0) -> None:
        """Remember what to compile; nothing is done yet.

        Args:
            name: of what it does, for people.
            path: of the source, which includes no file beside it.
            flags: of the compiler, besides -O3.
            worth: amount of work, in any unit, that it is compiled for; less is done before it would be compiled.
        """
        self.name = name
        self._worth = worth
        self._path = path
        self._flags = (*_FLAGS, *flags)
        self._library: ctypes.CDLL | None = None
        self._tried = _NOTHING
        self._complaint = ""

    def load(self, work: int | None = None) -> ctypes.CDLL | None:
        """The library, None where there is none.

        Args:
            work: to be done now; it is compiled when that adds up to `worth`. One compiled before is taken in any case.
                None: compile it at once.
        """
        self._worth -= self._worth if work is None else work
        compile = self._worth <= 0
        effort = _COMPILED if compile else _LOOKED
        if self._library is None and self._tried < effort:
            self._tried = effort
            try:
                self._library = self._open(compile)
            except OSError as error:
                self._complaint = str(error)
                logger.log(logging.INFO if compile else logging.DEBUG, "%s: not in C, %s", self.name, error)
        return self._library

    def describe(self) -> str:
        """Whether it is used, and if not, why; compiles it if need be."""
        return "in C" if self.load() is not None else f"not in C: {self._complaint}"

    def _open(self, may_compile: bool) -> ctypes.CDLL:
        """Raises OSError with the reason why there is no library."""
        if os.environ.get(SWITCH, "1").lower() in ("0", "false", "no", "off"):
            raise OSError(f"{SWITCH} turns it off")
        compiler = _find_compiler()
        name = f"{self._path.stem}_{self._checksum(compiler)}.so"
        complaints = []
        for folder in _folders():
            try:
                if _is_private(folder) and _is_private(folder / name):
                    return ctypes.CDLL(str(folder / name))
            except FileNotFoundError:
                continue
            except OSError as error:  # for instance of a disk whose files may not be executed
                complaints.append(str(error))
        if not may_compile:
            raise OSError("; ".join(["it is not compiled yet", *complaints]))
        library = self._compile(compiler)
        for folder in _folders():
            try:
                return ctypes.CDLL(str(_put(library, folder, name)))
            except OSError as error:
                complaints.append(str(error))
        raise OSError("; ".join(complaints))

    def _checksum(self, compiler: str) -> str:
        """Of all that the library depends on."""
        real = os.path.realpath(compiler)
        status = os.stat(real)
        machine = (sys.platform, os.uname().machine, _c_library(), real, status.st_size, status.st_mtime_ns)
        content = repr((self._flags, machine)).encode() + self._path.read_bytes()
        return f"{zlib.crc32(content):08x}{zlib.adler32(content):08x}"  # hashlib brings OpenSSL along, megabytes of it

    def _compile(self, compiler: str) -> bytes:
        """Content of the library."""
        import subprocess
        import tempfile

        if sys.platform == "darwin" and subprocess.run(["xcode-select", "-p"], capture_output=True).returncode:
            # The compiler would open a window that offers to install itself.
            raise OSError("Apple's command line tools are not installed (xcode-select --install)")
        begin = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "library.so"
            for variant in (["-DMAY_CLONE"], []):
                command = [compiler, *self._flags, *variant, "-o", str(target), str(self._path), "-lm"]
                try:
                    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_PATIENCE)
                except subprocess.TimeoutExpired:
                    raise OSError(f"{compiler} was not done with {self._path} after {_PATIENCE} seconds") from None
                if done.returncode == 0 and target.exists():
                    logger.info("%s: compiled in %.1f seconds", self.name, time.monotonic() - begin)
                    return target.read_bytes()
        raise OSError(f"{compiler} cannot compile {self._path}: {done.stderr.strip()}")


def call(function: Any, *arguments: int | np.ndarray) -> None:
    """Call a function of C that takes 64-bit integers and pointers to the numbers of contiguous arrays."""
    for each in arguments:
        assert isinstance(each, int) or each.flags.c_contiguous
    function.restype = None
    function(
        *(ctypes.c_int64(each) if isinstance(each, int) else ctypes.c_void_p(each.ctypes.data) for each in arguments)
    )


def _find_compiler() -> str:
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None) if os.name == "posix" else None
    if compiler is None:
        raise OSError(f"there is no C compiler ({', '.join(COMPILERS)})")
    return compiler


def _c_library() -> str:
    """Its version: a library that was linked with a newer one cannot be loaded."""
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (ValueError, OSError):
        return ""


def _folders() -> Iterator[Path]:
    """Where libraries may lie, the best place first."""
    with contextlib.suppress(RuntimeError):  # there is no home folder
        yield cache_folder() / "compiled"
    import tempfile  # as a rule nobody asks for more

    yield Path(tempfile.gettempdir()) / f"lbvq-{os.getuid()}"


def _is_private(path: Path) -> bool:
    """Whether nobody but this user, or the administrator, can have written there; raises FileNotFoundError."""
    status = path.lstat()
    return status.st_uid in (0, os.getuid()) and not status.st_mode & _OTHERS_MAY_WRITE


def _put(content: bytes, folder: Path, name: str) -> Path:
    """Write a library; raises OSError where that is not possible, or where others could change it."""
    import tempfile

    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not _is_private(folder):
        raise OSError(f"others may write to {folder}")
    handle, part = tempfile.mkstemp(dir=folder, prefix=".", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, folder / name)
    except BaseException:
        os.unlink(part)
        raise
    return folder / name
