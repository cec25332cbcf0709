"""Match the clip queries of every clip with its annotated objects, one to one, at least cost.

The cost is that of the frame matcher (Mask2Former), with the masks of all frames of a clip read as one long mask: a
query must be right about an object in every frame at once.
"""

from __future__ import annotations

from typing import Any

from mask2former.modeling.matcher import HungarianMatcher, Places


class ClipMatcher(HungarianMatcher):
    """Hungarian matching of clip queries for every frame-decoder output l and clip b; entry l * B + b.

    Outputs are `pred_logits` (L, B, N, K+1) and `pred_masks` (L, B, N, T, h, w), a tensor or `ClipMasks`; targets are B
    clip targets with `labels` (G,), `masks` (G, T, H, W) and perhaps `name`. The L*B matches, L outermost, are empty
    for a clip without objects.
    """

    unit = "clip"

    def places(self, outputs: dict[str, Any], targets: list[dict[str, Any]]) -> Places:
        num_outputs, num_clips = outputs["pred_logits"].shape[:2]
        return [(layer, clip) for layer in range(num_outputs) for clip in range(num_clips)]
