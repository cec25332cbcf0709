"""CLIP's embeddings of images and frames: read from a file of published form, or computed from the pixels.

The published files are dictionaries {key: (1, 512) tensor} written by torch.save. The key of an LVIS image is its id,
that of a frame the path `datasets/<folders of the data set>/<file name>`; here the part after `datasets/` counts, so
that the data may lie anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from lbvq.files.torch_files import read_torch_file
from mask2former.transfer import to_device

from .towers import ClipTowers

ROOT_IN_KEYS = "datasets/"  # what published keys begin with

HOW_TO_MAKE_IMAGES = (
    "Make it with: python tools/save_clip_features.py images --dataset NAME --output {path}. Or set {setting} to '' "
    'and features are computed on the way; both need pip install "lbvq[open-vocab]".'
)


class ImageFeatures:
    """Finds the embedding of an image or frame; nothing is read or loaded before the first is wanted.

    Attributes:
        towers: CLIP, once it was needed; may be set to share it.
    """

    def __init__(self, path: str | Path, load_towers: Callable[[], ClipTowers], *, setting: str) -> None:
        """Args:
        path: file of published form; "" computes every embedding.
        load_towers: builds CLIP.
        setting: the key of the configuration that gives `path`, for messages.
        """
        self.path, self.setting = str(path), setting
        self.towers: ClipTowers | None = None
        self._load_towers = load_towers
        self._table: dict[Hashable, Tensor] | None = None

    def find(self, keys: Sequence[Hashable] | None, images: Sequence[Tensor], device: torch.device) -> Tensor:
        """Embeddings of some images, (n, E) float32 on `device`.

        Args:
            keys: image ids or file names; None when they have none, and then everything is computed.
            images: (3, h, w) RGB, 0..255, as the network gets them.
        """
        if self.path and keys is not None:
            return to_device(torch.stack([self._look_up(key) for key in keys]), device)
        if self.towers is None:
            self.towers = self._load_towers()
        return self.towers.to(device).encode_images(images)

    def _look_up(self, key: Hashable) -> Tensor:
        if self._table is None:
            self._table = read_image_features(self.path, self.setting)
        for candidate in candidate_keys(key):
            if candidate in self._table:
                return self._table[candidate].reshape(-1).float()
        some = ", ".join(repr(known) for known in list(self._table)[:2])
        raise ValueError(
            f"{self.path} ({self.setting}) has no CLIP feature of {key!r}; it has {len(self._table)}, such as {some}. "
            f"Is it the file of this data set? {HOW_TO_MAKE_IMAGES.format(path=self.path, setting=self.setting)}"
        )

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles start without the table and without CLIP."""
        return {**self.__dict__, "towers": None, "_table": None}


def read_image_features(path: str | Path, setting: str = "the path") -> dict[Hashable, Tensor]:
    """Read a file of published form; keys without the leading `datasets/`."""
    if not Path(path).is_file():
        advice = HOW_TO_MAKE_IMAGES.format(path=path, setting=setting)
        raise FileNotFoundError(f"The CLIP image features {path} ({setting}) do not exist. {advice}")
    try:
        content = read_torch_file(path)
    except ValueError as error:
        raise ValueError(f"{path} ({setting}) is no file of CLIP image features: {error}") from error
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path}: expected a dictionary of features, got {type(content).__name__} without content.")
    sizes = {value.numel() if isinstance(value, Tensor) else None for value in content.values()}
    if len(sizes) != 1 or None in sizes:
        raise ValueError(
            f"{path}: expected one tensor of the same size per key, got the sizes {sorted(sizes, key=str)}."
        )
    return {plain_key(key): value for key, value in content.items()}


def plain_key(key: Hashable) -> Hashable:
    """Key without the leading `datasets/`, with forward slashes; ids are kept."""
    if not isinstance(key, str):
        return key
    return key.replace("\\", "/").removeprefix("./").removeprefix(ROOT_IN_KEYS)


def candidate_keys(key: Hashable) -> list[Hashable]:
    """Keys under which an image may be found, best first: for a path, its endings of at least two parts."""
    if not isinstance(key, str):
        return [key]
    parts = PurePosixPath(str(plain_key(key))).parts
    endings = ["/".join(parts[start:]) for start in range(len(parts) - 1)]
    return [plain_key(key), *(ending for ending in endings if ending != plain_key(key))]


def given_features(given: Any, count: int) -> Tensor:
    """Features that a sample brings along, as (n, E): a tensor (n, E), (n, 1, E), or (E,) for one image."""
    features = torch.as_tensor(given).float()
    features = features.reshape(1, -1) if features.dim() == 1 else features.flatten(1)
    if len(features) != count:
        raise ValueError(f"clip_features must have one row per image, expected {count}, got {len(features)}.")
    return features
