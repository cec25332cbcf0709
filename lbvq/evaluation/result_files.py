"""Results of all processes in one file, without sending masks between processes."""

from __future__ import annotations

import json
import logging
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lbvq.engine import comm
from lbvq.files.json_files import PACKING
from lbvq.files.writing import atomic_path, claim_part, release_part

logger = logging.getLogger(__name__)


class ResultParts:
    """Every process appends its entries to a file of its own; in the end the main process joins them.

    The folder must be the same for all processes, as the output folder of a run is. Runs that share it do not mix: a
    part belongs to one process of one run, and the last run to finish has its results there.
    """

    def __init__(self, folder: str | Path, name: str = "results.json") -> None:
        """Write `name` and a .zip with it into `folder`."""
        self.path = Path(folder) / name
        self._part: Path | None = None
        self._found: int | None = None  # when the file that was there at the start was written, in ns

    def reset(self) -> None:
        """Start anew; finished files of an earlier run stay until `finish` replaces them."""
        if self._part is not None:
            release_part(self._part)
        self._part = claim_part(self.path)
        self._part.write_bytes(b"")
        self._found = _written(self.path)

    def add(self, entries: Iterable[dict[str, Any]]) -> None:
        """Append entries, one line each."""
        if self._part is None:
            raise RuntimeError(f"reset() comes before the first entries of {self.path}")
        with open(self._part, "a", encoding="utf-8") as part:
            part.writelines(json.dumps(entry) + "\n" for entry in entries)

    def finish(self) -> Path:
        """Join all parts in the order of the processes and pack them; to be called on every process."""
        comm.synchronize()
        parts = comm.all_gather(self._part)
        if comm.is_main_process():
            missing = [part.name for part in parts if part is not None and not part.exists()]
            if missing or None in parts:
                lacking = missing or "the parts of some processes"
                raise FileNotFoundError(
                    f"{self.path.parent} lacks {lacking}: OUTPUT_DIR must be one folder that all machines share"
                )
            if _written(self.path) != self._found:
                logger.warning("%s was written by another run meanwhile and is replaced; see OUTPUT_DIR.", self.path)
            _join(parts, self.path)
            _pack(self.path)
        comm.synchronize()
        if self._part is not None:
            release_part(self._part)
            self._part = None
        return self.path


def _written(path: Path) -> int | None:
    return path.stat().st_mtime_ns if path.exists() else None


def _join(parts: list[Path], path: Path) -> None:
    with atomic_path(path) as whole, open(whole, "w", encoding="utf-8") as file:
        separator = "["
        for part in parts:
            with open(part, encoding="utf-8") as lines:
                for line in lines:
                    file.write(separator + line.rstrip("\n"))
                    separator = ",\n"
        file.write("]\n" if separator != "[" else "[]\n")


def _pack(path: Path) -> None:
    """Write a .zip beside the file that holds it under its own name, as submission servers want it."""
    with (
        atomic_path(path.with_suffix(".zip")) as part,
        zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED, compresslevel=PACKING) as archive,
    ):
        archive.write(path, path.name)
