"""Losses of OVFormer: binary class losses over a federated subset of classes, objectness, mask and dice.

Annotations of LVIS and LV-VIS are federated: that an image lacks an annotation of a class says little. So only matched
queries have a class loss, over the classes annotated in the batch and some more that are drawn by their frequency
(Zhou et al., "Probabilistic two-stage detection", 2021; "Detecting Twenty-thousand Classes using Image-level
Supervision", ECCV 2022). Whether a query is an object at all is learned by a head of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mask2former.modeling.criterion import (
    Layer,
    LayerDraws,
    SetCriterion,
    Target,
    classes_of_queries,
    layer_weights,
    select_rows,
)
from mask2former.modeling.matcher import HungarianMatcher, Match
from mask2former.transfer import to_device

if TYPE_CHECKING:
    from mask2former.cfg import Cfg

NUM_SAMPLED_CLASSES = 50  # classes of a federated subset, "no object" included
CLASS_LOSS_FACTOR = 1.7
NO_OBJECT_WEIGHT = 0.4  # as published: MODEL.MASK_FORMER.NO_OBJECT_WEIGHT is not used
UNUSED_FREQUENCIES = ("r", "n")  # rare classes of LVIS, novel ones of LV-VIS: nothing is known of their negatives


class OpenVocabularyMatcher(HungarianMatcher):
    """Match by the score of `open_vocabulary_scores` and by the masks of images or of clips."""

    scored = ("pred_logits", "pred_object_logits")

    def class_scores(self, outputs: dict[str, Tensor]) -> Tensor:
        """Geometric mean of what the class and what "object" says: (b, Q, K+1)."""
        is_object = outputs["pred_object_logits"].float().softmax(-1)[..., :1]  # (b, Q, 1)
        return (outputs["pred_logits"].float().sigmoid() * is_object).sqrt()


class OpenVocabularyCriterion(SetCriterion):
    """Losses of every decoder layer, unweighted: loss_ce, loss_object_ce, loss_mask, loss_dice."""

    empty_object_weight: Tensor
    freq_weight: Tensor
    configured_buffers = ("empty_weight", "empty_object_weight", "freq_weight")  # never taken from a weight file

    def __init__(self, num_classes: int, *, class_frequency: Tensor, **criterion: Any) -> None:
        """Args:
        class_frequency: weight of each class when negative classes are drawn, see `class_frequencies`; a class of
            weight 0 is never drawn.
        criterion: see `SetCriterion`.
        """
        super().__init__(num_classes, **criterion)
        self.empty_weight[-1] = 0.0  # as published, without effect
        self.register_buffer("empty_object_weight", torch.tensor([1.0, NO_OBJECT_WEIGHT]))  # checkpoint name
        self.register_buffer("freq_weight", class_frequency)  # checkpoint name
        self.class_frequency = class_frequency.clone()  # stays on the CPU, where classes are drawn

    @classmethod
    def from_config(cls, cfg: Cfg, last_layer_num: int = 1) -> dict[str, Any]:
        mask_former = cfg.MODEL.MASK_FORMER
        weights = {
            "loss_ce": mask_former.CLASS_WEIGHT,
            "loss_object_ce": mask_former.OBJECT_WEIGHT,
            "loss_mask": mask_former.MASK_WEIGHT,
            "loss_dice": mask_former.DICE_WEIGHT,
        }
        matcher = OpenVocabularyMatcher(
            cost_class=mask_former.CLASS_WEIGHT,
            cost_mask=mask_former.MASK_WEIGHT,
            cost_dice=mask_former.DICE_WEIGHT,
            num_points=mask_former.TRAIN_NUM_POINTS,
        )
        num_auxiliary = mask_former.DEC_LAYERS - 1 if mask_former.DEEP_SUPERVISION else 0
        return {
            **super().from_config(cfg, last_layer_num),
            "matcher": matcher,
            "weight_dict": layer_weights(weights, num_auxiliary),
            "class_frequency": class_frequencies(mask_former.CLASS_COUNTS_PATH, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES),
        }

    def forward(
        self, outputs: dict[str, Any], targets: list[dict[str, Any]], guide: dict[str, Any] | None = None
    ) -> tuple[dict[str, Tensor], list[list[Match]]]:
        """Compute the losses of images or clips; see `SetCriterion.forward`."""
        num_classes, frequency = outputs["pred_logits"].shape[-1] - 1, self.class_frequency
        if len(frequency) != num_classes or not frequency.any():
            raise ValueError(
                f"training with {num_classes} classes needs the number of training images of each, and "
                f"{int((frequency > 0).sum())} of {len(frequency)} are known. Set "
                "MODEL.MASK_FORMER.CLASS_COUNTS_PATH to a file that exists (for LV-VIS: python "
                "datasets/prepare_open_vocabulary.py lvvis_counts), or to '' to draw all classes alike."
            )
        return super().forward(outputs, targets, guide)

    def draw(self, layer: Layer, targets: list[Target], guided: list[Match] | None) -> LayerDraws:
        drawn = super().draw(layer, targets, guided)
        return drawn._replace(waits=torch.empty(len(self.class_frequency) + 1).exponential_())

    def class_losses(
        self, layer: Layer, targets: list[Target], matches: list[Match], drawn: LayerDraws
    ) -> dict[str, Tensor]:
        assert drawn.waits is not None  # `draw` makes them
        logits = layer["pred_logits"].float()
        classes = classes_of_queries(logits, targets, matches)
        return {
            "loss_ce": self.federated_loss(logits, classes, drawn.waits),
            "loss_object_ce": self.object_loss(layer["pred_object_logits"].float(), classes, logits.shape[-1] - 1),
        }

    def federated_loss(self, logits: Tensor, classes: Tensor, waits: Tensor) -> Tensor:
        """Binary cross entropy of matched queries over a subset of classes, by the number of all queries.

        Args:
            logits: (B, Q, K+1).
            classes: (B, Q) int64 on the CPU, K where a query has no object.
            waits: see `federated_subset`.
        """
        num_classes = logits.shape[-1] - 1
        subset = federated_subset(classes.flatten(), self.class_frequency, waits)
        subset = subset[subset < num_classes]
        images, queries = (classes < num_classes).nonzero(as_tuple=True)
        wanted = (classes[images, queries][:, None] == subset).to(logits.dtype)  # (n, classes of the subset)
        pred = select_rows(logits, images, queries)[:, to_device(subset, logits.device)]
        loss = F.binary_cross_entropy_with_logits(pred, to_device(wanted, pred.device), reduction="sum")
        return CLASS_LOSS_FACTOR * loss / classes.numel()

    def object_loss(self, logits: Tensor, classes: Tensor, no_object: int) -> Tensor:
        """Weighted cross entropy of (B, Q, 2) logits: class 0 with an object, class 1 without."""
        wanted = to_device((classes == no_object).long().flatten(), logits.device)
        return F.cross_entropy(logits.flatten(0, 1), wanted, self.empty_object_weight)


def federated_subset(
    labels: Tensor, frequency: Tensor, waits: Tensor, num_sampled: int = NUM_SAMPLED_CLASSES
) -> Tensor:
    """The classes that appear, and others drawn without replacement by their frequency, `num_sampled` in all.

    Args:
        labels: (n,) classes, K meaning "no object"; as published, it counts as one of the classes that appear.
        frequency: (K,) weights of the draw.
        waits: (K+1,) draws of the exponential distribution: how long a class of weight 1 waits for its turn. The first
            to come are drawn.

    Returns:
        Distinct classes in [0, K]: those that appear, ascending, then the drawn ones. Fewer than `num_sampled` when
        there are not enough classes of positive weight, more when more appear. All on the CPU.
    """
    appeared = labels.unique()
    weight = torch.cat((frequency, frequency.new_zeros(1)))
    weight[appeared] = 0
    count = min(num_sampled - len(appeared), int((weight > 0).sum()))
    if count <= 0:
        return appeared
    return torch.cat((appeared, first_to_come(weight, waits, count)))


def first_to_come(weight: Tensor, waits: Tensor, count: int) -> Tensor:
    """`torch.multinomial(weight, count)`, given what it draws from the exponential distribution: (count,) int64."""
    return (weight / waits).topk(count).indices


def class_frequencies(path: str | Path, num_classes: int) -> Tensor:
    """Weights of classes for `federated_subset`: square roots of their numbers of training images.

    Args:
        path: JSON file, a list of categories or {"categories": [...]} with `id`, `image_count` and perhaps `frequency`:
            those that are 'r'(are) or 'n'(ovel) get 0. "" gives every class the same weight. A file that does not
            exist gives zeros, with which only inference is possible.
        num_classes: K, where there is no file.

    Returns:
        (K,) float32, classes in the order of their ids; as many as the file has, which need not be those of a model
        that is used with another vocabulary.
    """
    if not str(path):
        return torch.ones(num_classes)
    if not Path(path).is_file():
        return torch.zeros(num_classes)
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    categories: Any = content.get("categories") if isinstance(content, Mapping) else content
    try:
        categories = sorted(categories, key=lambda category: category["id"])
        counts = [0 if each.get("frequency") in UNUSED_FREQUENCIES else int(each["image_count"]) for each in categories]
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path}: expected a list of categories with id and image_count ({error!r}); it is the "
            "MODEL.MASK_FORMER.CLASS_COUNTS_PATH."
        ) from error
    if not counts or min(counts) < 0:
        raise ValueError(f"{path} (MODEL.MASK_FORMER.CLASS_COUNTS_PATH) has no classes, or a negative image_count.")
    return torch.tensor(counts, dtype=torch.float32).sqrt()
