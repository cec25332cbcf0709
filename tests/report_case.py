"""A small data set of videos, results with an error of every sort, and names that try to break a page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from lbvq.masks import rle

HOSTILE = '</script><img src=x onerror="window.broken=1">"quoted" \'and\'\nnext line 猫&amp;'
CLASSES = {1: "cat", 2: HOSTILE, 3: "__proto__"}
SIZE, NUM_FRAMES = (48, 64), 4


def tube(x: int, y: int, width: int, height: int) -> list[dict[str, Any]]:
    """A rectangle that moves to the right."""
    masks = np.zeros((NUM_FRAMES, *SIZE), bool)
    for frame in range(NUM_FRAMES):
        masks[frame, y : y + height, x + 2 * frame : x + 2 * frame + width] = True
    return rle.encode_many(masks)


def truth_and_results(num_videos: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Two tracks in every video: the first is found, the second is confused, missed or found badly, in turn."""
    videos, annotations, results = [], [], []
    for number in range(1, num_videos + 1):
        folder = f'{number}<b>"猫"' if number % 2 else f"video{number}"
        names = [f"{folder}/{frame}.jpg" for frame in range(NUM_FRAMES)]
        head = {"id": number, "height": SIZE[0], "width": SIZE[1], "length": NUM_FRAMES}
        videos.append(head | {"file_names": names})
        for place, (category, own) in enumerate(((1, tube(4, 4, 16, 16)), (2, tube(30, 20, 20, 20)))):
            row = {"id": 2 * number + place, "video_id": number, "category_id": category, "iscrowd": 0}
            annotations.append(row | {"segmentations": own})
        found = [(1, tube(4, 4, 16, 16), 0.9)]
        found += [[(1, tube(30, 20, 20, 20), 0.8)], [], [(2, tube(30, 20, 20, 8), 0.7), (3, tube(0, 40, 5, 5), 0.2)]][
            number % 3
        ]
        for category, own, score in found:
            row = {"video_id": number, "category_id": category, "score": score}
            results.append(row | {"segmentations": own})
    categories = [{"id": number, "name": name} for number, name in CLASSES.items()]
    return {"videos": videos, "categories": categories, "annotations": annotations}, results


def write_report_case(folder: Path, num_videos: int = 6) -> None:
    """Write gt.json, dt.json, and frames/ of the videos but the last."""
    truth, results = truth_and_results(num_videos)
    (folder / "gt.json").write_text(json.dumps(truth))
    (folder / "dt.json").write_text(json.dumps(results))
    for video in truth["videos"][:-1]:
        for number, name in enumerate(video["file_names"]):
            path = folder / "frames" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            image = np.full((*SIZE, 3), 60 * number, np.uint8)
            path.write_bytes(cv2.imencode(".jpg", image)[1].tobytes())
