"""The one way a file, or a folder of frames, comes into being: complete under its name, or not at all.

What is being written has a hidden name beside the target, `.NAME.HOST-PROCESS-NUMBER.part.SUFFIX`, which tells who
writes it: parts whose process is gone (killed, power lost) are deleted by the next one that writes into the folder.
"""

from __future__ import annotations

import errno
import logging
import os
import platform
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_HOST = re.sub(r"\W", "", platform.node())[:40]
_PART = re.compile(r"\.(?P<name>.+)\.(?P<host>\w*)-(?P<process>\d+)-[0-9a-f]{8}\.(?P<kind>part|old)(\..*)?")
_MAX_NAME_BYTES = 120  # of the target's name within that of its part; systems allow 255 for the whole
_LITTLE_SPACE = 2**16  # bytes; a disk with less counts as full when writing to it failed
_UNTOUCHED_SECONDS = 24 * 3600  # a part of another machine, whose processes cannot be seen, is left over after that

_in_progress: set[Path] = set()

logger = logging.getLogger(__name__)


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary name beside `path`; the file or folder written there moves to `path` when the block ends.

    Whatever was at `path` stays until then, and for good when an exception comes out of the block; the part is deleted
    in that case. The folder is made when missing, and what killed processes left in it is removed. A file is forced to
    disk before it gets its name. A device or a pipe, such as /dev/null, is written to directly.

    Raises:
        OSError: nothing was written, or the disk is full; the message says so, also where the writing library hid it.
    """
    path = Path(path)
    if path.exists() and not (path.is_file() or path.is_dir()):
        yield path
        return
    if path.is_symlink():  # the link stays a link
        path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent)
    part = _hidden_name(path, "part")
    _in_progress.add(part)
    try:
        yield part
        if not part.exists():
            raise OSError(f"Nothing was written to {path}.")
        _put_in_place(part, path)
    except Exception as error:
        number = _space_error(error, path.parent)
        if number is None:
            raise
        raise _no_space(path, number) from error
    finally:
        _delete(part)
        _in_progress.discard(part)


def claim_part(path: str | os.PathLike[str]) -> Path:
    """Give a temporary name beside `path` that this process may write to, in several turns, until `release_part`.

    No other process, and no other call, gets the same name; what a killed process leaves there is removed by others.
    """
    part = _hidden_name(Path(path), "part")
    part.parent.mkdir(parents=True, exist_ok=True)
    _in_progress.add(part)
    return part


def release_part(part: Path) -> None:
    """Delete what was written under a claimed name."""
    _delete(part)
    _in_progress.discard(part)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file as UTF-8, whole or not at all."""
    with atomic_path(path) as part:
        part.write_text(text, encoding="utf-8")


def remove_leftovers(folder: str | os.PathLike[str]) -> None:
    """Delete what killed processes were writing into a folder; what a living one writes stays."""
    for item in _entries(Path(folder)):
        facts = _PART.fullmatch(item.name)
        if facts is None or item in _in_progress or not _is_abandoned(item, facts["host"], int(facts["process"])):
            continue
        target = item.with_name(facts["name"])
        if facts["kind"] == "old" and not target.exists():  # killed between the two moves of `_put_in_place`
            os.replace(item, target)
            logger.warning("%s is restored: a run was killed while replacing it.", target)
            continue
        _delete(item)
        logger.info("Removed %s, which a killed run left.", item)


def _hidden_name(path: Path, kind: str) -> Path:
    """A new name for a part, with the suffix of its target, by which writers choose a format."""
    name = os.fsencode(path.name)[:_MAX_NAME_BYTES].decode("utf-8", "ignore")
    suffix = path.suffix if len(path.suffix) < 20 and kind == "part" else ""
    return path.with_name(f".{name}.{_HOST}-{os.getpid()}-{uuid.uuid4().hex[:8]}.{kind}{suffix}")


def _put_in_place(part: Path, path: Path) -> None:
    """Move a finished file or folder to its name; an old folder is set aside until the new one is there."""
    if part.is_file():
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
    if path.is_dir() and part.is_dir():
        old = _hidden_name(path, "old")
        os.replace(path, old)
        os.replace(part, path)
        shutil.rmtree(old)
    else:
        os.replace(part, path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Force the new name to disk, where the system can do that."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot
            raise
    finally:
        os.close(descriptor)


def _delete(path: Path) -> None:
    """Delete a file or a folder that may be gone already."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _entries(folder: Path) -> list[Path]:
    try:
        return [folder / name for name in os.listdir(folder) if name.startswith(".")]
    except OSError:  # not there yet, or a folder that may be written but not listed
        return []


def _is_abandoned(item: Path, host: str, process: int) -> bool:
    """True for a part that nobody goes on writing; this process writes only what is in `_in_progress`."""
    if host == _HOST and (process == os.getpid() or not _is_running(process)):
        return True
    try:
        return time.time() - item.lstat().st_mtime > _UNTOUCHED_SECONDS
    except FileNotFoundError:  # its process has just finished it
        return False


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    try:  # a killed process that nobody has waited for still has its number
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (OSError, IndexError):
        return True


def _space_error(error: BaseException, folder: Path) -> int | None:
    """Error number of a full disk (or quota, or limit of a file) behind `error`; None for any other error.

    `torch.save` and others raise an error of their own on their way out, on top of the true one or without it.
    """
    if isinstance(error, OSError):
        return error.errno if error.errno in _NO_SPACE else None
    below = error.__cause__ or error.__context__
    if below is not None:
        return _space_error(below, folder)
    return errno.ENOSPC if shutil.disk_usage(folder).free < _LITTLE_SPACE else None


def _no_space(path: Path, number: int) -> OSError:
    reason = "the file is larger than this system allows" if number == errno.EFBIG else "the disk is full"
    kept = "what was there is unchanged" if path.exists() else "no part of it stays"
    advice = f"{reason} ({os.strerror(number)}); free some space or choose another folder; {kept}"
    return OSError(number, advice, str(path))
