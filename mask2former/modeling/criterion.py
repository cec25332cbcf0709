"""Losses of Mask2Former (Cheng et al., CVPR 2022, section 3.3): class, mask and dice, after every decoder layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ..points import Draws, choose_points, draw_points, point_sample, sample_lists
from ..transfer import to_device
from .matcher import HungarianMatcher, Match, pairs_of

if TYPE_CHECKING:
    from ..cfg import Cfg

DRAWN_AT_ONCE = 2**24  # points; more layers are drawn, matched and compared one after the other

Layer = dict[str, Any]  # what a decoder layer says
Target = dict[str, Any]
AnyLayer = TypeVar("AnyLayer")


class LayerDraws(NamedTuple):
    """What is drawn for the losses of a layer, before anything is computed."""

    points: Draws
    waits: Tensor | None = None  # (K+1,), where the class loss draws classes


class SetCriterion(nn.Module):
    """Match queries with objects and compute the losses of every decoder layer, unweighted."""

    empty_weight: Tensor
    matcher: HungarianMatcher

    def __init__(
        self,
        num_classes: int,
        *,
        matcher: HungarianMatcher,
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
        layers = [outputs, *outputs.get("aux_outputs", [])]  # the last layer first: the published order of draws
        guided = None if guide is None else self.matcher(guide, targets)
        losses: dict[str, Tensor] = {}
        matches: list[list[Match]] = []
        for group in groups_of(layers, self.num_candidates(targets)):
            found, draws = self.match_layers(group, targets, guided)
            every = self.losses_of_layers(group, targets, found, draws, num_masks)
            for match, layer_losses in zip(found, every, strict=True):
                suffix = f"_{len(matches) - 1}" if matches else ""
                losses |= {name + suffix: loss for name, loss in layer_losses.items()}
                matches.append(match)
        in_layer_order = [*matches[1:], matches[0]]
        return losses, in_layer_order[-self.last_layer_num :]

    def num_candidates(self, targets: list[Target]) -> int:
        """How many points are drawn for a layer at most."""
        num_masks = sum(target["masks"].shape[:-2].numel() for target in targets)
        return int(num_masks * self.num_points * self.oversample_ratio)

    def match_layers(
        self, layers: list[Layer], targets: list[Target], guided: list[Match] | None = None
    ) -> tuple[list[list[Match]], list[LayerDraws]]:
        """Matches of every layer, and what was drawn for its losses.

        All is drawn before anything is computed, in the order in which one layer after the other would draw it: so all
        layers are matched together, and the host waits for a device once.
        """
        points, draws = [], []
        for layer in layers:
            if guided is None:
                points.append(self.matcher.draw(layer, targets))
            draws.append(self.draw(layer, targets, guided))
        if guided is None:
            return self.matcher.match_layers(layers, targets, points), draws
        return [guided] * len(layers), draws

    def draw(self, layer: Layer, targets: list[Target], guided: list[Match] | None) -> LayerDraws:
        """Draw what the losses of a layer need."""
        masks = layer["pred_masks"]
        if guided is None:
            num_pairs = self.matcher.num_pairs(layer, targets)
        else:
            num_pairs = sum(len(queries) for queries, _ in guided)
        num_masks = num_pairs * masks.shape[2:-2].numel()  # every frame of a clip is a mask of its own
        sampling = (self.num_points, self.oversample_ratio, self.importance_sample_ratio)
        return LayerDraws(draw_points(num_masks, *sampling, masks.device))

    def losses_of_layers(
        self,
        layers: list[Layer],
        targets: list[Target],
        matches: list[list[Match]],
        draws: list[LayerDraws],
        num_masks: float | Tensor,
    ) -> Iterator[dict[str, Tensor]]:
        """Class, mask and dice loss of every layer under given matches."""
        mask_losses = self.mask_losses(layers, targets, matches, [drawn.points for drawn in draws], num_masks)
        for layer, found, drawn, (mask, dice) in zip(layers, matches, draws, mask_losses, strict=True):
            yield {**self.class_losses(layer, targets, found, drawn), "loss_mask": mask, "loss_dice": dice}

    def class_losses(
        self, layer: Layer, targets: list[Target], matches: list[Match], drawn: LayerDraws
    ) -> dict[str, Tensor]:
        """Losses of a layer that say what its queries are."""
        return {"loss_ce": self.class_loss(layer["pred_logits"], targets, matches)}

    def class_loss(self, logits: Tensor, targets: list[Target], matches: list[Match]) -> Tensor:
        """Weighted cross entropy over all queries of all images; a query without object has class K."""
        classes = to_device(classes_of_queries(logits, targets, matches), logits.device)
        return F.cross_entropy(logits.float().flatten(0, 1), classes.flatten(), self.empty_weight)

    def mask_losses(
        self,
        layers: list[Layer],
        targets: list[Target],
        matches: list[list[Match]],
        draws: Sequence[Draws],
        num_masks: float | Tensor,
    ) -> list[tuple[Tensor, Tensor]]:
        """Mask and dice loss of all matched pairs of every layer, at points drawn for each of them.

        Masks are those of images, (B, Q, h, w) and (G, H, W), or of clips, (B, Q, T, h, w) and (G, T, H, W).
        """
        pred = matched_masks(layers, matches)
        masks = pred.flatten(0, -3)  # (n, h, w); every frame of a clip is a mask of its own
        logits, labels = read_pairs(masks, [each["masks"] for each in targets], matches, draws, self.num_points)
        num_frames = pred.shape[1:-2].numel()
        counts = [sum(len(queries) for queries, _ in found) * num_frames for found in matches]
        return losses_of_points(logits, labels, counts, num_masks)


def groups_of(layers: Sequence[AnyLayer], num_candidates: int) -> Iterator[list[AnyLayer]]:
    """Layers that are matched and compared together: all of them, unless there are very many objects.

    Args:
        num_candidates: points that are drawn for each layer.
    """
    at_once = max(1, DRAWN_AT_ONCE // max(num_candidates, 1))
    for start in range(0, len(layers), at_once):
        yield list(layers[start : start + at_once])


def select_rows(tensor: Tensor, *indices: Tensor) -> Tensor:
    """`tensor[indices]` with indices on the CPU."""
    return tensor[tuple(to_device(index, tensor.device) for index in indices)]


def matched_masks(layers: Sequence[Layer], matches: Sequence[Sequence[Match]]) -> Tensor:
    """Masks of the matched queries of every layer, (n, h, w) or (n, T, h, w), layer by layer, image by image.

    Where the layers say what their masks are made of, see `linear.predicted_masks`, the matched ones are made of it.
    """
    order, images, queries, _ = pairs_of(matches)
    parts = [layer["mask_parts"] for layer in layers if "mask_parts" in layer]
    if len(parts) < len(layers) or any(features is not parts[0][1] for _, features in parts):
        chosen = [order == number for number in range(len(layers))]  # the pairs of each layer
        pairs = zip(layers, chosen, strict=True)
        return torch.cat([select_rows(layer["pred_masks"], images[own], queries[own]) for layer, own in pairs])
    embed = select_rows(torch.stack([each for each, _ in parts]), order, images, queries)
    return masks_of_rows(embed, images, parts[0][1].unbind()).unflatten(1, layers[0]["pred_masks"].shape[2:])


def masks_of_rows(embed: Tensor, owners: Tensor, features: Sequence[Tensor]) -> Tensor:
    """Multiply rows with the features of the image that each belongs to, in one product for every image.

    So the features of an image have one gradient, however many layers look at them.

    Args:
        embed: (n, c).
        owners: (n,) which image, on the CPU.
        features: (c, ...) of every image, of one size.

    Returns:
        (n, cells).
    """
    by_owner = owners.argsort(stable=True)
    counts = torch.bincount(owners, minlength=len(features)).tolist()
    parts = zip(select_rows(embed, by_owner).split(counts), features, strict=True)
    return select_rows(torch.cat([rows @ each.flatten(1) for rows, each in parts]), by_owner.argsort())


def classes_of_queries(logits: Tensor, targets: list[Target], matches: Sequence[Match]) -> Tensor:
    """Class of every query, (E, Q) int64 on the CPU; K where it has no object.

    Args:
        logits: (E, Q, K+1), for their sizes.
        targets: entry e has target e % U.
    """
    classes = torch.full(logits.shape[:2], logits.shape[-1] - 1, dtype=torch.int64)
    for entry, (queries, objects) in enumerate(matches):
        classes[entry, queries] = targets[entry % len(targets)]["labels"].cpu()[objects]
    return classes


def read_pairs(
    masks: Tensor,
    target_masks: Sequence[Tensor],
    matches: Sequence[Sequence[Match]],
    draws: Sequence[Draws],
    num_points: int,
) -> tuple[Tensor, Tensor]:
    """Read the predicted and the annotated masks of all matched pairs of several layers, at points of their own.

    Args:
        masks: (n, h, w) predicted masks, layer by layer, entry by entry, frame by frame.
        target_masks: U times (G, H, W) or (G, T, H, W); entry e has e % U.
        matches: for each layer those of its E entries.
        draws: of every layer.

    Returns:
        Logits and labels, (n, P) each.
    """
    if len(masks) == 0:
        nothing = masks.flatten(1)[:, :1]  # still connected to the graph
        return nothing, nothing.detach()
    masks = masks[:, None]
    with torch.no_grad():
        points = choose_points(
            masks.float(), Draws(*(torch.cat(part) for part in zip(*draws, strict=True))), num_points
        )
        labels = read_annotated(target_masks, matches, points)
    return point_sample(masks, points)[:, 0], labels


def read_annotated(masks: Sequence[Tensor], matches: Sequence[Sequence[Match]], points: Tensor) -> Tensor:
    """Read the annotated masks of all pairs at points (n, P, 2): (n, P); each mask once, at the points of all layers.

    See `read_pairs`; a mask may be matched once in every layer and in every repetition of the targets.
    """
    layers, entries, _, objects = pairs_of(matches)
    counts = torch.tensor([0, *(len(each) for each in masks)])
    num_frames = masks[0].shape[1:-2].numel()
    num_slots = len(matches) * (len(matches[0]) // len(masks))
    rows = counts.cumsum(0)[entries % len(masks)] + objects
    slots = layers * (num_slots // len(matches)) + entries // len(masks)
    frames = (rows[:, None] * num_frames + torch.arange(num_frames)).flatten()
    places = to_device(frames * num_slots + slots.repeat_interleave(num_frames), points.device)
    num_places = int(counts.sum()) * num_frames * num_slots
    spread = points.new_zeros(num_places, *points.shape[1:]).index_copy_(0, places, points)
    read = sample_lists([each.flatten(0, -3) for each in masks], spread.view(-1, num_slots * points.shape[1], 2))
    return read.reshape(num_places, points.shape[1]).index_select(0, places)


def losses_of_points(
    logits: Tensor, labels: Tensor, counts: list[int], num_masks: float | Tensor
) -> list[tuple[Tensor, Tensor]]:
    """Mask and dice loss of the layers that have `counts` of the n rows, (n, P) logits and labels."""
    ce = mask_ce(logits, labels).split(counts)
    dice = mask_dice(logits, labels).split(counts)
    return [(a.sum() / num_masks, b.sum() / num_masks) for a, b in zip(ce, dice, strict=True)]


def dice_loss(logits: Tensor, targets: Tensor, num_masks: float | Tensor) -> Tensor:
    """1 - dice coefficient of each of n masks, summed and divided by `num_masks`; (n, P) logits and targets."""
    return mask_dice(logits, targets).sum() / num_masks


def mask_dice(logits: Tensor, targets: Tensor) -> Tensor:
    """1 - dice coefficient of each of n masks; (n, P) logits and targets -> (n,)."""
    probabilities = logits.sigmoid()
    overlap = 2 * (probabilities * targets).sum(1)
    total = probabilities.sum(1) + targets.sum(1)
    return 1 - (overlap + 1) / (total + 1)


def sigmoid_ce_loss(logits: Tensor, targets: Tensor, num_masks: float | Tensor) -> Tensor:
    """Binary cross entropy averaged over the points of each of n masks, summed and divided by `num_masks`."""
    return mask_ce(logits, targets).sum() / num_masks


def mask_ce(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross entropy of each of n masks, mean over its points; (n, P) logits and targets -> (n,)."""
    return F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="none").mean(1)


def average_over_processes(count: float, device: torch.device) -> float | Tensor:
    """Mean of a count over all processes, at least 1: the number by which mask losses are divided."""
    if not (dist.is_available() and dist.is_initialized()):
        return max(float(count), 1.0)
    total = torch.full((), float(count), device=device)
    dist.all_reduce(total)
    return (total / dist.get_world_size()).clamp(min=1.0)  # stays on the device: nobody waits for it


def layer_weights(weights: Mapping[str, float], num_aux: int) -> dict[str, float]:
    """Repeat loss weights for `num_aux` auxiliary layers, with suffixes _0, _1, ..."""
    suffixes = ["", *(f"_{i}" for i in range(num_aux))]
    return {f"{name}{suffix}": weight for suffix in suffixes for name, weight in weights.items()}


def weighted(losses: dict[str, Tensor], weights: Mapping[str, float]) -> dict[str, Tensor]:
    """Multiply losses by their weights; a loss without weight is dropped."""
    return {name: loss * weights[name] for name, loss in losses.items() if name in weights}
