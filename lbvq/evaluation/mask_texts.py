"""The masks of one track or detection as texts, one per frame, with their sizes checked; nothing is decoded yet."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from lbvq.files.mask_file import MaskFile, parse_size
from lbvq.files.rules import frame_size, is_nothing
from lbvq.masks.rle import to_rle

if TYPE_CHECKING:
    from lbvq.evaluation.annotations import Video

Masks = list["bytes | None"]  # one per frame: counts as JSON text, None where the object is not visible


def read_masks(entry: Any, file: MaskFile, video: Video, where: str, *, polygons: bool = True) -> Masks:
    """Turn "segmentations" into one text (or None) per frame; the masks themselves are checked when they are decoded.

    Args:
        entry: list with a mask, a list of polygons, or null for each frame.
        file: where it comes from.
        video: whose size the masks must have; the first mask decides when the ground truth does not tell.
        where: name of the track in messages.
        polygons: whether they are allowed; they are no form of results.
    """
    if not isinstance(entry, (list, tuple)):
        got = "nothing" if entry is None else type(entry).__name__
        raise ValueError(f"{where}: 'segmentations' must be a list with one entry per frame, got {got}")
    masks: Masks = []
    for item in entry:
        if type(item) is range:
            _check_sizes(set(file.sizes[item.start : item.stop]), video, f"{where}, frames from {len(masks)} on")
            masks += file.texts[item.start : item.stop]
        elif is_nothing(item):
            masks.append(None)  # as published: null and empty entries mean that the object is not visible
        elif isinstance(item, Mapping):
            masks.append(_mask_text(item, video, f"{where}, frame {len(masks)}"))
        else:
            masks.append(_polygons_text(item, video, f"{where}, frame {len(masks)}", polygons))
    return masks


def _check_sizes(sizes: set[bytes], video: Video, where: str) -> None:
    for text in sizes:
        if video.size is None or not _is_size(text, video.size):
            _check_video_size(parse_size(text), video, where)


@lru_cache
def _is_size(text: bytes, size: tuple[int, int]) -> bool:
    """Whether a text is a size that was checked before."""
    found = parse_size(text)
    return found == size and all(type(side) is int for side in found)


def _check_video_size(size: Any, video: Video, where: str) -> None:
    """Masks must have the size of their video."""
    size = frame_size(size, where, exact=True)
    if video.size is None:
        video.size = size
    elif size != video.size:
        raise ValueError(f"{where}: mask size {size} (height, width) differs from the video's {video.size}")


def _mask_text(item: Mapping[str, Any], video: Video, where: str) -> bytes:
    """Turn a mask that is a Python object into JSON text of its counts."""
    if "size" not in item or "counts" not in item:
        raise ValueError(f"{where}: a mask needs 'size' and 'counts', got the keys {sorted(map(str, item))}")
    _check_video_size(item["size"], video, where)
    counts = item["counts"]
    if isinstance(counts, bytes):
        counts = counts.decode("latin-1")
    if isinstance(counts, np.ndarray):
        counts = counts.tolist()
    if isinstance(counts, (str, list, tuple)):
        return json.dumps(counts, default=repr).encode()
    raise ValueError(f"{where}: 'counts' must be a string or a list, got {type(counts).__name__}")


def _polygons_text(item: Any, video: Video, where: str, allowed: bool) -> bytes:
    if isinstance(item, (list, tuple)) and not allowed:
        raise ValueError(f"{where}: polygons are no form of results; write run lengths, {{'size', 'counts'}}")
    if video.size is None:
        raise ValueError(f"{where}: a polygon needs 'height' and 'width' of the video, which the file does not give")
    return json.dumps(to_rle(item, *video.size, where)["counts"]).encode()
