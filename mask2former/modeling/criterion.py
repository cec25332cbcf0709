"""Losses of Mask2Former (Cheng et al., CVPR 2022, section 3.3): class, mask and dice, after every decoder layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ..points import point_sample, sample_lists, uncertain_points
from .matcher import HungarianMatcher, Match, matched_rows

if TYPE_CHECKING:
    from ..cfg import Cfg


class SetCriterion(nn.Module):
    """Match queries with objects and compute the losses of every decoder layer, unweighted."""

    empty_weight: Tensor

    def __init__(
        self,
        num_classes: int,
        *,
        matcher: nn.Module,
        weight_dict: Mapping[str, float] | None = None,
        no_object_weight: float = 0.1,
        num_points: int = 12544,
        oversample_ratio: float = 3.0,
        importance_sample_ratio: float = 0.75,
        last_layer_num: int = 1,
    ) -> None:
        """Args:
        num_classes: K, without "no object".
        matcher: gives the matches of one set of outputs.
        weight_dict: loss name -> weight, kept for the caller; the losses themselves are returned unweighted.
        no_object_weight: weight of "no object" in the class loss.
        num_points, oversample_ratio, importance_sample_ratio: see `points.uncertain_points`.
        last_layer_num: the matches of so many last decoder outputs are returned.
        """
        super().__init__()
        self.matcher = matcher
        self.weight_dict = dict(weight_dict or {})
        self.num_points = num_points
        self.oversample_ratio = oversample_ratio
        self.importance_sample_ratio = importance_sample_ratio
        self.last_layer_num = last_layer_num
        empty_weight = torch.ones(num_classes + 1)
        empty_weight[-1] = no_object_weight
        self.register_buffer("empty_weight", empty_weight)  # checkpoint name

    @classmethod
    def from_config(cls, cfg: Cfg, last_layer_num: int = 1) -> dict[str, Any]:
        mask_former = cfg.MODEL.MASK_FORMER
        weights = {
            "loss_ce": mask_former.CLASS_WEIGHT,
            "loss_mask": mask_former.MASK_WEIGHT,
            "loss_dice": mask_former.DICE_WEIGHT,
        }
        return {
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "matcher": HungarianMatcher(
                cost_class=mask_former.CLASS_WEIGHT,
                cost_mask=mask_former.MASK_WEIGHT,
                cost_dice=mask_former.DICE_WEIGHT,
                num_points=mask_former.TRAIN_NUM_POINTS,
            ),
            "weight_dict": layer_weights(weights, mask_former.DEC_LAYERS - 1 if mask_former.DEEP_SUPERVISION else 0),
            "no_object_weight": mask_former.NO_OBJECT_WEIGHT,
            "num_points": mask_former.TRAIN_NUM_POINTS,
            "oversample_ratio": mask_former.OVERSAMPLE_RATIO,
            "importance_sample_ratio": mask_former.IMPORTANCE_SAMPLE_RATIO,
            "last_layer_num": last_layer_num,
        }

    def forward(
        self, outputs: dict[str, Any], targets: list[dict[str, Any]], guide: dict[str, Any] | None = None
    ) -> tuple[dict[str, Tensor], list[list[Match]]]:
        """Compute the losses.

        Args:
            outputs: `pred_logits` (B, Q, K+1), `pred_masks` (B, Q, h, w), and `aux_outputs`, a list of the same for the
                decoder layers before.
            targets: for each image `labels` (G,), `masks` (G, H, W).
            guide: other outputs, which are matched once instead of those of every layer.

        Returns:
            Scalars loss_ce, loss_mask, loss_dice, and the same with suffix _i for layer i before the last; and the
            matches of the last `last_layer_num` outputs, the last one last. Without any object the mask and dice
            losses are 0.
        """
        num_masks = average_over_processes(sum(len(target["labels"]) for target in targets), self.empty_weight.device)
        losses = {}
        auxiliary = outputs.get("aux_outputs", [])
        guided = None if guide is None else self.matcher(guide, targets)
        matches = []
        for index, layer in enumerate([outputs, *auxiliary]):  # the last layer first: the published order of draws
            matches.append(self.matcher(layer, targets) if guided is None else guided)
            suffix = f"_{index - 1}" if index else ""
            for name, loss in self.layer_losses(layer, targets, matches[-1], num_masks).items():
                losses[name + suffix] = loss
        in_layer_order = [*matches[1:], matches[0]]
        return losses, in_layer_order[-self.last_layer_num :]

    def layer_losses(
        self, outputs: dict[str, Any], targets: list[dict[str, Any]], matches: list[Match], num_masks: float
    ) -> dict[str, Tensor]:
        """Class, mask and dice loss of one layer under given matches."""
        mask, dice = self.mask_losses(outputs["pred_masks"], targets, matches, num_masks)
        return {
            "loss_ce": self.class_loss(outputs["pred_logits"], targets, matches),
            "loss_mask": mask,
            "loss_dice": dice,
        }

    def class_loss(self, logits: Tensor, targets: list[dict[str, Any]], matches: list[Match]) -> Tensor:
        """Weighted cross entropy over all queries of all images; a query without object has class K."""
        classes = torch.full(logits.shape[:2], logits.shape[-1] - 1, dtype=torch.int64, device=logits.device)
        if matches:
            images, queries = matched_rows(matches)
            labels = [
                target["labels"][objects.to(target["labels"].device)]
                for target, (_, objects) in zip(targets, matches, strict=True)
            ]
            classes[images.to(classes.device), queries.to(classes.device)] = torch.cat(labels).to(classes.device)
        return F.cross_entropy(logits.float().flatten(0, 1), classes.flatten(), self.empty_weight)

    def mask_losses(
        self, masks: Tensor, targets: list[dict[str, Any]], matches: list[Match], num_masks: float
    ) -> tuple[Tensor, Tensor]:
        """Mask and dice loss of all matched pairs, at points drawn for each of them.

        Masks are those of images, (B, Q, h, w) and (G, H, W), or of clips, (B, Q, T, h, w) and (G, T, H, W).
        """
        images, queries = matched_rows(matches)
        pred = masks[images.to(masks.device), queries.to(masks.device)]
        pred = pred.flatten(0, -3)[:, None]  # (n, 1, h, w); every frame of a clip is a mask of its own
        if len(pred) == 0:
            return pred.sum(), pred.sum()  # 0, still connected to the graph
        with torch.no_grad():
            points = uncertain_points(
                pred.float(), self.num_points, self.oversample_ratio, self.importance_sample_ratio
            )
            matched = [target["masks"][objects] for target, (_, objects) in zip(targets, matches, strict=True)]
            labels = sample_lists([masks.flatten(0, -3) for masks in matched], points)  # (n, P)
        logits = point_sample(pred, points)[:, 0]
        return sigmoid_ce_loss(logits, labels, num_masks), dice_loss(logits, labels, num_masks)


def dice_loss(logits: Tensor, targets: Tensor, num_masks: float) -> Tensor:
    """1 - dice coefficient of each of n masks, summed and divided by `num_masks`; (n, P) logits and targets."""
    probabilities = logits.sigmoid()
    overlap = 2 * (probabilities * targets).sum(1)
    total = probabilities.sum(1) + targets.sum(1)
    return (1 - (overlap + 1) / (total + 1)).sum() / num_masks


def sigmoid_ce_loss(logits: Tensor, targets: Tensor, num_masks: float) -> Tensor:
    """Binary cross entropy averaged over the points of each of n masks, summed and divided by `num_masks`."""
    loss = F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="none")
    return loss.mean(1).sum() / num_masks


def average_over_processes(count: float, device: torch.device) -> float:
    """Mean of a count over all processes, at least 1: the number by which mask losses are divided."""
    if not (dist.is_available() and dist.is_initialized()):
        return max(float(count), 1.0)
    total = torch.tensor([float(count)], device=device)
    dist.all_reduce(total)
    return max(total.item() / dist.get_world_size(), 1.0)


def layer_weights(weights: Mapping[str, float], num_aux: int) -> dict[str, float]:
    """Repeat loss weights for `num_aux` auxiliary layers, with suffixes _0, _1, ..."""
    suffixes = ["", *(f"_{i}" for i in range(num_aux))]
    return {f"{name}{suffix}": weight for suffix in suffixes for name, weight in weights.items()}


def weighted(losses: dict[str, Tensor], weights: Mapping[str, float]) -> dict[str, Tensor]:
    """Multiply losses by their weights; a loss without weight is dropped."""
    return {name: loss * weights[name] for name, loss in losses.items() if name in weights}
