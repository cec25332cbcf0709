"""Save and resume training: published file names and content, written so that a crash never leaves half a file.

`OUTPUT_DIR/model_0004999.pth`, `model_final.pth`, and a text file `last_checkpoint` with the name of the newest one.
A file holds {"model": names to tensors, "iteration": the one just finished, and what is saved beside the model}.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from lbvq.files.writing import atomic_path, write_text

from . import comm
from .weight_files import WeightFile, read_weights
from .weights import LoadReport, load_weight_file, load_weights, unwrap

__all__ = ["Checkpointer", "LoadReport", "load_weights", "save_checkpoint"]

logger = logging.getLogger(__name__)

LAST_CHECKPOINT = "last_checkpoint"
_RESUMABLE = re.compile(r"model_(\d+|final)\.pth")


def checkpoints_of(folder: str | os.PathLike) -> list[Path]:
    """Checkpoints of a folder from which a run may go on: the one it notes as the newest, then from last to first."""
    folder = Path(folder)
    numbers = {path: found[1] for path in folder.glob("*.pth") if (found := _RESUMABLE.fullmatch(path.name))}
    ordered = sorted(numbers, key=lambda path: (numbers[path] == "final", numbers[path].zfill(20)), reverse=True)
    tagged = _tagged(folder)
    return ordered if tagged is None or not tagged.is_file() else [tagged, *(p for p in ordered if p != tagged)]


def _tagged(folder: Path) -> Path | None:
    """The checkpoint that the folder notes as its newest, whether it is there or not."""
    try:
        name = (folder / LAST_CHECKPOINT).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return folder / Path(name).name if name and "\0" not in name else None


class Stateful(Protocol):
    """Something that can be saved beside the model: an optimizer, a trainer."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


def save_checkpoint(path: str | os.PathLike, content: Mapping[str, Any]) -> Path:
    """Write `content` with `torch.save`: the file appears complete or, on any error, not at all."""
    with atomic_path(path) as part, open(part, "wb") as file:
        torch.save(dict(content), file)
    return Path(path)


def checkpoint_bytes(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """About how large a checkpoint of a training is: the model, and the state of its optimizer when it has one."""
    tensors = [*model.parameters(), *model.buffers()]
    trained = sum(p.numel() * p.element_size() for group in optimizer.param_groups for p in group["params"])
    copies = 2 if "betas" in optimizer.defaults else int(bool(optimizer.defaults.get("momentum")))
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) + copies * trained


