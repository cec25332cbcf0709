"""From the annotations of a frame to `Instances`: transform boxes and masks, line objects up, mark what is absent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from lbvq.data.transforms import TransformList
from lbvq.masks.rle import decode
from mask2former.structures import ABSENT, BitMasks, Boxes, BoxMode, Instances, polygons_to_bitmask

_SMALLEST_SIDE = 1e-5  # pixels; a box with a shorter side is empty


def transform_object(
    annotation: dict[str, Any],
    transforms: TransformList,
    size_hw: tuple[int, int],
    new_size_hw: tuple[int, int],
    where: str,
) -> tuple[np.ndarray, np.ndarray]:
    """Apply the transforms of a frame to one object.

    Args:
        annotation: `segmentation`, and `bbox` with `bbox_mode` if the box is known.
        transforms: what was done to the frame.
        size_hw: of the frame before.
        new_size_hw: of the frame after.
        where: the object's name in error messages.

    Returns:
        Box (4,) x0, y0, x1, y1 cut at the image, and mask (new_h, new_w) bool.
    """
    mask = _transform_mask(annotation["segmentation"], transforms, size_hw, new_size_hw, where)
    if "bbox" not in annotation:
        return BitMasks(mask[None]).get_bounding_boxes().tensor[0].numpy().astype(np.float64), mask
    box = annotation["bbox"]
    if len(box) != 4 or not np.isfinite(np.asarray(box, np.float64)).all():
        raise ValueError(f"{where}: a box has 4 finite numbers, got {box}.")
    corners = BoxMode.convert(list(box), annotation["bbox_mode"], BoxMode.XYXY_ABS)
    corners = transforms.apply_box(np.array([corners]))[0]
    height, width = new_size_hw
    return np.clip(corners, 0.0, [width, height, width, height]), mask


def _transform_mask(
    segmentation: Any, transforms: TransformList, size_hw: tuple[int, int], new_size_hw: tuple[int, int], where: str
) -> np.ndarray:
    """Return the transformed mask (new_h, new_w) bool of a compressed mask or a list of polygons."""
    if isinstance(segmentation, dict):
        mask = decode(segmentation, size_hw, where)
        return transforms.apply_mask(mask).astype(bool, copy=False)
    polygons: list[Any] = []
    for points in segmentation:
        corners = np.asarray(points)
        if corners.dtype.kind not in "iuf" or not np.isfinite(corners).all():
            raise ValueError(f"{where}: a polygon has coordinates that are not finite numbers.")
        corners = transforms.apply_polygon(corners.reshape(-1, 2))
        if len(corners):
            polygons.append(corners.reshape(-1))
    return polygons_to_bitmask(polygons, *new_size_hw)


def make_instances(
    size_hw: tuple[int, int],
    classes: Sequence[int],
    ids: Sequence[int],
    boxes: Sequence[np.ndarray],
    masks: Sequence[np.ndarray],
) -> Instances:
    """Build the objects of one frame; those with an empty mask or class -1 get the id -1.

    The mask alone decides whether an object is there. A box without area beside a mask that has one (the file's box may
    be wrong, or lie outside of a crop) is made from the mask.

    Args:
        size_hw: of the frame.
        classes: G contiguous classes, -1 for an object that is absent.
        ids: G track ids.
        boxes: G arrays (4,) x0, y0, x1, y1.
        masks: G arrays (H, W) bool.

    Returns:
        `gt_boxes`, `gt_classes` (G,) int64, `gt_masks` (BitMasks), `gt_ids` (G,) int64.
    """
    stacked = np.stack(masks) if len(masks) else np.zeros((0, *size_hw), bool)
    gt_boxes = Boxes(torch.as_tensor(np.array(boxes).reshape(-1, 4), dtype=torch.float32))
    gt_masks = BitMasks(torch.from_numpy(stacked))
    gt_classes = torch.tensor(list(classes), dtype=torch.int64)
    has_pixels = torch.tensor([bool(mask.any()) for mask in masks], dtype=torch.bool)
    is_flat = has_pixels & ~gt_boxes.nonempty(_SMALLEST_SIDE)
    if is_flat.any():
        gt_boxes.tensor[is_flat] = gt_masks[is_flat].get_bounding_boxes().tensor
    is_there = has_pixels & (gt_classes != ABSENT)
    gt_ids = torch.where(is_there, torch.tensor(list(ids), dtype=torch.int64), ABSENT)
    return Instances(size_hw, gt_boxes=gt_boxes, gt_classes=gt_classes, gt_masks=gt_masks, gt_ids=gt_ids)


def map_class(label: int, class_map: dict[int, int] | None) -> int:
    """Class index of the target data set, -1 when it has no such class; without a map classes stay."""
    return label if class_map is None else class_map.get(label, ABSENT)
