"""Writes the scene with labelme 6: QT_QPA_PLATFORM=offscreen python tests/peers/write_with_labelme.py tests/peers

labelme needs Qt, so it is no part of the tests; labelme.zip is what it wrote. The pictures are inside its files.
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import scene
from labelme import utils
from labelme._label_file import LabelFile
from PIL import Image


def shapes(t: int) -> list[dict]:
    """Masks as labelme cuts them out, with a group id; a polygon and a circle that have none, and points."""
    found = []
    for number, mask in scene.masks(t).items():
        rows, columns = np.nonzero(mask)
        top, left, bottom, right = rows.min(), columns.min(), rows.max(), columns.max()
        cut = mask[top : bottom + 1, left : right + 1].astype(np.uint8)
        corners = [[float(left), float(top)], [float(right), float(bottom)]]
        extra = {"mask": utils.img_arr_to_b64(cut)}
        found.append(shape(scene.TRACKS[number], "mask", corners, group_id=number) | extra)
    if t == 0:
        found.append(shape("dog", "polygon", [list(corner) for corner in scene.corners(0)[2]]))
        found.append(shape("cat", "circle", [[44.0, 30.0], [49.0, 30.0]]))
        found.append(shape("dog", "rectangle", [[50.0, 30.0], [54.0, 36.0]]))
        found.append(shape("cat", "point", [[3.0, 3.0]]))
    return found


def shape(label: str, kind: str, points: list, group_id: int | None = None) -> dict:
    return {
        "label": label,
        "points": points,
        "group_id": group_id,
        "description": "",
        "shape_type": kind,
        "flags": {},
        "mask": None,
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for t in range(scene.NUM_FRAMES):
            picture = io.BytesIO()
            Image.fromarray(scene.image(t)).save(picture, "PNG")
            LabelFile().save(
                str(Path(folder) / f"{t}.json"),  # 0.json to 4.json
                shapes=shapes(t),
                image_path=f"{t}.png",
                image_height=scene.HEIGHT,
                image_width=scene.WIDTH,
                image_data=picture.getvalue(),
            )
        shutil.make_archive(str(Path(sys.argv[1]) / "labelme"), "zip", folder)


if __name__ == "__main__":
    main()
