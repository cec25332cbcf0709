"""Mask2Former for single images: training with its losses, and the instances of an image.

Cheng et al., "Masked-attention Mask Transformer for Universal Image Segmentation", CVPR 2022. Q queries each predict
a class and a mask.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..abilities import Abilities
from ..registry import META_ARCH_REGISTRY, build_backbone, build_sem_seg_head
from ..structures import BitMasks, ImageList, Instances
from ..transfer import to_device
from .backbone import Backbone
from .criterion import SetCriterion, weighted

if TYPE_CHECKING:
    from ..cfg import Cfg

# Queries resized at a time: bounds the memory of full-resolution mask logits.
QUERY_CHUNK = 16


@META_ARCH_REGISTRY.register()
class MaskFormer(nn.Module):
    """The image model: frame segmenter, losses and post-processing."""

    sample: ClassVar[str] = "image"
    can: ClassVar[Abilities] = Abilities(refine=False)

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        *,
        backbone: Backbone,
        sem_seg_head: nn.Module,
        criterion: SetCriterion,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        size_divisibility: int = 32,
        top_k: int = 100,
    ) -> None:
        """Join the parts.

        Args:
            pixel_mean: per input channel; not part of the state dict, like `pixel_std`.
            size_divisibility: the padded image size is a multiple of this; negative takes the backbone's.
            top_k: number of (query, class) pairs kept.
        """
        super().__init__()
        self.backbone = backbone
        self.sem_seg_head = sem_seg_head
        self.criterion = criterion
        self.size_divisibility = backbone.size_divisibility if size_divisibility < 0 else size_divisibility
        self.top_k = top_k
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, cfg: Cfg) -> dict[str, Any]:
        backbone = build_backbone(cfg)
        return {
            "backbone": backbone,
            "sem_seg_head": build_sem_seg_head(cfg, backbone.output_shape()),
            "criterion": SetCriterion(**SetCriterion.from_config(cfg)),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "size_divisibility": cfg.MODEL.MASK_FORMER.SIZE_DIVISIBILITY,
            "top_k": cfg.TEST.DETECTIONS_PER_IMAGE,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Compute losses in training, results otherwise.

        Args:
            samples: one dictionary per image. `image`: (3, H, W) in [0, 255]. In training `instances`: Instances with
                `gt_classes` (G,) and `gt_masks` (G, H, W). In evaluation `height` and `width` give the size of the
                result; without them it is that of `image`.

        Returns:
            In training {loss name: weighted scalar}. In evaluation one dictionary per image with `instances`.
        """
        if self.training and any("instances" not in sample for sample in samples):
            raise ValueError("A training sample of MaskFormer needs `instances` with gt_classes and gt_masks.")
        images = self.preprocess(samples)
        outputs, *_ = self.sem_seg_head(self.backbone(images.tensor))
        if self.training:
            return self.losses(outputs, samples, images)
        return self.inference(outputs, samples, images)

    def preprocess(self, samples: Sequence[Mapping[str, Any]]) -> ImageList:
        """Normalise, then pad with zeros: a border pixel has the mean colour."""
        images = [(to_device(sample["image"], self.device) - self.pixel_mean) / self.pixel_std for sample in samples]
        return ImageList.from_tensors(images, self.size_divisibility)

    def losses(
        self, outputs: dict[str, Any], samples: Sequence[Mapping[str, Any]], images: ImageList
    ) -> dict[str, Tensor]:
        """Return the losses that have a weight, multiplied by it."""
        padded_size = images.tensor.shape[-2:]
        targets = [image_targets(sample["instances"], padded_size) for sample in samples]
        for target in targets:
            target["masks"] = to_device(target["masks"], self.device)
        losses, _ = self.criterion(outputs, targets)
        return weighted(losses, self.criterion.weight_dict)

    def inference(
        self, outputs: dict[str, Any], samples: Sequence[Mapping[str, Any]], images: ImageList
    ) -> list[dict[str, Any]]:
        """Read the results of every image from the predictions of its queries."""
        results = []
        for sample, size, class_scores, mask_logits in zip(
            samples, images.image_sizes, self.class_scores(outputs), outputs["pred_masks"].float(), strict=True
        ):
            output_size = (int(sample.get("height", size[0])), int(sample.get("width", size[1])))
            resize = MaskResizer(images.padded_size, size, output_size)
            results.append({"instances": best_instances(class_scores, mask_logits, resize, self.top_k)})
        return results

    def class_scores(self, outputs: dict[str, Any]) -> Tensor:
        """Scores of the classes in [0, 1], (B, Q, K)."""
        return outputs["pred_logits"].float().softmax(-1)[..., :-1]


