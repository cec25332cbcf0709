"""DVIS and DVIS++ online: a frame segmenter that is trained before and frozen, and a tracker over its queries.

"DVIS: Decoupled Video Instance Segmentation Framework" (ICCV 2023) and "DVIS++: Improved Decoupled Framework for
Universal Video Segmentation" (2023). Published AP with ResNet-50, DVIS / DVIS++: 51.0 / 55.5 on YouTube-VIS 2019,
46.3 / 50.0 on YouTube-VIS 2021, 30.9 / 37.2 on OVIS.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from mask2former.linear import predicted_masks
from mask2former.modeling.criterion import SetCriterion, select_rows, weighted
from mask2former.modeling.matcher import Match
from mask2former.registry import META_ARCH_REGISTRY
from mask2former.structures import ABSENT, ImageList

from ..base import EncodedFrames, FrameSegmenter
from ..clips.consistent import ConsistentMatcher
from ..contrast import join_terms, mean_terms
from ..online.frame_matching import warn_if_not_finite
from ..online.segmenter import Evidence, OnlineSegmenter, StepMasks, StreamState
from ..online.tracking import add_logits, mean_probabilities
from ..targets import clip_target
from .contrast import neighbour_terms
from .noise import MatchNoise
from .tracker import ReferringTracker, ReferringTrackerPlus, TrackedFrames, TrackState

if TYPE_CHECKING:
    from mask2former.cfg import Cfg

MATCHED_LAYERS = 2  # last layers whose matches the criterion returns


@dataclass
class FrameQueries:
    """What the tracker takes of t frames of B videos, and the maps of their masks.

    Attributes:
        compared, memory: (t, Q, B, C), see `ReferringTracker`.
        mask_features: (B*t, mask_dim, h, w), video by video.
    """

    compared: Tensor
    memory: Tensor
    mask_features: Tensor


class DecoupledSegmenter(FrameSegmenter):
    """The frozen segmenter and the tracker, which DVIS online and offline have in common.

    Attributes:
        iteration: of training; the training loop sets it.
        in_memory: output of the frame decoder that the tracker reads; "": the frame queries.
        trained: part that is trained; everything else is frozen and stays in evaluation mode.
    """

    in_memory: ClassVar[str] = ""
    trained: ClassVar[str] = "tracker"
    tracker_class: ClassVar[type[ReferringTracker]] = ReferringTracker

    def __init__(
        self,
        *,
        tracker: ReferringTracker,
        guided_iterations: int,
        last_frame_labels: bool,
        contrast_weight: float = 0.0,
        earlier_match: bool = False,
        **frame_segmenter: Any,
    ) -> None:
        """Args:
        tracker: follows the objects.
        guided_iterations: in so many first iterations objects are matched with the outputs of the part before the one
            that is trained, later with its own.
        last_frame_labels: label an object that is absent in the last frame of a clip "no object" in all of them. A
            fault of the published training of DVIS, kept for comparison.
        contrast_weight: of loss_reid; with 0 it is not computed.
        earlier_match: compute loss_reid for the objects as the layer before the last is matched. A fault of the
            published training of DVIS++, kept for comparison.
        frame_segmenter: arguments of `FrameSegmenter`.
        """
        super().__init__(**frame_segmenter)
        self.tracker = tracker  # checkpoint name
        self.guided_iterations = guided_iterations
        self.last_frame_labels = last_frame_labels
        self.contrast_weight = contrast_weight
        self.earlier_match = earlier_match
        self.iteration = 0

    @classmethod
    def from_config(cls, cfg: Cfg) -> dict[str, Any]:
        mask_former = cfg.MODEL.MASK_FORMER
        if mask_former.TEST.TASK != "vis":
            raise ValueError(f"MODEL.MASK_FORMER.TEST.TASK must be 'vis', got {mask_former.TEST.TASK!r}.")
        return {
            **super().from_config(cfg),
            "tracker": cls.tracker_class(**cls.tracker_settings(cfg)),
            "guided_iterations": cfg.SOLVER.MAX_ITER // 2,
            "last_frame_labels": cfg.MODEL.TRACKER.LAST_FRAME_LABELS,
            "num_predictions": mask_former.TEST.MAX_NUM,
            "run_chunk_size": mask_former.TEST.WINDOW_SIZE,
        }

    @classmethod
    def part_settings(cls, cfg: Cfg) -> dict[str, int]:
        """Sizes that the tracker and the refiner have in common."""
        mask_former = cfg.MODEL.MASK_FORMER
        return {
            "hidden_dim": mask_former.HIDDEN_DIM,
            "num_heads": mask_former.NHEADS,
            "dim_feedforward": mask_former.DIM_FEEDFORWARD,
            "mask_dim": cfg.MODEL.SEM_SEG_HEAD.MASK_DIM,
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
        }

    @classmethod
    def tracker_settings(cls, cfg: Cfg) -> dict[str, Any]:
        """Arguments of the tracker."""
        tracker = cfg.MODEL.TRACKER
        return {
            **cls.part_settings(cfg),
            "num_layers": tracker.DECODER_LAYERS,
            "inverse_order": tracker.INVERSE_ORDER,
        }

    def train(self, mode: bool = True) -> DecoupledSegmenter:
        """Set the mode of the part that is trained; the parts before it stay in evaluation mode."""
        super().train(mode)
        for name, part in self.named_children():
            if name not in (self.trained, "criterion"):
                part.eval()
        return self

    def frame_queries(self, encoded: EncodedFrames, num_videos: int) -> FrameQueries:
        """Sort what the segmenter says about the frames of some videos for the tracker."""
        queries = encoded.frame_queries[-1]
        memory = encoded.outputs[self.in_memory] if self.in_memory else queries
        queries, memory = (each.unflatten(0, (num_videos, -1)).permute(1, 2, 0, 3) for each in (queries, memory))
        return FrameQueries(queries, memory, encoded.outputs["mask_features"])

    def targets_of(self, samples: list[dict[str, Any]], padded_size: tuple[int, int]) -> list[dict[str, Any]]:
        """Clip targets of B training clips, with all objects that some frame shows."""
        num_classes = self.sem_seg_head.num_classes
        targets = [clip_target(sample, padded_size, self.device, num_classes) for sample in samples]
        if self.last_frame_labels:  # as published
            for target in targets:
                target["labels"] = torch.where(target["ids"][:, -1] == ABSENT, num_classes, target["labels"])
        return targets

    def match_of_contrast(self, matches: list[list[Match]]) -> list[Match]:
        """Which of the matches of the last two layers says what the objects of the contrastive loss are."""
        return matches[0 if self.earlier_match else -1]

    @property
    def is_guided(self) -> bool:
        """Whether objects are matched with the outputs of the part before the one that is trained."""
        return self.iteration < self.guided_iterations

    def tracked_outputs(self, tracked: TrackedFrames, mask_features: Tensor) -> list[dict[str, Any]]:
        """Predictions of every layer for the frames (B*t) of some videos, video by video.

        Args:
            tracked: objects of t frames.
            mask_features: (B*t, mask_dim, h, w) as the segmenter gives them.

        Returns:
            L times `pred_logits` (B*t, Q, K+1) and `pred_masks` (B*t, Q, h, w).
        """
        logits, embeddings = self.tracker.predict(tracked.outputs, tracked.references)
        maps = self.tracker.mask_features(mask_features)
        return [
            {"pred_logits": layer_logits.flatten(0, 1), **predicted_masks(layer_embeddings.flatten(0, 1), maps)}
            for layer_logits, layer_embeddings in zip(logits, embeddings, strict=True)
        ]


@META_ARCH_REGISTRY.register()
class DVIS_online(DecoupledSegmenter, OnlineSegmenter):  # published name
    """The tracker is trained, and its objects are what is reported."""

    can = replace(FrameSegmenter.can, online=True)
    use_quality = False

    def __init__(self, *, noise: MatchNoise | None = None, **segmenter: Any) -> None:
        """Args:
        noise: of training, on what objects start from.
        segmenter: arguments of `DecoupledSegmenter`.
        """
        super().__init__(**segmenter)
        self.noise = noise
        self.freeze_all_but("tracker.")

    @classmethod
    def from_config(cls, cfg: Cfg) -> dict[str, Any]:
        mask_former = cfg.MODEL.MASK_FORMER
        matcher = ConsistentMatcher(
            num_frames=cfg.INPUT.SAMPLING_FRAME_NUM,
            reuse_queries=cfg.MODEL.TRACKER.REUSE_QUERIES,
            cost_class=mask_former.CLASS_WEIGHT,
            cost_mask=mask_former.MASK_WEIGHT,
            cost_dice=mask_former.DICE_WEIGHT,
            num_points=mask_former.TRAIN_NUM_POINTS,
        )
        criterion = {**SetCriterion.from_config(cfg, MATCHED_LAYERS), "matcher": matcher}
        return {**super().from_config(cfg), "criterion": SetCriterion(**criterion)}

    def losses(self, samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Losses of the tracker's objects in every frame of B training clips, weighted."""
        with torch.no_grad():
            encoded = self.encode_frames(self.batch_clips(samples))
        queries = self.frame_queries(encoded, len(samples))
        tracked, _ = self.tracker(queries.compared, queries.memory, {}, self.noise)
        layers = self.tracked_outputs(tracked, queries.mask_features)
        outputs = {**layers[-1], "aux_outputs": layers[:-1]}
        targets = [
            frame for target in self.targets_of(samples, encoded.padded_size) for frame in frames_with_all_of(target)
        ]
        guide = self.reordered(encoded.outputs, tracked.orders) if self.is_guided else None
        losses, matches = self.criterion(outputs, targets, guide)
        losses = weighted(losses, self.criterion.weight_dict)
        if self.contrast_weight:
            first_frames = self.match_of_contrast(matches)[:: self.num_frames]  # all frames of a clip have one match
            terms = [
                neighbour_terms(references, chosen)
                for references, (chosen, _) in zip(tracked.references, first_frames, strict=True)
            ]
            contrast = mean_terms(join_terms(terms, tracked.references))
            losses["loss_reid"] = self.contrast_weight * contrast["loss_reid"]
        return losses

    @staticmethod
    def reordered(outputs: dict[str, Any], orders: Tensor) -> dict[str, Tensor]:
        """The segmenter's predictions (B*t, Q, ...) in the order of the objects (B, t, Q)."""
        orders = orders.flatten(0, 1)
        frames = torch.arange(len(orders))[:, None].expand_as(orders)
        return {name: select_rows(outputs[name], frames, orders) for name in ("pred_logits", "pred_masks")}

    def start_stream(self) -> StreamState:
        return {"tracker": {}}

    def observe(self, images: ImageList, start: int) -> Evidence:
        """Queries to compare and to read (t, Q, C), and maps (t, c, h, w); what is not finite is 0."""
        queries = self.frame_queries(self.encode_frames(images, start), 1)
        warn_if_not_finite(start, queries.compared, queries.memory)
        evidence = {
            "compared": queries.compared[:, :, 0].float(),
            "memory": queries.memory[:, :, 0].float(),
            "maps": self.tracker.mask_features(queries.mask_features).float(),
        }
        return {name: each.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0) for name, each in evidence.items()}

    def advance(self, state: StreamState, evidence: Evidence) -> tuple[StreamState, StepMasks]:
        compared, memory = evidence["compared"][:, :, None], evidence["memory"][:, :, None]
        tracked, tracker_state = self.tracker(compared, memory, state["tracker"])
        logits, embeddings = self.tracker.predict(tracked.outputs[-1, 0, 0], tracked.references[0, 0])
        after = {"tracker": only_finite(tracker_state, state["tracker"]), **add_logits(state, logits.float())}
        return after, StepMasks(evidence["maps"], embeddings.float().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0))

    def class_scores(self, state: StreamState) -> tuple[Tensor, None]:
        return mean_probabilities(state), None


