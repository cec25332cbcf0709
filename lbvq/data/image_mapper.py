"""From the record of an image to a sample of an image model (Mask2Former and OVFormer on COCO or LVIS)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from lbvq.data.augment import ClipAugmenter, Policy, ResizeShortestEdge
from lbvq.data.augment_lists import image_augmentations, resize_for_test
from lbvq.data.frames import check_size, read_image, to_tensor
from lbvq.data.objects import make_instances, transform_object
from mask2former.structures import ABSENT

logger = logging.getLogger(__name__)


class ImageMapper:
    """Makes samples of single images.

    A sample has the keys of the record with `image` (3, H, W) uint8 instead of `annotations`, and for training
    `instances` with `gt_boxes`, `gt_classes` and `gt_masks` of the objects that the transformed image still shows.
    """

    def __init__(self, policies: Sequence[Policy], *, image_format: str = "RGB") -> None:
        self.policies = list(policies)
        self.image_format = image_format

    @classmethod
    def from_config(cls, cfg: Any) -> ImageMapper:
        policies = image_augmentations(cfg)
        logger.info("[DatasetMapper] Augmentations used in training: %s", policies)
        return cls(policies, image_format=cfg.INPUT.FORMAT)

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        image = read_image(record["file_name"], self.image_format, f"image {record['image_id']}")
        check_size(image, record, record["file_name"])
        moved, transforms = ClipAugmenter(self.policies, 1)(image)
        objects = [annotation for annotation in record["annotations"] if not annotation.get("iscrowd", 0)]
        where = f"image {record['image_id']}, {record['file_name']}"
        size_hw, new_size_hw = image.shape[:2], moved.shape[:2]
        found = [
            transform_object(annotation, transforms, size_hw, new_size_hw, f"{where}, object {position}")
            for position, annotation in enumerate(objects)
        ]
        instances = make_instances(
            new_size_hw,
            [annotation["category_id"] for annotation in objects],
            range(len(objects)),
            [box for box, _ in found],
            [mask for _, mask in found],
        )
        instances = instances[instances.gt_ids != ABSENT]
        instances.remove("gt_ids")
        sample = {key: value for key, value in record.items() if key != "annotations"}
        return {**sample, "image": to_tensor(moved), "instances": instances}


class ImageTestMapper:
    """Makes test samples of single images: resized, without objects."""

    def __init__(self, resize: ResizeShortestEdge, *, image_format: str = "RGB") -> None:
        self.resize = resize
        self.image_format = image_format

    @classmethod
    def from_config(cls, cfg: Any) -> ImageTestMapper:
        resize = resize_for_test(cfg)
        logger.info("[DatasetMapper] Augmentations used in inference: %s", [resize])
        return cls(resize, image_format=cfg.INPUT.FORMAT)

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        image = read_image(record["file_name"], self.image_format, f"image {record['image_id']}")
        check_size(image, record, record["file_name"])
        resized = self.resize.transform(self.resize.sizes[0], 0, image).apply_image(image)
        sample = {key: value for key, value in record.items() if key != "annotations"}
        return {**sample, "image": to_tensor(resized)}
