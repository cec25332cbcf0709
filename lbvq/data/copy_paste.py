"""Copy-paste for pseudo clips (VISAGE): objects of one frame cover parts of another."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lbvq.data.transforms import ResizeTransform
from mask2former.structures import ABSENT, BitMasks, Boxes, Instances

_SMALLEST, _LARGEST = 0.5, 1.0  # size of the pasted frame relative to the one below
_HIDDEN_AT_MOST = 0.5  # share of an object below that one pasted object may cover


def paste_objects(
    below: np.ndarray, below_objects: Instances, above: np.ndarray, above_objects: Instances
) -> tuple[np.ndarray, Instances]:
    """Paste the objects of `above`, at a random size and place, into `below`.

    A pasted object that would hide half or more of an object below is left out (its row stays, with id -1). Objects
    below lose the pixels that are covered, and one that is covered completely gets id -1.

    Args:
        below: (H, W, 3) uint8.
        below_objects: its objects, G rows.
        above: (h, w, 3) uint8, any size.
        above_objects: its objects, P rows.

    Returns:
        The new frame, and G + P rows; the ids of pasted objects are shifted by G.
    """
    height, width = below.shape[:2]
    share = np.random.uniform(_SMALLEST, _LARGEST)
    new_h, new_w = max(1, int(share * height)), max(1, int(share * width))
    y0 = int(np.random.randint(height - new_h + 1))
    x0 = int(np.random.randint(width - new_w + 1))
    window = (slice(y0, y0 + new_h), slice(x0, x0 + new_w))

    masks_above = torch.zeros(len(above_objects), height, width, dtype=torch.bool)
    masks_above[:, window[0], window[1]] = _resize_masks(above_objects.gt_masks.tensor, new_h, new_w)
    masks_below = below_objects.gt_masks.tensor
    is_kept = _hides_little(masks_above, masks_below) & (above_objects.gt_ids != ABSENT)
    covered = masks_above[is_kept].any(0)  # (H, W)

    frame = below.copy()
    pasted = ResizeTransform(above.shape[0], above.shape[1], new_h, new_w).apply_image(above)
    frame[window][covered[window].numpy()] = pasted[covered[window].numpy()]
    ids_above = torch.where(is_kept, above_objects.gt_ids + len(below_objects), ABSENT)
    masks = BitMasks(torch.cat([masks_below & ~covered, masks_above]))
    ids = torch.cat([below_objects.gt_ids, ids_above])
    objects = Instances(
        (height, width),
        gt_boxes=Boxes.cat(
            [below_objects.gt_boxes, _move_boxes(above_objects.gt_boxes, above.shape, new_h, new_w, x0, y0)]
        ),
        gt_classes=torch.cat([below_objects.gt_classes, above_objects.gt_classes]),
        gt_masks=masks,
        gt_ids=torch.where(masks.nonempty(), ids, ABSENT),
    )
    return frame, objects


def _hides_little(masks_above: Tensor, masks_below: Tensor) -> Tensor:
    """(P, H, W), (G, H, W) -> (P,) bool: covers less than half of every object below."""
    above, below = masks_above.flatten(1).float(), masks_below.flatten(1).float()
    hidden = above @ below.T / below.sum(1).clamp(min=1)  # (P, G) shares
    return (hidden < _HIDDEN_AT_MOST).all(1)


def _resize_masks(masks: Tensor, height: int, width: int) -> Tensor:
    """(P, h, w) bool -> (P, height, width) bool; as published, every pixel that bilinear weights touch is set."""
    if len(masks) == 0:
        return torch.zeros(0, height, width, dtype=torch.bool)
    return F.interpolate(masks[None].float(), (height, width), mode="bilinear", align_corners=False)[0].bool()


def _move_boxes(boxes: Boxes, shape: tuple[int, ...], new_h: int, new_w: int, x0: int, y0: int) -> Boxes:
    scale = torch.tensor([new_w / shape[1], new_h / shape[0]] * 2)
    return Boxes(boxes.tensor * scale + torch.tensor([x0, y0, x0, y0]))
