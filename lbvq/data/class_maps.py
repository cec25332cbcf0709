"""Translate the classes of one data set into those of another, for training on several together."""

from __future__ import annotations

import logging
import re

from lbvq.data.catalog import MetadataCatalog
from lbvq.data.categories import PSEUDO_SOURCE, coco_to_video

logger = logging.getLogger(__name__)


def class_map_between(source: str, target: str) -> dict[int, int] | None:
    """Class index of `source` -> class index of `target`; classes that are missing have no counterpart.

    COCO to YouTube-VIS and OVIS uses the published tables. Other pairs are matched by name, without regard to case and
    punctuation. None means that the classes are the same.
    """
    if source == target:
        return None
    given, wanted = MetadataCatalog.get(source), MetadataCatalog.get(target)
    for metadata in (given, wanted):
        if "thing_classes" not in metadata:
            raise ValueError(
                f"The classes of {metadata.name!r} are not known before it is read; set its thing_classes."
            )
    if list(given.thing_classes) == list(wanted.thing_classes):
        return None
    if given.get("category_table") == PSEUDO_SOURCE and wanted.get("pseudo_table"):
        ids, target_ids = given.thing_dataset_id_to_contiguous_id, wanted.thing_dataset_id_to_contiguous_id
        table = coco_to_video(wanted.pseudo_table)
        return {ids[coco_id]: target_ids[video_id] for coco_id, video_id in table.items() if coco_id in ids}
    positions = {_plain(name): index for index, name in enumerate(wanted.thing_classes)}
    found = {
        index: positions[_plain(name)] for index, name in enumerate(given.thing_classes) if _plain(name) in positions
    }
    if not found:
        raise ValueError(
            f"No class of {source!r} is a class of the target {target!r}; the last of DATASETS.TRAIN is it."
        )
    logger.info("%d of the %d classes of %s exist in %s by name.", len(found), len(given.thing_classes), source, target)
    return found


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", " ", name.lower()).strip()
