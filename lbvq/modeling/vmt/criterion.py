"""Matching and losses of SeqFormer, and losses of the second and the refined masks.

SeqFormer's part equals its published training code. Training of VMT was never published, only the names and weights of
its losses; what they measure here is ours, after the paper:

    loss_mask_refine        focal loss of the refined masks at full size
    loss_mask_dice_refine   dice of the same
    loss_mask_bound_refine  dice of the refined masks on the pixels that were refined
    loss_refine             focal loss and dice of the second masks, whose outlines choose those pixels
    loss_mask_sem           focal loss of the foreground, all refined masks of a frame together
    loss_mask_sem_dice      dice of the same
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from mask2former.modeling.criterion import average_over_processes, dice_loss, layer_weights, select_rows
from mask2former.modeling.matcher import costs_on_host
from mask2former.transfer import to_device

from .boxes import corners, giou
from .dynamic_masks import double_size
from .mask_heads import ObjectMasks

if TYPE_CHECKING:
    from mask2former.cfg import Cfg

FOCUS = 2.0  # exponent of the focal losses
NO_LOGIT = -1e4  # a pixel that does not take part in a dice loss

Match = tuple[Tensor, Tensor]  # (k,) queries in ascending order and (k,) their objects, on the CPU


@dataclass
class LayerOutput:
    """What a decoder layer says about B clips.

    Attributes:
        logits: (B, N, K) of K class outputs.
        boxes: (B, T, N, 4) centre, width and height in [0, 1].
    """

    logits: Tensor
    boxes: Tensor


@dataclass
class ClipTarget:
    """Objects of a clip.

    Attributes:
        classes: (G,) class outputs, data set category ids, on the CPU.
        boxes: (G, T, 4) as in `LayerOutput`.
        masks: (G, T, H, W) bool, padded.
        size: (height, width) without padding.
    """

    classes: Tensor
    boxes: Tensor
    masks: Tensor
    size: tuple[int, int]


class ClipBoxMatcher:
    """Give every object of a clip the query whose class and boxes fit best."""

    def __init__(self, *, cost_class: float, cost_box: float, cost_giou: float, alpha: float = 0.25) -> None:
        self.cost_class, self.cost_box, self.cost_giou, self.alpha = cost_class, cost_box, cost_giou, alpha

    @torch.no_grad()
    def __call__(self, output: LayerOutput, targets: Sequence[ClipTarget]) -> list[Match]:
        """Match each clip by itself; min(N, G) pairs each, none for a clip without objects."""
        return self.match_layers([output], targets)[0]

    @torch.no_grad()
    def match_layers(self, outputs: Sequence[LayerOutput], targets: Sequence[ClipTarget]) -> list[list[Match]]:
        """Matches of every layer; the host waits for a device once."""
        costs = [
            [
                self.costs(logits, boxes, target)
                for logits, boxes, target in zip(output.logits.float(), output.boxes.float(), targets, strict=True)
            ]
            for output in outputs
        ]
        return [[_assign(cost) for cost in layer] for layer in costs_on_host(costs)]

    def costs(self, logits: Tensor, boxes: Tensor, target: ClipTarget) -> Tensor:
        """Cost of every pair: logits (N, K), boxes (T, N, 4) -> (N, G)."""
        boxes = boxes.transpose(0, 1)  # (N, T, 4)
        # As published: the Euclidean distance of all coordinates of the track, not their sum.
        distance = torch.cdist(boxes.flatten(1), target.boxes.flatten(1))
        overlap = giou(corners(boxes)[:, None], corners(target.boxes)[None]).mean(dim=-1)
        classes = focal_class_costs(logits, self.alpha)[:, to_device(target.classes, logits.device)]
        return self.cost_box * distance + self.cost_class * classes - self.cost_giou * overlap


class VmtCriterion(nn.Module):
    """Losses of all decoder layers and of the last layer's masks; every loss is divided by the number of objects."""

    def __init__(self, *, matcher: ClipBoxMatcher, weight_dict: Mapping[str, float], alpha: float = 0.25) -> None:
        """Args:
        weight_dict: loss name -> weight; losses are returned unweighted.
        alpha: weight of positives in the focal losses, 1 - alpha of negatives.
        """
        super().__init__()
        self.matcher = matcher
        self.weight_dict = dict(weight_dict)
        self.alpha = alpha

    @classmethod
    def from_config(cls, cfg: Cfg) -> dict[str, Any]:
        vmt = cfg.MODEL.VMT
        each_layer = {
            "loss_ce": vmt.CLASS_WEIGHT,
            "loss_bbox": vmt.BOX_WEIGHT,
            "loss_giou": vmt.GIOU_WEIGHT,
            "loss_mask": vmt.MASK_WEIGHT,
            "loss_dice": vmt.DICE_WEIGHT,
        }
        refinement = {
            "loss_mask_refine": vmt.REFINE_MASK_WEIGHT,
            "loss_mask_dice_refine": vmt.REFINE_DICE_WEIGHT,
            "loss_mask_bound_refine": vmt.REFINE_BOUNDARY_WEIGHT,
            "loss_refine": vmt.REFINE_SECOND_WEIGHT,
            "loss_mask_sem": vmt.FOREGROUND_WEIGHT,
            "loss_mask_sem_dice": vmt.FOREGROUND_DICE_WEIGHT,
        }
        matcher = ClipBoxMatcher(
            cost_class=vmt.CLASS_COST, cost_box=vmt.BOX_COST, cost_giou=vmt.GIOU_COST, alpha=vmt.FOCAL_ALPHA
        )
        weights = layer_weights(each_layer, vmt.DEC_LAYERS - 1 if vmt.DEEP_SUPERVISION else 0)
        return {"matcher": matcher, "weight_dict": {**weights, **refinement}, "alpha": vmt.FOCAL_ALPHA}

    def count_objects(self, targets: Sequence[ClipTarget], device: torch.device) -> float | Tensor:
        """Objects of the batch, mean over processes, at least 1."""
        return average_over_processes(sum(len(target.classes) for target in targets), device)

    def detection_losses(
        self,
        output: LayerOutput,
        targets: Sequence[ClipTarget],
        matches: Sequence[Match],
        num_objects: float | Tensor,
    ) -> dict[str, Tensor]:
        """Losses of classes and boxes of one layer; the box losses are 0 without objects."""
        wanted = torch.zeros(output.logits.shape, dtype=output.logits.dtype)
        pred, wanted_boxes = [], []
        for clip, (target, (queries, objects)) in enumerate(zip(targets, matches, strict=True)):
            wanted[clip, queries, target.classes[objects]] = 1.0
            pred.append(select_rows(output.boxes[clip].transpose(0, 1), queries))  # (k, T, 4)
            wanted_boxes.append(select_rows(target.boxes, objects))
        wanted_logits = to_device(wanted, output.logits.device)
        boxes, gt = torch.cat(pred), torch.cat(wanted_boxes)
        overlap = giou(corners(boxes), corners(gt)).mean(dim=1)
        return {
            "loss_ce": focal_loss(output.logits, wanted_logits, self.alpha).sum() / num_objects,
            "loss_bbox": (boxes - gt).abs().sum() / boxes.shape[1] / num_objects,
            "loss_giou": (1 - overlap).sum() / num_objects,
        }

    def coarse_losses(
        self, logits: Iterable[Tensor], masks: Iterable[Tensor], num_objects: float | Tensor
    ) -> dict[str, Tensor]:
        """Losses of the coarse masks of one layer.

        Args:
            logits: per clip (T, k, h, w) at stride 8.
            masks: per clip (k, T, H, W) bool, in the order of the logits.
        """
        pairs = [_at_stride(x, mask, 4) for x, mask in zip(logits, masks, strict=True)]
        return {
            "loss_mask": _sum(self.mask_loss(*pair) for pair in pairs) / num_objects,
            "loss_dice": _sum(dice_loss(*pair, 1.0) for pair in pairs) / num_objects,
        }

    def refinement_losses(
        self, clips: Iterable[ObjectMasks], masks: Iterable[Tensor], num_objects: float | Tensor
    ) -> dict[str, Tensor]:
        """Losses of the second and the refined masks.

        Args:
            clips: per clip the masks of its k matched queries.
            masks: per clip (k, T, H, W) bool, in the same order.
        """
        parts = [self._clip_refinement(pred, mask) for pred, mask in zip(clips, masks, strict=True)]
        losses = {name: _sum(part[name] for part in parts) / num_objects for name in parts[0]}
        for name in ("loss_mask_sem", "loss_mask_sem_dice"):  # one foreground per clip
            losses[name] = losses[name] * (num_objects / len(parts))
        return losses

    def _clip_refinement(self, pred: ObjectMasks, masks: Tensor) -> dict[str, Tensor]:
        """Sums over the objects of one clip."""
        full = _at_stride(pred.refined, masks, 1)
        second = _at_stride(pred.second, masks, 2)
        at_points = _cells(masks, 2).float()  # (k, T, h, w), as large as `refined`
        edges = pred.edges[None].expand(len(masks), -1, -1, -1)
        logits = pred.refined.transpose(0, 1)
        on_edges = (logits.masked_fill(~edges, NO_LOGIT).flatten(1), (at_points * edges).flatten(1))
        if len(masks):
            foreground = (logits.amax(dim=0).flatten()[None], at_points.amax(dim=0).flatten()[None])
        else:
            foreground = (logits.new_zeros(1, 1) + NO_LOGIT, logits.new_zeros(1, 1))
        return {
            "loss_mask_refine": self.mask_loss(*full),
            "loss_mask_dice_refine": dice_loss(*full, 1.0),
            "loss_mask_bound_refine": dice_loss(*on_edges, 1.0),
            "loss_refine": self.mask_loss(*second) + dice_loss(*second, 1.0),
            "loss_mask_sem": self.mask_loss(*foreground),
            "loss_mask_sem_dice": dice_loss(*foreground, 1.0),
        }

    def mask_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Focal loss, mean over the pixels of each of n masks, summed; (n, P) logits and targets."""
        return focal_loss(logits, targets, self.alpha).mean(dim=1).sum()


def focal_loss(logits: Tensor, targets: Tensor, alpha: float) -> Tensor:
    """Focal loss of every element, targets 0 or 1; any shape."""
    probabilities = logits.sigmoid()
    miss = probabilities + targets - 2 * probabilities * targets  # 1 - probability of the truth
    weight = alpha * targets + (1 - alpha) * (1 - targets)
    return weight * miss**FOCUS * F.binary_cross_entropy_with_logits(logits, targets, reduction="none")


def focal_class_costs(logits: Tensor, alpha: float) -> Tensor:
    """Focal loss of calling a query class c minus that of not calling it so, (N, K)."""
    probabilities = logits.sigmoid()
    positive = alpha * (1 - probabilities) ** FOCUS * -(probabilities + 1e-8).log()
    negative = (1 - alpha) * probabilities**FOCUS * -(1 - probabilities + 1e-8).log()
    return positive - negative


def _assign(cost: Tensor) -> Match:
    """Cheapest assignment of (N, G), on the CPU."""
    if not cost.isfinite().all():
        raise FloatingPointError(
            "the matching costs are not finite, so the model's classes or boxes are not: training has diverged. "
            "Lower SOLVER.BASE_LR or clip gradients (SOLVER.CLIP_GRADIENTS)."
        )
    queries, objects = linear_sum_assignment(cost.numpy())
    return torch.from_numpy(queries), torch.from_numpy(objects)


def _sum(losses: Iterable[Tensor]) -> Tensor:
    """Sum of at least one tensor."""
    return functools.reduce(torch.add, losses)


def _cells(masks: Tensor, stride: int) -> Tensor:
    """Pixels of (k, T, H, W) that mask logits at a stride stand for."""
    return masks[..., stride // 2 :: stride, stride // 2 :: stride]


def _at_stride(logits: Tensor, masks: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """Logits (T, k, h, w) at twice their size and the masks (k, T, H, W) there, (k, P) each."""
    return double_size(logits).transpose(0, 1).flatten(1), _cells(masks, stride).flatten(1).to(logits.dtype)
