"""Writes the scene with Datumaro 1.13: python tests/peers/write_with_datumaro.py tests/peers

Datumaro needs older versions of OpenCV and Pillow than this project, so it is no part of the tests; the files
cvat_*.zip, mots.zip, coco.zip and palette.zip are what it wrote.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scene
from datumaro.components.annotation import AnnotationType, Bbox, LabelCategories, Mask, Polygon
from datumaro.components.dataset import Dataset
from datumaro.components.dataset_base import DatasetItem
from datumaro.components.media import Image


def dataset(annotate: Callable[[int], list]) -> Dataset:
    items = [
        DatasetItem(
            id=f"frame_{t:06d}",
            media=Image.from_numpy(np.ascontiguousarray(scene.image(t)[:, :, ::-1])),
            annotations=annotate(t),
            attributes={"frame": t},
        )
        for t in range(scene.NUM_FRAMES)
    ]
    return Dataset.from_iterable(items, categories={AnnotationType.label: LabelCategories.from_iterable(scene.CLASSES)})


def polygons(t: int) -> list:
    """Polygons in groups, and a box that belongs to none."""
    return [*(polygon(number, corners) for number, corners in scene.corners(t).items()), Bbox(2, 30, 6, 4, label=1)]


def polygon(number: int, corners: list, **attributes: object) -> Polygon:
    flat = [side for corner in corners for side in corner]
    label = scene.CLASSES.index(scene.TRACKS[number])
    return Polygon(flat, label=label, group=number, attributes={"track_id": number, **attributes})


def keyframes(t: int) -> list:
    """Track 1 at its first and last frame, track 2 in frame 1 and hidden from frame 3 on, a box that stays."""
    corners = scene.corners(t)
    found = []
    if t in (0, scene.NUM_FRAMES - 1):
        found.append(polygon(1, corners[1], keyframe=True))
    if t in (1, 3):
        found.append(polygon(2, corners[2], keyframe=True, outside=t == 3))
    if t == 2:
        found.append(Bbox(2, 30, 6, 4, label=1, attributes={"track_id": 9, "keyframe": True}))
    return found


def masks(t: int) -> list:
    return [
        Mask(mask, label=scene.CLASSES.index(scene.TRACKS[number]), attributes={"track_id": number}, group=number)
        for number, mask in scene.masks(t).items()
    ]


def main() -> None:
    files: dict[str, tuple[str, Callable[[int], list], dict]] = {
        "cvat_images": ("cvat", polygons, {}),
        "cvat_keyframes": ("cvat", keyframes, {"use_track": True}),
        "cvat_masks": ("cvat", masks, {"use_track": True}),
        "mots": ("mots_png", masks, {"save_media": True}),
        "coco": ("coco_instances", masks, {}),
        "palette": ("voc_segmentation", masks, {"part": "SegmentationObject"}),
    }
    for name, (form, annotate, options) in files.items():
        with tempfile.TemporaryDirectory() as folder:
            part = options.pop("part", "")
            dataset(annotate).export(folder, form, **options)
            shutil.make_archive(str(Path(sys.argv[1]) / name), "zip", Path(folder) / part)


if __name__ == "__main__":
    main()
