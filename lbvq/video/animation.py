"""Decode images that move or hold several pages: GIF, animated WebP and PNG, TIFF."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lbvq.files.images import opened_image, to_rgb
from lbvq.video.container import Damage, check_size
from lbvq.video.structure import has_gif_end

_FORMATS = ("GIF", "WEBP", "PNG", "TIFF")  # others with several pictures, such as photos with a preview, stand still
_SHORTEST_MS, _USUAL_MS = 10, 100  # browsers show a picture that claims to last no longer than the first for the second
_REDUCED = 1  # bit of TIFF's tag "NewSubfileType": a preview of another page
_SUBFILE_TYPE = 254


@dataclass(frozen=True)
class AnimationFrame:
    """A picture that is converted on request, before the next one is asked for."""

    image: Image.Image
    time: float | None
    decoding_time: float | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.image.height, self.image.width

    def to_rgb(self) -> np.ndarray:
        """(H, W, 3) uint8 RGB."""
        return to_rgb(self.image)


def image_kind(path: Path) -> str | None:
    """What an image file holds: "moving" pictures (or pages), a "still" one, or None when it is no image.

    A GIF always counts as moving, also with a single picture.
    """
    try:
        with opened_image(path, several=True) as image:
            is_moving = image.format == "GIF" or (image.format in _FORMATS and getattr(image, "is_animated", False))
            return "moving" if is_moving else "still"
    except OSError:  # who reads the image says what is wrong with it
        return None


def decode_animation(path: Path, error_type: type[Exception]) -> Generator[AnimationFrame, None, Damage | None]:
    """Yield the pictures of one image file; otherwise like `lbvq.video.container.decode_container`."""
    count, first, reason = 0, None, None
    for frame, problem in _pictures(path):
        if frame is None:
            reason = problem
            break
        first = first or frame.size
        check_size(frame.size, first, count, path, error_type)
        yield frame
        count += 1
    if reason is None and count == 0:
        reason = "no picture can be decoded"
    return None if reason is None else Damage(count, reason)


def _pictures(path: Path) -> Iterator[tuple[AnimationFrame | None, str | None]]:
    """Yield (frame, None) for every picture; at the first damage (None, reason)."""
    try:
        with opened_image(path, several=True) as image:
            has_clock, time = image.format != "TIFF", 0.0
            for index in range(int(getattr(image, "default_image", False)), getattr(image, "n_frames", 1)):
                image.seek(index)
                image.load()
                if not _is_preview(image):
                    yield AnimationFrame(image, time if has_clock else None), None
                time += _seconds(image.info.get("duration"))
            if image.format == "GIF" and not has_gif_end(path):
                yield None, "the file ends before its last block"
    except Exception as error:  # Pillow documents none: OSError, SyntaxError, struct.error, EOFError, IndexError, ...
        yield None, f"a picture cannot be decoded ({str(error) or type(error).__name__})"


def _is_preview(image: Any) -> bool:
    return image.format == "TIFF" and bool(image.tag_v2.get(_SUBFILE_TYPE, 0) & _REDUCED)


def _seconds(milliseconds: float | None) -> float:
    """How long browsers show a picture."""
    claimed = milliseconds or 0
    return (claimed if claimed > _SHORTEST_MS else _USUAL_MS) / 1000
