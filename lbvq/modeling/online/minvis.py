"""MinVIS, "A Minimal Video Instance Segmentation Framework without Video-based Training" (NeurIPS 2022).

An image segmenter that is trained on single frames of videos. At test every frame is segmented on its own, and since
the queries of one object hardly change from frame to frame, matching them is all the tracking there is. Published AP
with ResNet-50: 47.3 on YouTube-VIS 2019, 43.9 on YouTube-VIS 2021, 26.7 on OVIS.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from mask2former.modeling.criterion import weighted
from mask2former.registry import META_ARCH_REGISTRY

from ..base import FrameSegmenter
from ..targets import prepare_targets
from .frame_matching import FrameMatching

if TYPE_CHECKING:
    from mask2former.cfg import Cfg


@META_ARCH_REGISTRY.register()
class VideoMaskFormer_frame(FrameSegmenter, FrameMatching):  # published name
    """The frame segmenter, trained on frames and tracked by its queries; there are no parameters beyond it."""

    can = replace(FrameSegmenter.can, online=True)

    @classmethod
    def from_config(cls, cfg: Cfg) -> dict[str, Any]:
        minvis = cfg.MODEL.MINVIS
        return {
            **super().from_config(cfg),
            "num_predictions": minvis.NUM_PREDICTIONS,
            "run_chunk_size": minvis.WINDOW_SIZE,
        }

    def losses(self, samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Frame losses of B training clips, weighted; frames know nothing of each other."""
        encoded = self.encode_frames(self.batch_clips(samples))
        targets, _ = prepare_targets(samples, encoded.padded_size, self.device, self.sem_seg_head.num_classes)
        losses, _ = self.criterion(encoded.outputs, targets)
        return weighted(losses, self.criterion.weight_dict)
