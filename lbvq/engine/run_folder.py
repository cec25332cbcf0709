"""The folder of a run, OUTPUT_DIR: one training at a time, and no finished one is replaced without being told to.

All of it is decided by process 0 before anything is written; the other processes raise the same error.
"""

from __future__ import annotations

import errno
import logging
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from lbvq.files.writing import remove_leftovers

from . import comm
from .checkpoint import LAST_CHECKPOINT, checkpoints_of

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

LOCK = ".training.lock"
# What a training leaves behind, besides its checkpoints.
_OF_A_RUN = (
    *("model_best.pth", LAST_CHECKPOINT, "metrics.json*", "config.yaml*", "log.txt*", "events.out.tfevents*"),
    *("inference/**/results.json", "inference/**/results.zip", "inference/**/metrics*.json"),
)


def make_run_folder(folder: str | os.PathLike) -> None:
    """Make OUTPUT_DIR on process 0 and remove what killed runs left in it; OSError says that it cannot be written."""

    def make() -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
        remove_leftovers(folder)
        remove_leftovers(Path(folder) / "inference")

    _on_main_process(make, Path(folder))


@contextmanager
def claimed(folder: str | os.PathLike, *, resume: bool, overwrite: bool) -> Iterator[None]:
    """Hold the folder for one training.

    Args:
        folder: OUTPUT_DIR, which exists.
        resume: go on with what is there.
        overwrite: begin anew in the place of what is there, which is deleted.

    Raises:
        OSError: another training writes there now.
        FileExistsError: it holds checkpoints, and neither `resume` nor `overwrite` says what to do with them.
    """
    folder = Path(folder)
    lock: list[IO[str]] = []

    def claim() -> None:
        lock.extend(_lock(folder))
        if not resume:
            _make_room(folder, overwrite)

    try:
        _on_main_process(claim, folder)
        yield
    finally:
        for file in lock:
            Path(file.name).unlink(missing_ok=True)
            file.close()


def _on_main_process(action: Callable[[], None], folder: Path) -> None:
    problem: OSError | None = None
    if comm.is_main_process():
        try:
            action()
        except FileExistsError as error:
            problem = error if error.errno is None else OSError(f"OUTPUT_DIR {folder} is a file, no folder.")
        except OSError as error:
            problem = error if error.errno is None else OSError(f"OUTPUT_DIR {folder} cannot be written: {error}")
    problems = [each for each in comm.all_gather(problem) if each is not None]
    if problems:
        raise problems[0]


def _lock(folder: Path) -> list[IO[str]]:
    """Open the lock, which the system takes back when this process ends in any way; [] where there are no locks."""
    if fcntl is None:
        return []
    file = open(folder / LOCK, "a+", encoding="utf-8")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        holder = file.read(200).strip()
        file.close()
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            logger.warning("%s is on a file system without locks (%s): keep other trainings out of it.", folder, error)
            return []
        raise OSError(
            f"Another training writes to {folder} now ({holder or 'a process that does not say which'}); set another "
            "OUTPUT_DIR, or wait for its end."
        ) from error
    file.truncate(0)
    file.write(f"process {os.getpid()} on {platform.node()}")
    file.flush()
    return [file]


def _make_room(folder: Path, overwrite: bool) -> None:
    """Refuse to mix two runs, or delete the one that is there."""
    found = checkpoints_of(folder)
    if found and not overwrite:
        raise FileExistsError(
            f"{folder} holds a training ({found[0].name}{f' and {len(found) - 1} more' if len(found) > 1 else ''}). "
            "Go on with it by --resume, begin anew in its place by --overwrite, or set another OUTPUT_DIR."
        )
    if overwrite:
        old = [*found, *(path for pattern in _OF_A_RUN for path in sorted(folder.glob(pattern)))]
        for path in dict.fromkeys(old):
            path.unlink(missing_ok=True)
        if old:
            logger.warning("--overwrite: deleted %d files of an earlier run in %s.", len(set(old)), folder)
        return
    for name in ("metrics.json", "config.yaml"):  # of a run that ended before its first checkpoint
        set_aside(folder / name)


def set_aside(path: Path) -> None:
    """Keep a file that is about to be written anew, under the first free of NAME.1, NAME.2, ..."""
    if not path.is_file():
        return
    number = 1
    while (kept := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    os.replace(path, kept)
    logger.info("%s of an earlier run is kept as %s.", path, kept.name)


def check_disk_space(folder: str | os.PathLike, checkpoint_bytes: int, count: int) -> None:
    """Compare the checkpoints of a training with the disk, before its first step.

    Args:
        folder: OUTPUT_DIR.
        checkpoint_bytes: size of one.
        count: how many of them will be there at once.

    Raises:
        OSError: not even one fits.
    """
    free = shutil.disk_usage(folder).free
    size = f"{checkpoint_bytes / 1e9:.2f} GB"
    if free < checkpoint_bytes:
        raise OSError(
            errno.ENOSPC,
            f"a checkpoint needs about {size} and the disk has {free / 1e9:.2f} GB left; set another OUTPUT_DIR",
            str(folder),
        )
    if free < checkpoint_bytes * count:
        logger.warning(
            "%d checkpoints of about %s do not fit on the disk of %s, which has %.1f GB left; SOLVER.MAX_TO_KEEP "
            "limits their number, SOLVER.CHECKPOINT_PERIOD makes them fewer.",
            count,
            size,
            folder,
            free / 1e9,
        )