@dataclass(frozen=True)
class MaskResizer:
    """Bring mask logits from the stride of the decoder to the size of the result; sizes are (height, width)."""

    padded_size: tuple[int, int]
    image_size: tuple[int, int]
    output_size: tuple[int, int]

    def __call__(self, mask_logits: Tensor) -> Tensor:
        """(N, h, w) -> (N, output height, output width)."""
        height, width = self.image_size
        padded = _interpolate(mask_logits, self.padded_size)
        return _interpolate(padded[:, :height, :width], self.output_size)


def image_targets(instances: Instances, padded_size: Sequence[int]) -> dict[str, Tensor]:
    """Return labels (G,), masks (G, H, W) of the padded size and, where known, ids (G,) of one image."""
    masks = instances.gt_masks
    masks = getattr(masks, "tensor", masks)
    padded = masks.new_zeros((len(masks), *padded_size))
    padded[:, : masks.shape[1], : masks.shape[2]] = masks
    targets = {"labels": instances.gt_classes, "masks": padded}
    if instances.has("gt_ids"):
        targets["ids"] = instances.gt_ids
    return targets


def best_instances(
    class_scores: Tensor,
    mask_logits: Tensor,
    resize: MaskResizer,
    top_k: int,
) -> Instances:
    """Keep the best (query, class) pairs and rate each by its class and by how sure its mask is.

    Args:
        class_scores: (Q, K) scores of the classes, in [0, 1].
        mask_logits: (Q, h, w).
        top_k: pairs kept, best first; all of them if there are fewer.

    Returns:
        Instances with pred_masks (N, H, W) bool, pred_boxes, pred_classes (N,) and scores (N,): class score times
        the mean foreground probability inside the mask, 0 for an empty mask.
    """
    num_classes = class_scores.shape[1]
    scores, pairs = class_scores.flatten().topk(min(top_k, class_scores.numel()))
    queries, labels = pairs // num_classes, pairs % num_classes
    # A query may be kept for several classes; its mask is made once.
    unique_queries, mask_idx = queries.unique(return_inverse=True)
    masks, mask_scores = _masks_and_scores(mask_logits[unique_queries], resize)
    result = Instances(resize.output_size)
    result.pred_masks = masks[mask_idx]
    result.pred_boxes = BitMasks(masks).get_bounding_boxes()[mask_idx]
    result.scores = scores * mask_scores[mask_idx]
    result.pred_classes = labels
    return result


def _masks_and_scores(mask_logits: Tensor, resize: MaskResizer) -> tuple[Tensor, Tensor]:
    """(N, h, w) -> (N, H, W) bool masks and (N,) mean foreground probability inside each, a few at a time."""
    masks = torch.zeros((len(mask_logits), *resize.output_size), dtype=torch.bool, device=mask_logits.device)
    scores = mask_logits.new_zeros(len(mask_logits))
    for start in range(0, len(mask_logits), QUERY_CHUNK):
        part = slice(start, start + QUERY_CHUNK)
        logits = resize(mask_logits[part])
        masks[part] = logits > 0
        inside = masks[part].flatten(1)
        scores[part] = (logits.flatten(1).sigmoid() * inside).sum(1) / (inside.sum(1) + 1e-6)
    return masks, scores


def _interpolate(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Resize (N, h, w) bilinearly; N may be 0."""
    if len(maps) == 0:
        return maps.new_zeros((0, *size))
    return F.interpolate(maps[None], size=tuple(size), mode="bilinear", align_corners=False)[0]
