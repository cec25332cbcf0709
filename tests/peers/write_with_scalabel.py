"""Writes the scene with Scalabel 0.3: python tests/peers/write_with_scalabel.py tests/peers

Scalabel needs an older python-dateutil, so it is no part of the tests; scalabel.json is what it wrote.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import scene
from scalabel.label.io import save
from scalabel.label.transforms import mask_to_rle
from scalabel.label.typing import Box2D, Category, Config, Dataset, Frame, ImageSize, Label, Poly2D

KEYS = ("box2d", "box3d", "poly2d", "rle", "graph")


def labels(t: int) -> list[Label]:
    found = [
        label(str(number), scene.TRACKS[number], rle=mask_to_rle(mask.astype(np.uint8)))
        for number, mask in scene.masks(t).items()
    ]
    corners = scene.corners(t)[2]
    polygon = Poly2D(vertices=corners, types="L" * len(corners), closed=True)
    found.append(label("polygon", "dog", poly2d=[polygon], attributes={"crowd": True}))
    return [*found, label("box", "cat", box2d=Box2D(x1=1, y1=1, x2=4, y2=4))]


def label(number: str, category: str, **shape: object) -> Label:
    """A label; newer versions of pydantic want every key."""
    return Label(**{"id": number, "category": category, **dict.fromkeys(KEYS), **shape})


def main() -> None:
    frames = [
        Frame(name=f"{t:04d}.png", url=None, videoName="clip", frameIndex=t, labels=labels(t))
        for t in range(scene.NUM_FRAMES)
    ]
    config = Config(
        imageSize=ImageSize(height=scene.HEIGHT, width=scene.WIDTH),
        attributes=None,
        categories=[Category(name=name, subcategories=None, isThing=None, color=None) for name in scene.CLASSES],
        poseSigmas=None,
    )
    path = Path(sys.argv[1]) / "scalabel.json"
    save(str(path), Dataset(frames=frames, groups=None, config=config))
    path.write_text(json.dumps(json.loads(path.read_text())) + "\n")


if __name__ == "__main__":
    main()
