"""Mask2Former-VIS, "Mask2Former for Video Instance Segmentation" (arXiv 2112.10764).

A clip is one volume of pixels: the decoder of Mask2Former attends to all of its frames at once, so that a query is one
object in every frame and nothing has to be tracked. The parameters are those of the image model. Published AP with
ResNet-50: 46.4 on YouTube-VIS 2019, 40.6 on YouTube-VIS 2021; with Swin-L 60.4 and 52.6.

Cross-attention holds three maps of every frame of the video, about 10 MB per frame at 360x640; long videos want
TEST.MATCH_FRAMES, which also scores higher than the method itself on YouTube-VIS 2021.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mask2former.modeling.criterion import weighted
from mask2former.registry import META_ARCH_REGISTRY
from mask2former.resize import size_of

from .base import FrameSegmenter
from .feature_store import FeatureStore
from .postprocess import second_pass, select_top, sizes_of
from .targets import ABSENT, prepare_targets

if TYPE_CHECKING:
    from mask2former.cfg import Cfg

# Published name of the decoder, which another method has too -> ours.
DECODER_NAMES = {"VideoMultiScaleMaskedTransformerDecoder": "ClipVolumeTransformerDecoder"}


@META_ARCH_REGISTRY.register()
class VideoMaskFormer(FrameSegmenter):  # published name
    """Mask2Former whose decoder sees whole clips."""

    can = replace(FrameSegmenter.can, export=False)

    def __init__(self, *, labels_of_last_frame: bool, **frame_segmenter: Any) -> None:
        """Args:
        labels_of_last_frame: train an object that the last frame of a clip lacks as "no object".
        frame_segmenter: arguments of `FrameSegmenter`.
        """
        super().__init__(**frame_segmenter)
        self.labels_of_last_frame = labels_of_last_frame

    @classmethod
    def from_config(cls, cfg: Cfg) -> dict[str, Any]:
        cfg = cfg.clone()
        cfg.defrost()
        name = cfg.MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME
        cfg.MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME = DECODER_NAMES.get(name, name)
        method = cfg.MODEL.MASK2FORMER_VIS
        return {
            **super().from_config(cfg),
            "num_predictions": method.NUM_PREDICTIONS,
            "labels_of_last_frame": method.LABELS_OF_LAST_FRAME,
        }

    def losses(self, samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Losses of B training clips, weighted; every frame of an object counts as a mask of its own."""
        encoded = self.encode_frames(self.batch_clips(samples), num_frames=self.num_frames)
        num_classes = self.sem_seg_head.num_classes
        _, targets = prepare_targets(samples, encoded.padded_size, self.device, num_classes)
        if self.labels_of_last_frame:  # as published
            for target in targets:
                target["labels"] = target["labels"].masked_fill(target["ids"][:, -1] == ABSENT, num_classes)
        losses, _ = self.criterion(encoded.outputs, targets)
        return weighted(losses, self.criterion.weight_dict)

    def inference(self, video: dict[str, Any]) -> dict[str, Any]:
        """Segment one video; mask features beyond the budget wait in a temporary file."""
        predictor = self.sem_seg_head.predictor
        maps: list[list[Tensor]] = []  # per chunk three maps, then the mask features at the size of each
        with FeatureStore(self.feature_budget_mib) as store:
            for _, images in self.image_batches(video["image"]):
                batch = images.tensor.contiguous(memory_format=torch.channels_last)
                mask_features, _, _, multi_scale = self.sem_seg_head.pixel_decoder.forward_features(
                    self.backbone(batch)
                )
                sizes = [size_of(level) for level in multi_scale]
                maps.append([*multi_scale, *predictor.resize_features(mask_features, sizes)])
                store.append(mask_features)
                frame_sizes = sizes_of(images)
            whole = [torch.cat(level) for level in zip(*maps, strict=True)]
            maps.clear()
            states, _ = predictor.decode(whole[:3], whole[3:], len(store))
            state = states[-1]  # (1, Q, C)
            probabilities = predictor.class_embed(state)[0].float().softmax(-1)[:, :-1]  # (Q, K)

            def make_masks(queries: Tensor) -> Iterator[Tensor]:
                embed = predictor.mask_embed(state)[0, queries]  # (n, mask_dim)
                for _, features in store.chunks(self.frames_per_run):
                    yield torch.einsum("nc,tchw->nthw", embed, features)

            return second_pass(
                video,
                select_top(probabilities, self.num_predictions),
                make_masks,
                num_frames=len(store),
                **frame_sizes,
                use_quality=False,
            )
