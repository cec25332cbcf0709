"""The one reader of images, for training, evaluation and the demos: the same pixels, limits and errors everywhere."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

ORDERS = ("RGB", "BGR")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM", "GIF", "JPEG2000")  # so that no rarely tested reader is tried
MAX_IMAGE_PIXELS = 2**27  # a gigabyte while it is decoded
_FREE_PIXELS, _MAX_PIXELS_PER_BYTE = 2**26, 500  # an image beyond the first has no more than the second in its file
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
    with opened_image(Path(path), where) as image:
        ImageOps.exif_transpose(image, in_place=True)
        pixels = to_rgb(image)
    return pixels[:, :, ::-1] if image_format == "BGR" else pixels


def image_size(path: str | os.PathLike[str], where: str = "") -> tuple[int, int]:
    """(H, W) of the upright image, from its header alone; errors are those of `read_image`."""
    with opened_image(Path(path), where) as image:
        width, height = image.size
        return (width, height) if image.getexif().get(_ORIENTATION, 1) in _TURNED else (height, width)


def to_rgb(image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a picture, writable; ValueError for pixels without a known white."""
    if image.mode[0] in "IF":
        return _from_16_bits(image)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


@contextmanager
def opened_image(path: Path, where: str = "", *, several: bool = False) -> Iterator[Image.Image]:
    """Open an image; whatever its decoder raises becomes an OSError that names the file.

    Args:
        several: the file may hold several pictures; the caller chooses.
    """
    context = f" of {where}" if where else ""
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is no file")  # reading a pipe would wait for somebody who writes into it
        with _BoundedFile(path) as file, Image.open(file, formats=_FORMATS) as image:
            _check_size(image, path)
            if not several and image.format != "MPO" and getattr(image, "n_frames", 1) > 1:  # photos: a preview
                raise ValueError(f"it holds {image.n_frames} pictures; save each as a file")
            yield image
    except FileNotFoundError:
        raise FileNotFoundError(
            f"No image {path}{context}; check the folder of images, and of a data set also DETECTRON2_DATASETS and the "
            "annotation file."
        ) from None
    except Exception as error:  # Pillow documents none: OSError, SyntaxError, struct.error, zlib.error, EOFError, ...
        raise OSError(f"Cannot read image {path}{context}: {str(error) or type(error).__name__}") from error


class _BoundedFile(io.BufferedReader):
    """A file that is never asked for more than it has: Pillow takes lengths as they are claimed, up to 4 GB."""

    def __init__(self, path: Path) -> None:
        super().__init__(open(path, "rb", buffering=0))  # closed with this object
        self._size = os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(0, self._size - self.tell())
        return super().read(left if size is None or size < 0 else min(size, left))


def _check_size(image: Image.Image, path: Path) -> None:
    """Refuse what takes gigabytes, and large pictures of few bytes, which nobody has taken."""
    num_pixels, num_bytes = image.width * image.height, path.stat().st_size
    if num_pixels > MAX_IMAGE_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels are above the limit of {MAX_IMAGE_PIXELS}")
    if num_pixels > max(_FREE_PIXELS, _MAX_PIXELS_PER_BYTE * num_bytes):
        raise ValueError(f"{image.width} x {image.height} pixels in {num_bytes} bytes are no picture but a bomb")


def _from_16_bits(image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8 of a grey image with 16 bits per pixel, which Pillow would cut off at 255 instead of scaling."""
    values = np.asarray(image)
    if values.dtype.kind not in "iu" or (values.size and not 0 <= values.min() <= values.max() <= 0xFFFF):
        raise ValueError(f"pixels of {values.dtype} have no known white; save the image with 8 or 16 bits per channel")
    return np.repeat((values >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
