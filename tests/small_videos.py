"""Small videos and images whose brightness tells the frame."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

LEVELS = [40, 80, 120, 160, 200]


def grey(level: int, height: int = 48, width: int = 64) -> np.ndarray:
    return np.full((height, width, 3), level, dtype=np.uint8)


def pictures(levels=LEVELS) -> list[Image.Image]:
    return [Image.fromarray(grey(level)) for level in levels]


def levels(video) -> list[int]:
    """Brightness of every frame, to the nearest ten."""
    return [round(float(frame.mean()) / 10) * 10 for frame in video]


def film(path: Path, frames=None, *, ratio: Fraction | None = None, **options) -> Path:
    frames = frames or [grey(level) for level in LEVELS]
    with av.open(str(path), "w", **options) as target:
        stream = target.add_stream("libx264", rate=10, options={"bf": "0"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        if ratio is not None:
            stream.codec_context.sample_aspect_ratio = ratio
        for frame in frames:
            target.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        target.mux(stream.encode(None))
    return path
