"""From the record of a video to a training clip or a test video."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from lbvq.data.augment import ClipAugmenter, Policy, ResizeShortestEdge
from lbvq.data.augment_lists import clip_augmentations, resize_for_test
from lbvq.data.clip_sampling import choose_clip, choose_frames, frame_subset
from lbvq.data.frames import LazyFrames, check_size, read_image, to_tensor
from lbvq.data.objects import make_instances, map_class, transform_object
from lbvq.data.transforms import TransformList
from mask2former.structures import ABSENT, Instances

logger = logging.getLogger(__name__)

Sample = dict[str, Any]


class VideoClipMapper:
    """Makes training clips: a few frames of a video, transformed alike, with their objects in the same rows.

    A sample has `image` (list of T uint8 tensors (3, H, W)), `instances` (list of T, with the same G rows in each),
    `file_names`, `frame_idx`, `video_len`, and `height`, `width`, `length`, `video_id` of the record.
    """

    def __init__(
        self,
        policies: Sequence[Policy],
        *,
        num_frames: int,
        frame_range: int = 20,
        shuffle: bool = False,
        repeats: bool = True,
        reverse: bool = False,
        frame_ratio: float = 1.0,
        image_format: str = "RGB",
        class_map: dict[int, int] | None = None,
    ) -> None:
        """Take the settings.

        Args:
            policies: random transforms.
            num_frames: of a clip.
            frame_range: how far frames may be from the reference frame.
            shuffle, repeats, reverse: see `choose_clip`.
            frame_ratio: share of each video's frames that is used at all; below 1 only with one frame per clip.
            image_format: order of the channels.
            class_map: class of this data set -> class of the target data set; None when this is the target.
        """
        if frame_ratio < 1 and num_frames != 1:
            raise ValueError(
                f"INPUT.SAMPLING_FRAME_RATIO {frame_ratio} needs INPUT.SAMPLING_FRAME_NUM 1, got {num_frames}."
            )
        self.policies = list(policies)
        self.num_frames = num_frames
        self.frame_range = frame_range
        self.shuffle, self.repeats, self.reverse = shuffle, repeats, reverse
        self.frame_ratio = frame_ratio
        self.image_format = image_format
        self.class_map = class_map

    @classmethod
    def from_config(cls, cfg: Any, class_map: dict[int, int] | None = None) -> VideoClipMapper:
        policies = clip_augmentations(cfg)
        logger.info("[DatasetMapper] Augmentations used in training: %s", policies)
        return cls(
            policies,
            num_frames=cfg.INPUT.SAMPLING_FRAME_NUM,
            frame_range=cfg.INPUT.SAMPLING_FRAME_RANGE,
            shuffle=cfg.INPUT.SAMPLING_FRAME_SHUFFLE,
            repeats=cfg.INPUT.SAMPLING_FRAME_REPEATS,
            reverse=cfg.INPUT.REVERSE_AGU,
            frame_ratio=cfg.INPUT.SAMPLING_FRAME_RATIO,
            image_format=cfg.INPUT.FORMAT,
            class_map=class_map,
        )

    def __call__(self, record: dict[str, Any]) -> Sample:
        frames = self._choose_frames(record["length"])
        annotations = [_countable(record["annotations"][t]) for t in frames]
        ids = sorted({annotation["id"] for t in frames for annotation in record["annotations"][t]})
        augment = ClipAugmenter(self.policies, len(frames))
        decoded: dict[int, np.ndarray] = {}  # a frame may be chosen twice
        sample = _describe(record, frames)
        sample["image"], sample["instances"] = [], []
        for t, objects in zip(frames, annotations, strict=True):
            if t not in decoded:
                decoded[t] = self._read(record, sample, t)
            image, transforms = augment(decoded[t])
            sample["image"].append(to_tensor(image))
            where = f"video {record['video_id']}, {record['file_names'][t]}"
            sizes = (decoded[t].shape[:2], image.shape[:2])
            sample["instances"].append(self._instances(objects, ids, transforms, sizes, record, where))
        return sample

    def _choose_frames(self, length: int) -> list[int]:
        if self.frame_ratio < 1:
            subset = frame_subset(length, self.frame_ratio)
            return [subset[choose_frames(len(subset), 1, 0)[0]]] if len(subset) > 1 else subset
        ways = {"shuffle": self.shuffle, "repeats": self.repeats, "reverse": self.reverse}
        return choose_clip(length, self.num_frames, self.frame_range, **ways)

    def _read(self, record: dict[str, Any], sample: Sample, t: int) -> np.ndarray:
        """Read frame t; where the annotation file is known to be wrong about sizes the sample gets the image's."""
        file_name = record["file_names"][t]
        image = read_image(file_name, self.image_format, f"video {record['video_id']}")
        if record.get("size_from_image"):
            sample["height"], sample["width"] = image.shape[:2]
        else:
            check_size(image, record, file_name)
        return image

    def _instances(
        self,
        objects: list[dict[str, Any]],
        ids: list[int],
        transforms: TransformList,
        sizes: tuple[tuple[int, int], tuple[int, int]],
        record: dict[str, Any],
        where: str,
    ) -> Instances:
        """Line the objects of a frame up with `ids`; those that the frame does not show get class -1 and id -1."""
        size_hw, new_size_hw = sizes
        rows = {track_id: row for row, track_id in enumerate(ids)}
        classes, track_ids = [ABSENT] * len(ids), [ABSENT] * len(ids)
        boxes = [np.zeros(4)] * len(ids)
        masks = [np.zeros(new_size_hw, bool)] * len(ids)
        for annotation in objects:
            row = rows[annotation["id"]]
            name = f"{where}, annotation {annotation['id']}"
            if record.get("size_from_image"):
                annotation = _with_image_size(annotation, size_hw, name)
            boxes[row], masks[row] = transform_object(annotation, transforms, size_hw, new_size_hw, name)
            classes[row] = map_class(annotation["category_id"], self.class_map)
            track_ids[row] = annotation["id"]
        return make_instances(new_size_hw, classes, track_ids, boxes, masks)