class PlusParts(DecoupledSegmenter):
    """What DVIS++ has in place of DVIS' parts, online and offline."""

    in_memory = "unnormed_queries"
    tracker_class = ReferringTrackerPlus

    @classmethod
    def part_settings(cls, cfg: Cfg) -> dict[str, int]:
        settings = super().part_settings(cfg)
        width = 2 if cfg.MODEL.MASK_FORMER.REID_BRANCH else 1  # the vectors of re-identification are joined to queries
        return {**settings, "hidden_dim": width * settings["hidden_dim"]}

    @classmethod
    def tracker_settings(cls, cfg: Cfg) -> dict[str, Any]:
        return {**cls.part_settings(cfg), "num_layers": cfg.MODEL.TRACKER.DECODER_LAYERS}


@META_ARCH_REGISTRY.register()
class DVIS_Plus_online(PlusParts, DVIS_online):  # published name
    """DVIS online with the tracker of DVIS++, noise and a contrastive loss in training."""

    @classmethod
    def from_config(cls, cfg: Cfg) -> dict[str, Any]:
        tracker = cfg.MODEL.TRACKER
        return {
            **super().from_config(cfg),
            "noise": MatchNoise(tracker.NOISE_MODE, tracker.NOISE_RATIO),
            "contrast_weight": cfg.MODEL.CL_PLUGIN.REID_WEIGHT if tracker.USE_CL else 0.0,
            "earlier_match": tracker.EARLIER_MATCH,
        }


def frames_with_all_of(target: dict[str, Any]) -> list[dict[str, Any]]:
    """Split a clip target into T frame targets that all list its objects; one that is hidden has id -1."""
    return [
        {
            "labels": target["labels"],
            "ids": target["ids"][:, t],
            "masks": target["masks"][:, t],
            "name": f"{target['name']}, frame {t} of the clip",
        }
        for t in range(target["ids"].shape[1])
    ]


def only_finite(state: TrackState, before: TrackState) -> TrackState:
    """The state, with an object as it was before (at first: zeros) where its numbers are not finite."""
    kept = {}
    for name, rows in state.items():
        old = before.get(name, torch.zeros_like(rows))
        kept[name] = torch.where(rows.isfinite().all(dim=-1, keepdim=True), rows, old)
    return kept
