"""What the readers of annotation files share: opening, categories, segmentations, and errors that name the culprit."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

from lbvq.data.catalog import MetadataCatalog
from lbvq.masks.rle import to_rle

logger = logging.getLogger(__name__)

NO_MAPPING_NEEDED = "coco"  # as published: data sets with this in their name are expected to have gaps in their ids
INVALID_SEGMENTATIONS = (
    "Filtered out {} instances without valid segmentation. There might be issues in your dataset generation process. "
    "A valid polygon should be a list[float] with even length >= 6."
)  # as published


def read_annotation_file(json_file: str | Path) -> dict[str, Any]:
    """Read a JSON object from a file."""
    started = time.perf_counter()
    try:
        content = json.loads(Path(json_file).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"No annotation file {json_file}. Put the data there (datasets/README.md shows the folders), "
            "or let the environment variable DETECTRON2_DATASETS point to the folder of all data sets."
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{json_file} is not valid JSON: {error}; it may be cut off, download it again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{json_file} must hold a JSON object, got a {type(content).__name__}.")
    seconds = time.perf_counter() - started
    if seconds > 1:
        logger.info("Loading %s takes %.2f seconds.", json_file, seconds)
    return content


def list_of(content: dict[str, Any], key: str, json_file: str | Path, *, required: bool = False) -> list[Any]:
    """Return the list under `key`; a list that is missing or null is empty, unless it is required."""
    value = content.get(key)
    if value is None and not required:
        return []
    if not isinstance(value, list):
        raise ValueError(f"{json_file} must have a list {key!r}, got {type(value).__name__}.")
    return value


def need(entry: dict[str, Any], key: str, where: str) -> Any:
    """Return `entry[key]`, or raise an error that says where it is missing."""
    if not isinstance(entry, dict) or key not in entry:
        found = sorted(entry) if isinstance(entry, dict) else type(entry).__name__
        raise ValueError(f"{where} has no {key!r}; it has {found}.")
    return entry[key]


def read_categories(content: dict[str, Any], json_file: str | Path, name: str | None) -> dict[int, int]:
    """Check the categories of a file against the data set's metadata and fill what the metadata lack.

    Returns:
        Category id of the file -> contiguous class index (position in the order of ids).
    """
    metadata = MetadataCatalog.get(name) if name else None
    if "categories" not in content and metadata is not None and "thing_classes" in metadata:
        return dict(metadata.thing_dataset_id_to_contiguous_id)
    categories = list_of(content, "categories", json_file, required=True)
    ids = [need(each, "id", f"{json_file}: a category") for each in categories]
    names = dict(
        zip(ids, (need(each, "name", f"{json_file}: category {each['id']}") for each in categories), strict=True)
    )
    if len(names) != len(ids):
        raise ValueError(f"{json_file}: category ids occur twice: {sorted(i for i in names if ids.count(i) > 1)}.")
    id_map = {each: index for index, each in enumerate(sorted(names))}
    if ids and not (min(ids) == 1 and max(ids) == len(ids)) and NO_MAPPING_NEEDED not in (name or ""):
        logger.warning("Category ids in annotations are not in [1, #categories]! We'll apply a mapping for you.")
    if metadata is not None:
        _check_categories(metadata, [names[each] for each in id_map], id_map, json_file)
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


def contiguous_class(category_id: Any, id_map: dict[int, int], where: str) -> int:
    """Map a category id of the file to the class index."""
    if category_id not in id_map:
        raise ValueError(
            f"{where} has category_id {category_id!r}, which is not among the file's {sorted(id_map)[:10]}."
        )
    return id_map[category_id]


def clean_segmentation(segmentation: Any, size_hw: tuple[int, int], where: str) -> Any:
    """Keep a compressed mask, compress one with a list of counts, and keep the valid polygons of a list.

    Masks are checked when they are decoded; here only their form is.

    Returns:
        A compressed mask, a list of at least one polygon, or None when nothing valid is left.
    """
    if isinstance(segmentation, dict):
        counts = need(segmentation, "counts", f"{where}, segmentation")
        return to_rle(segmentation, *size_hw, where=where) if isinstance(counts, (list, tuple)) else segmentation
    if not isinstance(segmentation, list):
        raise ValueError(f"{where}: a segmentation is a mask or a list of polygons, got {type(segmentation).__name__}.")
    polygons = [each for each in segmentation if _is_polygon(each)]
    return polygons or None


def _is_polygon(points: Any) -> bool:
    return isinstance(points, list) and len(points) % 2 == 0 and len(points) >= 6
