"""Losses of the clip queries, shared by LBVQ, VITA and GenVIS, which differ only in the prefix of the names.

`loss_<prefix>_ce`, `_mask`, `_dice` compare every matched clip query with its object over the whole clip;
`loss_<prefix>_sim` pulls together the embeddings of one object across frames and pushes those of others away.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mask2former.modeling.criterion import average_over_processes, dice_loss, layer_weights, sigmoid_ce_loss
from mask2former.modeling.matcher import Match
from mask2former.points import point_sample, sample_lists, uncertain_points
from mask2former.structures import ABSENT

from .matcher import ClipMatcher

if TYPE_CHECKING:
    from mask2former.cfg import Cfg


class ClipCriterion(nn.Module):
    """Match clip queries with objects and compute the losses of every decoder layer."""

    matcher_type: type[ClipMatcher] = ClipMatcher

    empty_weight: Tensor

    def __init__(
        self,
        num_classes: int,
        *,
        prefix: str,
        matcher: nn.Module,
        weight_dict: Mapping[str, float] | None = None,
        no_object_weight: float,
        num_points: int,
        oversample_ratio: float,
        importance_sample_ratio: float,
        sim_use_clip: bool,
    ) -> None:
        """Args:
        num_classes: K, without "no object".
        prefix: method name inside the loss names.
        matcher: gives the matches of one set of outputs.
        weight_dict: loss name -> weight, kept for the caller; the losses themselves are returned unweighted.
        no_object_weight: weight of "no object" in the class loss.
        num_points, oversample_ratio, importance_sample_ratio: point sampling of masks, as in the frame losses.
        sim_use_clip: let clip queries take part in the similarity loss.
        """
        super().__init__()
        self.prefix, self.matcher, self.sim_use_clip = prefix, matcher, sim_use_clip
        self.weight_dict = dict(weight_dict or {})
        self.point_sampling = (num_points, oversample_ratio, importance_sample_ratio)
        empty_weight = torch.ones(num_classes + 1)
        empty_weight[-1] = no_object_weight
        self.register_buffer("empty_weight", empty_weight)  # checkpoint name

    @classmethod
    def from_config(cls, cfg: Cfg, prefix: str, group: str | None = None) -> dict[str, Any]:
        """Weights and point sampling of the frame losses, the rest from `MODEL.<group>` (`MODEL.<PREFIX>`)."""
        clip, mask_former = cfg.MODEL[group or prefix.upper()], cfg.MODEL.MASK_FORMER
        weights = {
            f"loss_{prefix}_ce": mask_former.CLASS_WEIGHT,
            f"loss_{prefix}_mask": mask_former.MASK_WEIGHT,
            f"loss_{prefix}_dice": mask_former.DICE_WEIGHT,
        }
        weights = layer_weights(weights, clip.DEC_LAYERS - 1 if clip.DEEP_SUPERVISION else 0)
        return {
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "prefix": prefix,
            "matcher": cls.matcher_type(
                cost_class=mask_former.CLASS_WEIGHT,
                cost_mask=mask_former.MASK_WEIGHT,
                cost_dice=mask_former.DICE_WEIGHT,
                num_points=mask_former.TRAIN_NUM_POINTS,
            ),
            "weight_dict": {**weights, f"loss_{prefix}_sim": clip.SIM_WEIGHT},
            "no_object_weight": clip.NO_OBJECT_WEIGHT,
            "num_points": mask_former.TRAIN_NUM_POINTS,
            "oversample_ratio": mask_former.OVERSAMPLE_RATIO,
            "importance_sample_ratio": mask_former.IMPORTANCE_SAMPLE_RATIO,
            "sim_use_clip": clip.SIM_USE_CLIP,
        }

    def forward(
        self,
        outputs: dict[str, Any],
        clip_targets: list[dict[str, Any]],
        frame_targets: list[dict[str, Any]],
        frame_matches: list[list[Match]],
    ) -> dict[str, Tensor]:
        """Compute the losses, unweighted.

        Args:
            outputs: of the clip module, with `pred_masks` (L, B, N, T, h, w) in it and in every auxiliary output.
            clip_targets: B clip targets, see `targets.py`.
            frame_targets: B*T frame targets.
            frame_matches: for each of the L kept frame-decoder outputs, B*T matches of frame queries.

        Returns:
            Scalars; the last layer's names have no suffix, layer i before it has `_i`. All are 0 except the class loss
            when no clip has an object.
        """
        matches = (self.matcher(layer, clip_targets) for _, layer in layers_of(outputs))
        num_objects = sum(len(target["labels"]) for target in clip_targets)
        return self.losses(outputs, clip_targets, frame_targets, frame_matches, matches, num_objects)

    def losses(
        self,
        outputs: dict[str, Any],
        clip_targets: list[dict[str, Any]],
        frame_targets: list[dict[str, Any]],
        frame_matches: list[list[Match]],
        matches: Iterable[list[Match]],
        num_objects: int,
    ) -> dict[str, Tensor]:
        """Losses under given matches, for the last layer and then for every layer before it; see `forward`.

        Args:
            num_objects: how many objects of the B clips take part.
        """
        num_masks = self.count_masks(outputs["pred_logits"], num_objects)
        losses: dict[str, Tensor] = {}
        for (suffix, layer), layer_matches in zip(layers_of(outputs), matches, strict=True):
            losses |= self.layer_losses(layer, clip_targets, layer_matches, num_masks, suffix)
            if suffix == "" and layer["pred_fq_embed"] is not None:
                losses[f"loss_{self.prefix}_sim"] = self.sim_loss(
                    layer, clip_targets, layer_matches, frame_targets, frame_matches
                )
        return losses

    def count_masks(self, logits: Tensor, num_objects: int) -> float:
        """Number of matched masks by which mask losses are divided: mean over processes, at least 1."""
        return average_over_processes(logits.shape[0] * num_objects, logits.device)

    def layer_losses(
        self,
        outputs: dict[str, Any],
        clip_targets: list[dict[str, Any]],
        matches: list[Match],
        num_masks: float,
        suffix: str,
    ) -> dict[str, Tensor]:
        """Class, mask and dice loss of one decoder layer under given matches."""
        mask, dice = clip_mask_losses(outputs["pred_masks"], clip_targets, matches, num_masks, *self.point_sampling)
        return {
            f"loss_{self.prefix}_ce{suffix}": clip_class_loss(
                outputs["pred_logits"], clip_targets, matches, self.empty_weight
            ),
            f"loss_{self.prefix}_mask{suffix}": mask,
            f"loss_{self.prefix}_dice{suffix}": dice,
        }

    def sim_loss(
        self,
        outputs: dict[str, Any],
        clip_targets: list[dict[str, Any]],
        clip_matches: list[Match],
        frame_targets: list[dict[str, Any]],
        frame_matches: list[list[Match]],
    ) -> Tensor:
        """Similarity loss over matched frame queries and, if wanted, matched clip queries."""
        parts = [frame_query_rows(outputs["pred_fq_embed"], frame_targets, frame_matches)]
        if self.sim_use_clip:
            parts.append(clip_query_rows(outputs["pred_cq_embed"], clip_targets, clip_matches))
        embeddings, ids, groups = (torch.cat(column) for column in zip(*parts, strict=True))
        return similarity_loss(embeddings, ids, groups)


def layers_of(outputs: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """List (suffix of the loss names, outputs) of the last layer and then of the layers before it."""
    return [("", outputs)] + [(f"_{i}", layer) for i, layer in enumerate(outputs["aux_outputs"])]


def entries_of(matches: list[Match], num_clips: int) -> list[tuple[int, int, Tensor, Tensor]]:
    """Spell out L*B matches as (layer, clip, query indices, object indices)."""
    return [(*divmod(entry, num_clips), queries, objects) for entry, (queries, objects) in enumerate(matches)]


def clip_class_loss(
    logits: Tensor, clip_targets: list[dict[str, Any]], matches: list[Match], class_weight: Tensor
) -> Tensor:
    """Weighted cross entropy over all L*B*N clip queries; a query without object has class K.

    Args:
        logits: (L, B, N, K+1).
        class_weight: (K+1,).
    """
    classes = torch.full(logits.shape[:3], logits.shape[-1] - 1, dtype=torch.int64, device=logits.device)
    for layer, clip, queries, objects in entries_of(matches, logits.shape[1]):
        classes[layer, clip, queries] = clip_targets[clip]["labels"][objects]
    return F.cross_entropy(logits.float().flatten(0, 2), classes.flatten(), class_weight)


def clip_mask_losses(
    masks: Any,
    clip_targets: list[dict[str, Any]],
    matches: list[Match],
    num_masks: float,
    num_points: int,
    oversample_ratio: float,
    importance_sample_ratio: float,
) -> tuple[Tensor, Tensor]:
    """Mask and dice loss of matched clip queries, at points drawn for every object and frame.

    Args:
        masks: (L, B, N, T, h, w) logits, a tensor or `ClipMasks`.

    Returns:
        Sums over the matched pairs divided by `num_masks`; dice is taken over all frames of an object together.
    """
    entries = entries_of(matches, len(clip_targets))
    pred = torch.cat([masks[layer, clip, queries] for layer, clip, queries, _ in entries])  # (n, T, h, w)
    if len(pred) == 0:
        return pred.sum(), pred.sum()  # 0, still connected to the graph
    num_frames = pred.shape[1]
    pred = pred.flatten(0, 1)[:, None]  # (n*T, 1, h, w)
    with torch.no_grad():
        points = uncertain_points(pred.float(), num_points, oversample_ratio, importance_sample_ratio)  # (n*T, P, 2)
        matched = [clip_targets[clip]["masks"][objects].flatten(0, 1) for _, clip, _, objects in entries]  # (m*T, H, W)
        labels = sample_lists(matched, points).reshape(-1, num_frames * num_points)  # (n, T*P)
    logits = point_sample(pred, points).reshape(-1, num_frames * num_points)
    return sigmoid_ce_loss(logits, labels, num_masks), dice_loss(logits, labels, num_masks)


Rows = tuple[Tensor, Tensor, Tensor]  # embeddings (R, C), ids (R,), groups (R,)


def frame_query_rows(embeddings: Tensor, frame_targets: list[dict[str, Any]], matches: list[list[Match]]) -> Rows:
    """Collect the matched frame queries with their object ids.

    Args:
        embeddings: (L, B, T, Q, C).
        matches: for each of the L outputs, B*T matches.

    Returns:
        Embeddings, ids and groups, where a group is one clip in one output, l * B + b.
    """
    num_outputs, num_clips, num_frames = embeddings.shape[:3]
    if len(matches) != num_outputs:
        raise ValueError(f"expected frame matches of {num_outputs} decoder outputs, got {len(matches)}")
    rows = []
    for layer in range(num_outputs):
        for image, (queries, objects) in enumerate(matches[layer]):
            clip, frame = divmod(image, num_frames)
            ids = frame_targets[image]["ids"][objects]
            rows.append((embeddings[layer, clip, frame, queries], ids, torch.full_like(ids, layer * num_clips + clip)))
    return _concatenate(rows)


def clip_query_rows(embeddings: Tensor, clip_targets: list[dict[str, Any]], matches: list[Match]) -> Rows:
    """Collect the matched clip queries (of embeddings (L, B, N, C)) with their object ids; see `frame_query_rows`."""
    rows = []
    for layer, clip, queries, objects in entries_of(matches, embeddings.shape[1]):
        ids = clip_targets[clip]["ids"][objects].amax(dim=1)
        rows.append((embeddings[layer, clip, queries], ids, torch.full_like(ids, layer * embeddings.shape[1] + clip)))
    return _concatenate(rows)


def similarity_loss(embeddings: Tensor, ids: Tensor, groups: Tensor) -> Tensor:
    """Binary cross entropy between inner products and "same object", over all pairs of rows of one group.

    Args:
        embeddings: (R, C), not normalised.
        ids: (R,) object ids within the group; rows with id -1 are left out.
        groups: (R,).

    Returns:
        Mean over the pairs, a row with itself included; 0 without rows.
    """
    known = ids != ABSENT
    embeddings, ids, groups = embeddings[known], ids[known], groups[known]
    with torch.autocast(embeddings.device.type, enabled=False):
        products = embeddings.float() @ embeddings.float().T
    same_group = (groups[:, None] == groups[None]).float()
    same_object = (ids[:, None] == ids[None]).float()  # ids of other groups do not count
    total = F.binary_cross_entropy_with_logits(products, same_object, weight=same_group, reduction="sum")
    return total / (same_group.sum() + 1e-6)


def _concatenate(rows: list[Rows]) -> Rows:
    embeddings, ids, groups = zip(*rows, strict=True)
    return torch.cat(embeddings), torch.cat(ids), torch.cat(groups)
