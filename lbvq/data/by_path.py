"""Data sets by path: DATASETS.REGISTER and `--data name=annotations.json:frames`.

They are registered when a configuration is made, in every process of a run, since each makes its configuration anew.
The files are read when somebody asks for what is in them.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lbvq.data.annotation_files import list_of, need, read_annotation_file
from lbvq.data.catalog import DatasetCatalog, MetadataCatalog
from lbvq.data.coco import load_coco_json
from lbvq.data.ytvis import load_ytvis_json
from lbvq.files.data_entries import SYNTAX, PathEntry, parse_entry
from mask2former.cfg import Cfg

logger = logging.getLogger(__name__)

NUM_CLASSES = "MODEL.SEM_SEG_HEAD.NUM_CLASSES"


_registered: dict[str, PathEntry] = {}


def register(entries: Sequence[str]) -> list[PathEntry]:
    """Register data sets; one that is known with the same paths already is left as it is."""
    parsed = [parse_entry(text) for text in entries]
    for entry in parsed:
        if _registered.get(entry.name) == entry:
            continue
        if entry.name in DatasetCatalog or entry.name in _registered:
            taken = _registered.get(entry.name, "a built-in data set")
            raise ValueError(f"The name {entry.name!r} is taken by {taken}; give yours another one, see {SYNTAX}.")
        DatasetCatalog.register(entry.name, functools.partial(_load, entry))
        MetadataCatalog.get(entry.name).set_lazily(
            kind=functools.partial(_fact, entry, "kind"),
            evaluator_type=functools.partial(_fact, entry, "evaluator_type"),
            thing_classes=functools.partial(_fact, entry, "thing_classes"),
            thing_dataset_id_to_contiguous_id=functools.partial(_fact, entry, "thing_dataset_id_to_contiguous_id"),
        ).set(json_file=str(entry.json_file), image_root=str(entry.image_root), pseudo_table="")
        _registered[entry.name] = entry
    return parsed


def unregister(name: str) -> None:
    """Forget a data set, so that its name is free."""
    del _registered[name]
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def _load(entry: PathEntry) -> list[dict[str, Any]]:
    reader = load_ytvis_json if _fact(entry, "kind") == "video" else load_coco_json
    return reader(entry.json_file, entry.image_root, entry.name)


def _fact(entry: PathEntry, key: str) -> Any:
    """What a file says about itself; it is read once as long as it does not change."""
    try:
        stamp = entry.json_file.stat().st_mtime_ns
    except FileNotFoundError:
        raise FileNotFoundError(
            f"No annotation file {entry.json_file} of the data set {entry.name!r}; see DATASETS.REGISTER and --data."
        ) from None
    return _facts(entry.json_file, stamp)[key]


@functools.lru_cache(maxsize=64)
def _facts(json_file: Path, stamp: int) -> Mapping[str, Any]:
    content = read_annotation_file(json_file)
    is_video = isinstance(content.get("videos"), list) and "images" not in content
    if not is_video and not isinstance(content.get("images"), list):
        raise ValueError(f"{json_file} has neither 'videos' (YouTube-VIS) nor 'images' (COCO); see `lbvq convert`.")
    categories = list_of(content, "categories", json_file, required=True)
    names = {need(each, "id", f"{json_file}: a category"): each for each in categories}
    ordered = sorted(names)
    return {
        "kind": "video" if is_video else "image",
        "evaluator_type": "ytvis" if is_video else "coco",
        "thing_classes": [str(need(names[each], "name", f"{json_file}: category {each}")) for each in ordered],
        "thing_dataset_id_to_contiguous_id": {each: index for index, each in enumerate(ordered)},
    }


def apply_own_data(cfg: Cfg, given: Sequence[Any] = ()) -> None:
    """Register DATASETS.REGISTER, and take the number of classes from the file of the data set that is trained on.

    Args:
        cfg: changed: paths become absolute, NUM_CLASSES fits the data.
        given: settings of the command line; a number of classes among them must be that of the data.
    """
    if not cfg.DATASETS.REGISTER:
        return
    entries = register(cfg.DATASETS.REGISTER)
    cfg.DATASETS.REGISTER = tuple(map(str, entries))
    own = {entry.name: entry for entry in entries}
    wanted = [cfg.DATASETS.get("TARGET"), *list(cfg.DATASETS.TRAIN)[-1:], *cfg.DATASETS.TEST]
    there = [own[name] for name in wanted if name in own and own[name].json_file.exists()]
    if not there or getattr(cfg.MODEL.get("MASK_FORMER"), "CLIP_CLASSIFIER", False):
        return  # nothing to read, or the classes are whatever the user names
    number = len(_fact(there[0], "thing_classes"))
    configured = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    if configured == number:
        return
    if any(isinstance(word, str) and word.partition("=")[0] == NUM_CLASSES for word in given):
        raise ValueError(f"{NUM_CLASSES} is set to {configured}, but {there[0].json_file} has {number} categories.")
    logger.info("%s: %d -> %d, the categories of %s", NUM_CLASSES, configured, number, there[0].json_file)
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = number
