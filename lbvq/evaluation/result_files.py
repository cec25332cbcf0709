"""Results of all processes in one file, without sending masks between processes."""

from __future__ import annotations

import json
import logging
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lbvq.engine import comm
from lbvq.files.writing import atomic_path

logger = logging.getLogger(__name__)


class ResultParts:
    """Every process appends its entries to a file of its own; in the end the main process joins them.

    The folder must be the same for all processes, as the output folder of a run is.
    """

    def __init__(self, folder: str | Path, name: str = "results.json") -> None:
        """Write `name` and a .zip with it into `folder`."""
        self.path = Path(folder) / name

    def _part(self, rank: int) -> Path:
        return self.path.with_name(f".{self.path.name}.part{rank}")

    def reset(self) -> None:
        """Start anew; finished files of an earlier run stay until `finish` replaces them."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._part(comm.get_rank()).write_bytes(b"")

    def add(self, entries: Iterable[dict[str, Any]]) -> None:
        """Append entries, one line each."""
        with open(self._part(comm.get_rank()), "a", encoding="utf-8") as part:
            part.writelines(json.dumps(entry) + "\n" for entry in entries)

    def finish(self) -> Path:
        """Join all parts in the order of the processes and pack them; to be called on every process."""
        comm.synchronize()
        if comm.is_main_process():
            parts = [self._part(rank) for rank in range(comm.get_world_size())]
            missing = [part.name for part in parts if not part.exists()]
            if missing:
                raise FileNotFoundError(
                    f"{self.path.parent} lacks {missing}: OUTPUT_DIR must be one folder that all machines share"
                )
            _join(parts, self.path)
            _pack(self.path)
            for part in parts:
                part.unlink()
        comm.synchronize()
        return self.path


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
    with atomic_path(path.with_suffix(".zip")) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(path, path.name)
