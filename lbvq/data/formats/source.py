"""What a user hands in: a file, a folder or a zip archive of labels, and how its files are read."""

from __future__ import annotations

import lzma
import re
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from lbvq.files.json_files import is_litter, read_json

MAX_ARCHIVE_BYTES = 2**37  # unpacked
ALWAYS_UNPACKED_BYTES = 2**26  # whatever the size of the archive
MAX_ARCHIVE_RATIO = 100  # of unpacked to packed bytes beyond that; labels reach 30
VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v", ".mpg", ".mpeg", ".ts", ".m2ts", ".wmv")
_ARCHIVE_ERRORS = (
    *(zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, struct.error),
    *(NotImplementedError, RuntimeError),  # unknown methods, and passwords
)


class Source:
    """Label files below one folder.

    Attributes:
        name: what the user gave, for messages.
        root: the folder; of a single file the folder it is in.
        files: paths relative to the root, in natural order; of a single file only this one.
    """

    def __init__(self, name: str, root: Path, files: list[PurePosixPath]) -> None:
        self.name = name
        self.root = root
        self.files = files

    def named(self, *suffixes: str) -> list[PurePosixPath]:
        """Files with one of these suffixes, upper and lower case alike."""
        return [each for each in self.files if each.suffix.lower() in suffixes]

    def path(self, file: PurePosixPath) -> Path:
        return self.root / file

    def where(self, file: PurePosixPath) -> str:
        """The file as messages call it."""
        is_single = Path(self.name) == self.root / file
        return self.name if is_single else f"{self.name}: {file}"

    def json(self, file: PurePosixPath) -> Any:
        """Content of a JSON file; the last one read is kept, because formats are recognised one after the other."""
        return _read_json(self.path(file), self.where(file))

    @cached_property
    def first_json(self) -> Any:
        """Content of the first JSON file that can be read, None without one."""
        for file in self.named(".json")[:20]:
            try:
                return self.json(file)
            except ValueError:
                continue
        return None

    def folders(self, files: list[PurePosixPath]) -> dict[PurePosixPath, list[PurePosixPath]]:
        """Folder -> the given files in it, both in natural order."""
        found: dict[PurePosixPath, list[PurePosixPath]] = {}
        for file in files:
            found.setdefault(file.parent, []).append(file)
        return found


@contextmanager
def open_source(path: str | Path) -> Iterator[Source]:
    """Open a file, a folder, or a zip archive, which is unpacked into a temporary folder meanwhile."""
    path = Path(path)
    if path.is_dir():
        yield Source(str(path), path, files_below(path))
    elif not path.exists():
        raise FileNotFoundError(f"There is no file or folder {path}.")
    elif zipfile.is_zipfile(path):
        with tempfile.TemporaryDirectory(prefix="lbvq-labels-") as folder:
            _unpack(path, Path(folder))
            yield Source(str(path), Path(folder), files_below(Path(folder)))
    elif path.suffix.lower() == ".zip":
        raise ValueError(f"{path} is no zip archive, or it is cut off; download it again.")
    else:
        yield Source(str(path), path.parent, [PurePosixPath(path.name)])


def files_below(folder: Path) -> list[PurePosixPath]:
    """Every file but hidden ones (`._0.jpg`) and the shadows that macOS puts into archives."""
    found = [PurePosixPath(item.relative_to(folder).as_posix()) for item in folder.rglob("*") if item.is_file()]
    return sorted((each for each in found if not _is_hidden(each)), key=natural_key)


def _is_hidden(file: PurePosixPath) -> bool:
    return is_litter(str(file)) or any(part.startswith(".") for part in file.parts)


def _unpack(path: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(archive, path)
            archive.extractall(folder)
    except _ARCHIVE_ERRORS as error:
        raise ValueError(f"{path} cannot be unpacked: {error or type(error).__name__}; download it again.") from error


def _check_members(archive: zipfile.ZipFile, path: Path) -> None:
    """Refuse archives that grow as only hostile ones do, and members that would be written elsewhere."""
    members = archive.infolist()
    total, packed = sum(item.file_size for item in members), path.stat().st_size
    if total > max(ALWAYS_UNPACKED_BYTES, min(MAX_ARCHIVE_BYTES, MAX_ARCHIVE_RATIO * packed)):
        raise ValueError(f"{path}: {packed} bytes claim to unpack to {total}; unpack it yourself if you trust it.")
    for item in members:
        parts = PurePosixPath(item.filename.replace("\\", "/")).parts
        if ".." in parts or (parts and (parts[0].startswith("/") or parts[0].endswith(":"))):
            raise ValueError(f"{path}: the member {item.filename!r} lies outside the archive's own folder.")


def natural_key(path: PurePosixPath | str) -> list[tuple[int, str]]:
    """Sort key under which numbers count as numbers: frame2 comes before frame10."""
    parts = re.split(r"(\d+)", str(path))
    return [(int(part), part) if index % 2 else (0, part.lower()) for index, part in enumerate(parts)]


@lru_cache(maxsize=1)
def _read_json(path: Path, where: str) -> Any:
    try:
        return read_json(path)
    except ValueError as error:
        reason = str(error).removeprefix(f"{path}").lstrip(": ")
        raise ValueError(f"{where}: {reason}; it may be cut off, export it again.") from error
