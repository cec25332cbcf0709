"""Find a weight file, download it when it is an address, and read the tensors in it, whatever wrote it.

What a file is decides its content, not its name: torch's zip and older formats, pickles of detectron2, Caffe2 and plain
dicts, safetensors. Nothing in a file is ever executed.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from . import comm
from .download import Checksum, DownloadError, download, file_digest
from .known_weights import ADDRESSES, DRIVE_IDS, HUB, PACKAGED, how_to_get, licence_of
from .torch_files import LEGACY_TORCH_START, ZIP_START, read_torch_file

logger = logging.getLogger(__name__)

WEIGHTS_DIR_VARIABLE = "VIS_WEIGHTS_DIR"
DETECTRON2_ADDRESS = "https://dl.fbaipublicfiles.com/detectron2/"
HEURISTICS_QUERY = "?matching_heuristics=True"
STATE_KEYS = ("model", "state_dict", "model_state_dict")  # where programs put the tensors, in order of preference


@dataclass
class WeightFile:
    """Tensors of a file under the names they have there.

    Attributes:
        path: the local file.
        kind: what the file is, for messages.
        tensors: name to tensor on the CPU; its `_metadata` (module versions) is kept when the file has it.
        suffix_matching: the file asks for names to be matched by their endings.
        caffe2_names: names are those of Caffe2 blobs.
        rest: other content of a checkpoint: iteration, trainer state.
    """

    path: Path
    kind: str
    tensors: OrderedDict[str, Tensor]
    suffix_matching: bool = False
    caffe2_names: bool = False
    rest: dict[str, Any] = field(default_factory=dict)


# -- finding ----------------------------------------------------------------------------------------------------------


def find_weights(name: str | os.PathLike) -> tuple[Path, bool]:
    """Return the local file of a path or address, downloading it at need, and whether it asks for suffix matching.

    A path is looked up as it is and in the folder $VIS_WEIGHTS_DIR; a published file that is in neither is downloaded
    when its address is known. Downloads are kept in that folder too, or in torch's own cache; `#sha256=...` at the end
    of an https:// address is checked. `detectron2://` is detectron2's model zoo.
    """
    text = os.fspath(name)
    suffix_matching = text.endswith(HEURISTICS_QUERY)
    text = text.removesuffix(HEURISTICS_QUERY)
    if not text:
        raise ValueError("No weight file is named; set MODEL.WEIGHTS.")
    scheme, separator, rest = text.partition("://")
    if not separator:
        return _find_local(text), suffix_matching
    if scheme == "detectron2":
        return _find_remote(DETECTRON2_ADDRESS + rest), suffix_matching
    if scheme == "https":
        return _find_remote(text), suffix_matching
    if scheme == "http":
        raise ValueError(f"{text}: weights are only loaded over https, where nobody can change them on the way.")
    raise ValueError(f"{text}: known addresses begin with https:// or detectron2://; anything else is a local path.")


def weights_folder() -> Path:
    """Where downloads go: $VIS_WEIGHTS_DIR, or torch's own cache."""
    folder = os.environ.get(WEIGHTS_DIR_VARIABLE)
    return Path(folder).expanduser() if folder else Path(torch.hub.get_dir()) / "checkpoints"


def _find_local(name: str) -> Path:
    path = Path(name).expanduser()
    candidates = [path]
    folder = os.environ.get(WEIGHTS_DIR_VARIABLE)
    if folder and not path.is_absolute():
        candidates += [Path(folder).expanduser() / path, Path(folder).expanduser() / path.name]
    if path.name in DRIVE_IDS and not path.is_absolute():
        candidates.append(weights_folder() / path.name)  # where `lbvq download` puts it
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name the weight file in it.")
    packaged = _find_in_package(path.name)
    if packaged is not None and not path.is_absolute():
        return packaged
    if path.name in ADDRESSES and not path.is_absolute():
        return _find_remote(ADDRESSES[path.name])
    places = ", ".join(str(candidate.absolute()) for candidate in candidates)
    hint = "" if folder else f" Weights of one folder are found by name when ${WEIGHTS_DIR_VARIABLE} names it."
    raise FileNotFoundError(f"No weight file {name}; looked at {places}.{hint} {how_to_get(path.name)}".rstrip())


