"""DVIS and DVIS++ offline: the objects of the online tracker, refined over the whole video.

The segmenter and the tracker are trained before and frozen. Published AP with ResNet-50, DVIS / DVIS++: 52.1 / 56.7 on
YouTube-VIS 2019, 47.3 / 52.0 on YouTube-VIS 2021, 34.6 / 41.2 on OVIS.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mask2former.modeling.criterion import SetCriterion, weighted
from mask2former.modeling.matcher import HungarianMatcher
from mask2former.registry import META_ARCH_REGISTRY

from ..contrast import join_terms, mean_terms
from ..feature_store import FeatureStore
from ..online.frame_matching import warn_if_not_finite
from ..online.tracking import add_logits, mean_probabilities
from ..postprocess import second_pass, select_top
from .contrast import ClassMemory, clip_terms
from .model import MATCHED_LAYERS, DecoupledSegmenter, PlusParts
from .refiner import TemporalRefiner
from .tracker import TrackState

if TYPE_CHECKING:
    from mask2former.cfg import Cfg


@META_ARCH_REGISTRY.register()
class DVIS_offline(DecoupledSegmenter):  # published name
    """The refiner is trained, and its objects are what is reported."""

    trained = "refiner"

    def __init__(self, *, refiner: TemporalRefiner, **segmenter: Any) -> None:
        """Args:
        refiner: refines tracked objects.
        segmenter: arguments of `DecoupledSegmenter`.
        """
        super().__init__(**segmenter)
        self.refiner = refiner  # checkpoint name
        self.class_memory = ClassMemory()
        self.freeze_all_but("refiner.")

    @classmethod
    def from_config(cls, cfg: Cfg) -> dict[str, Any]:
        mask_former = cfg.MODEL.MASK_FORMER
        # a clip is looked at as one image, its frames one below the other, with as many points for every frame
        num_points = mask_former.TRAIN_NUM_POINTS * cfg.INPUT.SAMPLING_FRAME_NUM
        matcher = HungarianMatcher(
            cost_class=mask_former.CLASS_WEIGHT,
            cost_mask=mask_former.MASK_WEIGHT,
            cost_dice=mask_former.DICE_WEIGHT,
            num_points=num_points,
        )
        criterion = {**SetCriterion.from_config(cfg, MATCHED_LAYERS), "matcher": matcher, "num_points": num_points}
        return {
            **super().from_config(cfg),
            "criterion": SetCriterion(**criterion),
            "refiner": TemporalRefiner(**cls.part_settings(cfg), num_layers=cfg.MODEL.REFINER.DECODER_LAYERS),
        }

    def losses(self, samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Losses of the refined objects of B training clips, weighted."""
        with torch.no_grad():
            encoded = self.encode_frames(self.batch_clips(samples))
            queries = self.frame_queries(encoded, len(samples))
            tracked, _ = self.tracker(queries.compared, queries.memory, {})
            objects = tracked.outputs[-1].permute(1, 2, 0, 3)  # (T, Q, B, C)
            objects, frames = self.tracker.for_refiner(objects, queries.memory)
            guide = self.as_images(self.tracked_outputs(tracked, queries.mask_features)[-1]) if self.is_guided else None
        refined = self.refiner(objects, frames)
        layers = self.refined_outputs(refined, queries.mask_features)
        targets = self.targets_of(samples, encoded.padded_size)
        for target in targets:
            target["masks"] = target["masks"].flatten(1, 2)  # (n, T*H, W)
        losses, matches = self.criterion({**layers[-1], "aux_outputs": layers[:-1]}, targets, guide)
        losses = weighted(losses, self.criterion.weight_dict)
        if self.contrast_weight:
            terms = [
                clip_terms(embeddings, chosen, target["labels"][rows], self.class_memory)
                for embeddings, target, (chosen, rows) in zip(
                    refined[-1], targets, self.match_of_contrast(matches), strict=True
                )
            ]
            losses["loss_reid"] = self.contrast_weight * mean_terms(join_terms(terms, refined))["loss_reid"]
        return losses

    def as_images(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Predictions of the frames (B*T) of clips as those of B images: mean logits, masks one below the other."""
        logits = outputs["pred_logits"].unflatten(0, (-1, self.num_frames))
        masks = outputs["pred_masks"].unflatten(0, (-1, self.num_frames))  # (B, T, Q, h, w)
        return {"pred_logits": logits.mean(dim=1), "pred_masks": masks.transpose(1, 2).flatten(2, 3)}

    def refined_outputs(self, refined: Tensor, mask_features: Tensor) -> list[dict[str, Tensor]]:
        """Predictions of every layer for B clips as images.

        Args:
            refined: (L, B, T, Q, C).
            mask_features: (B*T, mask_dim, h, w).

        Returns:
            L times `pred_logits` (B, Q, K+1) and `pred_masks` (B, Q, T*h, w).
        """
        maps = mask_features.unflatten(0, refined.shape[1:3])  # (B, T, c, h, w)
        embeddings = self.refiner.mask_embed(refined)
        return [
            {"pred_logits": logits, "pred_masks": torch.einsum("btqc,btchw->bqthw", embed, maps).flatten(2, 3)}
            for logits, embed in zip(self.refiner.classify(refined), embeddings, strict=True)
        ]

    def inference(self, video: dict[str, Any]) -> dict[str, Any]:
        """Segment one video of any length; maps beyond the memory budget wait in a temporary file."""
        state: TrackState = {}
        sums: dict[str, Tensor] = {}
        objects, frames = [], []
        with FeatureStore(self.feature_budget_mib) as store:
            for encoded in self.encode_video(video["image"]):
                queries = self.frame_queries(encoded, 1)
                warn_if_not_finite(encoded.start, queries.compared, queries.memory)
                tracked, state = self.tracker(queries.compared, queries.memory, state)
                logits, _ = self.tracker.predict(tracked.outputs[-1, 0], tracked.references[0])
                for frame_logits in logits.float():
                    sums = add_logits(sums, frame_logits)
                refinable = self.tracker.for_refiner(tracked.outputs[-1].permute(1, 2, 0, 3), queries.memory)
                objects.append(refinable[0])
                frames.append(refinable[1])
                store.append(queries.mask_features)
                image_size, padded_size = encoded.image_size, encoded.padded_size
            refined = self.refiner(torch.cat(objects), torch.cat(frames), only_last=True)[0, 0]  # (T, Q, C)
            objects.clear()
            frames.clear()
            probabilities = self.refiner.classify(refined).float().softmax(dim=-1)[:, :-1]
            probabilities = torch.maximum(probabilities, mean_probabilities(sums))

            def make_masks(rows: Tensor) -> Iterator[Tensor]:
                embeddings = self.refiner.mask_embed(refined[:, rows])  # (T, n, mask_dim)
                for start, maps in store.chunks(self.frames_per_run):
                    yield torch.einsum("tnc,tchw->nthw", embeddings[start : start + len(maps)], maps)

            return second_pass(
                video,
                select_top(probabilities, self.num_predictions),
                make_masks,
                num_frames=len(store),
                image_size=image_size,
                padded_size=padded_size,
                use_quality=False,
            )


@META_ARCH_REGISTRY.register()
class DVIS_Plus_offline(PlusParts, DVIS_offline):  # published name
    """DVIS offline with the tracker of DVIS++, and a contrastive loss with a memory of classes in training."""

    @classmethod
    def from_config(cls, cfg: Cfg) -> dict[str, Any]:
        return {
            **super().from_config(cfg),
            "contrast_weight": cfg.MODEL.CL_PLUGIN.REID_WEIGHT if cfg.MODEL.REFINER.USE_CL else 0.0,
            "earlier_match": cfg.MODEL.TRACKER.EARLIER_MATCH,
        }
