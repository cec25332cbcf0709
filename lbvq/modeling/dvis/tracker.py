"""The referring tracker: the objects of the frame before look for themselves among the queries of this frame.

"DVIS: Decoupled Video Instance Segmentation Framework" (ICCV 2023), section 3.2, and "DVIS++: Improved Decoupled
Framework for Universal Video Segmentation" (2023), section 3.3. Q objects go through the video, one per query. In every
layer an object asks with what it was in the frame before, the reference, and reads the queries of the new frame; so its
identity travels in the reference and not in a matching. Matching gives only the start: the queries of the new frame in
the order of the objects, to which the answers of attention are added.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mask2former.layers import MLP, Conv2d, CrossAttentionLayer, FFNLayer, SelfAttentionLayer
from mask2former.linear import Linear, exact
from mask2former.transfer import to_device

from ..online.tracking import assign_queries, cosine_similarity
from .noise import MatchNoise

# What a stream remembers of the frame before, in the order of the objects: `outputs` (Q, B, C), what the last layer
# said, and `compared` (Q, B, C), float32 on the CPU, the queries that the next frame is compared with. Empty before the
# first frame.
TrackState = dict[str, Tensor]


@dataclass
class TrackedFrames:
    """The Q objects of B videos in t frames.

    Attributes:
        outputs: (L, B, t, Q, C) of every layer, not normalised.
        references: (B, t, Q, C), what the first layer asked with.
        orders: (B, t, Q) int64 on the CPU: the query of each frame that an object started from.
    """

    outputs: Tensor
    references: Tensor
    orders: Tensor


class ReferringTracker(nn.Module):
    """The tracker of DVIS: a reference is what an object was in the frame before, as it is."""

    def __init__(
        self,
        *,
        hidden_dim: int,
        num_heads: int,
        dim_feedforward: int,
        num_layers: int,
        mask_dim: int,
        num_classes: int,
        inverse_order: bool = True,
    ) -> None:
        """Args:
        hidden_dim: C.
        num_layers: L.
        mask_dim: channels of the mask features.
        num_classes: K, without "no object".
        inverse_order: as published: use the inverse of the order that matching finds. It changes what an object starts
            from, not what it asks with, so objects are followed all the same; published weights expect it.
        """
        super().__init__()
        self.transformer_self_attention_layers = nn.ModuleList(  # checkpoint names, here and below
            SelfAttentionLayer(hidden_dim, num_heads) for _ in range(num_layers)
        )
        self.transformer_cross_attention_layers = nn.ModuleList(
            CrossAttentionLayer(hidden_dim, num_heads) for _ in range(num_layers)
        )
        self.transformer_ffn_layers = nn.ModuleList(FFNLayer(hidden_dim, dim_feedforward) for _ in range(num_layers))
        self.decoder_norm = nn.LayerNorm(hidden_dim)
        self.class_embed = Linear(hidden_dim, num_classes + 1)
        self.mask_embed = MLP(hidden_dim, hidden_dim, mask_dim, 3)
        self.num_layers = num_layers
        self.inverse_order = inverse_order

    def forward(
        self, compared: Tensor, memory: Tensor, state: TrackState, noise: MatchNoise | None = None
    ) -> tuple[TrackedFrames, TrackState]:
        """Follow the objects through the next t frames.

        Args:
            compared: (t, Q, B, C) queries of the frames, normalised: what matching compares.
            memory: (t, Q, B, C) queries as the tracker reads them; DVIS reads the normalised ones too.
            state: after the frame before; {} at the start of a video, whose first frame gives the order of the objects.
            noise: of training, on the starts.

        Returns:
            The objects, and the state after the last of these frames.
        """
        outputs, references, orders = [], [], []
        on_host = compared.detach().float().cpu()  # all frames at once
        for frame_compared, frame_memory in zip(on_host, memory, strict=True):
            starts, order = self.start(frame_compared, frame_memory, state, noise)
            layers, reference = self.run_layers(starts, frame_memory, state.get("outputs"))
            state = {"outputs": layers[-1], "compared": in_order(frame_compared, order)}
            outputs.append(torch.stack(layers))
            references.append(reference)
            orders.append(order)
        return (
            TrackedFrames(
                torch.stack(outputs).permute(1, 3, 0, 2, 4),
                torch.stack(references).permute(2, 0, 1, 3),
                torch.stack(orders, dim=1),
            ),
            state,
        )

    def start(
        self, compared: Tensor, memory: Tensor, state: TrackState, noise: MatchNoise | None
    ) -> tuple[Tensor, Tensor]:
        """What the objects start from in a frame, (Q, B, C), and the queries (B, Q) that it was taken from.

        What is compared, and the answer, are on the CPU.
        """
        num_queries, batch = compared.shape[:2]
        if not state:
            return memory, torch.arange(num_queries).expand(batch, -1)
        order = self.match(state["compared"], compared)
        if noise is not None:
            return noise(memory, order)
        return in_order(memory, order), order

    @torch.no_grad()
    def match(self, before: Tensor, compared: Tensor) -> Tensor:
        """Queries (Q, B, C) of a frame in the order of the objects (Q, B, C) of the frame before: (B, Q) int64."""
        pairs = zip(before.float().cpu().unbind(1), compared.unbind(1), strict=True)
        order = torch.stack([assign_queries(cosine_similarity(old, new)) for old, new in pairs])
        return order.argsort(dim=1) if self.inverse_order else order

    def run_layers(self, starts: Tensor, memory: Tensor, before: Tensor | None) -> tuple[list[Tensor], Tensor]:
        """Run the layers on one frame.

        Args:
            starts: (Q, B, C).
            memory: (Q, B, C) queries of the frame.
            before: (Q, B, C) what the last layer said in the frame before; None in the first frame, where every layer
                asks with what the layer before it said.

        Returns:
            The output of every layer, (Q, B, C) each, and the reference of the first.
        """
        references = None if before is None else self.refer(before)
        outputs, asked = [], []
        objects = starts
        for cross, attend, feed_forward in zip(
            self.transformer_cross_attention_layers,
            self.transformer_self_attention_layers,
            self.transformer_ffn_layers,
            strict=True,
        ):
            asking = self.refer(objects) if references is None else references
            asked.append(asking)
            objects = feed_forward(attend(cross(asking, memory, residual=objects)))
            outputs.append(objects)
        return outputs, asked[0]

    def refer(self, objects: Tensor) -> Tensor:
        """(..., C) what objects were -> (..., C) what they ask with."""
        return objects

    def classify(self, objects: Tensor, references: Tensor) -> Tensor:
        """Class logits (..., K+1) of normalised outputs (..., C) and their references (..., C)."""
        return self.class_embed(objects)

    def predict(self, outputs: Tensor, references: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits (..., K+1) and mask embeddings (..., mask_dim) of outputs (..., C) as the layers give them."""
        objects = self.decoder_norm(outputs)
        return self.classify(objects, references.expand_as(objects)), self.mask_embed(objects)

    def mask_features(self, features: Tensor) -> Tensor:
        """Mask features (t, mask_dim, h, w) as the mask embeddings expect them."""
        return exact(features)

    def for_refiner(self, outputs: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """What the refiner of whole videos takes: the objects and the frames they are in.

        Args:
            outputs: (..., C) of the last layer.
            memory: (t, Q, B, C), as of `forward`.

        Returns:
            Objects (..., C), and what the refiner reads of the frames, (t, Q, B, C).
        """
        frames = memory.flatten(0, 1).unflatten(0, memory.shape[:2])
        sequence = frames.permute(1, 0, 2, 3).flatten(1, 2)  # (Q, t*B, C): every frame by itself
        layers, _ = self.run_layers(sequence, sequence, None)
        read = self.decoder_norm(layers[-1]).unflatten(1, (memory.shape[0], memory.shape[2])).permute(1, 0, 2, 3)
        return self.decoder_norm(outputs), read


class ReferringTrackerPlus(ReferringTracker):
    """The tracker of DVIS++: references are projected, and take part in the classification."""

    def __init__(self, *, hidden_dim: int, mask_dim: int, num_classes: int, **tracker: int) -> None:
        """Args: see `ReferringTracker`; the order of matching is the right one here."""
        super().__init__(
            hidden_dim=hidden_dim, mask_dim=mask_dim, num_classes=num_classes, inverse_order=False, **tracker
        )
        self.class_embed = Linear(2 * hidden_dim, num_classes + 1)
        self.ref_proj = MLP(hidden_dim, hidden_dim, hidden_dim, 3)
        self.mask_feature_proj = Conv2d(mask_dim, mask_dim, kernel_size=1)

    def refer(self, objects: Tensor) -> Tensor:
        return self.ref_proj(objects)

    def classify(self, objects: Tensor, references: Tensor) -> Tensor:
        return self.class_embed(torch.cat((references, objects), dim=-1))

    def mask_features(self, features: Tensor) -> Tensor:
        return exact(self.mask_feature_proj(features))

    def for_refiner(self, outputs: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """As of `ReferringTracker`, but both as they are: as published, nothing is normalised."""
        return outputs, memory


def in_order(rows: Tensor, order: Tensor) -> Tensor:
    """Take rows (Q, B, C) in the order (B, Q) of each video."""
    index = to_device(order.T, rows.device)
    return rows[index, torch.arange(rows.shape[1], device=rows.device)]
