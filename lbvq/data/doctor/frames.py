"""The frames of one video: there, readable to the last byte, of the right size, upright, and each another picture."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

from lbvq.data.doctor.findings import VideoFacts
from lbvq.data.doctor.structure import VideoEntry
from lbvq.files.images import read_image

DARK = 2**13  # frames of 16 bits whose largest value is below have fewer than 32 grey levels
_ORIENTATION = 0x0112  # EXIF tag


def examine_frames(video: VideoEntry, facts: VideoFacts) -> None:
    """Decode every frame."""
    bits: set[int] = set()
    before = b""
    for t, path in enumerate(video.files):
        if not path.is_file():
            facts.add("frame_missing", where=str(path), frame=t)
            continue
        try:
            pixels = read_image(path)
            depth, brightest, is_turned = _properties(path)
        except OSError as error:
            reason = str(error).removeprefix(f"Cannot read image {path}: ")
            facts.add("frame_damaged", reason, where=str(path), frame=t)
            continue
        if pixels.shape[:2] != video.size:
            facts.add("frame_size", f"{list(pixels.shape[:2])}, labels {list(video.size)}", where=str(path), frame=t)
        if is_turned:
            facts.add("frame_exif", where=str(path), frame=t)
        if depth == 16 and brightest < DARK:
            facts.add("frame_dark", f"largest value {brightest} of 65535", where=str(path), frame=t)
        bits.add(depth)
        digest = hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=16).digest()
        if digest == before:
            facts.add("frame_repeated", where=str(path), frame=t)
        before = digest
    if bits == {8, 16}:
        facts.add("frame_kinds")
    elif bits == {16}:
        facts.add("frame_16_bit")
    if len(video.files) == 1:
        facts.add("video_short")


def _properties(path: Path) -> tuple[int, int, bool]:
    """Bits per channel, the largest value where there are 16, and whether EXIF data ask for turning."""
    with Image.open(path) as image:
        is_turned = image.getexif().get(_ORIENTATION, 1) not in (0, 1)
        if image.mode[0] != "I":
            return 8, 0, is_turned
        return 16, int(np.asarray(image).max()), is_turned
