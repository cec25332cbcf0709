"""Writes the scene with Label Studio's SDK 2.1: python tests/peers/write_with_label_studio.py tests/peers

The SDK needs older versions of numpy and OpenCV than this project, so it is no part of the tests. label_studio.json
holds image tasks whose brushes the SDK has encoded; label_studio_video.json a video task with keyframes, and the frames
that the SDK has interpolated from it.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import scene
from label_studio_sdk._extensions.label_studio_tools.postprocessing.video import extract_key_frames
from label_studio_sdk.converter.brush import image2annotation
from PIL import Image


def image_task(t: int) -> dict:
    results = []
    for number, mask in scene.masks(t).items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "mask.png"
            Image.fromarray(mask.astype(np.uint8) * 255).save(path)
            (brush,) = image2annotation(str(path), scene.TRACKS[number], "tag", "image")["result"]
        brush["id"] = f"r{t}{number}"
        whose = {"id": brush["id"], "type": "number", "from_name": "track_id", "to_name": "image"}
        results += [brush, {**whose, "value": {"number": number}}]
    file = f"/data/upload/3/5d3f1a2b-frame{t}.png"
    return {"id": 100 - t, "data": {"image": file}, "annotations": [{"id": t, "result": results}]}


def video_task() -> dict:
    def key(frame: int, x: float, width: float, enabled: bool, rotation: float = 0) -> dict:
        box = {"x": x, "y": 25.0, "width": width, "height": 50.0, "rotation": rotation}
        return {"frame": frame, "enabled": enabled, "time": frame / 25, **box}

    sequence = [key(2, 10.0, 20.0, True), key(6, 50.0, 30.0, False), key(9, 20.0, 10.0, True, 15)]
    value = {"framesCount": 12, "duration": 0.48, "sequence": sequence, "labels": ["dog"]}
    region = {"id": "box", "type": "videorectangle", "from_name": "box", "to_name": "video", "value": value}
    return {
        "id": 7,
        "data": {"video": "/data/local-files/?d=clips/run.mp4"},
        "annotations": [{"id": 1, "result": [region]}],
    }


def main() -> None:
    target = Path(sys.argv[1])
    tasks = [image_task(t) for t in range(scene.NUM_FRAMES)]
    (target / "label_studio.json").write_text(json.dumps(tasks) + "\n")
    task = video_task()
    (expanded,) = extract_key_frames(task["annotations"][0]["result"])
    content = {"tasks": [task], "frames": expanded["value"]["sequence"]}
    (target / "label_studio_video.json").write_text(json.dumps(content) + "\n")


if __name__ == "__main__":
    main()
