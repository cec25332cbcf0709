"""Read videos: files (mp4, webm, gif, ...), folders of frames, patterns, images and addresses, decoded as needed.

`read_video` returns a `VideoFrames`, a sequence of (H, W, 3) uint8 RGB arrays turned upright (`lbvq.video.frames`).
What is read is what a player shows, and only the formats of `lbvq.video.formats` and `lbvq.files.images` are read.
Writing is in `lbvq.video.writer`.
"""

from __future__ import annotations

import glob
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from lbvq.files.images import IMAGE_SUFFIXES, read_image
from lbvq.video.address import fetch_video, is_address, local_path
from lbvq.video.animation import decode_animation, image_kind
from lbvq.video.formats import is_clutter
from lbvq.video.frames import ContainerFrames, ImageFrames, VideoError, VideoFrames

__all__ = ["IMAGE_SUFFIXES", "VideoError", "VideoFrames", "natural_key", "read_image", "read_video"]

AnyPath = TypeVar("AnyPath", str, Path)

logger = logging.getLogger(__name__)


def read_video(source: str | os.PathLike | Sequence, *, allow_truncated: bool = False) -> VideoFrames:
    """Open a video without decoding it; one from an address is downloaded first.

    Args:
        source: a video file, an animated image, a folder of images, a glob pattern of images, one image, a list of
            image files, or an address (http://, rtsp://, ...). Images of a folder or pattern are taken in natural order
            (frame2 before frame10). Files that operating systems leave in folders are left out.
        allow_truncated: use the frames before the first one that cannot be read, with a warning, instead of raising.

    Returns:
        A sequence of (H, W, 3) uint8 RGB arrays of one size.

    Raises:
        VideoError: nothing can be read, or frames have different sizes.
        FileNotFoundError: there is no such file or folder, or no image in it.
    """
    if isinstance(source, Sequence) and not isinstance(source, str):
        return ImageFrames(without_clutter([Path(item) for item in source]), allow_truncated=allow_truncated)
    if is_address(source):
        return _read_address(str(source), allow_truncated)
    path = Path(source)  # type: ignore[arg-type]  # a sequence that is no list cannot be a path either
    if path.is_dir():
        return _read_folder(path, allow_truncated)
    if not path.exists() and glob.has_magic(str(source)):
        return _read_pattern(str(source), allow_truncated)
    if not path.exists():
        raise FileNotFoundError(f"there is no file or folder {path}")
    return _read_file(path, allow_truncated)


def natural_key(path: Path) -> list:
    """Sort key under which numbers in file names count as numbers: frame2 comes before frame10."""
    parts = re.split(r"(\d+)", path.name)
    return [(int(part), part) if index % 2 else (0, part.lower()) for index, part in enumerate(parts)]


def without_clutter(paths: Sequence[AnyPath]) -> list[AnyPath]:
    """Leave out what operating systems put beside frames, and say so."""
    kept = [path for path in paths if not is_clutter(Path(path))]
    if len(kept) < len(paths):
        left = next(path for path in paths if is_clutter(Path(path)))
        logger.warning("%d files of the operating system are left out, such as %s", len(paths) - len(kept), left)
    return kept


def matches(pattern: str) -> list[Path]:
    """Files that a glob pattern names, in natural order; folders that exist are taken by name, also "clip[1]"."""
    parts = Path(pattern).parts
    known = 0
    while known < len(parts) and Path(*parts[: known + 1]).exists():
        known += 1
    literal = [glob.escape(part) for part in parts[:known]]
    found = [Path(item) for item in glob.glob(os.path.join("", *literal, *parts[known:]))]
    return sorted(without_clutter(found), key=natural_key)


def _read_file(path: Path, allow_truncated: bool) -> VideoFrames:
    if not path.is_file():
        raise VideoError(f"{path} is no file but a device or a pipe, which demo/stream.py reads with --input -")
    kind = image_kind(path)
    if kind == "moving":
        return ContainerFrames(path, allow_truncated=allow_truncated, decode=decode_animation)
    if kind == "still" or path.suffix.lower() in IMAGE_SUFFIXES:
        return ImageFrames([path], allow_truncated=allow_truncated)
    return ContainerFrames(path, allow_truncated=allow_truncated)


def _read_folder(path: Path, allow_truncated: bool) -> VideoFrames:
    images = [item for item in path.iterdir() if item.suffix.lower() in IMAGE_SUFFIXES and item.is_file()]
    images = sorted((item for item in images if not item.name.startswith(".")), key=natural_key)  # as patterns do
    if not images:
        raise FileNotFoundError(f"{path} holds no image; expected files ending in {', '.join(IMAGE_SUFFIXES)}")
    kinds = sorted({item.suffix.lower().replace("jpeg", "jpg").replace("tiff", "tif") for item in images})
    if len(kinds) > 1:
        logger.warning("%s holds images of several kinds (%s); all are taken as frames", path, ", ".join(kinds))
    if len(images) == 1:
        return _read_file(images[0], allow_truncated)
    return ImageFrames(images, allow_truncated=allow_truncated)


def _read_pattern(pattern: str, allow_truncated: bool) -> VideoFrames:
    found = matches(pattern)
    if not found:
        raise FileNotFoundError(f"no file matches {pattern}")
    others = [item for item in found if item.suffix.lower() not in IMAGE_SUFFIXES]
    if len(found) == 1:
        return read_video(found[0], allow_truncated=allow_truncated)
    if others:
        raise VideoError(f"{pattern} matches {len(found)} files that are not all images, such as {others[0]}")
    return ImageFrames(found, allow_truncated=allow_truncated)


def _read_address(address: str, allow_truncated: bool) -> VideoFrames:
    path = local_path(address)
    if path is not None:
        return read_video(path, allow_truncated=allow_truncated)
    folder, path = fetch_video(address, VideoError)
    try:
        frames = _read_file(path, allow_truncated)
    except (VideoError, OSError) as error:
        folder.cleanup()
        raise VideoError(f"{address} cannot be read: {error}") from error
    frames.name, frames.folder = address, folder
    return frames
