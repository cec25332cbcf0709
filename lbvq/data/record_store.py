"""The records of a data set, held once per machine.

Records are pickled into one block of bytes that all loader workers, and all training processes of a machine, map into
their memory. Python objects exist only for the record that is asked for.
"""

from __future__ import annotations

import os
import pickle
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lbvq.engine import comm

Record = dict[str, Any]


class RecordStore(Sequence[Record]):
    """Read-only list of records over shared bytes."""

    def __init__(self, data: torch.Tensor, ends: np.ndarray) -> None:
        """Take the (bytes,) uint8 block and where each record ends in it."""
        self._data = data
        self._ends = ends

    @classmethod
    def from_records(cls, records: Sequence[Record]) -> RecordStore:
        """Pack records into memory of this process (shared with workers that are forked from it)."""
        blocks = [pickle.dumps(record, protocol=pickle.HIGHEST_PROTOCOL) for record in records]
        ends = np.cumsum([len(block) for block in blocks], dtype=np.int64)
        data = np.frombuffer(bytearray(b"".join(blocks)), dtype=np.uint8)
        return cls(torch.from_numpy(data), ends)

    @property
    def num_bytes(self) -> int:
        return self._data.numel()

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> Record:  # type: ignore[override]  # nobody takes slices
        """Unpickle one record; the bytes are our own, never a file's."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"Record {index} does not exist: there are {len(self)}.")
        index %= len(self)
        start = int(self._ends[index - 1]) if index else 0
        return pickle.loads(self._data[start : int(self._ends[index])].numpy().data)


def load_once_per_machine(load: Callable[[], tuple[Sequence[Record], Any]]) -> tuple[RecordStore, Any]:
    """Let one process of each machine read a data set and share the bytes with the others.

    Args:
        load: returns the records, and anything small that every process needs to have of its own.

    Returns:
        The records and a copy of the small thing, on every process. An error of the reading process is raised in all.
    """
    if comm.get_local_size() == 1:
        records, summary = load()
        return RecordStore.from_records(records), summary
    offer: tuple[str, int, np.ndarray, Any] | Exception | None = None
    if comm.get_local_rank() == 0:
        try:
            records, summary = load()
            offer = _write(RecordStore.from_records(records), summary)
        except Exception as error:  # handed to the other processes, which wait, and raised below
            offer = error
    leader = comm.get_rank() - comm.get_local_rank()  # ranks of one machine are consecutive
    offer = comm.all_gather(offer)[leader]
    if isinstance(offer, Exception):
        raise offer
    path, size, ends, summary = offer
    data = (
        torch.from_file(path, shared=True, size=size, dtype=torch.uint8) if size else torch.empty(0, dtype=torch.uint8)
    )
    comm.synchronize()
    if comm.get_local_rank() == 0:
        os.unlink(path)  # the mappings stay valid; nothing is left on disk when the processes end
    return RecordStore(data, ends), summary


def _write(store: RecordStore, summary: Any) -> tuple[str, int, np.ndarray, Any]:
    """Write the bytes to a private temporary file."""
    descriptor, path = tempfile.mkstemp(prefix="lbvq-records-")
    os.close(descriptor)
    Path(path).write_bytes(store._data.numpy().tobytes())
    return path, store.num_bytes, store._ends, summary
