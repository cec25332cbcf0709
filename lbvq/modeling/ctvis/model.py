"""CTVIS, "Consistent Training for Online Video Instance Segmentation" (ICCV 2023).

The frame segmenter of MinVIS with a head that makes of every query a vector to know the object again by. At test a
tracker begins, continues and ends tracks with a memory of these vectors; in training the vectors learn from the same
memory, filled with the objects of a clip. Published AP with ResNet-50: 55.2 on YouTube-VIS 2019, 50.1 on YouTube-VIS
2021, 35.5 on OVIS.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mask2former.modeling.criterion import weighted
from mask2former.registry import META_ARCH_REGISTRY
from mask2former.structures import ImageList
from mask2former.transfer import to_host

from ..base import EncodedFrames, FrameSegmenter
from ..online.frame_matching import finite_masks, warn_if_not_finite
from ..online.segmenter import Evidence, OnlineSegmenter, StepMasks, StreamState
from ..targets import frames_with_all, prepare_targets
from .contrast import MemoryContrast, queries_of_clips
from .tracker import TrackRules, mean_probabilities, select_detections, start_tracker, track_frame

if TYPE_CHECKING:
    from mask2former.cfg import Cfg

NOT_KEPT = -1  # fills up the list of detections of a frame
NEVER = -1e4  # class logit of a query whose logits are not finite


class ContrastiveSegmenter(FrameSegmenter):
    """A frame segmenter whose queries learn to know objects again; how it tracks them is for a subclass to say."""

    def __init__(
        self,
        *,
        contrast: MemoryContrast,
        contrast_weights: Mapping[str, float],
        pads_targets: bool,
        **frame_segmenter: Any,
    ) -> None:
        """Args:
        contrast: compares the queries of a clip.
        contrast_weights: of loss_reid and loss_aux_reid.
        pads_targets: match queries and objects over the padded frame, as the predictions are. As published masks are
            not padded for this, so that they are compared at wrong places unless all frames of a batch need no padding.
        frame_segmenter: arguments of `FrameSegmenter`.
        """
        super().__init__(**frame_segmenter)
        self.contrast = contrast
        self.contrast_weights = dict(contrast_weights)
        self.pads_targets = pads_targets

    @classmethod
    def from_config(cls, cfg: Cfg) -> dict[str, Any]:
        plugin = cfg.MODEL.CL_PLUGIN
        if plugin.CL_PLUGIN_NAME != "CTCLPlugin":
            raise ValueError(f"MODEL.CL_PLUGIN.CL_PLUGIN_NAME must be 'CTCLPlugin', got {plugin.CL_PLUGIN_NAME!r}.")
        return {
            **super().from_config(cfg),
            "contrast": MemoryContrast(
                num_negatives=plugin.NUM_NEGATIVES,
                use_averages=plugin.MOMENTUM_EMBED,
                skip_first_appearance=plugin.SKIP_FIRST_APPEARANCE,
            ),
            "contrast_weights": {"loss_reid": plugin.REID_WEIGHT, "loss_aux_reid": plugin.AUX_REID_WEIGHT},
            "pads_targets": plugin.PAD_TARGETS,
        }

    def losses(self, samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Frame losses and contrastive losses of B training clips, weighted."""
        encoded = self.encode_frames(self.batch_clips(samples))
        num_classes = self.sem_seg_head.num_classes
        targets, _ = prepare_targets(samples, encoded.padded_size, self.device, num_classes)
        frame_losses, _ = self.criterion(encoded.outputs, targets)

        targets = [target for sample in samples for target in self.contrast_targets(sample, encoded)]
        matches = self.criterion.matcher(encoded.outputs, targets)
        queries = queries_of_clips(matches, targets, self.num_frames)
        embeddings = encoded.outputs["pred_embeds"].unflatten(0, (len(samples), -1))
        return {
            **weighted(frame_losses, self.criterion.weight_dict),
            **weighted(self.contrast(embeddings, queries), self.contrast_weights),
        }

    def contrast_targets(self, sample: dict[str, Any], encoded: EncodedFrames) -> list[dict[str, Any]]:
        """Targets of the frames of a clip that list all its objects."""
        size = encoded.padded_size
        if not self.pads_targets:
            size = tuple(max(frame.image_size[axis] for frame in sample["instances"]) for axis in (0, 1))
        return frames_with_all(sample, size, self.device, self.sem_seg_head.num_classes)


