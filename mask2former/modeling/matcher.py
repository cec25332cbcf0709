"""One-to-one matching of queries with annotated objects at least cost (Hungarian method).

DETR, Carion et al., ECCV 2020, section 3.1, with the mask costs of Mask2Former, Cheng et al., CVPR 2022.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ..points import sample_lists, sample_pixels
from ..transfer import to_device, to_host

COMPARED_AT_ONCE = 2**24  # pixels of predicted masks; more images are compared one after the other
COMPARED_ON_CPU = 2**20  # of them, where large tensors are slow
CACHED = 2**17  # of them

Match = tuple[Tensor, Tensor]  # query indices, ascending, and object indices, (n,) each, int64 on the CPU

Places = list[Any]  # where the entries that are compared lie in the outputs: indices, or tuples of them


class HungarianMatcher(nn.Module):
    """Match the queries of every image with its objects."""

    scored: tuple[str, ...] = ("pred_logits",)  # outputs that `class_scores` needs
    unit = "image"  # what an entry is called in messages

    def __init__(
        self, cost_class: float = 1.0, cost_mask: float = 1.0, cost_dice: float = 1.0, num_points: int = 12544
    ) -> None:
        """Args:
        cost_class, cost_mask, cost_dice: weights of the three costs.
        num_points: P points at which masks are compared; one draw per image or clip for all its queries, objects and
            frames.
        """
        super().__init__()
        self.cost_class, self.cost_mask, self.cost_dice = cost_class, cost_mask, cost_dice
        self.num_points = num_points

    @torch.no_grad()
    def forward(self, outputs: dict[str, Any], targets: list[dict[str, Any]]) -> list[Match]:
        """Match every image.

        Args:
            outputs: `pred_logits` (B, Q, K+1) and `pred_masks` (B, Q, h, w), or (B, Q, T, h, w) of clips.
            targets: for each image `labels` (G,) on the CPU, `masks` (G, H, W) or (G, T, H, W), and perhaps `name` for
                messages.

        Returns:
            B matches; an image without objects has an empty one, and with G > Q some objects stay unmatched.
        """
        return self.match_layers([outputs], targets, [self.draw(outputs, targets)])[0]

    @torch.no_grad()
    def match_layers(
        self, layers: Sequence[dict[str, Any]], targets: list[dict[str, Any]], points: Sequence[Tensor]
    ) -> list[list[Match]]:
        """Match the outputs of several layers at points of `draw`; the host waits for a device once."""
        costs = self.layer_costs(layers, targets, points)
        return [self.assign(layer, targets) for layer in costs_on_host(costs)]

    def places(self, outputs: dict[str, Any], targets: list[dict[str, Any]]) -> Places:
        """Where the E entries that are compared lie: every image is one."""
        return list(range(len(targets)))

    def compared(self, targets: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The U targets that they are compared with; entry e belongs to target e % U."""
        return targets

    def num_pairs(self, outputs: dict[str, Any], targets: list[dict[str, Any]]) -> int:
        """How many pairs the matches of these outputs will have together."""
        num_queries = outputs["pred_logits"].shape[-2]
        pairs = [min(num_queries, len(target["labels"])) for target in targets]
        return sum(_repeated(pairs, len(self.places(outputs, targets))))

    def draw(self, outputs: dict[str, Any], targets: list[dict[str, Any]]) -> Tensor:
        """Draw (E, P, 2) points, entry after entry as published."""
        device = outputs["pred_logits"].device
        draws = [torch.rand(1, self.num_points, 2, device=device) for _ in self.places(outputs, targets)]
        return torch.cat(draws) if draws else torch.zeros(0, self.num_points, 2, device=device)

    def assign(self, costs: Sequence[Tensor], targets: list[dict[str, Any]]) -> list[Match]:
        """Make matches of the costs of all entries, which are on the CPU."""
        names = [target.get("name", f"{self.unit} {number} of the batch") for number, target in enumerate(targets)]
        return [assign(cost, name) for cost, name in zip(costs, _repeated(names, len(costs)), strict=True)]

    def costs(self, outputs: dict[str, Any], targets: list[dict[str, Any]]) -> list[Tensor]:
        """Cost of giving object g to query q, for every entry: (Q, G) float32 each."""
        return self.layer_costs([outputs], targets, [self.draw(outputs, targets)])[0]

    def cost(self, outputs: dict[str, Any], target: dict[str, Any], image: int) -> Tensor:
        """Cost of giving object g of an image to query q: (Q, G) float32."""
        alone = {name: value[image : image + 1] for name, value in outputs.items() if isinstance(value, Tensor)}
        return self.costs(alone, [target])[0]

    def layer_costs(
        self, layers: Sequence[dict[str, Any]], targets: list[dict[str, Any]], points: Sequence[Tensor]
    ) -> list[list[Tensor]]:
        """`costs` of several layers, each at its own points (E, P, 2)."""
        if not layers or not len(points[0]):
            return [[] for _ in layers]
        places, compared = self.places(layers[0], targets), self.compared(targets)
        read = read_targets([target["masks"] for target in compared], points)
        labels = [target["labels"] for target in _repeated(compared, len(places))]
        return [
            self._costs_at(layer, places, labels, *at)
            for layer, at in zip(layers, zip(points, read, strict=True), strict=True)
        ]

    def _costs_at(
        self,
        outputs: dict[str, Any],
        places: Places,
        labels: Sequence[Tensor],
        points: Tensor,
        target_masks: Sequence[Tensor],
    ) -> list[Tensor]:
        masks = outputs["pred_masks"]
        depth = len(places[0]) if isinstance(places[0], tuple) else 1  # of an entry in the outputs
        pixels = math.prod(masks.shape[depth:-2]) * self.num_points  # that are read of the masks of an entry
        most = min(COMPARED_AT_ONCE, COMPARED_ON_CPU) if points.device.type == "cpu" else COMPARED_AT_ONCE
        at_once = max(1, most // max(pixels, 1))
        costs = []
        for start in range(0, len(places), at_once):
            part = slice(start, start + at_once)
            costs += pairwise_costs(
                self.class_scores({name: select_entries(outputs[name], places[part]) for name in self.scored}),
                read_masks(masks, places[part], points[part]),
                labels[part],
                target_masks[part],
                cost_class=self.cost_class,
                cost_mask=self.cost_mask,
                cost_dice=self.cost_dice,
            )
        return costs

    def class_scores(self, outputs: dict[str, Tensor]) -> Tensor:
        """How well a query fits a class: (b, Q, K) or more classes, from the `scored` outputs (b, Q, ...)."""
        return outputs["pred_logits"].float().softmax(-1)


def select_entries(tensor: Tensor, places: Places) -> Tensor:
    """Entries of the first axis, or of the first axes together: (b, ...)."""
    if _are_neighbours(places):
        return tensor[places[0] : places[0] + len(places)]
    return torch.stack([tensor[place] for place in places])


def read_masks(masks: Any, places: Places, points: Tensor) -> Tensor:
    """Read the predicted masks of b entries at points (b, P, 2) of their own: (b, Q, P), or all frames, (b, Q, T*P).

    Entries are (Q, h, w) or (Q, T, h, w).
    """
    if _are_neighbours(places):
        return sample_pixels(_queries_last(masks[places[0] : places[0] + len(places)], 1), points).mT
    return sample_pixels([_queries_last(masks[place], 0) for place in places], points).mT


def _queries_last(masks: Tensor, axis: int) -> Tensor:
    """Masks (..., Q, h, w) or (..., Q, T, h, w) with the queries in `axis` -> (..., T, h, w, Q)."""
    clips = masks if masks.dim() == axis + 4 else masks.unsqueeze(axis + 1)
    return clips.movedim(axis, -1)


def _are_neighbours(places: Places) -> bool:
    return isinstance(places[0], int) and places == list(range(places[0], places[0] + len(places)))


def _repeated(targets: list[Any], count: int) -> list[Any]:
    return targets * (count // max(len(targets), 1))


def read_targets(masks: Sequence[Tensor], points: Sequence[Tensor]) -> list[list[Tensor]]:
    """Read annotated masks for all entries of all layers; each mask is read once, at the points of all of them.

    Args:
        masks: U times (G, H, W) or (G, T, H, W).
        points: for each of D layers (E, P, 2); entry e reads the masks e % U, alike in all frames.

    Returns:
        For each layer E times (G, P), or (G, T*P).
    """
    at = torch.stack(list(points)).unflatten(1, (-1, len(masks)))  # (D, E/U, U, P, 2)
    num_layers, num_repeats = at.shape[:2]
    counts = [target.shape[:-2].numel() for target in masks]
    every = [here.flatten(0, 2).expand(count, -1, -1) for here, count in zip(at.unbind(2), counts, strict=True)]
    rows = sample_lists([target.flatten(0, -3) for target in masks], torch.cat(every)).split(counts)
    # (G, T, D, E/U, P) of every target
    read = [
        each.reshape(len(target), target.shape[1:-2].numel(), num_layers, num_repeats, at.shape[3])
        for each, target in zip(rows, masks, strict=True)
    ]
    return [
        [each[:, :, layer, repeat].flatten(1) for repeat in range(num_repeats) for each in read]
        for layer in range(num_layers)
    ]


def pairwise_costs(
    scores: Tensor, masks: Tensor, labels: Sequence[Tensor], target_masks: Sequence[Tensor], **weights: float
) -> list[Tensor]:
    """Costs of the pairs of several images at once; see `pairwise_cost`.

    Args:
        scores: (B, Q, K).
        masks: (B, Q, P).
        labels: B times (G_b,).
        target_masks: B times (G_b, P).

    Returns:
        B times (Q, G_b).
    """
    padded = pad_sequence(list(target_masks), batch_first=True)  # (B, G, P), zeros beyond G_b
    classes = to_device(pad_sequence(list(labels), batch_first=True), scores.device)
    costs = pairwise_cost(scores, masks, classes, padded, **weights)
    return [cost[:, : len(label)] for cost, label in zip(costs, labels, strict=True)]


def matching_cost(logits: Tensor, masks: Tensor, labels: Tensor, target_masks: Tensor, **weights: float) -> Tensor:
    """`pairwise_cost` with class logits (Q, K+1), "no object" last, instead of scores."""
    return pairwise_cost(logits.float().softmax(-1), masks, labels, target_masks, **weights)


def pairwise_cost(
    scores: Tensor,
    masks: Tensor,
    labels: Tensor,
    target_masks: Tensor,
    *,
    cost_class: float,
    cost_mask: float,
    cost_dice: float,
) -> Tensor:
    """Weighted sum of class, mask and dice cost of every (query, object) pair, in float32.

    Args:
        scores: (..., Q, K), in [0, 1], of every class.
        masks: (..., Q, P) mask logits at P points.
        labels: (..., G) classes.
        target_masks: (..., G, P) masks at the same points, in [0, 1].

    Returns:
        (..., Q, G).
    """
    with torch.autocast(scores.device.type, enabled=False):
        masks, target_masks = masks.float(), target_masks.float()
        fits = scores.gather(-1, labels[..., None, :].expand(*scores.shape[:-1], -1))
        return (
            cost_mask * pairwise_sigmoid_ce(masks, target_masks)
            - cost_class * fits
            + cost_dice * pairwise_dice(masks, target_masks)
        )


def pairwise_sigmoid_ce(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean binary cross entropy of every pair: (..., Q, P) logits and (..., G, P) targets in [0, 1] -> (..., Q, G)."""
    total: Any = 0
    for x, t in few_points(logits, targets):  # softplus(-x) t + softplus(x) (1 - t) = softplus(x) - x t
        total = total + (F.softplus(x).sum(-1, keepdim=True) - x @ t.mT)
    return total / logits.shape[-1]


def pairwise_dice(logits: Tensor, targets: Tensor) -> Tensor:
    """Dice loss of every pair: (..., Q, P) logits and (..., G, P) targets in [0, 1] -> (..., Q, G) in [0, 1]."""
    overlap: Any = 0
    total = targets.sum(-1)[..., None, :]
    for x, t in few_points(logits, targets):
        probabilities = x.sigmoid()
        overlap = overlap + probabilities @ t.mT
        total = total + probabilities.sum(-1)[..., :, None]
    return 1 - (2 * overlap + 1) / (total + 1)


def few_points(logits: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """So many points of (..., Q, P) and (..., G, P) at a time that a CPU keeps them in its caches."""
    step = logits.shape[-1]
    if logits.device.type == "cpu":
        step = max(1, CACHED * step // max(logits.numel(), 1))
    return zip(logits.split(step, -1), targets.split(step, -1), strict=True)


def costs_on_host(costs: Sequence[list[Tensor]]) -> list[list[Tensor]]:
    """The costs of several layers, copied to the CPU at once."""
    on_host = iter(to_host([cost for layer in costs for cost in layer]))
    return [[next(on_host) for _ in layer] for layer in costs]


def pairs_of(matches: Sequence[Sequence[Match]]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """List the pairs of several layers one after the other: layer, image, query, object; (n,) int64 on the CPU."""
    rows = [(layer, image, *match) for layer, images in enumerate(matches) for image, match in enumerate(images)]
    counts = torch.tensor([len(queries) for *_, queries, _ in rows], dtype=torch.int64)
    columns = list(zip(*rows, strict=True)) or [(), (), (), ()]
    layers, images = (torch.tensor(column, dtype=torch.int64).repeat_interleave(counts) for column in columns[:2])
    nothing = counts.new_zeros(0)
    queries, objects = (torch.cat([nothing, *column]) for column in columns[2:])
    return layers, images, queries, objects


def matched_rows(matches: Sequence[Match]) -> Match:
    """List the matched pairs of several images one after the other: image and query of each, (n,) both, on the CPU."""
    _, images, queries, _ = pairs_of([matches])
    return images, queries


def assign(cost: Tensor, name: str | None = None) -> Match:
    """Choose the pairs of least total cost.

    Args:
        cost: (Q, G).
        name: what is matched, for the message.

    Raises:
        ValueError: a cost is not finite, which means the network's outputs are not.
    """
    cost = cost.detach().cpu()
    if not torch.isfinite(cost).all():
        bad = int((~torch.isfinite(cost)).sum())
        raise ValueError(
            f"{name or 'sample'}: {bad} of {cost.numel()} matching costs are not finite, so the outputs of the network "
            "are not; lower SOLVER.BASE_LR, check the images of this sample, or train without SOLVER.AMP."
        )
    queries, objects = linear_sum_assignment(cost.numpy())
    return torch.as_tensor(queries, dtype=torch.int64), torch.as_tensor(objects, dtype=torch.int64)