def _find_in_package(file_name: str) -> Path | None:
    """File of an installed package that brings weights along; the package is not run."""
    module, folder, _ = PACKAGED.get(file_name, ("", "", ""))
    spec = importlib.util.find_spec(module) if module else None
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / folder / file_name
    return path if path.is_file() else None


def _find_remote(address: str) -> Path:
    url = urlsplit(address)
    if url.query:
        raise ValueError(f"{address}: the only thing that may follow '?' is {HEURISTICS_QUERY[1:]}.")
    relative = url.path.lstrip("/")
    if ".." in relative.split("/") or not relative:
        raise ValueError(f"{address} does not name a file.")
    checksum = _expected_checksum(url.netloc, url.path, url.fragment)
    cache = weights_folder()
    target = cache / url.netloc / relative
    detectron2_cache = Path(os.environ.get("FVCORE_CACHE", "~/.torch/iopath_cache")).expanduser()
    # on the Hub files of one name are of many models, so that a name alone says nothing
    by_name = [] if f"https://{url.netloc}" == HUB else [cache / target.name]
    candidates = (target, *by_name, detectron2_cache / relative)

    problem = None
    if comm.get_local_rank() == 0 and not any(candidate.is_file() for candidate in candidates):
        problem = _download(f"https://{url.netloc}{url.path}", target, checksum)
    problems = [text for text in comm.all_gather(problem) if text]  # the other processes wait for the download
    if problems:
        raise OSError(problems[0])
    return next(candidate for candidate in candidates if candidate.is_file())


def _expected_checksum(host: str, path: str, fragment: str) -> Checksum | None:
    """First digits of the checksum: given after '#', or part of the name by the convention of the server."""
    if fragment:
        given = re.fullmatch(r"sha256=([0-9a-fA-F]{8,64})", fragment)
        if not given:
            raise ValueError(f"After '#' an address may have sha256=<hexadecimal digits>, got {fragment!r}.")
        return Checksum("sha256", given[1].lower())
    if host == "download.pytorch.org" and (in_name := re.search(r"-([0-9a-f]{8,})\.", path)):
        return Checksum("sha256", in_name[1])
    if host == "dl.fbaipublicfiles.com" and (in_name := re.search(r"/model_final_([0-9a-f]{6})\.pkl$", path)):
        return Checksum("md5", in_name[1])
    return None


def _download(address: str, target: Path, checksum: Checksum | None) -> str | None:
    """Download to `target`, complete or not at all; return what went wrong."""
    logger.info("Downloading %s to %s", address, target)
    try:
        download(mirrored(address), target, checksum=checksum)
    except DownloadError as error:
        return str(error)
    licence = licence_of(address)
    if licence:
        logger.warning("%s: %s", target.name, licence)
    if checksum is None:
        logger.info("No checksum is known for %s; its sha256 is %s", address, file_digest(target))
    return None


def mirrored(address: str) -> str:
    """The address at the mirror of the Hugging Face Hub that $HF_ENDPOINT names, as its own package has it."""
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/")
    return endpoint + address.removeprefix(HUB) if endpoint and address.startswith(f"{HUB}/") else address


# -- reading ----------------------------------------------------------------------------------------------------------


def read_weights(path: str | os.PathLike) -> WeightFile:
    """Read the tensors of a local file; ValueError says what is wrong with one that cannot be used."""
    path = Path(path)
    with open(path, "rb") as file:
        start = file.read(64)
    if _is_safetensors(start, path.stat().st_size):
        return _read_safetensors(path)
    _refuse_what_is_no_weight_file(path, start)
    content = read_torch_file(path)
    if start.startswith(ZIP_START):
        return _from_checkpoint(path, content, "torch checkpoint")
    if LEGACY_TORCH_START in start:
        return _from_checkpoint(path, content, "torch checkpoint (old format)")
    return _from_pickle(path, content)


