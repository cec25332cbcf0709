"""A tiny data set in YouTube-VIS format and a tiny one in COCO format, as the recorded data goldens expect them.

`make(root)` writes `root/vis/train.json`, `root/vis/images/<video>/<frame>.png`, `root/coco/train.json` and
`root/coco/images/*.png`, and returns the two annotation files. Categories are out of order on purpose, ids have gaps,
masks come in every form, and one annotation belongs to no video.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from golden_fill import frames
from PIL import Image
from pycocotools import mask as mask_util


def ellipse(h, w, cy, cx, ry, rx):
    yy, xx = np.mgrid[0:h, 0:w]
    return ((yy - cy) / ry) ** 2 + ((xx - cx) / rx) ** 2 <= 1


def compressed(mask):
    rle = mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode()}


def uncompressed(mask):
    flat = np.concatenate([[0], mask.flatten(order="F").astype(int), [-1]])
    ends = np.flatnonzero(np.diff(flat))  # where a run ends; the first run is background
    return {"size": list(mask.shape), "counts": np.diff(np.concatenate([[0], ends])).tolist()}


def box(mask):
    y, x = np.where(mask)
    return [int(x.min()), int(y.min()), int(np.ptp(x) + 1), int(np.ptp(y) + 1)]


def video_object(k, t, h, w):
    """Segmentation, box and area of object k in frame t, or three times None."""
    mask = ellipse(h, w, 15 + 15 * k + t, 20 + 20 * k + 2 * t, 8 + k, 12)
    if (k == 1 and t in (0, 3)) or (k == 2 and t % 2):
        return None, None, None
    x, y, bw, bh = box(mask)
    if k == 0:
        segmentation = compressed(mask) if t % 2 == 0 else uncompressed(mask)
    elif k == 1:  # the second polygon is invalid
        segmentation = [[x, y, x + bw, y, x + bw, y + bh, x, y + bh], [1, 2, 3]]
    else:  # nothing valid in frame 0
        segmentation = compressed(mask) if t else [[1.0, 2.0, 3.0, 4.0]]
    return segmentation, [x, y, bw, bh], int(mask.sum())


def make_videos(root: Path):
    h, w = 60, 90
    videos, annotations, next_id = [], [], 100
    for video_id, name, length in ((5, "vb", 6), (2, "va", 5), (9, "vc", 3)):
        folder = root / "vis" / "images" / name
        folder.mkdir(parents=True)
        for t, frame in enumerate(frames(length, h, w, seed=video_id)):
            Image.fromarray(frame.permute(1, 2, 0).numpy()).save(folder / f"{t:05d}.png")
        names = [f"{name}/{t:05d}.png" for t in range(length)]
        videos.append({"id": video_id, "width": w, "height": h, "length": length, "file_names": names})
        if name == "vc":
            continue  # stays without objects
        for k, category in enumerate((7, 1, 3)):
            segmentations, boxes, areas = zip(*(video_object(k, t, h, w) for t in range(length)), strict=True)
            annotations.append(
                {
                    "id": next_id,
                    "video_id": video_id,
                    "category_id": category,
                    "iscrowd": 0,
                    "width": w,
                    "height": h,
                    "length": length,
                    "segmentations": list(segmentations),
                    "bboxes": list(boxes),
                    "areas": list(areas),
                }
            )
            next_id += 1
    stray = {"id": next_id, "video_id": 77, "category_id": 1, "iscrowd": 0, "width": w, "height": h, "length": 1}
    annotations.append({**stray, "segmentations": [None], "bboxes": [None], "areas": [None]})
    categories = [{"id": 7, "name": "seven"}, {"id": 1, "name": "one"}, {"id": 3, "name": "three"}]
    return {"videos": videos, "annotations": annotations, "categories": categories}


def make_images(root: Path):
    folder = root / "coco" / "images"
    folder.mkdir(parents=True)
    images, annotations = [], []
    for number, (image_id, frame) in enumerate(zip((30, 10, 20), frames(3, 70, 100, seed=42), strict=True)):
        Image.fromarray(frame.permute(1, 2, 0).numpy()).save(folder / f"{image_id}.png")
        images.append({"id": image_id, "file_name": f"{image_id}.png", "height": 70, "width": 100})
        for k, category in enumerate((1, 44, 3)):
            cy, cx, r = 20 + 12 * k, 25 + 22 * k, 9 + 2 * k
            angle = np.linspace(0, 2 * np.pi, 9)[:-1]
            corners = np.round(np.stack([cx + r * np.cos(angle), cy + r * np.sin(angle)], 1), 2)
            annotation = {
                "id": len(annotations) + 1,
                "image_id": image_id,
                "category_id": category,
                "iscrowd": 0,
                "area": 10.0,
                "bbox": [cx - r, cy - r, 2 * r, 2 * r],
                "segmentation": [corners.reshape(-1).tolist()],
            }
            if number == 1 and k == 2:
                annotation |= {"iscrowd": 1, "segmentation": uncompressed(ellipse(70, 100, cy, cx, r, r))}
            annotations.append(annotation)
    categories = [{"id": 1, "name": "person"}, {"id": 3, "name": "car"}, {"id": 44, "name": "bottle"}]
    return {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": categories}


def make(root):
    """Write both data sets below `root` and return (video file, image file)."""
    root = Path(root)
    videos, images = make_videos(root), make_images(root)
    (root / "vis" / "train.json").write_text(json.dumps(videos))
    (root / "coco" / "train.json").write_text(json.dumps(images))
    return videos, images
