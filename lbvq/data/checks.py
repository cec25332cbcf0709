"""What can be known about the data of a run is checked before its first step, not found out after hours.

Classes, the files of all frames, and a sample of the masks; annotation files are checked whole when they are read.
"""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from lbvq.data.catalog import DatasetCatalog, MetadataCatalog
from lbvq.engine import comm
from lbvq.files.class_list import ClassList
from lbvq.files.rules import few
from lbvq.masks.rle import decode, to_rle

if TYPE_CHECKING:
    from mask2former.cfg import Cfg

logger = logging.getLogger(__name__)

Record = Mapping[str, Any]

SAMPLED_MASKS = 500  # of a data set


@dataclass(frozen=True)
class ObjectCounts:
    """How many objects the records of one data set have, crowds left out.

    Attributes:
        name: of the data set.
        in_record: (R,) objects of each video or image.
        in_frame: (R,) most objects of one of its frames.
    """

    name: str
    in_record: np.ndarray
    in_frame: np.ndarray


def check_test_set(cfg: Cfg, name: str) -> None:
    """Read a test set as its loader does, and check its classes and files; called by all processes together."""

    def read() -> dict[str, Any]:
        check_records(cfg, name, DatasetCatalog.get(name))
        return class_facts(name)

    MetadataCatalog.get(name).set(**comm.once_per_machine(read))
    check_class_count(cfg, name)


def class_facts(name: str) -> dict[str, Any]:
    """What the metadata say about the classes of a data set, also after its file was read."""
    metadata = MetadataCatalog.get(name)
    facts = {key: metadata.get(key) for key in ("thing_classes", "thing_dataset_id_to_contiguous_id")}
    return {key: value for key, value in facts.items() if value is not None}


def check_class_count(cfg: Cfg, name: str) -> None:
    """Raise unless MODEL.SEM_SEG_HEAD.NUM_CLASSES is the number of categories of a data set that has been read.

    A model that brings its own categories may have others; they are matched by name when it is scored.
    """
    classes, wanted = MetadataCatalog.get(name).get("thing_classes"), cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    own = ClassList.from_config(cfg)
    if own is not None and len(own) == wanted:
        return
    if classes is not None and len(classes) != wanted:
        raise ValueError(
            f"Data set {name!r} has {len(classes)} categories ({few(classes)}), but MODEL.SEM_SEG_HEAD.NUM_CLASSES is "
            f"{wanted}. Set it to {len(classes)}, or choose another data set in DATASETS."
        )


def check_records(cfg: Cfg, name: str, records: Sequence[Record]) -> None:
    """Raise when files of a data set are missing (unless DATALOADER.CHECK_FILES is False) or a mask cannot be read."""
    if cfg.DATALOADER.CHECK_FILES:
        check_files(name, records)
    check_masks(name, records)


def check_files(name: str, records: Sequence[Record]) -> None:
    """Raise FileNotFoundError when an image that the records list is not there; folders are listed, not opened."""
    by_folder: dict[str, set[str]] = defaultdict(set)
    for record in records:
        for path in record.get("file_names") or [record.get("file_name")]:
            if path is not None:
                folder, file = os.path.split(path)
                by_folder[folder].add(file)
    missing: list[str] = []
    folders = tqdm(by_folder.items(), desc=f"{name}: files", unit=" folders", disable=None, leave=False)
    for folder, files in folders:
        absent = sorted(files - _listed(folder))
        # Not every folder may be listed, and some file systems do not care about upper and lower case.
        missing += [path for path in (os.path.join(folder, file) for file in absent) if not os.path.exists(path)]
    total = sum(map(len, by_folder.values()))
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of the {total} files that data set {name!r} lists are missing, the first is {missing[0]}. "
            "Check the folder of images (DETECTRON2_DATASETS, or where the set is registered); DATALOADER.CHECK_FILES "
            "False leaves this check out."
        )
    logger.info("%s: all %d files are there.", name, total)


def _listed(folder: str) -> set[str]:
    try:
        with os.scandir(folder or ".") as entries:
            return {entry.name for entry in entries}
    except OSError:
        return set()


def check_masks(name: str, records: Sequence[Record]) -> None:
    """Decode a sample of the masks, spread over the records; ValueError names the first that is broken."""
    file = MetadataCatalog.get(name).get("json_file") or name
    step = max(1, len(records) // SAMPLED_MASKS)
    for record in records[::step]:
        if record.get("size_from_image"):  # the size of its masks is known when an image is read
            continue
        frames = [(t, frame) for t, frame in enumerate(_frames(record)) if frame]
        if frames:
            t, frame = frames[len(frames) // 2]
            number, mask = len(frame) // 2, frame[len(frame) // 2].get("segmentation")
            parent = (
                f"video {record['video_id']}, frame {t}" if "video_id" in record else f"image {record.get('image_id')}"
            )
            where = f"{file}: {parent}, annotation {frame[number].get('id', f'at position {number}')}"
            if isinstance(mask, dict):
                decode(mask, (record["height"], record["width"]), where)
            elif mask is not None:
                to_rle(mask, record["height"], record["width"], where)


def _frames(record: Record) -> list[list[Record]]:
    """The objects of every frame of a video, or of an image as its only frame."""
    annotations = record.get("annotations") or []
    return annotations if annotations and isinstance(annotations[0], list) else [annotations]


def count_objects(name: str, records: Iterable[Record]) -> ObjectCounts:
    """Count the objects of every record."""
    in_record, in_frame = [], []
    for record in records:
        counted = [[each for each in frame if not each.get("iscrowd", 0)] for frame in _frames(record)]
        most = max(map(len, counted), default=0)
        ids = {each["id"] for frame in counted for each in frame if "id" in each}
        in_record.append(max(most, len(ids)))
        in_frame.append(most)
    return ObjectCounts(name, np.array(in_record, np.int64), np.array(in_frame, np.int64))


def warn_of_many_objects(counts: Iterable[ObjectCounts], num_queries: int | None) -> None:
    """Say when there are more objects than the model has queries: those beyond are not trained on."""
    for each in counts:
        above = np.flatnonzero(each.in_record > num_queries) if num_queries is not None else ()
        if len(above):
            logger.warning(
                "%s: %d of %d records have more objects than the model has object queries (%d): up to %d, and up to %d "
                "in one frame. In a clip with more objects than queries those beyond are not trained on; raise "
                "NUM_OBJECT_QUERIES of the method.",
                *(each.name, len(above), len(each.in_record), num_queries),
                *(int(each.in_record.max()), int(each.in_frame.max())),
            )
