"""The built-in data set: short videos of moving shapes, made from a seed.

Every video shows 2 to 4 textured shapes of 5 categories on a background of blurred noise. They move, turn, bounce off
borders and cover each other in a fixed depth order; all but two may enter late, or leave and return. Colours
and textures are drawn independently of the category, so only the outline tells what a shape is. The masks are the
visible parts, as in YouTube-VIS.

`make_video` gives arrays, `write_dataset` a data set in YouTube-VIS format that is registered as `synthetic_train` and
`synthetic_val`.
"""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from lbvq.data.categories import category_table
from lbvq.files.writing import write_text
from lbvq.masks.rle import area, encode_many, to_bbox

logger = logging.getLogger(__name__)

VERSION = 2  # changes when the same seed gives other videos
_SUBPIXEL_BITS = 6  # of the polygon filler


@dataclass(frozen=True)
class SyntheticSettings:
    """What a video looks like. Lengths are pixels, angles degrees, speeds per frame."""

    height: int = 96
    width: int = 128
    num_frames: int = 10
    min_objects: int = 2
    max_objects: int = 4
    min_radius: float = 12.0
    max_radius: float = 24.0
    max_speed: float = 5.0
    max_turn: float = 12.0
    noise: float = 7.0  # standard deviation of the pixel noise, grey levels
    min_visible: int = 40  # pixels; with fewer an object counts as not visible

    def __post_init__(self) -> None:
        if min(self.height, self.width) < 16 or self.num_frames < 1:
            raise ValueError(f"A video needs at least 16 x 16 pixels and one frame, got {self}")
        if not 0 <= self.min_objects <= self.max_objects:
            raise ValueError(f"Expected 0 <= min_objects <= max_objects, got {self.min_objects} and {self.max_objects}")
        if not 0 < self.min_radius <= self.max_radius:
            raise ValueError(f"Expected 0 < min_radius <= max_radius, got {self.min_radius} and {self.max_radius}")

    @classmethod
    def scaled(cls, scale: float, *, height: int, width: int, num_frames: int) -> SyntheticSettings:
        """Settings for frames of another size, with shapes and speeds `scale` times the default."""
        base = cls()
        return cls(
            height=height,
            width=width,
            num_frames=num_frames,
            min_radius=base.min_radius * scale,
            max_radius=base.max_radius * scale,
            max_speed=base.max_speed * scale,
            min_visible=max(1, round(base.min_visible * scale**2)),
        )


@dataclass(frozen=True)
class SyntheticVideo:
    """One video.

    Attributes:
        frames: (T, H, W, 3) uint8 RGB.
        masks: (N, T, H, W) bool, the visible part of every object; disjoint.
        classes: N contiguous class indices, 0..4.
    """

    frames: np.ndarray
    masks: np.ndarray
    classes: list[int]


def make_video(seed: int | list[int], settings: SyntheticSettings | None = None) -> SyntheticVideo:
    """Draw one video; equal seeds and settings give equal videos."""
    settings = settings or SyntheticSettings()
    rng = np.random.default_rng(seed)
    num_objects = int(rng.integers(settings.min_objects, settings.max_objects + 1))
    background = _background(rng, settings.height, settings.width)
    shapes = [_Shape(rng, settings, is_resident=index < 2) for index in range(num_objects)]
    depth_order = rng.permutation(num_objects)  # from back to front

    frames = np.empty((settings.num_frames, settings.height, settings.width, 3), np.uint8)
    owner = np.full(frames.shape[:3], -1, np.int8)  # which object a pixel shows
    for t in range(settings.num_frames):
        canvas = background.copy()
        for index in depth_order:
            if t >= shapes[index].first_frame:
                shapes[index].paint(canvas, owner[t], int(index))
        canvas = cv2.GaussianBlur(canvas, (3, 3), 0.6)  # soft outlines, as a lens makes them
        canvas += rng.normal(0.0, settings.noise, canvas.shape).astype(np.float32)
        frames[t] = np.clip(canvas, 0, 255).astype(np.uint8)
        for shape in shapes:
            shape.move(rng)
    masks = owner[None] == np.arange(num_objects, dtype=np.int8)[:, None, None, None]
    masks &= masks.sum((2, 3), keepdims=True) >= settings.min_visible
    return SyntheticVideo(frames, masks, [shape.category for shape in shapes])


