"""How the objects of a frame look, and losses that make one object look alike in two frames: VISAGE.

"VISAGE: Video Instance Segmentation with Appearance-Guided Enhancement" (ECCV 2024), sections 3.2 and 3.3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mask2former.layers import MLP, Conv2d
from mask2former.modeling.criterion import select_rows
from mask2former.modeling.matcher import Match
from mask2former.structures import ABSENT

if TYPE_CHECKING:
    from mask2former.cfg import Cfg

NUM_GROUPS = 32
NUM_LAYERS = 3


class AppearanceDecoder(nn.Module):
    """Two vectors per frame query for matching: one from the query, one from backbone features inside its mask."""

    def __init__(self, in_channels: Mapping[str, int], *, hidden_dim: int) -> None:
        """Args:
        in_channels: name of each backbone feature to read -> its channels.
        hidden_dim: C, a multiple of 32.
        """
        super().__init__()
        if not in_channels:
            raise ValueError("MODEL.APPEARANCE_DECODER.IN_FEATURES is empty; name at least one backbone feature.")
        if hidden_dim % NUM_GROUPS:
            raise ValueError(
                f"VISAGE needs a multiple of {NUM_GROUPS} as MODEL.MASK_FORMER.HIDDEN_DIM, got {hidden_dim}."
            )
        self.in_features = tuple(in_channels)
        self.input_proj = nn.ModuleList(  # the inner Sequential is part of the checkpoint names
            nn.Sequential(Conv2d(channels, hidden_dim, kernel_size=1, norm=nn.GroupNorm(NUM_GROUPS, hidden_dim)))
            for channels in in_channels.values()
        )
        self.appearance_embd = MLP(hidden_dim * len(in_channels), hidden_dim, hidden_dim, NUM_LAYERS)  # checkpoint name
        self.reid_embd = MLP(hidden_dim, hidden_dim, hidden_dim, NUM_LAYERS)  # checkpoint name

    @classmethod
    def from_config(cls, cfg: Cfg, backbone_shape: Mapping[str, Any]) -> dict[str, Any]:
        names = cfg.MODEL.APPEARANCE_DECODER.IN_FEATURES
        missing = [name for name in names if name not in backbone_shape]
        if missing:
            raise ValueError(
                f"MODEL.APPEARANCE_DECODER.IN_FEATURES names {missing}, but the backbone returns "
                f"{list(backbone_shape)}; change it or the OUT_FEATURES of the backbone."
            )
        return {
            "in_channels": {name: backbone_shape[name].channels for name in names},
            "hidden_dim": cfg.MODEL.MASK_FORMER.HIDDEN_DIM,
        }

    def forward(self, queries: Tensor, features: Mapping[str, Tensor], masks: Tensor) -> tuple[Tensor, Tensor]:
        """Describe the queries of BT frames.

        Gradients stop at the features and the masks: appearance trains this module only.

        Args:
            queries: (BT, Q, C).
            features: of the backbone, (BT, c, h, w) each.
            masks: (BT, Q, H/4, W/4) logits.

        Returns:
            Query vectors and appearance vectors, (BT, Q, C) each, not normalised.
        """
        masks = masks.detach().float()
        pooled = []
        for name, projection in zip(self.in_features, self.input_proj, strict=True):
            pooled.append(pool_inside(projection(features[name].detach()), masks))
        return self.reid_embd(queries), self.appearance_embd(torch.cat(pooled, dim=-1))


def pool_inside(features: Tensor, masks: Tensor) -> Tensor:
    """Mean of the features inside each mask.

    Args:
        features: (BT, C, h, w).
        masks: (BT, Q, H, W) logits; they are resized to (h, w) and a positive cell is inside.

    Returns:
        (BT, Q, C); zeros for a mask without a positive cell.
    """
    with torch.autocast(features.device.type, enabled=False):  # a half precision sum over a large mask overflows
        masks = F.interpolate(masks, size=features.shape[-2:], mode="bilinear", align_corners=False)
        inside = (masks > 0).float().flatten(2)  # (BT, Q, h*w); probability above 0.5
        total = inside @ features.float().flatten(2).transpose(1, 2)
        return total / (inside.sum(dim=-1, keepdim=True) + 1e-6)


def contrast(anchors: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """Compare n objects in one frame with the same n objects in another; row i of both is object i.

    Args:
        anchors, candidates: (n, C), not normalised.

    Returns:
        Sum over objects of log(1 + sum_{j != i} exp(a_i k_j - a_i k_i)), which is the cross entropy of choosing the
        right candidate by inner product; and the sum over objects of the mean squared error of the cosines, which
        should be 1 for the right candidate and 0 for the others. Both are 0 for no object.
    """
    with torch.autocast(anchors.device.type, enabled=False):
        anchors, candidates = anchors.float(), candidates.float()
        count = len(anchors)
        products = anchors @ candidates.T
        choice = F.cross_entropy(products, torch.arange(count, device=anchors.device), reduction="sum")
        cosines = F.normalize(anchors, dim=-1) @ F.normalize(candidates, dim=-1).T
        error = (cosines - torch.eye(count, device=anchors.device)).square().sum() / max(count, 1)
    return choice, error


def object_pairs(
    matches: Sequence[Match], targets: Sequence[Mapping[str, Any]], num_frames: int
) -> list[tuple[int, Tensor, Tensor]]:
    """Queries that are the same objects in neighbouring frames of a clip.

    Args:
        matches: B*T matches of frame queries with objects, clip by clip.
        targets: B*T frame targets; `ids` (G,), with the same G rows in all frames of a clip, -1 = absent.
        num_frames: T.

    Returns:
        (index of the later frame in 0..B*T-1, queries (n,) of the frame before, queries (n,) of the later frame) for
        each of the B*(T-1) pairs; n counts the objects that are visible, and have a query, in both frames.
    """
    chosen = []
    for (queries, objects), target in zip(matches, targets, strict=True):
        query_of = torch.full((len(target["ids"]),), ABSENT, dtype=torch.int64)
        query_of[objects] = queries
        chosen.append(torch.where(target["ids"] != ABSENT, query_of, ABSENT))
    pairs = []
    for later in range(len(chosen)):
        if later % num_frames:
            both = (chosen[later - 1] != ABSENT) & (chosen[later] != ABSENT)
            pairs.append((later, chosen[later - 1][both], chosen[later][both]))
    return pairs


def contrastive_losses(embeddings: Tensor, pairs: Sequence[tuple[int, Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Both terms of `contrast` over all pairs of neighbouring frames, divided by the number of objects in them.

    Args:
        embeddings: (BT, Q, C).
        pairs: of `object_pairs`.

    Returns:
        Two scalars; 0, still connected to the graph, when no object is visible in two neighbouring frames.
    """
    choice = error = embeddings[..., :0].sum()
    count = 0
    for later, before_queries, later_queries in pairs:
        if len(later_queries):
            before = select_rows(embeddings[later - 1], before_queries)
            terms = contrast(before, select_rows(embeddings[later], later_queries))
            choice, error = choice + terms[0], error + terms[1]
            count += len(later_queries)
    return choice / max(count, 1), error / max(count, 1)
