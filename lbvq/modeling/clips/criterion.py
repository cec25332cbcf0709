"""Losses of the clip queries, shared by LBVQ, VITA and GenVIS, which differ only in the prefix of the names.

`loss_<prefix>_ce`, `_mask`, `_dice` compare every matched clip query with its object over the whole clip;
`loss_<prefix>_sim` pulls together the embeddings of one object across frames and pushes those of others away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mask2former.modeling.criterion import (
    average_over_processes,
    classes_of_queries,
    groups_of,
    layer_weights,
    losses_of_points,
    read_pairs,
    select_rows,
)
from mask2former.modeling.matcher import Match, costs_on_host, pairs_of
from mask2former.points import Draws, draw_points
from mask2former.structures import ABSENT
from mask2former.transfer import to_device

from .decoder import ClipMasks, select_masks
from .matcher import ClipMatcher

if TYPE_CHECKING:
    from mask2former.cfg import Cfg


class ClipCriterion(nn.Module):
    """Match clip queries with objects and compute the losses of every decoder layer."""

    matcher_type: type[ClipMatcher] = ClipMatcher

    empty_weight: Tensor
    matcher: ClipMatcher

    def __init__(
        self,
        num_classes: int,
        *,
        prefix: str,
        matcher: ClipMatcher,
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
        num_objects = sum(len(target["labels"]) for target in clip_targets)
        num_masks = self.count_masks(outputs["pred_logits"], num_objects)
        losses: dict[str, Tensor] = {}
        for group in groups_of(layers_of(outputs), self.num_candidates(outputs, clip_targets)):
            costs, draws = self.prepare([layer for _, layer in group], clip_targets)
            on_host = costs_on_host(costs)
            matches = [self.matcher.assign(layer, clip_targets) for layer in on_host]
            losses |= self.losses(group, clip_targets, frame_targets, frame_matches, matches, draws, num_masks)
        return losses

    def prepare(
        self, layers: list[dict[str, Any]], targets: list[dict[str, Any]]
    ) -> tuple[list[list[Tensor]], list[Draws]]:
        """Matching costs of every layer, and what is drawn for its losses.

        All is drawn first, in the order in which one layer after the other would draw it.
        """
        points, draws = [], []
        for layer in layers:
            points.append(self.matcher.draw(layer, targets))
            draws.append(self.draw(layer, targets))
        with torch.no_grad():
            return self.matcher.layer_costs(layers, targets, points), draws

    def draw(self, layer: dict[str, Any], targets: list[dict[str, Any]]) -> Draws:
        """Draw what the losses of a layer need: for every frame of a matched clip query."""
        num_masks = self.matcher.num_pairs(layer, targets) * layer["pred_masks"].shape[3]
        return draw_points(num_masks, *self.point_sampling, layer["pred_logits"].device)

    def num_candidates(self, outputs: dict[str, Any], targets: list[dict[str, Any]]) -> int:
        """How many points are drawn for a layer at most."""
        num_masks = len(outputs["pred_logits"]) * sum(target["masks"].shape[:2].numel() for target in targets)
        return int(num_masks * self.point_sampling[0] * self.point_sampling[1])

    def losses(
        self,
        layers: list[tuple[str, dict[str, Any]]],
        clip_targets: list[dict[str, Any]],
        frame_targets: list[dict[str, Any]],
        frame_matches: list[list[Match]],
        matches: list[list[Match]],
        draws: list[Draws],
        num_masks: float | Tensor,
    ) -> dict[str, Tensor]:
        """Losses of layers (suffix, outputs) under given matches; see `forward`."""
        losses: dict[str, Tensor] = {}
        mask_losses = self.mask_losses([layer for _, layer in layers], clip_targets, matches, draws, num_masks)
        for (suffix, layer), found, (mask, dice) in zip(layers, matches, mask_losses, strict=True):
            loss_ce = clip_class_loss(layer["pred_logits"], clip_targets, found, self.empty_weight)
            losses[f"loss_{self.prefix}_ce{suffix}"] = loss_ce
            losses[f"loss_{self.prefix}_mask{suffix}"] = mask
            losses[f"loss_{self.prefix}_dice{suffix}"] = dice
            if suffix == "" and layer["pred_fq_embed"] is not None:
                losses[f"loss_{self.prefix}_sim"] = self.sim_loss(
                    layer, clip_targets, found, frame_targets, frame_matches
                )
        return losses

    def count_masks(self, logits: Tensor, num_objects: int) -> float | Tensor:
        """Number of matched masks by which mask losses are divided: mean over processes, at least 1."""
        return average_over_processes(logits.shape[0] * num_objects, logits.device)

    def mask_losses(
        self,
        layers: list[dict[str, Any]],
        clip_targets: list[dict[str, Any]],
        matches: list[list[Match]],
        draws: list[Draws],
        num_masks: float | Tensor,
    ) -> list[tuple[Tensor, Tensor]]:
        """Mask and dice loss of the matched clip queries of every layer, at points drawn for every object and frame.

        Sums over the matched pairs divided by `num_masks`; dice is taken over all frames of an object together.
        """
        pred = masks_of_pairs([layer["pred_masks"] for layer in layers], matches)  # (n, T, h, w)
        targets, num_points = [target["masks"] for target in clip_targets], self.point_sampling[0]
        read = read_pairs(pred.flatten(0, 1), targets, matches, draws, num_points)
        logits, labels = (each.reshape(-1, pred.shape[1] * num_points) for each in read)
        return losses_of_points(logits, labels, [num_pairs(found) for found in matches], num_masks)

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


def num_pairs(matches: list[Match]) -> int:
    return sum(len(queries) for queries, _ in matches)


def clip_class_loss(
    logits: Tensor, clip_targets: list[dict[str, Any]], matches: list[Match], class_weight: Tensor
) -> Tensor:
    """Weighted cross entropy over all L*B*N clip queries; a query without object has class K.

    Args:
        logits: (L, B, N, K+1).
        class_weight: (K+1,).
    """
    classes = classes_of_queries(logits.flatten(0, 1), clip_targets, matches)
    return F.cross_entropy(logits.float().flatten(0, 2), to_device(classes.flatten(), logits.device), class_weight)


def masks_of_pairs(layers: Sequence[Any], matches: list[list[Match]]) -> Tensor:
    """Masks (n, T, h, w) of the matched clip queries of several layers.

    Args:
        layers: (L, B, N, T, h, w) logits of each, all tensors or all `ClipMasks`.
        matches: for each layer those of its L*B entries.
    """
    order, entries, queries, _ = pairs_of(matches)
    outputs, clips = entries // layers[0].shape[1], entries % layers[0].shape[1]
    if isinstance(layers[0], ClipMasks):
        return select_masks(layers, order, outputs, clips, queries)
    chosen = [order == number for number in range(len(layers))]  # the pairs of each layer
    return torch.cat(
        [select_rows(masks, outputs[own], clips[own], queries[own]) for masks, own in zip(layers, chosen, strict=True)]
    )


Rows = tuple[Tensor, Tensor, Tensor]  # embeddings (R, C); on the CPU ids (R,) and groups (R,)


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
    layers, images, queries, objects = pairs_of(matches)
    ids = [target["ids"].cpu() for target in frame_targets]
    rows = select_rows(embeddings.flatten(1, 2), layers, images, queries)
    return rows, _of_objects(ids, images, objects), layers * num_clips + images // num_frames


def clip_query_rows(embeddings: Tensor, clip_targets: list[dict[str, Any]], matches: list[Match]) -> Rows:
    """Collect the matched clip queries (of embeddings (L, B, N, C)) with their object ids; see `frame_query_rows`."""
    _, entries, queries, objects = pairs_of([matches])
    ids = [target["ids"].cpu().amax(dim=1) for target in clip_targets] * embeddings.shape[0]
    return select_rows(embeddings.flatten(0, 1), entries, queries), _of_objects(ids, entries, objects), entries


def similarity_loss(embeddings: Tensor, ids: Tensor, groups: Tensor) -> Tensor:
    """Binary cross entropy between inner products and "same object", over all pairs of rows of one group.

    Args:
        embeddings: (R, C), not normalised.
        ids: (R,) object ids within the group, on the CPU; rows with id -1 are left out.
        groups: (R,), on the CPU.

    Returns:
        Mean over the pairs, a row with itself included; 0 without rows.
    """
    known = (ids != ABSENT).nonzero().flatten()
    embeddings = select_rows(embeddings, known)
    ids, groups = (to_device(each[known], embeddings.device) for each in (ids, groups))
    with torch.autocast(embeddings.device.type, enabled=False):
        products = embeddings.float() @ embeddings.float().T
    same_group = (groups[:, None] == groups[None]).float()
    same_object = (ids[:, None] == ids[None]).float()  # ids of other groups do not count
    total = F.binary_cross_entropy_with_logits(products, same_object, weight=same_group, reduction="sum")
    return total / (same_group.sum() + 1e-6)


def _of_objects(ids: list[Tensor], images: Tensor, objects: Tensor) -> Tensor:
    """Ids of objects (n,) of images (n,), from the ids of every image."""
    starts = torch.tensor([0, *map(len, ids)]).cumsum(0)
    return torch.cat(ids)[starts[images] + objects]
