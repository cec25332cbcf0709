"""Find a weight file, download it when it is an address, and read the tensors in it, whatever wrote it.

What a file is decides its content, not its name: torch's zip and older formats, pickles of detectron2, Caffe2 and plain
dicts, safetensors. Nothing in a file is ever executed.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lbvq.files.torch_files import LEGACY_TORCH_START, ZIP_START, read_torch_file

from . import comm
from .download import Checksum, DownloadError, download, file_digest
from .known_weights import ADDRESSES, DRIVE_IDS, HUB, PACKAGED, how_to_get, licence_of
from .weight_states import WeightFile, from_caffe2, from_content

logger = logging.getLogger(__name__)

WEIGHTS_DIR_VARIABLE = "VIS_WEIGHTS_DIR"
DETECTRON2_ADDRESS = "https://dl.fbaipublicfiles.com/detectron2/"
_QUERY = re.compile(r"\?((?:matching_heuristics=True|key=[^&?/]+)(?:&(?:matching_heuristics=True|key=[^&?/]+))*)$")
# The first of these in a folder is its weights: of the Hugging Face Hub, then of a training.
FOLDER_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "model_best.pth",
    "model_final.pth",
)
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".pkl")
_SHARD = re.compile(r"-\d+-of-0*([1-9]\d*)\.\w+$")
MAX_INDEX_BYTES = 64 << 20


# -- finding ----------------------------------------------------------------------------------------------------------


def find_weights(name: str | os.PathLike) -> tuple[Path, bool]:
    """Return the local file of a path or address, downloading it at need, and whether it asks for suffix matching.

    A path is looked up as it is and in the folder $VIS_WEIGHTS_DIR; a published file that is in neither is downloaded
    when its address is known. Downloads are kept in that folder too, or in torch's own cache; `#sha256=...` at the end
    of an https:// address is checked. `detectron2://` is detectron2's model zoo.
    """
    text, suffix_matching, _ = split_query(os.fspath(name))
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


def split_query(name: str) -> tuple[str, bool, str]:
    """Split what may follow a file's name: "a.pth?key=model_ema" -> ("a.pth", False, "model_ema").

    `matching_heuristics=True` asks for names to be matched by their endings, `key=` says which of several sets of
    weights in the file is meant.
    """
    found = _QUERY.search(name)
    words = dict(word.split("=", 1) for word in found[1].split("&")) if found else {}
    bare = name[: found.start()] if found else name
    return bare, "matching_heuristics" in words, words.get("key", "")


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
        return _find_in_folder(path)
    packaged = _find_in_package(path.name)
    if packaged is not None and not path.is_absolute():
        return packaged
    if path.name in ADDRESSES and not path.is_absolute():
        return _find_remote(ADDRESSES[path.name])
    places = ", ".join(str(candidate.absolute()) for candidate in candidates)
    hint = "" if folder else f" Weights of one folder are found by name when ${WEIGHTS_DIR_VARIABLE} names it."
    raise FileNotFoundError(f"No weight file {name}; looked at {places}.{hint} {how_to_get(path.name)}".rstrip())


def _find_in_folder(folder: Path) -> Path:
    """The weights in a folder of the Hugging Face Hub, or of a training."""
    for name in FOLDER_FILES:
        if (folder / name).is_file():
            return folder / name
    others = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and path.is_file())
    if len(others) == 1:
        return others[0]
    names = ", ".join(path.name for path in others[:8])
    raise IsADirectoryError(f"{folder} is a folder; name the weight file in it{f': {names}' if names else ''}.")


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
        raise ValueError(f"{address}: what may follow '?' is matching_heuristics=True and key=NAME.")
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


def read_weights_of(name: str | os.PathLike) -> WeightFile:
    """Find and read the weights of a path or address, see `find_weights` and `split_query`."""
    path, suffix_matching = find_weights(name)
    file = read_weights(path, split_query(os.fspath(name))[2])
    file.suffix_matching |= suffix_matching
    return file


def read_weights(path: str | os.PathLike, key: str = "") -> WeightFile:
    """Read the tensors of a local file; ValueError says what is wrong with one that cannot be used.

    Args:
        path: the file; the index of weights in several files stands for all of them.
        key: which of several sets of weights in the file.
    """
    path = Path(path)
    if path.suffix == ".json":
        return _read_shards(path)
    shard = _SHARD.search(path.name)
    if shard and int(shard[1]) > 1:
        raise ValueError(
            f"{path} is one of {shard[1]} files that hold a model together; name their folder or index (.index.json)."
        )
    return _read_one(path, key)


def _read_one(path: Path, key: str = "") -> WeightFile:
    with open(path, "rb") as file:
        start = file.read(64)
    if _is_safetensors(start, path.stat().st_size):
        return _read_safetensors(path, key)
    _refuse_what_is_no_weight_file(path, start)
    content = read_torch_file(path)
    if start.startswith(ZIP_START):
        return from_content(path, content, "torch checkpoint", key)
    if LEGACY_TORCH_START in start:
        return from_content(path, content, "torch checkpoint (old format)", key)
    if isinstance(content, Mapping) and not key and not isinstance(content.get("model"), Mapping):
        caffe2 = from_caffe2(path, content)
        if caffe2 is not None:
            return caffe2
        return from_content(path, content, "pickled dict")
    is_detectron2 = isinstance(content, Mapping) and "__author__" in content
    return from_content(path, content, "detectron2 model" if is_detectron2 else "pickled model", key)


def _read_shards(index: Path) -> WeightFile:
    """Read the files of an index as one; every name is taken from the file that the index gives."""
    if index.stat().st_size > MAX_INDEX_BYTES:
        raise ValueError(f"{index} is too large for an index of weight files.")
    try:
        places = json.loads(index.read_bytes())["weight_map"]
        files = sorted(set(places.values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{index} is no index of weight files: it has no 'weight_map' of names to files.") from error
    outside = [name for name in files if not isinstance(name, str) or Path(name).name != name or name == index.name]
    if outside:
        raise ValueError(f"{index} names {outside[0]!r}, which is no file beside it.")
    absent = [name for name in files if not (index.parent / name).is_file()]
    if absent:
        raise FileNotFoundError(f"{index} names {', '.join(absent)}, not there; {len(files) - len(absent)} files are.")
    tensors: OrderedDict[str, Tensor] = OrderedDict()
    for name in files:
        part = _read_one(index.parent / name).tensors
        wanted = [key for key, file_name in places.items() if file_name == name]
        lacking = [key for key in wanted if key not in part]
        if lacking:
            raise ValueError(
                f"{index.parent / name} lacks {lacking[0]} and {len(lacking) - 1} more that {index} names."
            )
        tensors.update((key, part[key]) for key in wanted)
    return WeightFile(index, f"{len(files)} weight files", OrderedDict(sorted(tensors.items())))


def _is_safetensors(start: bytes, size: int) -> bool:
    """An 8-byte length of a JSON header that fits into the file, then the header."""
    return len(start) > 8 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= size - 8


def _read_safetensors(path: Path, key: str) -> WeightFile:
    try:
        tensors = load_file(path)
    except (SafetensorError, ValueError, KeyError, AttributeError, TypeError, RuntimeError, MemoryError) as error:
        raise ValueError(f"{path} is damaged or no safetensors file: {error}") from error
    return from_content(path, OrderedDict(sorted(tensors.items())), "safetensors file", key)


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
