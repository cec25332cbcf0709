"""What the readers of annotation files share: opening, categories, segmentations, boxes.

What a file may hold is said in `lbvq.files.rules`, for training and scoring alike.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lbvq.data.catalog import MetadataCatalog
from lbvq.files import rules
from lbvq.files.json_files import read_json
from lbvq.masks.rle import to_rle

logger = logging.getLogger(__name__)

NO_MAPPING_NEEDED = "coco"  # as published: data sets with this in their name are expected to have gaps in their ids
INVALID_SEGMENTATIONS = (
    "Filtered out %d instances without valid segmentation. There might be issues in your dataset generation process. "
    "A valid polygon should be a list[float] with even length >= 6. The first: %s."
)  # as published, with the first
_INVALID_POLYGONS = "%d polygons with fewer than 3 points, or half a point, were left out of masks. The first: %s."
_FLAT_BOXES = "%d boxes have no area although their masks have one; they are made from the masks. The first: %s."


def read_annotation_file(json_file: str | Path) -> dict[str, Any]:
    """Read a JSON object from a file."""
    started = time.perf_counter()
    try:
        content = read_json(json_file)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"No annotation file {json_file}. Put the data there (datasets/README.md shows the folders), "
            "or let the environment variable DETECTRON2_DATASETS point to the folder of all data sets."
        ) from None
    if not isinstance(content, dict):
        raise ValueError(f"{json_file} must hold a JSON object, got a {type(content).__name__}.")
    seconds = time.perf_counter() - started
    if seconds > 1:
        logger.info("Loading %s takes %.2f seconds.", json_file, seconds)
    return content


def list_of(content: Mapping[str, Any], key: str, json_file: str | Path, *, required: bool = False) -> list[Any]:
    """Return the list under `key`; a list that is missing or null is empty, unless it is required."""
    return [] if content.get(key) is None and not required else rules.entries(content, key, str(json_file))


def need(entry: Mapping[str, Any], key: str, where: str) -> Any:
    """Return `entry[key]`, or raise an error that says where it is missing."""
    if not isinstance(entry, Mapping) or key not in entry:
        found = sorted(entry) if isinstance(entry, Mapping) else type(entry).__name__
        raise ValueError(f"{where} has no {key!r}; it has {found}.")
    return entry[key]


def needed_size(entry: Mapping[str, Any], where: str) -> tuple[int, int]:
    """(height, width) of a video or an image."""
    return rules.frame_size((need(entry, "height", where), need(entry, "width", where)), where)


def read_categories(content: Mapping[str, Any], json_file: str | Path, name: str | None) -> dict[int, int]:
    """Check the categories of a file against the data set's metadata and fill what the metadata lack.

    Returns:
        Category id of the file -> contiguous class index (position in the order of ids).
    """
    metadata = MetadataCatalog.get(name) if name else None
    if "categories" not in content and metadata is not None and "thing_classes" in metadata:
        return dict(metadata.thing_dataset_id_to_contiguous_id)
    categories = rules.categories(content, str(json_file))
    names = [need(entry, "name", f"{json_file}: category {each}") for each, entry in categories.items()]
    for each, category_name in zip(categories, names, strict=True):
        if not isinstance(category_name, str):
            got = rules.shown(category_name)
            raise ValueError(f"{json_file}: category {each}: 'name' must be a text, got {got}.")
    id_map = {each: index for index, each in enumerate(categories)}
    if id_map and not (min(id_map) == 1 and max(id_map) == len(id_map)) and NO_MAPPING_NEEDED not in (name or ""):
        logger.warning("Category ids in annotations are not in [1, #categories]! We'll apply a mapping for you.")
    if metadata is not None:
        _check_categories(metadata, names, id_map, json_file)
    return id_map


def _check_categories(metadata: Any, names: list[str], id_map: dict[int, int], json_file: str | Path) -> None:
    """Raise when the file has other categories than the data set; set them when the data set had none yet."""
    known = metadata.get("thing_classes")
    if known is not None and list(known) != names:
        pairs = [(i, a, b) for i, (a, b) in enumerate(zip(known, names, strict=False)) if a != b]
        first = f"class {pairs[0][0]} should be {pairs[0][1]!r}, got {pairs[0][2]!r}" if pairs else "one list is longer"
        raise ValueError(
            f"{json_file} has {len(names)} categories that differ from the {len(known)} of {metadata.name!r}: {first}. "
            "Use the annotation file of that data set, or register yours under another name."
        )
    metadata.set(thing_classes=names, thing_dataset_id_to_contiguous_id=id_map)


def clean_segmentation(
    segmentation: Any, size_hw: tuple[int, int], where: str, tally: rules.Tally | None = None
) -> Any:
    """Keep a compressed mask, compress one with a list of counts, and keep the valid polygons of a list.

    Masks are checked when they are decoded; here only their form is. A `tally` counts what is left out.

    Returns:
        A compressed mask, a list of at least one polygon, or None when nothing valid is left.
    """
    if isinstance(segmentation, dict):
        counts = need(segmentation, "counts", f"{where}, segmentation")
        return to_rle(segmentation, *size_hw, where=where) if isinstance(counts, (list, tuple)) else segmentation
    if not isinstance(segmentation, list):
        raise ValueError(f"{where}: a segmentation is a mask or a list of polygons, got {type(segmentation).__name__}.")
    polygons = [each for each in segmentation if _is_polygon(each)]
    if tally is None:
        return polygons or None
    if not polygons:
        tally.add(INVALID_SEGMENTATIONS, where)
    elif len(polygons) < len(segmentation):
        tally.add(_INVALID_POLYGONS, where)
    return polygons or None


def check_mask_size(segmentation: Any, size_hw: tuple[int, int], where: str) -> None:
    """Raise when a mask of run lengths has another size than its frame; that is known without decoding it."""
    if isinstance(segmentation, dict):
        size = rules.frame_size(need(segmentation, "size", f"{where}, segmentation"), where, exact=True)
        if size != tuple(size_hw):
            raise ValueError(f"{where}: mask size {size} (height, width) differs from the frame's {tuple(size_hw)}")


def _is_polygon(points: Any) -> bool:
    return isinstance(points, list) and len(points) % 2 == 0 and len(points) >= 6


def clean_box(box: Any, where: str, tally: rules.Tally) -> list[float] | None:
    """Keep a box x, y, width, height that has an area; the mask decides where an object is, and makes the others."""
    if rules.is_nothing(box):
        return None
    if min(rules.box_xywh(box, where)[2:]) > 0:
        return box
    tally.add(_FLAT_BOXES, where)
    return None
