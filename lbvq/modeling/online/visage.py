"""VISAGE, "Video Instance Segmentation with Appearance-Guided Enhancement" (ECCV 2024).

MinVIS whose queries are compared by two learned vectors, one of the query and one of how the object looks, and not with
the frame before alone but with a memory of the last few frames. Both vectors learn from neighbouring frames of a clip
to be alike for one object and different for two. Published AP with ResNet-50: 55.1 on YouTube-VIS 2019, 51.6 on
YouTube-VIS 2021, 36.2 on OVIS.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mask2former.modeling.criterion import weighted
from mask2former.registry import META_ARCH_REGISTRY
from mask2former.transfer import to_host

from ..base import EncodedFrames, FrameSegmenter
from ..targets import HOST, clip_target, moved
from .appearance import AppearanceDecoder, contrastive_losses, object_pairs
from .frame_matching import FrameMatching
from .segmenter import Evidence, StreamState
from .tracking import Memory, assign_queries, cosine_similarity

if TYPE_CHECKING:
    from mask2former.cfg import Cfg


@META_ARCH_REGISTRY.register()
class VISAGE(FrameSegmenter, FrameMatching):
    """The frame segmenter, the appearance decoder, and matching against a memory."""

    can = replace(FrameSegmenter.can, online=True)
    use_quality = True

    def __init__(
        self,
        *,
        appearance_decoder: AppearanceDecoder,
        appearance_weight: float,
        memory: Memory,
        contrast_weights: Mapping[str, float],
        shared_labels: bool,
        **frame_segmenter: Any,
    ) -> None:
        """Args:
        appearance_decoder: gives the vectors that are compared.
        appearance_weight: share of the appearance vectors in the similarity, 0..1; the rest is the query vectors'.
        memory: what is remembered.
        contrast_weights: of loss_reid, loss_aux_reid, loss_reid_app and loss_aux_reid_app.
        shared_labels: label an object that is absent in one frame of a clip "no object" in all of them. A fault of
            the published training code, kept for comparison.
        frame_segmenter: arguments of `FrameSegmenter`.
        """
        super().__init__(**frame_segmenter)
        if not 0 <= appearance_weight <= 1:
            raise ValueError(f"MODEL.APPEARANCE_WEIGHT must be in [0, 1], got {appearance_weight}.")
        if memory.size < 1:
            raise ValueError(f"MODEL.MASK_FORMER.MEMORY_BANK.BANK_SIZE must be at least 1, got {memory.size}.")
        self.appearance_decoder = appearance_decoder  # checkpoint name
        self.appearance_weight = appearance_weight
        self.memory = memory
        self.contrast_weights = dict(contrast_weights)
        self.shared_labels = shared_labels

    @classmethod
    def from_config(cls, cfg: Cfg) -> dict[str, Any]:
        visage, decoder = cfg.MODEL.VISAGE, cfg.MODEL.APPEARANCE_DECODER
        arguments = super().from_config(cfg)
        shape = arguments["backbone"].output_shape()
        return {
            **arguments,
            "appearance_decoder": AppearanceDecoder(**AppearanceDecoder.from_config(cfg, shape)),
            "appearance_weight": cfg.MODEL.APPEARANCE_WEIGHT,
            "memory": Memory(cfg.MODEL.MASK_FORMER.MEMORY_BANK.BANK_SIZE, visage.NEWEST_WEIGHS_MOST),
            "contrast_weights": {
                "loss_reid": decoder.REID_WEIGHT,
                "loss_aux_reid": decoder.AUX_REID_WEIGHT,
                "loss_reid_app": decoder.APP_REID_WEIGHT,
                "loss_aux_reid_app": decoder.APP_AUX_REID_WEIGHT,
            },
            "shared_labels": visage.SHARED_LABELS,
            # as published: as many predictions as there are classes
            "num_predictions": visage.NUM_PREDICTIONS or cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "run_chunk_size": visage.WINDOW_SIZE,
        }

    def losses(self, samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Frame losses and contrastive losses of B training clips, weighted."""
        encoded = self.encode_frames(self.batch_clips(samples))
        num_classes = self.sem_seg_head.num_classes
        targets: list[dict[str, Any]] = []
        for sample in samples:
            target = clip_target(sample, encoded.padded_size, HOST, num_classes)
            frames = frames_with_absent(target, num_classes, shared_labels=self.shared_labels)
            targets.extend(moved(frame, self.device) for frame in frames)
        frame_losses, matches = self.criterion(encoded.outputs, targets)

        reid, appearance = self.describe(encoded)
        pairs = object_pairs(matches[-1], targets, self.num_frames)
        contrastive = {}
        contrastive["loss_reid"], contrastive["loss_aux_reid"] = contrastive_losses(reid, pairs)
        contrastive["loss_reid_app"], contrastive["loss_aux_reid_app"] = contrastive_losses(appearance, pairs)
        return {
            **weighted(frame_losses, self.criterion.weight_dict),
            **weighted(contrastive, self.contrast_weights),
        }

    def describe(self, encoded: EncodedFrames) -> tuple[Tensor, Tensor]:
        """Query and appearance vectors of encoded frames, (t, Q, C) each."""
        masks = encoded.outputs["pred_masks"]
        return self.appearance_decoder(encoded.frame_queries[-1], encoded.backbone_features, masks)

    def evidence_of(self, encoded: EncodedFrames) -> Evidence:
        """As `FrameMatching.evidence_of`, with the vectors to compare in place of the queries."""
        evidence = super().evidence_of(encoded)
        del evidence["queries"]
        reid, appearance = to_host([vectors.float() for vectors in self.describe(encoded)])
        return {"reid": reid, "appearance": appearance, **evidence}

    def match(self, state: StreamState, frame: dict[str, Tensor]) -> Tensor:
        reid, appearance = (
            cosine_similarity(self.memory.recall(state["memory"], kind), frame[kind]) for kind in ("reid", "appearance")
        )
        return assign_queries((1 - self.appearance_weight) * reid + self.appearance_weight * appearance)

    def remember(self, state: StreamState, aligned: dict[str, Tensor]) -> StreamState:
        """Put every track into the memory, be it an object or background, with its best class probability."""
        scores = aligned["logits"].softmax(dim=-1)[:, :-1].amax(dim=-1)
        vectors = {kind: aligned[kind] for kind in ("reid", "appearance")}
        return {"memory": self.memory.add(state.get("memory", []), scores, **vectors)}


def frames_with_absent(target: dict[str, Any], num_classes: int, *, shared_labels: bool) -> list[dict[str, Any]]:
    """Split a clip target into T frame targets that all list the N objects of the clip.

    An object that a frame does not show is labelled "no object" there (class K), with an empty mask and id -1.

    Args:
        target: of `clip_target`.
        num_classes: K.
        shared_labels: label it so in every frame of the clip.
    """
    visible = target["masks"].flatten(2).any(dim=2)  # (N, T)
    if shared_labels:
        visible = visible.all(dim=1, keepdim=True).expand_as(visible)
    labels = torch.where(visible, target["labels"][:, None], num_classes)
    return [
        {
            "labels": labels[:, t],
            "ids": target["ids"][:, t],
            "masks": target["masks"][:, t],
            "name": f"{target['name']}, frame {t} of the clip",
        }
        for t in range(labels.shape[1])
    ]
