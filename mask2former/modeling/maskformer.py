"""Mask2Former for single images: training with its losses, and semantic, instance and panoptic results.

Cheng et al., "Masked-attention Mask Transformer for Universal Image Segmentation", CVPR 2022. Q queries each predict
a class and a mask; the three tasks differ only in how these are read (section 3.1 and the inference part of
"Per-Pixel Classification is Not All You Need for Semantic Segmentation", NeurIPS 2021, section 3.4).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..abilities import Abilities
from ..registry import META_ARCH_REGISTRY, build_backbone, build_sem_seg_head
from ..structures import BitMasks, ImageList, Instances, PolygonMasks
from .criterion import SetCriterion

if TYPE_CHECKING:
    from ..cfg import Cfg

# Queries resized at a time: bounds the memory of full-resolution mask logits.
QUERY_CHUNK = 16


@META_ARCH_REGISTRY.register()
class MaskFormer(nn.Module):
    """The image model: frame segmenter, losses and post-processing."""

    sample: ClassVar[str] = "image"
    can: ClassVar[Abilities] = Abilities(refine=False)

    def __init__(
        self,
        *,
        backbone: nn.Module,
        sem_seg_head: nn.Module,
        criterion: nn.Module,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        size_divisibility: int = 32,
        semantic_on: bool = False,
        instance_on: bool = True,
        panoptic_on: bool = False,
        object_mask_threshold: float = 0.0,
        overlap_threshold: float = 0.0,
        resize_before_semantic: bool = False,
        top_k: int = 100,
        thing_classes: Collection[int] | None = None,
    ) -> None:
        """Join the parts.

        Args:
            pixel_mean: per input channel; not part of the state dict, like `pixel_std`.
            size_divisibility: the padded image size is a multiple of this; negative takes the backbone's.
            object_mask_threshold: panoptic: class score below which a query is ignored.
            overlap_threshold: panoptic: a segment must keep this part of its own mask.
            resize_before_semantic: resize masks before, not after, summing them per class. Always so for the others.
            top_k: instance: number of (query, class) pairs kept.
            thing_classes: panoptic: classes whose segments are counted one by one; None = all of them.
        """
        super().__init__()
        if not (semantic_on or instance_on or panoptic_on):
            raise ValueError("Switch at least one of MODEL.MASK_FORMER.TEST.{SEMANTIC_ON,INSTANCE_ON,PANOPTIC_ON} on.")
        self.backbone = backbone
        self.sem_seg_head = sem_seg_head
        self.criterion = criterion
        self.size_divisibility = backbone.size_divisibility if size_divisibility < 0 else size_divisibility
        self.semantic_on = semantic_on
        self.instance_on = instance_on
        self.panoptic_on = panoptic_on
        self.object_mask_threshold = object_mask_threshold
        self.overlap_threshold = overlap_threshold
        self.resize_before_semantic = resize_before_semantic
        self.top_k = top_k
        self.thing_classes = thing_classes
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, cfg: Cfg) -> dict[str, Any]:
        mask_former = cfg.MODEL.MASK_FORMER
        backbone = build_backbone(cfg)
        return {
            "backbone": backbone,
            "sem_seg_head": build_sem_seg_head(cfg, backbone.output_shape()),
            "criterion": SetCriterion(**SetCriterion.from_config(cfg)),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "size_divisibility": mask_former.SIZE_DIVISIBILITY,
            "semantic_on": mask_former.TEST.SEMANTIC_ON,
            "instance_on": mask_former.TEST.INSTANCE_ON,
            "panoptic_on": mask_former.TEST.PANOPTIC_ON,
            "object_mask_threshold": mask_former.TEST.OBJECT_MASK_THRESHOLD,
            "overlap_threshold": mask_former.TEST.OVERLAP_THRESHOLD,
            "resize_before_semantic": mask_former.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE,
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
            In training {loss name: weighted scalar}. In evaluation one dictionary per image with those of `sem_seg`
            (K, H, W), `instances` and `panoptic_seg` ((H, W) int32, list of segments) that are switched on.
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
        images = [(sample["image"].to(self.device) - self.pixel_mean) / self.pixel_std for sample in samples]
        return ImageList.from_tensors(images, self.size_divisibility)

    def losses(
        self, outputs: dict[str, Any], samples: Sequence[Mapping[str, Any]], images: ImageList
    ) -> dict[str, Tensor]:
        """Return the losses that have a weight, multiplied by it."""
        padded_size = images.tensor.shape[-2:]
        targets = [image_targets(sample["instances"].to(self.device), padded_size) for sample in samples]
        losses, _ = self.criterion(outputs, targets)
        weights = self.criterion.weight_dict
        return {name: loss * weights[name] for name, loss in losses.items() if name in weights}

    def inference(
        self, outputs: dict[str, Any], samples: Sequence[Mapping[str, Any]], images: ImageList
    ) -> list[dict[str, Any]]:
        """Read the results of every image from the predictions of its queries."""
        results = []
        for sample, size, class_logits, mask_logits in zip(
            samples, images.image_sizes, outputs["pred_logits"], outputs["pred_masks"], strict=True
        ):
            output_size = (int(sample.get("height", size[0])), int(sample.get("width", size[1])))
            resize = MaskResizer(tuple(images.tensor.shape[-2:]), size, output_size)
            results.append(self._image_result(class_logits.float(), mask_logits.float(), resize))
        return results

    def _image_result(self, class_logits: Tensor, mask_logits: Tensor, resize: MaskResizer) -> dict[str, Any]:
        """(Q, K + 1) and (Q, H / 4, W / 4) -> the results of one image that are switched on."""
        result: dict[str, Any] = {}
        if self.semantic_on:
            # As published: the other tasks resize first, and semantic results then use the same masks.
            is_resized_first = self.resize_before_semantic or self.instance_on or self.panoptic_on
            result["sem_seg"] = semantic_inference(class_logits, mask_logits, resize, is_resized_first)
        if self.panoptic_on:
            result["panoptic_seg"] = panoptic_inference(
                class_logits,
                mask_logits,
                resize,
                score_threshold=self.object_mask_threshold,
                overlap_threshold=self.overlap_threshold,
                thing_classes=self.thing_classes,
            )
        if self.instance_on:
            thing_classes = self.thing_classes if self.panoptic_on else None
            result["instances"] = instance_inference(class_logits, mask_logits, resize, self.top_k, thing_classes)
        return result


@dataclass(frozen=True)
class MaskResizer:
    """Bring mask logits from the stride of the decoder to the size of the result; sizes are (height, width)."""

    padded_size: tuple[int, int]
    image_size: tuple[int, int]
    output_size: tuple[int, int]

    def __call__(self, mask_logits: Tensor) -> Tensor:
        """(N, h, w) -> (N, output height, output width)."""
        return self.to_output(self.to_padded(mask_logits))

    def to_padded(self, mask_logits: Tensor) -> Tensor:
        """(N, h, w) -> (N, padded height, padded width)."""
        return _interpolate(mask_logits, self.padded_size)

    def to_output(self, maps: Tensor) -> Tensor:
        """Cut the padding off (N, padded height, padded width) maps and resize what remains."""
        height, width = self.image_size
        return _interpolate(maps[:, :height, :width], self.output_size)


def image_targets(instances: Instances, padded_size: Sequence[int]) -> dict[str, Tensor]:
    """Return labels (G,), masks (G, H, W) of the padded size and, where known, ids (G,) of one image."""
    masks = instances.gt_masks
    if isinstance(masks, PolygonMasks):
        masks = BitMasks.from_polygon_masks(masks, *instances.image_size).to(instances.gt_classes.device)
    masks = getattr(masks, "tensor", masks)
    padded = masks.new_zeros((len(masks), *padded_size))
    padded[:, : masks.shape[1], : masks.shape[2]] = masks
    targets = {"labels": instances.gt_classes, "masks": padded}
    if instances.has("gt_ids"):
        targets["ids"] = instances.gt_ids
    return targets


def semantic_inference(
    class_logits: Tensor, mask_logits: Tensor, resize: MaskResizer, is_resized_first: bool
) -> Tensor:
    """Sum the masks of all queries, weighted by their class probabilities.

    Args:
        class_logits: (Q, K + 1).
        mask_logits: (Q, h, w).
        is_resized_first: resize mask logits to the result, instead of the class maps at padded image size.

    Returns:
        (K, H, W) class scores.
    """
    class_prob = class_logits.softmax(-1)[:, :-1]
    masks = resize(mask_logits) if is_resized_first else resize.to_padded(mask_logits)
    scores = torch.einsum("qk,qhw->khw", class_prob, masks.sigmoid())
    return scores if is_resized_first else resize.to_output(scores)


def instance_inference(
    class_logits: Tensor,
    mask_logits: Tensor,
    resize: MaskResizer,
    top_k: int,
    allowed_classes: Collection[int] | None = None,
) -> Instances:
    """`best_instances` by class probability.

    Args:
        class_logits: (Q, K + 1).
        mask_logits, resize, top_k, allowed_classes: see `best_instances`.
    """
    return best_instances(class_logits.softmax(-1)[:, :-1], mask_logits, resize, top_k, allowed_classes)


def best_instances(
    class_prob: Tensor,
    mask_logits: Tensor,
    resize: MaskResizer,
    top_k: int,
    allowed_classes: Collection[int] | None = None,
) -> Instances:
    """Keep the best (query, class) pairs and rate each by its class and by how sure its mask is.

    Args:
        class_prob: (Q, K) scores of the classes, in [0, 1].
        mask_logits: (Q, h, w).
        top_k: pairs kept, best first; all of them if there are fewer.
        allowed_classes: pairs of other classes are dropped after the selection; None keeps all.

    Returns:
        Instances with pred_masks (N, H, W) bool, pred_boxes, pred_classes (N,) and scores (N,): class score times
        the mean foreground probability inside the mask, 0 for an empty mask.
    """
    num_classes = class_prob.shape[1]
    scores, pairs = class_prob.flatten().topk(min(top_k, class_prob.numel()))
    queries, labels = pairs // num_classes, pairs % num_classes
    if allowed_classes is not None:
        keep = torch.isin(labels, labels.new_tensor(sorted(allowed_classes)))
        scores, queries, labels = scores[keep], queries[keep], labels[keep]
    # A query may be kept for several classes; its mask is made once.
    unique_queries, mask_idx = queries.unique(return_inverse=True)
    masks, mask_scores = _masks_and_scores(mask_logits[unique_queries], resize)
    result = Instances(resize.output_size)
    result.pred_masks = masks[mask_idx]
    result.pred_boxes = BitMasks(masks).get_bounding_boxes()[mask_idx]
    result.scores = scores * mask_scores[mask_idx]
    result.pred_classes = labels
    return result


def panoptic_inference(
    class_logits: Tensor,
    mask_logits: Tensor,
    resize: MaskResizer,
    *,
    score_threshold: float,
    overlap_threshold: float,
    thing_classes: Collection[int] | None,
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Give every pixel to the query that is surest of it; segments that lose most of their mask are dropped.

    Returns:
        (H, W) int32 segment ids, 0 = nothing, and one dictionary per segment: `id`, `isthing`, `category_id`.
        Segments of the same class that is not a thing are one segment.
    """
    num_classes = class_logits.shape[1] - 1
    scores, labels = class_logits.softmax(-1).max(-1)
    keep = (labels != num_classes) & (scores > score_threshold)
    scores, labels = scores[keep], labels[keep]
    segment_map = torch.zeros(resize.output_size, dtype=torch.int32, device=mask_logits.device)
    if len(labels) == 0:
        return segment_map, []

    prob = resize(mask_logits[keep]).sigmoid()  # (N, H, W)
    owner = (scores[:, None, None] * prob).argmax(0)  # (H, W)
    has_foreground = prob.gather(0, owner[None])[0] >= 0.5
    num_segments = len(labels)
    won = owner.flatten().bincount(minlength=num_segments)
    own = (prob >= 0.5).flatten(1).sum(1)
    visible = owner[has_foreground].bincount(minlength=num_segments)
    is_kept = (won > 0) & (own > 0) & (visible > 0) & (won / own.clamp(min=1) >= overlap_threshold)

    segments: list[dict[str, Any]] = []
    stuff_ids: dict[int, int] = {}
    for idx in is_kept.nonzero().flatten().tolist():
        label = int(labels[idx])
        is_thing = thing_classes is None or label in thing_classes
        segment_id = stuff_ids.get(label)
        if segment_id is None:
            segment_id = len(segments) + 1
            segments.append({"id": segment_id, "isthing": is_thing, "category_id": label})
            if not is_thing:
                stuff_ids[label] = segment_id
        segment_map[(owner == idx) & has_foreground] = segment_id
    return segment_map, segments


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
