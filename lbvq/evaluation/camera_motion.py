"""How far the camera moves: the shift of what lies around the objects, from one frame to the next.

No annotation tells camera motion, and masks alone cannot, so the frames are needed. The shift is found by phase
correlation of the background (objects of the ground truth are blanked), on small grey images. It is a translation: a
camera that turns or comes nearer is only seen as far as it shifts the picture, and a large object without annotation
that moves looks like a moving camera.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from lbvq.evaluation.annotations import GroundTruth, Track, Video
from lbvq.files.images import read_image
from lbvq.masks.rle import decode, to_rle

MOTION_RANGES = {"still": (0.0, 0.1), "slow": (0.1, 0.5), "fast": (0.5, 1e9)}  # percent of the diagonal per frame
_WIDTH = 256  # of the compared images
_PAIRS = 8  # neighbouring frames that are compared, spread over the video


def camera_motion(ground_truth: GroundTruth, frames: str | Path) -> dict[int, float]:
    """Video id -> median shift between neighbouring frames, percent of the image's diagonal.

    Videos whose frames are not all there, or that have a single one, are left out.

    Args:
        ground_truth: with annotations.
        frames: folder to which `file_names` are relative.
    """
    tracks: dict[int, list[Track]] = {}
    for track in ground_truth.tracks:
        tracks.setdefault(track.video_id, []).append(track)
    found = {
        video.id: _motion_of(video, tracks.get(video.id, []), Path(frames)) for video in ground_truth.videos.values()
    }
    return {video: motion for video, motion in found.items() if motion is not None}


def _motion_of(video: Video, tracks: Sequence[Track], frames: Path) -> float | None:
    count = len(video.file_names)
    if count < 2 or video.size is None:
        return None
    shifts = []
    for t in sorted(set(np.linspace(0, count - 2, min(_PAIRS, count - 1)).round().astype(int).tolist())):
        paths = [frames / video.file_names[each] for each in (t, t + 1)]
        if not all(path.is_file() for path in paths):
            return None
        grey = [cv2.cvtColor(read_image(path), cv2.COLOR_RGB2GRAY) for path in paths]
        objects = [_objects(tracks, each, video.size) for each in (t, t + 1)]
        shifts.append(background_shift(grey, objects))
    return float(np.median(shifts))


def _objects(tracks: Sequence[Track], frame: int, size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool pixels of any object."""
    mask = np.zeros(size, bool)
    for track in tracks:
        text = track.masks[frame] if frame < len(track.masks) else None
        if text is not None:
            mask |= decode(to_rle({"size": list(size), "counts": json.loads(text)}, *size))
    return mask


def background_shift(grey: Sequence[np.ndarray], objects: Sequence[np.ndarray]) -> float:
    """Shift of the background between two (H, W) uint8 images, in percent of the diagonal.

    Args:
        grey: both images.
        objects: (h, w) bool pixels of each that do not belong to the background.
    """
    height, width = grey[0].shape
    scale = min(1.0, _WIDTH / width)
    size = max(8, round(width * scale)), max(8, round(height * scale))
    window = cv2.createHanningWindow(size, cv2.CV_32F)
    images = []
    for image, mask in zip(grey, objects, strict=True):
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.float32)
        outside = 1 - cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA)
        outside = cv2.GaussianBlur(cv2.erode(outside, np.ones((5, 5), np.uint8)), (0, 0), 2)  # no edge of our making
        mean = (small * outside).sum() / max(1e-6, float(outside.sum()))
        images.append((small - mean) * outside)
    (x, y), _ = cv2.phaseCorrelate(images[0], images[1], window)
    return 100 * float(np.hypot(x / size[0] * width, y / size[1] * height) / np.hypot(width, height))


def motion_groups(motion: Mapping[int, float]) -> dict[str, list[int]]:
    """Name of a range -> ids of its videos."""
    return {
        name: [video for video, value in motion.items() if low <= value < high]
        for name, (low, high) in MOTION_RANGES.items()
    }
