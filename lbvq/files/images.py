"""The one reader of images, for training, evaluation and the demos: the same pixels, limits and errors everywhere."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from lbvq.masks.rle import MAX_PIXELS

ORDERS = ("RGB", "BGR")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
_FORMATS = (
    "JPEG",
    "PNG",
    "WEBP",
    "BMP",
    "TIFF",
    "PPM",
    "GIF",
    "JPEG2000",
)  # named, so that Pillow tries no rarely tested reader
_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)  # the EXIF tag, and its values for which height and width change places


def read_image(path: str | os.PathLike[str], image_format: str = "RGB", where: str = "") -> np.ndarray:
    """Read an image file, turned upright as its EXIF data say.

    Palettes and grey images become colour, transparency is left out. Of 16 bits per pixel the upper 8 are kept, so
    that 65535 is white; values that have no known white (floats, 32 bits) are refused.

    Args:
        image_format: order of the channels, "RGB" or "BGR".
        where: for error messages, e.g. "video 7".

    Returns:
        (H, W, 3) uint8, writable.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it is not an image, is damaged, holds several pictures, too many pixels or a refused kind.
    """
    if image_format not in ORDERS:
        raise ValueError(f"The image format is one of {ORDERS}, got {image_format!r}; set INPUT.FORMAT.")
    with _opened(Path(path), where) as image:
        upright = ImageOps.exif_transpose(image)
        pixels = _from_16_bits(upright) if upright.mode[0] in "IF" else np.array(upright.convert("RGB"))
    return pixels[:, :, ::-1] if image_format == "BGR" else pixels


def image_size(path: str | os.PathLike[str], where: str = "") -> tuple[int, int]:
    """(H, W) of the upright image, from its header alone; errors are those of `read_image`."""
    with _opened(Path(path), where) as image:
        width, height = image.size
        return (width, height) if image.getexif().get(_ORIENTATION, 1) in _TURNED else (height, width)


@contextmanager
def _opened(path: Path, where: str) -> Iterator[Image.Image]:
    """Open an image; whatever its decoder raises becomes an OSError that names the file."""
    context = f" of {where}" if where else ""
    try:
        with Image.open(path, formats=_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels are above the limit of {MAX_PIXELS}")
            if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:  # photos may carry a preview
                raise ValueError(f"it holds {image.n_frames} pictures; save each as a file")
            yield image
    except FileNotFoundError:
        raise FileNotFoundError(
            f"No image {path}{context}; check the folder of images, and of a data set also DETECTRON2_DATASETS and the "
            "annotation file."
        ) from None
    except Exception as error:  # Pillow documents none: OSError, SyntaxError, struct.error, zlib.error, EOFError, ...
        raise OSError(f"Cannot read image {path}{context}: {error or type(error).__name__}") from error


def _from_16_bits(image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8 of a grey image with 16 bits per pixel, which Pillow would cut off at 255 instead of scaling."""
    values = np.asarray(image)
    if values.dtype.kind not in "iu" or (values.size and not 0 <= values.min() <= values.max() <= 0xFFFF):
        raise ValueError(f"pixels of {values.dtype} have no known white; save the image with 8 or 16 bits per channel")
    return np.repeat((values >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