@META_ARCH_REGISTRY.register()
class CTVISModel(ContrastiveSegmenter, OnlineSegmenter):  # published name
    """The segmenter and the tracker with its memory; the tracker has no parameters."""

    can = replace(FrameSegmenter.can, online=True)
    quality_of_output = True
    state_on_cpu = True

    def __init__(self, *, rules: TrackRules, **segmenter: Any) -> None:
        """Args:
        rules: of tracking.
        segmenter: arguments of `ContrastiveSegmenter`.
        """
        super().__init__(**segmenter)
        self.rules = rules

    @classmethod
    def from_config(cls, cfg: Cfg) -> dict[str, Any]:
        tracker = cfg.MODEL.TRACKER
        check_form(tracker)
        return {
            **super().from_config(cfg),
            "rules": TrackRules(
                keep_above=tracker.INFERENCE_SELECT_THR,
                birth_above=tracker.INIT_SCORE_THR,
                overlap_limit=tracker.MASK_NMS_THR,
                match_above=tracker.MATCH_SCORE_THR,
                weigh_appearances=tracker.FRAME_WEIGHT,
                cache=tracker.MEMORY_BANK.maximum_cache,
                dead_after=tracker.MEMORY_BANK.NUM_DEAD_FRAMES,
                judge_after=tracker.NOISE_FRAME_NUM,
                short_below=tracker.SUPPRESS_FRAME_NUM,
                missing_for=tracker.NONE_FRAME_NUM,
                least_cosine=tracker.LEAST_COSINE,
            ),
            # as published: as many predictions as there are classes
            "num_predictions": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "run_chunk_size": cfg.TEST.NUM_CLIP_FRAMES,
        }

    def start_stream(self) -> StreamState:
        return start_tracker()

    def observe(self, images: ImageList, start: int) -> Evidence:
        """Detections (t, Q), filled up, class logits and vectors on the CPU; mask logits (t, Q, h, w)."""
        outputs = self.encode_frames(images, start).outputs
        masks = finite_masks(outputs["pred_masks"].float())
        embeds, logits = to_host([outputs["pred_embeds"].float(), outputs["pred_logits"].float()])
        warn_if_not_finite(start, embeds, logits)
        is_finite = (embeds.isfinite().all(-1) & logits.isfinite().all(-1))[..., None]
        never = torch.full_like(logits, NEVER)
        never[..., -1] = 0.0
        logits = torch.where(is_finite, logits, never)
        kept = [select_detections(self.rules, *frame) for frame in zip(logits, masks, strict=True)]
        return {
            "kept": torch.stack(
                [nn.functional.pad(few, (0, len(logits[0]) - len(few)), value=NOT_KEPT) for few in kept]
            ),
            "logits": logits,
            "embeds": torch.where(is_finite, embeds, 0.0),
            "masks": masks,
        }

    def advance(self, state: StreamState, evidence: Evidence) -> tuple[StreamState, StepMasks]:
        kept = evidence["kept"][0]
        frame = {"kept": kept[kept != NOT_KEPT], "logits": evidence["logits"][0], "embeds": evidence["embeds"][0]}
        state, rows, queries = track_frame(self.rules, state, frame)
        return state, StepMasks(evidence["masks"], queries, rows, state["num_rows"])

    def class_scores(self, state: StreamState) -> tuple[Tensor, Tensor | None]:
        """Of the tracks that are not forgotten, by the probabilities of mean logits."""
        tracks = state["tracks"]
        return (mean_probabilities(tracks), tracks["rows"]) if tracks else (torch.zeros(0, 1), None)


def check_form(tracker: Cfg) -> None:
    """Refuse values of MODEL.TRACKER that no published model has; there is one form here."""
    for key, value, only in (
        ("TRACKER_NAME", tracker.TRACKER_NAME, "SimpleTracker"),
        ("MATCH_METRIC", tracker.MATCH_METRIC, "bisoftmax"),
        ("MATCH_TYPE", tracker.MATCH_TYPE, "greedy"),
        ("TEMPORAL_SCORE_TYPE", tracker.TEMPORAL_SCORE_TYPE, "mean"),
        ("MEMORY_BANK.EMBED_TYPE", tracker.MEMORY_BANK.EMBED_TYPE, "similarity_guided"),
    ):
        if value != only:
            raise ValueError(f"MODEL.TRACKER.{key} must be {only!r}, got {value!r}.")