class Checkpointer:
    """Saves a model with the states beside it, and resumes from the newest file.

    Args:
        model: its wrappers of data-parallel training and `torch.compile` do not show in the file.
        save_dir: the folder of the run.
        states: what is saved and resumed beside the model, under the keyword; `trainer=` in training.
    """

    def __init__(self, model: nn.Module, save_dir: str | os.PathLike = "", **states: Stateful) -> None:
        self.model = model
        self.save_dir = Path(save_dir)
        self.states = states
        self.report: LoadReport | None = None  # of the file that was loaded last

    def save(self, name: str, **extra: Any) -> Path:
        """Write `name`.pth in the folder of the run and note it as the newest; only process 0 writes.

        Every process calls this, since collecting a state may need all of them.

        Args:
            extra: plain values for the file, as `iteration=4999`.
        """
        states = {key: state.state_dict() for key, state in self.states.items()}
        path = self.save_weights(name, **states, **extra)
        if comm.is_main_process():
            self.tag_last_checkpoint(path.name)
        return path

    def save_weights(self, name: str, **extra: Any) -> Path:
        """Write the model without the states; the file is not what a resumed run would go on from."""
        path = self.save_dir / f"{name}.pth"
        if comm.is_main_process():
            logger.info("Saving checkpoint to %s", path)
            save_checkpoint(path, {"model": unwrap(self.model).state_dict(), **extra})
        return path

    def load(
        self,
        path: str | os.PathLike,
        *,
        states: bool = True,
        allow_missing: str | Callable[[str], bool] = "none",
    ) -> dict[str, Any]:
        """Load a checkpoint into the model and, with `states`, into what is saved beside it.

        Returns:
            What else the file holds, `iteration` among it.
        """
        return self._load_file(read_weights(path), states=states, allow_missing=allow_missing)

    def _load_file(
        self, file: WeightFile, *, states: bool = True, allow_missing: str | Callable[[str], bool] = "none"
    ) -> dict[str, Any]:
        self.report = load_weight_file(self.model, file, allow_missing=allow_missing)
        rest, path = file.rest, file.path
        for key, state in self.states.items() if states else ():
            if key not in rest:
                logger.warning("%s holds no state of the %s; it starts anew.", path, key)
                continue
            logger.info("Loading the state of the %s from %s", key, path)
            state.load_state_dict(rest.pop(key))
        return rest

    def resume_or_load(
        self,
        weights: str | os.PathLike,
        *,
        resume: bool = False,
        allow_missing: str | Callable[[str], bool] | None = None,
    ) -> dict[str, Any]:
        """Go on with the newest checkpoint of the folder, or start from weights.

        With `resume` and a checkpoint in the folder everything comes from it and `weights` is ignored; otherwise only
        the model is loaded, from `weights`, or nothing when that is "".

        Args:
            weights: path or address, see `load_weights`.
            resume: go on if there is something to go on with.
            allow_missing: of `load_weights`. None is "new_modules" with states beside the model, which means training,
                and "losses" without; then some weights must be named, too.

        Returns:
            The rest of the resumed file; {} for a new run. Training goes on at `["iteration"] + 1`.
        """
        if resume and self.has_checkpoint():
            return self.load_newest()
        if resume:
            logger.warning("There is nothing to resume in %s; this is a new run.", self.save_dir.absolute())
        if not os.fspath(weights):
            if not self.states:
                raise ValueError("MODEL.WEIGHTS names no file: with random values there is nothing to evaluate.")
            logger.info("MODEL.WEIGHTS names no file: the model has random values.")
            return {}
        if allow_missing is None:
            allow_missing = "new_modules" if self.states else "losses"
        self.report = load_weights(self.model, weights, allow_missing=allow_missing)
        return {}

    def load_newest(self) -> dict[str, Any]:
        """Load the newest checkpoint of the folder that can be read, with a warning for each that cannot.

        Returns:
            As `load`.
        """
        tagged, found = _tagged(self.save_dir), checkpoints_of(self.save_dir)
        if tagged is not None and tagged not in found:
            logger.warning("%s, noted as the newest checkpoint, is not there.", tagged)
        first: Exception | None = None
        for path in found:
            try:
                file = read_weights(path)
            except (ValueError, OSError) as error:
                first = first or error
                logger.warning("%s; the checkpoint before it is tried.", error)
                continue
            logger.info("Resuming from %s; MODEL.WEIGHTS is not used.", path)
            return self._load_file(file)
        raise first or FileNotFoundError(f"{self.save_dir.absolute()} has no checkpoint.")

    def has_checkpoint(self) -> bool:
        """True when the folder of the run has a checkpoint to go on from."""
        return bool(checkpoints_of(self.save_dir))

    def last_checkpoint(self) -> Path:
        """Return the newest checkpoint; FileNotFoundError when there is none or its file is gone."""
        note = self.save_dir / LAST_CHECKPOINT
        if not note.is_file():
            raise FileNotFoundError(
                f"{self.save_dir.absolute()} has no checkpoint: there is no file {LAST_CHECKPOINT}."
            )
        name = note.read_text(encoding="utf-8").strip()
        path = self.save_dir / Path(name).name
        if not path.is_file():
            others = ", ".join(sorted(other.name for other in self.save_dir.glob("*.pth"))) or "no other checkpoint"
            raise FileNotFoundError(f"{note} names {name}, which is not there; the folder has {others}.")
        return path

    def tag_last_checkpoint(self, file_name: str) -> None:
        """Note `file_name` as the newest checkpoint: its base name, nothing else, as published."""
        write_text(self.save_dir / LAST_CHECKPOINT, file_name)

    def delete(self, name: str) -> None:
        """Delete the checkpoint `name`, unless it is the newest; one that is gone already is no error."""
        path = self.save_dir / f"{name}.pth"
        if _tagged(self.save_dir) == path:
            logger.warning("%s is the newest checkpoint and stays.", path)
            return
        path.unlink(missing_ok=True)
