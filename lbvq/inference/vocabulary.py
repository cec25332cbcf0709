"""Text embeddings of class names, for models whose classes are given as text.

They are computed by CLIP once per name and kept on disk under (model, prompts, name), so that a vocabulary that was
used before needs no CLIP. Names that the data set of a configuration has are taken from its file of text embeddings,
which for the published files was made with learned prompts.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lbvq.files.writing import atomic_path
from lbvq.inference.prompts import PROMPT_SETS, check_classes, parse_classes, plain_name
from lbvq.modeling.ovformer.towers import ClipTowers
from lbvq.modeling.ovformer.zero_shot import read_text_embeddings
from mask2former.compiled import cache_folder

if TYPE_CHECKING:
    from mask2former.cfg import Cfg

__all__ = ["PROMPT_SETS", "check_classes", "embed_names", "embeddings_for", "parse_classes", "plain_name", "save_npy"]

logger = logging.getLogger(__name__)

Towers = Callable[[], ClipTowers]


def embed_names(
    names: Sequence[str], load: Towers, *, model: str, prompts: str = "photo", folder: str | Path | None = None
) -> Tensor:
    """Embeddings of class names, computed where they are not kept on disk.

    Args:
        names: n class names.
        load: builds CLIP; called only when a name is not on disk.
        model: says which CLIP and which weights `load` gives.
        prompts: name of a prompt set.
        folder: where embeddings are kept; None takes `cache_folder()`.

    Returns:
        (n, E) float32 on the CPU, rows of length one.
    """
    if prompts not in PROMPT_SETS:
        raise ValueError(
            f"there is no prompt set {prompts!r}; MODEL.MASK_FORMER.CLIP_PROMPTS is one of {list(PROMPT_SETS)}."
        )
    templates = PROMPT_SETS[prompts]
    plain = [plain_name(name) for name in check_classes(names)]
    folder = (cache_folder() if folder is None else Path(folder)) / "text_embeddings"
    paths = {name: folder / f"{_digest(model, templates, name)}.npy" for name in plain}
    kept = {name: _read_kept(path) for name, path in paths.items()}
    found = {name: embedding for name, embedding in kept.items() if embedding is not None}
    missing = [name for name in paths if name not in found]
    if missing:
        logger.info("Computing the text embeddings of %d of %d classes.", len(missing), len(plain))
        for name, embedding in zip(missing, _compute(missing, load(), templates), strict=True):
            found[name] = embedding
            _keep(paths[name], embedding.numpy())
    sizes = {len(found[name]) for name in plain}
    if len(sizes) > 1:
        raise ValueError(f"text embeddings of {sizes} numbers are mixed in {folder}; delete it, they are made again.")
    return torch.stack([found[name] for name in plain])


def embeddings_for(cfg: Cfg, names: Sequence[str], *, known_names: Sequence[str] | None = None) -> Tensor:
    """Text embeddings (n, E) of class names for a configuration.

    Args:
        cfg: whose CLIP_TEXT_PATH, CLIP_MODEL, CLIP_WEIGHTS and CLIP_PROMPTS of MODEL.MASK_FORMER count.
        names: n class names.
        known_names: names of the rows of CLIP_TEXT_PATH. When they include all of `names`, and the file exists, its
            rows are taken; otherwise all are computed, since embeddings of different prompts do not mix well.
    """
    mask_former = cfg.MODEL.MASK_FORMER
    names = check_classes(names)
    known = list(known_names or ())
    rows = {plain_name(name): index for index, name in reversed(list(enumerate(known)))}
    if Path(mask_former.CLIP_TEXT_PATH).is_file() and all(plain_name(name) in rows for name in names):
        text = read_text_embeddings(mask_former.CLIP_TEXT_PATH)
        if len(text) == len(known):
            return F.normalize(text[[rows[plain_name(name)] for name in names]], dim=1)
    return embed_names(
        names,
        lambda: ClipTowers.load(mask_former.CLIP_MODEL, mask_former.CLIP_WEIGHTS),
        model=towers_name(mask_former.CLIP_MODEL, mask_former.CLIP_WEIGHTS),
        prompts=mask_former.CLIP_PROMPTS,
    )


def with_classes(cfg: Cfg, names: Sequence[str], *, known_names: Sequence[str] | None = None) -> Any:
    """Copy of a configuration of an open-vocabulary model whose classes are `names`; see `embeddings_for`."""
    text = embeddings_for(cfg, names, known_names=known_names).numpy()
    path = cache_folder() / "vocabularies" / f"{_digest(text.tobytes().hex())}.npy"
    _keep(path, text)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = len(text)
    cfg.MODEL.MASK_FORMER.CLIP_TEXT_PATH = str(path)
    return cfg


def towers_name(model: str, weights: str) -> str:
    """Identity of a CLIP: a weight file is another one when it was changed."""
    path = Path(weights)
    if not path.is_file():
        return f"{model}/{weights}"
    facts = path.stat()
    return f"{model}/{path.resolve()}:{facts.st_size}:{facts.st_mtime_ns}"


def save_npy(path: str | Path, array: np.ndarray) -> None:
    """Write a .npy file as a whole or not at all."""
    with atomic_path(path) as part, open(part, "wb") as file:
        np.save(file, array, allow_pickle=False)


def _compute(names: Sequence[str], towers: ClipTowers, templates: Sequence[str]) -> Tensor:
    """(n, E): mean over the prompts of each name, of length one."""
    texts = [template.format(name) for name in names for template in templates]
    embeddings = F.normalize(towers.encode_texts(texts).cpu(), dim=1).unflatten(0, (len(names), len(templates)))
    return F.normalize(embeddings.mean(1), dim=1)


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:40]


def _read_kept(path: Path) -> Tensor | None:
    """Embedding (E,) of a file; None when there is none, or none that can be used."""
    if not path.is_file():
        return None
    try:
        embedding = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        logger.warning("%s is damaged and is made again: %s", path, error)
        return None
    is_usable = embedding.dtype == np.float32 and embedding.ndim == 1 and np.isfinite(embedding).all()
    return torch.from_numpy(embedding) if is_usable and embedding.any() else None


def _keep(path: Path, array: np.ndarray) -> None:
    try:
        save_npy(path, array)
    except OSError as error:
        raise OSError(
            f"cannot keep text embeddings in {path.parent} ({error}); set VIS_CACHE_DIR to a writable folder."
        ) from error