def _is_safetensors(start: bytes, size: int) -> bool:
    """An 8-byte length of a JSON header that fits into the file, then the header."""
    return len(start) > 8 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= size - 8


def _read_safetensors(path: Path) -> WeightFile:
    try:
        tensors = load_file(path)
    except (SafetensorError, ValueError, KeyError, AttributeError, TypeError, RuntimeError, MemoryError) as error:
        raise ValueError(f"{path} is damaged or no safetensors file: {error}") from error
    return WeightFile(path, "safetensors file", OrderedDict(sorted(tensors.items())))


def _refuse_what_is_no_weight_file(path: Path, start: bytes) -> None:
    text = start.lstrip().lower()
    if not start:
        raise ValueError(f"{path} is empty.")
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise ValueError(
            f"{path} is a web page, not a weight file: the download got a page instead; download it again."
        )
    if text.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path} is a Git LFS pointer; fetch the file itself with `git lfs pull`.")


def _from_checkpoint(path: Path, content: Any, kind: str) -> WeightFile:
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} must hold a dict of tensors, got {type(content).__name__}.")
    key = next((key for key in STATE_KEYS if isinstance(content.get(key), Mapping)), None)
    state = content if key is None else content[key]
    rest = {} if key is None else {name: value for name, value in content.items() if name != key}
    asks = bool(rest.get("matching_heuristics", False))
    return WeightFile(path, kind, _to_tensors(path, state), suffix_matching=asks, rest=rest)


def _from_pickle(path: Path, content: Any) -> WeightFile:
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} must hold a dict of tensors, got {type(content).__name__}.")
    if isinstance(content.get("model"), Mapping):
        return _from_checkpoint(path, content, "detectron2 model" if "__author__" in content else "pickled model")
    blobs = content.get("blobs", content)
    if not isinstance(blobs, Mapping):
        raise ValueError(f"{path} must hold a dict under 'blobs', got {type(blobs).__name__}.")
    if "blobs" not in content and not _has_caffe2_names(blobs):
        return WeightFile(path, "pickled dict", _to_tensors(path, blobs))
    kept = {name: value for name, value in blobs.items() if not name.endswith("_momentum") and value is not None}
    # besides blobs there are single numbers such as the learning rate
    arrays = {name: value for name, value in kept.items() if isinstance(value, (np.ndarray, np.generic, Tensor))}
    return WeightFile(path, "Caffe2 model", _to_tensors(path, arrays), suffix_matching=True, caffe2_names=True)


def _has_caffe2_names(state: Mapping[str, Any]) -> bool:
    names = [str(name) for name in state]
    return not any("." in name for name in names) and any(name.endswith(("_w", "_b", "_bn_s")) for name in names)


def _to_tensors(path: Path, state: Mapping[str, Any]) -> OrderedDict[str, Tensor]:
    """Turn arrays into tensors, dropping nothing; `_metadata` of the mapping is kept."""
    tensors: OrderedDict[str, Tensor] = OrderedDict()
    for name, value in state.items():
        if isinstance(value, (np.ndarray, np.generic)):
            if value.dtype.kind not in "biufc":
                raise ValueError(f"{path}: {name} is an array of {value.dtype}, not of numbers.")
            value = torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("=")))
        if not isinstance(value, Tensor):
            names = ", ".join(map(str, list(state)[:8]))
            raise ValueError(
                f"{path}: {name} is a {type(value).__name__}, not a tensor; the dict has the keys {names}"
                f"{', ...' if len(state) > 8 else ''}. Tensors are expected there or under one of {STATE_KEYS}."
            )
        tensors[str(name)] = value.detach()
    metadata = getattr(state, "_metadata", None)
    if metadata is not None:
        tensors._metadata = metadata
    return tensors