class _Shape:
    """One object on its way."""

    def __init__(self, rng: np.random.Generator, settings: SyntheticSettings, *, is_resident: bool) -> None:
        leaves = not is_resident and rng.random() < 0.4
        enters_late = not is_resident and not leaves and rng.random() < 0.6
        self.first_frame = int(rng.integers(1, max(2, settings.num_frames // 2 + 1))) if enters_late else 0

        self.category = int(rng.integers(len(_OUTLINES)))
        largest = 0.5 * (settings.min_radius + settings.max_radius) if leaves else settings.max_radius
        self.radius = rng.uniform(settings.min_radius, largest)
        stretch = rng.uniform(0.85, 1.18)
        self.outline = _OUTLINES[self.category] * self.radius * np.array([stretch, 1.0 / stretch])
        self.texture = _texture(rng, int(np.ceil(2.4 * self.radius)))
        self.angle = rng.uniform(0.0, 360.0)
        self.turn = rng.uniform(-settings.max_turn, settings.max_turn)

        size = np.array([settings.width, settings.height], np.float64)
        margin = -1.15 * self.radius - 2.0 if leaves else min(0.5 * self.radius, 0.25 * size.min())
        self.low, self.high = np.full(2, margin), size - margin  # the centre bounces here
        self.center = rng.uniform(np.maximum(self.low, 0.0), np.minimum(self.high, size))
        self.max_speed = settings.max_speed
        speed, heading = rng.uniform(0.25, 1.0) * self.max_speed, rng.uniform(0.0, 2 * np.pi)
        if leaves:
            speed, heading = self._start_at_a_border(rng, size)
        self.velocity = speed * np.array([np.cos(heading), np.sin(heading)])

    def _start_at_a_border(self, rng: np.random.Generator, size: np.ndarray) -> tuple[float, float]:
        """Move the centre close to a border and return a speed and a heading that lead out of the frame."""
        axis, is_far_side = int(rng.integers(2)), bool(rng.integers(2))
        depth = rng.uniform(0.3, 1.0) * self.radius
        self.center[axis] = size[axis] - depth if is_far_side else depth
        outward = ((np.pi, 0.0), (-0.5 * np.pi, 0.5 * np.pi))[axis][is_far_side]
        return rng.uniform(0.7, 1.0) * self.max_speed, outward + rng.uniform(-0.6, 0.6)

    def paint(self, canvas: np.ndarray, owner: np.ndarray, index: int) -> None:
        """Draw the shape over `canvas` (H, W, 3) float32 and write `index` into its pixels of `owner` (H, W)."""
        radians = np.deg2rad(self.angle)
        rotation = np.array([[np.cos(radians), -np.sin(radians)], [np.sin(radians), np.cos(radians)]])
        corners = self.outline @ rotation.T + self.center
        inside = np.zeros(owner.shape, np.uint8)
        fixed_point = np.round(corners * 2**_SUBPIXEL_BITS).astype(np.int32)
        cv2.fillPoly(inside, [fixed_point], 1, shift=_SUBPIXEL_BITS)
        middle = np.full(2, (self.texture.shape[0] - 1) / 2)
        placement = np.column_stack([rotation, self.center - rotation @ middle])
        texture = cv2.warpAffine(
            self.texture,
            placement,
            (owner.shape[1], owner.shape[0]),
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REFLECT,
        )
        inside = inside.astype(bool)
        canvas[inside] = texture[inside]
        owner[inside] = index

    def move(self, rng: np.random.Generator) -> None:
        """Advance by one frame: a slightly changing speed, reflected at the limits."""
        self.velocity += rng.normal(0.0, 0.08 * self.max_speed, 2)
        speed = np.hypot(*self.velocity)
        if speed > self.max_speed:
            self.velocity *= self.max_speed / speed
        self.center = self.center + self.velocity
        for axis in range(2):
            if not self.low[axis] <= self.center[axis] <= self.high[axis]:
                limit = self.low[axis] if self.center[axis] < self.low[axis] else self.high[axis]
                self.center[axis] = np.clip(2 * limit - self.center[axis], self.low[axis], self.high[axis])
                self.velocity[axis] *= -1
        self.angle += self.turn


def _star(num_points: int, inner: float) -> np.ndarray:
    """Corners of a star with `num_points` tips at radius 1 and its notches at radius `inner`."""
    angles = np.arange(2 * num_points) * np.pi / num_points
    radii = np.where(np.arange(2 * num_points) % 2 == 0, 1.0, inner)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def _regular(num_corners: int) -> np.ndarray:
    """Corners of a regular polygon at radius 1."""
    angles = np.arange(num_corners) * 2 * np.pi / num_corners
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _cross(arm: float) -> np.ndarray:
    """Corners of a plus sign that reaches to radius 1; an arm is `2 * arm` wide."""
    reach = np.sqrt(1.0 - arm**2)
    quarter = np.array([[reach, -arm], [reach, arm], [arm, arm]])
    turns = [np.linalg.matrix_power(np.array([[0.0, -1.0], [1.0, 0.0]]), k) for k in range(4)]
    return np.concatenate([quarter @ turn.T for turn in turns])


_OUTLINES = [_regular(40) * 0.9, _regular(4), _regular(3) * 1.1, _star(5, 0.45) * 1.1, _cross(0.33)]  # by class index


def _texture(rng: np.random.Generator, side: int) -> np.ndarray:
    """(side, side, 3) float32: two random colours mixed by stripes, checks, spots or a gradient."""
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) - side / 2
    direction = rng.uniform(0.0, np.pi)
    along = x * np.cos(direction) + y * np.sin(direction)
    across = y * np.cos(direction) - x * np.sin(direction)
    wave = 2 * np.pi / rng.uniform(5.0, 12.0)
    kind = rng.integers(4)
    if kind == 0:
        mix = 0.5 + 0.5 * np.sin(wave * along)
    elif kind == 1:
        mix = (np.sin(wave * along) * np.sin(wave * across) > 0).astype(np.float32)
    elif kind == 2:
        spots = cv2.GaussianBlur(rng.random((side, side)).astype(np.float32), (0, 0), 2.0)
        mix = (spots > np.median(spots)).astype(np.float32)
    else:
        mix = np.clip(0.5 + along / side, 0.0, 1.0)
    first = rng.uniform(20.0, 235.0, 3)
    second = np.clip(first + rng.normal(0.0, 35.0, 3), 20.0, 235.0)  # the outline must stay clearer than the texture
    return (first + (second - first) * mix[..., None]).astype(np.float32)


def _background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """(H, W, 3) float32: coloured noise, blurred at two scales."""
    canvas = np.empty((height, width, 3), np.float32)
    canvas[:] = rng.uniform(60.0, 195.0, 3)
    for sigma, strength in ((rng.uniform(2.0, 4.0), rng.uniform(4.0, 10.0)), (rng.uniform(8.0, 16.0), 18.0)):
        noise = cv2.GaussianBlur(rng.normal(size=(height, width, 3)).astype(np.float32), (0, 0), sigma)
        canvas += strength * noise / noise.std()
    return canvas


def write_dataset(
    root: str | Path,
    *,
    num_train: int = 600,
    num_val: int = 150,
    seed: int = 0,
    settings: SyntheticSettings | None = None,
    overwrite: bool = False,
) -> dict[str, Path]:
    """Write both splits in YouTube-VIS format: `root/synthetic/{train,val}.json` and the frames beside them.

    A split that is there with the same settings is kept as it is. One with other settings is an error unless
    `overwrite`; the frames of an interrupted run are replaced.

    Args:
        root: what DETECTRON2_DATASETS points to.
        num_train: videos in the train split.
        num_val: videos in the val split; no video is in both.
        seed: of the whole data set.
        settings: of the videos.
        overwrite: replace a split that was written with other settings.

    Returns:
        Split -> annotation file.
    """
    settings = settings or SyntheticSettings()
    folder = Path(root) / "synthetic"
    for name, count in (("num_train", num_train), ("num_val", num_val)):
        if count < 0:
            raise ValueError(f"{name} must not be negative, got {count}")
    files = {"train": folder / "train.json", "val": folder / "val.json"}
    for number, (split, count) in enumerate((("train", num_train), ("val", num_val))):
        recipe = {"generator": VERSION, "split": split, "num_videos": count, "seed": seed, **asdict(settings)}
        if not _is_written(files[split], recipe, overwrite):
            _write_split(folder / split / "JPEGImages", files[split], recipe, [seed, number], settings)
    return files


def _is_written(json_file: Path, recipe: dict[str, Any], overwrite: bool) -> bool:
    """Tell whether the split is there; raise when it is there but made otherwise."""
    if not json_file.exists():
        return False
    try:
        found = json.loads(json_file.read_text(encoding="utf-8")).get("info", {}).get("recipe")
    except (json.JSONDecodeError, AttributeError):
        found = None
    if found == recipe:
        logger.info("%s is there already with the same settings", json_file)
        return True
    if not overwrite:
        different = {
            key: (recipe[key], (found or {}).get(key)) for key in recipe if recipe[key] != (found or {}).get(key)
        }
        raise FileExistsError(
            f"{json_file} exists and differs from what was asked, (wanted, found): {different}. "
            "Choose another folder, or overwrite it with overwrite=True (--overwrite)."
        )
    return False


def _write_split(images: Path, json_file: Path, recipe: dict[str, Any], seeds: list[int], settings: Any) -> None:
    """Write frames first and the annotation file last, so that an annotation file always has its frames."""
    json_file.unlink(missing_ok=True)
    if images.exists():
        shutil.rmtree(images)
    videos: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for video_id in range(1, recipe["num_videos"] + 1):
        video = make_video([*seeds, video_id], settings)
        name = f"{video_id:05d}"
        (images / name).mkdir(parents=True)
        file_names = [f"{name}/{t:05d}.jpg" for t in range(len(video.frames))]
        for frame, file_name in zip(video.frames, file_names, strict=True):
            _write_jpeg(images / file_name, frame)
        size = {"width": settings.width, "height": settings.height, "length": len(file_names)}
        videos.append({"id": video_id, "file_names": file_names, **size})
        for annotation in video_annotations(video):
            annotations.append({"id": len(annotations) + 1, "video_id": video_id, **annotation, **size})
    categories = [{"id": row["id"], "name": row["name"]} for row in category_table("synthetic")["categories"]]
    content: dict[str, Any] = {"info": {"description": "moving shapes, made by lbvq.data.synthetic", "recipe": recipe}}
    content |= {"videos": videos, "categories": categories, "annotations": annotations}
    json_file.parent.mkdir(parents=True, exist_ok=True)
    write_text(json_file, json.dumps(content))
    logger.info("Wrote %d videos with %d objects to %s", len(videos), len(annotations), json_file)


def video_annotations(video: SyntheticVideo) -> list[dict[str, Any]]:
    """Annotations of one video in YouTube-VIS format without ids; an object that is never visible has none."""
    ids = [row["id"] for row in category_table("synthetic")["categories"]]
    result = []
    for masks, label in zip(video.masks, video.classes, strict=True):
        visible = masks.any(axis=(1, 2))
        if not visible.any():
            continue
        rles = [rle if is_there else None for rle, is_there in zip(encode_many(masks), visible, strict=True)]
        result.append(
            {
                "category_id": ids[label],
                "iscrowd": 0,
                "segmentations": rles,
                "areas": [rle and area(rle) for rle in rles],
                "bboxes": [rle and to_bbox(rle) for rle in rles],
            }
        )
    return result


def _write_jpeg(path: Path, frame: np.ndarray) -> None:
    """Write an RGB frame; cv2 takes BGR and reports failure by its return value."""
    if not cv2.imwrite(str(path), frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95]):
        raise OSError(f"Could not write {path}")
