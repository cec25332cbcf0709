"""From one annotated image to a clip: the same image again and again, moved, turned and cropped a little further."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lbvq.data.augment import ClipAugmenter, Policy, ResizeShortestEdge
from lbvq.data.augment_lists import clip_augmentations, pseudo_augmentations, resize_for_test
from lbvq.data.clip_sampling import choose_frames
from lbvq.data.copy_paste import paste_objects
from lbvq.data.frames import check_size, read_image, to_tensor
from lbvq.data.objects import make_instances, map_class, transform_object
from mask2former.structures import Instances

logger = logging.getLogger(__name__)

Record = dict[str, Any]
Sample = dict[str, Any]

_SHORTEST, _LONGEST = 16, 48  # frames of the video that a pseudo clip pretends to come from


class PseudoClipMapper:
    """Makes training clips out of images.

    A sample has the keys of a video clip; `frame_idx` and `video_len` are made up, `file_names` is the same file T
    times, and `image_id` stands instead of `video_id`. Track ids are the positions of the objects in the image.
    """

    def __init__(
        self,
        policies: Sequence[Policy],
        *,
        num_frames: int,
        frame_range: int = 20,
        image_format: str = "RGB",
        class_map: dict[int, int] | None = None,
        copy_paste: bool = False,
    ) -> None:
        """Take the settings.

        Args:
            policies: random transforms; coherent ones make the motion.
            num_frames: of a clip.
            frame_range: how far `frame_idx` may spread.
            image_format: order of the channels.
            class_map: class of this data set -> class of the target data set; None when this is the target.
            copy_paste: paste the objects of a second image into every clip.
        """
        self.policies = list(policies)
        self.num_frames = num_frames
        self.frame_range = frame_range
        self.image_format = image_format
        self.class_map = class_map
        self.needs_partner = copy_paste

    @classmethod
    def from_config(
        cls, cfg: Any, class_map: dict[int, int] | None = None, *, is_target: bool = False
    ) -> PseudoClipMapper:
        """Build from a configuration; `is_target`: the images are what is trained on, not a stand-in for videos."""
        policies = clip_augmentations(cfg) if is_target else pseudo_augmentations(cfg)
        logger.info("[DatasetMapper] Augmentations used in training: %s", policies)
        return cls(
            policies,
            num_frames=cfg.INPUT.SAMPLING_FRAME_NUM,
            frame_range=cfg.INPUT.SAMPLING_FRAME_RANGE,
            image_format=cfg.INPUT.FORMAT,
            class_map=class_map,
            copy_paste=cfg.INPUT.PSEUDO.COPY_PASTE and not is_target,
        )

    def __call__(self, record: Record, draw_partner: Callable[[], Record] | None = None) -> Sample:
        """Make a clip of `record`; copy-paste takes the second image from `draw_partner`."""
        video_len = random.randrange(_SHORTEST, _LONGEST + 1)
        frame_idx = choose_frames(video_len, self.num_frames, self.frame_range)
        sample = _describe(record, frame_idx, video_len)
        frames = self._frames(record)
        if self.needs_partner and draw_partner is not None:
            pasted = self._frames(draw_partner())
            frames = [paste_objects(*below, *above) for below, above in zip(frames, pasted, strict=True)]
        sample["image"] = [to_tensor(image) for image, _ in frames]
        sample["instances"] = [instances for _, instances in frames]
        return sample

    def _frames(self, record: Record) -> list[tuple[np.ndarray, Instances]]:
        """Return T transformed versions of an image with their objects."""
        image = read_image(record["file_name"], self.image_format, f"image {record['image_id']}")
        check_size(image, record, record["file_name"])
        objects = [annotation for annotation in record["annotations"] if not annotation.get("iscrowd", 0)]
        classes = [map_class(annotation["category_id"], self.class_map) for annotation in objects]
        augment = ClipAugmenter(self.policies, self.num_frames)
        frames = []
        for _ in range(self.num_frames):
            moved, transforms = augment(image)
            size_hw, new_size_hw = image.shape[:2], moved.shape[:2]
            where = f"image {record['image_id']}, {record['file_name']}"
            found = [
                transform_object(annotation, transforms, size_hw, new_size_hw, f"{where}, object {position}")
                for position, annotation in enumerate(objects)
            ]
            boxes, masks = [box for box, _ in found], [mask for _, mask in found]
            frames.append((moved, make_instances(new_size_hw, classes, range(len(objects)), boxes, masks)))
        return frames


class ImageAsClipTestMapper:
    """Makes a test clip of an image: the same frame T times, for video models that are evaluated on images."""

    def __init__(self, resize: ResizeShortestEdge, *, num_frames: int, image_format: str = "RGB") -> None:
        self.resize = resize
        self.num_frames = num_frames
        self.image_format = image_format

    @classmethod
    def from_config(cls, cfg: Any) -> ImageAsClipTestMapper:
        resize = resize_for_test(cfg)
        logger.info("[DatasetMapper] Augmentations used in inference: %s", [resize])
        return cls(resize, num_frames=cfg.INPUT.SAMPLING_FRAME_NUM, image_format=cfg.INPUT.FORMAT)

    def __call__(self, record: Record) -> Sample:
        image = read_image(record["file_name"], self.image_format, f"image {record['image_id']}")
        check_size(image, record, record["file_name"])
        frame = to_tensor(self.resize.transform(self.resize.sizes[0], 0, image).apply_image(image))
        sample = _describe(record, list(range(self.num_frames)), self.num_frames)
        sample["image"] = [frame] * self.num_frames
        sample["instances"] = []
        return sample


def _describe(record: Record, frame_idx: list[int], video_len: int) -> Sample:
    """Return what a sample says about its image."""
    sample = {key: value for key, value in record.items() if key not in ("annotations", "file_name")}
    sample["video_len"] = video_len
    sample["frame_idx"] = frame_idx
    sample["file_names"] = [record["file_name"]] * len(frame_idx)
    return sample