class VideoTestMapper:
    """Makes test videos: all frames in order, decoded when the model gets to them, and no objects.

    A sample has the keys of a training clip, with `image` a `LazyFrames` and `instances` empty. `dense_masks` False
    asks the model for compact masks, so a video may be as long as it likes.
    """

    def __init__(self, resize: ResizeShortestEdge, *, image_format: str = "RGB", prefetch: int = 2) -> None:
        self.resize = resize
        self.image_format = image_format
        self.prefetch = prefetch

    @classmethod
    def from_config(cls, cfg: Any) -> VideoTestMapper:
        resize = resize_for_test(cfg)
        logger.info("[DatasetMapper] Augmentations used in inference: %s", [resize])
        prefetch = min(4, cfg.DATALOADER.NUM_WORKERS)
        return cls(resize, image_format=cfg.INPUT.FORMAT, prefetch=prefetch)

    def __call__(self, record: dict[str, Any]) -> Sample:
        sample = _describe(record, list(range(record["length"])))
        if record.get("size_from_image"):
            first = read_image(record["file_names"][0], self.image_format, f"video {record['video_id']}")
            sample["height"], sample["width"] = first.shape[:2]
        expected = {key: sample[key] for key in ("height", "width")}
        where = f"video {record['video_id']}"
        decode = partial(_decode_for_test, resize=self.resize, expected=expected, form=self.image_format, where=where)
        sample["image"] = LazyFrames(sample["file_names"], decode, self.prefetch)
        sample["instances"] = []
        sample["dense_masks"] = False
        return sample


def _describe(record: dict[str, Any], frames: list[int]) -> Sample:
    """Return what a sample says about its video and about the chosen frames."""
    sample = {
        key: value for key, value in record.items() if key not in ("annotations", "file_names", "size_from_image")
    }
    sample["video_len"] = record["length"]
    sample["frame_idx"] = frames
    sample["file_names"] = [record["file_names"][t] for t in frames]
    return sample


def _countable(annotations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [annotation for annotation in annotations if not annotation.get("iscrowd", 0)]


def _with_image_size(annotation: dict[str, Any], size_hw: tuple[int, int], where: str) -> dict[str, Any]:
    """Give a mask the size of its image when only the two numbers are wrong, not the number of pixels."""
    segmentation = annotation["segmentation"]
    if not isinstance(segmentation, dict) or list(segmentation["size"]) == list(size_hw):
        return annotation
    if segmentation["size"][0] * segmentation["size"][1] != size_hw[0] * size_hw[1]:
        raise ValueError(f"{where}: the mask has size {segmentation['size']}, the image {list(size_hw)}.")
    return {**annotation, "segmentation": {**segmentation, "size": list(size_hw)}}


def _decode_for_test(
    file_name: str, *, resize: ResizeShortestEdge, expected: dict[str, int], form: str, where: str
) -> Tensor:
    """Read and resize one frame of a test video; no random number is drawn."""
    image = read_image(file_name, form, where)
    check_size(image, expected, file_name)
    return to_tensor(resize.transform(resize.sizes[0], 0, image).apply_image(image))
