"""Frames of a video as small pictures inside the page, within a number of bytes."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from lbvq.files.images import read_image

_STEPS = ((480, 80), (320, 75), (240, 65), (160, 50))  # longer side in pixels, quality; the first that fits is taken
_PREFIX = "data:image/jpeg;base64,"


@dataclass(frozen=True)
class Pictures:
    """What is shown of a video.

    Attributes:
        frames: numbers of the frames shown, from 0, ascending.
        images: one data URI per frame shown; empty if a frame is missing on disk.
        problem: why there are no images, or "".
    """

    frames: list[int]
    images: list[str]
    problem: str = ""


def make_pictures(paths: Sequence[Path], length: int, max_frames: int, max_bytes: int) -> Pictures:
    """Read the frames of a video and shrink them until they fit.

    Args:
        paths: of all frames; none if nobody told where they are.
        length: number of frames.
        max_frames: more are thinned out evenly.
        max_bytes: of all images of the video; what does not fit at the smallest size is thinned out, too.
    """
    shown = spread(length, max_frames)
    if not paths:
        return Pictures(shown, [])
    try:
        images = [_shrunk(read_image(paths[index]), _STEPS[0][0]) for index in shown]
    except (OSError, IndexError) as error:
        missing = isinstance(error, (FileNotFoundError, IndexError))
        return Pictures(shown, [], "frames not found" if missing else "frames cannot be read")
    texts: list[str] = []
    for side, quality in _STEPS:
        texts = [_encode(_shrunk(image, side), quality) for image in images]
        if sum(map(len, texts)) <= max_bytes:
            return Pictures(shown, texts)
    fitting = max(1, int(len(texts) * max_bytes / sum(map(len, texts)))) if texts else 0
    kept = spread(len(shown), fitting)
    return Pictures([shown[each] for each in kept], [texts[each] for each in kept])


def spread(length: int, most: int) -> list[int]:
    """At most so many of the numbers below `length`, evenly; first and last among them."""
    if length <= most:
        return list(range(length))
    return sorted({round(each) for each in np.linspace(0, length - 1, most).tolist()})


def _shrunk(image: np.ndarray, side: int) -> np.ndarray:
    """(H, W, 3) with a longer side of at most so many pixels."""
    scale = side / max(image.shape[:2])
    if scale >= 1:
        return image
    height, width = (max(1, round(each * scale)) for each in image.shape[:2])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def _encode(image: np.ndarray, quality: int) -> str:
    ok, data = cv2.imencode(".jpg", np.ascontiguousarray(image[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not ok:
        raise ValueError(f"OpenCV cannot encode a picture of shape {image.shape}")
    return _PREFIX + base64.b64encode(data.tobytes()).decode()
