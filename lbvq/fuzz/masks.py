"""Targets: run-length coded masks, annotation files and results files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from lbvq.data.ytvis import load_ytvis_json
from lbvq.evaluation.annotations import GroundTruth, read_predictions
from lbvq.fuzz.mutations import mutate_json
from lbvq.fuzz.targets import target
from lbvq.masks import rle

SIZE = (20, 30)


def _mask(offset: int = 0) -> dict[str, Any]:
    mask = np.zeros(SIZE, dtype=bool)
    mask[4:12, 5 + offset : 15 + offset] = True
    return rle.encode(mask)


def _counts(mask: dict[str, Any]) -> dict[str, Any]:
    """The mask with its runs as a list of numbers."""
    flat = rle.decode(mask).ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    return {"size": list(SIZE), "counts": np.diff([0, *edges, flat.size]).tolist()}


def ground_truth() -> dict[str, Any]:
    """A YouTube-VIS file of two videos of three frames."""
    videos = [
        {"id": k, "height": SIZE[0], "width": SIZE[1], "length": 3, "file_names": [f"v{k}/{t}.jpg" for t in range(3)]}
        for k in (1, 2)
    ]
    objects: list[dict[str, Any]] = [
        {"id": 1, "video_id": 1, "category_id": 1, "segmentations": [_mask(0), None, _mask(2)]},
        {"id": 2, "video_id": 2, "category_id": 2, "segmentations": [_counts(_mask(t)) for t in range(3)]},
        {"id": 3, "video_id": 2, "category_id": 1, "segmentations": [[[1, 1, 9, 1, 9, 9]], None, None]},
    ]
    for item in objects:
        item.update(iscrowd=0, areas=[80, None, 80], bboxes=[[5, 4, 10, 8], None, [7, 4, 10, 8]])
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    return {"videos": videos, "categories": categories, "annotations": objects}


def write_masks(folder: Path) -> None:
    for name, mask in {"packed": _mask(), "list": _counts(_mask()), "polygon": [[1, 1, 9, 1, 9, 9, 2.5, 8]]}.items():
        (folder / f"{name}.json").write_text(json.dumps(mask))


@target("rle", write_masks, mutate_json)
def read_one_mask(path: Path) -> None:
    try:
        segmentation = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON") from error
    mask = rle.to_rle(segmentation, *SIZE, where=str(path))
    pixels = rle.decode(mask, SIZE)
    assert pixels.shape == SIZE and pixels.sum() == rle.area(mask)


def write_annotations(folder: Path) -> None:
    (folder / "annotations.json").write_text(json.dumps(ground_truth()))


@target("annotations", write_annotations, mutate_json)
def read_annotations(path: Path) -> None:
    load_ytvis_json(path, path.parent)
    GroundTruth(path)


def write_results(folder: Path) -> None:
    entry = {"video_id": 1, "category_id": 1, "score": 0.5, "segmentations": [_mask(), None, _counts(_mask())]}
    (folder / "results.json").write_text(json.dumps([entry, {**entry, "video_id": 2, "score": 0.25}]))


@target("results", write_results, mutate_json)
def read_results(path: Path) -> None:
    read_predictions(path, GroundTruth(ground_truth()))
