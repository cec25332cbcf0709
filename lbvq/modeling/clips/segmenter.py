"""Methods that look at all frames first and then decide what the objects of the video are: LBVQ and VITA.

The frame segmenter gives Q queries per frame; a clip module turns the queries of all frames into N objects, each with
class scores and one mask embedding for the whole clip; the product of that embedding with the mask features of a frame
is the object's mask there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mask2former.modeling.criterion import SetCriterion, weighted

from ..base import FrameSegmenter
from ..feature_store import FeatureStore
from ..postprocess import FrameSizes, second_pass, select_top
from ..targets import prepare_targets
from .criterion import ClipCriterion
from .decoder import ClipDecoder, ClipMasks

if TYPE_CHECKING:
    from mask2former.cfg import Cfg


class ClipSegmenter(FrameSegmenter):
    """Frame segmenter, clip module and clip criterion; a subclass names its prefix and builds its clip module.

    `prefix` fixes the published names: the modules `<prefix>_module` and `<prefix>_criterion`, the losses
    `loss_<prefix>_*`, and the group `MODEL.<PREFIX>` of the configuration.
    """

    prefix: str

    def __init__(
        self,
        *,
        clip_module: ClipDecoder,
        clip_criterion: ClipCriterion,
        freeze_detector: bool,
        mask_chunk_size: int,
        **frame_segmenter: Any,
    ) -> None:
        """Args:
        clip_module: turns frame queries into objects.
        clip_criterion: losses of the objects.
        freeze_detector: train the clip module only.
        mask_chunk_size: frames whose masks are made at once at test; results do not depend on it.
        frame_segmenter: arguments of `FrameSegmenter`.
        """
        super().__init__(**frame_segmenter)
        if mask_chunk_size < 1:
            raise ValueError(
                f"MODEL.{self.prefix.upper()}.TEST_INTERPOLATE_CHUNK_SIZE must be at least 1, got {mask_chunk_size}."
            )
        self.add_module(f"{self.prefix}_module", clip_module)  # checkpoint names
        self.add_module(f"{self.prefix}_criterion", clip_criterion)
        self.mask_chunk_size = mask_chunk_size
        self.freeze_detector = freeze_detector
        if freeze_detector:
            self.freeze_all_but(f"{self.prefix}_module")

    @classmethod
    def build_clip_module(cls, cfg: Cfg) -> ClipDecoder:
        """Build the clip module of this method."""
        raise NotImplementedError

    @classmethod
    def from_config(cls, cfg: Cfg) -> dict[str, Any]:
        clip = cfg.MODEL[cls.prefix.upper()]
        return {
            **super().from_config(cfg),
            "criterion": SetCriterion(**SetCriterion.from_config(cfg, clip.LAST_LAYER_NUM)),
            "run_chunk_size": clip.TEST_RUN_CHUNK_SIZE,
            "clip_module": cls.build_clip_module(cfg),
            "clip_criterion": ClipCriterion(**ClipCriterion.from_config(cfg, cls.prefix)),
            "freeze_detector": clip.FREEZE_DETECTOR,
            "mask_chunk_size": clip.TEST_INTERPOLATE_CHUNK_SIZE,
        }

    @property
    def clip_module(self) -> Any:
        return getattr(self, f"{self.prefix}_module")

    @property
    def clip_criterion(self) -> ClipCriterion:
        return getattr(self, f"{self.prefix}_criterion")

    @property
    def masks_per_run(self) -> int:
        """Frames whose masks are made at once: on a CPU one, as for `frames_per_run`."""
        return 1 if self.device.type == "cpu" else self.mask_chunk_size

    def losses(self, samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Frame losses and clip losses of B training clips, weighted."""
        encoded = self.encode_frames(self.batch_clips(samples))
        frame_targets, clip_targets = prepare_targets(
            samples, encoded.padded_size, self.device, self.sem_seg_head.num_classes
        )
        frame_losses, frame_matches = self.criterion(encoded.outputs, frame_targets)

        outputs = self.clip_module(encoded.frame_queries)
        features = self.clip_module.mask_features(encoded.mask_features).unflatten(0, (len(samples), -1))
        for layer in (outputs, *outputs["aux_outputs"]):
            layer["pred_masks"] = ClipMasks(layer["pred_mask_embed"], features)
        clip_losses = self.clip_criterion(outputs, clip_targets, frame_targets, frame_matches)
        return {
            **weighted(frame_losses, self.criterion.weight_dict),
            **weighted(clip_losses, self.clip_criterion.weight_dict),
        }

    def inference(self, video: dict[str, Any]) -> Any:
        """Segment one video of any length; mask features beyond the budget wait in a temporary file."""
        frame_queries = []
        with FeatureStore(self.feature_budget_mib) as store:
            for chunk in self.encode_video(video["image"]):
                frame_queries.append(chunk.frame_queries[-1:])
                store.append(self.clip_module.mask_features(chunk.mask_features))
                sizes: FrameSizes = {"image_size": chunk.image_size, "padded_size": chunk.padded_size}
            all_queries = torch.cat(frame_queries, dim=1)  # (1, T, Q, C)
            frame_queries.clear()
            objects = self.clip_module(all_queries)
            probabilities = objects["pred_logits"][-1, 0].float().softmax(-1)[:, :-1]  # (N, K)

            def make_masks(queries: Tensor) -> Iterator[Tensor]:
                embed = objects["pred_mask_embed"][-1, 0, queries]  # (n, mask_dim)
                for _, features in store.chunks(self.masks_per_run):
                    yield torch.einsum("nc,tchw->nthw", embed, features)

            return second_pass(
                video,
                select_top(probabilities, self.num_predictions),
                make_masks,
                num_frames=len(store),
                **sizes,
            )
