"""What several data tests share: the tiny recorded data sets, a configuration, and small annotation files."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from helpers import GOLDEN
from PIL import Image

from lbvq.config import get_cfg

CLASS_MAP = {0: 2, 1: 1}  # of the recorded pseudo clips: person -> seven, car -> three, bottle -> nothing


def expect_opencv_4_to_differ(levels: float, allowed: int, is_rotated: bool) -> None:
    """End a test as an expected failure where OpenCV before 5 turns an image one grey level farther off."""
    if is_rotated and levels == allowed + 1 and int(cv2.__version__.split(".")[0]) < 5:
        pytest.xfail(f"OpenCV {cv2.__version__} turns images up to {levels:g} grey levels away from the recording")


@cache
def recorded() -> dict[str, Any]:
    return json.loads((GOLDEN / "vis_data.json").read_text())


def small_cfg(*options: Any) -> Any:
    """The configuration of the recorded mapper cases: LBVQ on YouTube-VIS 2019 with small frames."""
    cfg = get_cfg()
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.RANDOM_FLIP = "flip_by_clip"
    cfg.INPUT.SAMPLING_FRAME_NUM = 3
    cfg.INPUT.SAMPLING_FRAME_RANGE = 2
    cfg.INPUT.MIN_SIZE_TEST = 48
    for node in (cfg.INPUT, cfg.INPUT.PSEUDO):
        node.MIN_SIZE_TRAIN = (48, 56, 64)
        node.MIN_SIZE_TRAIN_SAMPLING = "choice_by_clip"
        node.MAX_SIZE_TRAIN = 80
        node.CROP.TYPE = "absolute_range"
    cfg.INPUT.CROP.SIZE = [384, 600]
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.merge_from_list(list(options))
    return cfg


def crop_options(enabled: bool) -> list[Any]:
    return ["INPUT.CROP.ENABLED", enabled, "INPUT.PSEUDO.CROP.ENABLED", enabled]


def write_video_file(folder: Path, annotations: Any = None, **video: Any) -> Path:
    """Write one grey video of 2 frames of 8 x 10 pixels with the given annotations, and return the annotation file."""
    names = video.pop("file_names", ["a/0.png", "a/1.png"])
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 10, 3), 100, np.uint8)).save(folder / name)
    entry = {"id": 1, "width": 10, "height": 8, "length": len(names), "file_names": names, **video}
    content = {"videos": [entry], "categories": [{"id": 1, "name": "thing"}], "annotations": annotations}
    path = folder / "videos.json"
    path.write_text(json.dumps(content))
    return path


def square(size: int = 4) -> list[list[float]]:
    """A polygon of size x size pixels with its corner at (1, 1)."""
    low, high = 1.0, 1.0 + size
    return [[low, low, high, low, high, high, low, high]]
