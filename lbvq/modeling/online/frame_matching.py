"""Segment every frame on its own, then follow the objects by matching frame queries.

`FrameMatching` is what MinVIS and VISAGE share. It asks nothing of a model but a frame segmenter, so TEST.MATCH_FRAMES
offers it to every method: `MatchedFrames` runs the frame segmenter of any model online, and its clip module not at all.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from ..base import EncodedFrames, VideoSegmenter
from ..postprocess import image_output, select_top
from .segmenter import Evidence, OnlineSegmenter, StepMasks, StreamState
from .tracking import add_logits, assign_queries, cosine_similarity, keep_finite, mean_probabilities

logger = logging.getLogger(__name__)

FAR_OUTSIDE = -1e4  # mask logit of a pixel whose logit is not a number; infinities would spread when resized


class FrameMatching(OnlineSegmenter):
    """Online mixin: N = Q objects, frame 0 gives their order, every later frame is brought into it.

    A subclass may observe more and replace `match` and `remember`.
    """

    use_quality = False
    state_on_cpu = True
    num_predictions: int

    def start_stream(self) -> StreamState:
        return {}

    def observe(self, encoded: EncodedFrames) -> Evidence:
        """Queries (t, Q, C) and class logits (t, Q, K+1) on the CPU, mask logits (t, Q, h, w) where they are."""
        evidence = {
            "queries": encoded.frame_queries[-1].float().cpu(),
            "logits": encoded.outputs["pred_logits"].float().cpu(),
            "masks": finite_masks(encoded.outputs["pred_masks"].float()),
        }
        if not all(evidence[name].isfinite().all() for name in ("queries", "logits")):
            logger.warning(
                "The network's outputs are not finite somewhere in the %d frame(s) from number %d on; objects wait for "
                "the next frame. Set TEST.AMP.ENABLED False if this happens often.",
                len(evidence["logits"]),
                encoded.start,
            )
        return evidence

    def advance(self, state: StreamState, evidence: Evidence) -> tuple[StreamState, StepMasks]:
        frame = {name: tensor[0] for name, tensor in evidence.items() if name != "masks"}
        if state:
            order = self.match(state, frame)
        else:
            order = torch.arange(len(frame["logits"]))
        aligned = {name: tensor[order] for name, tensor in frame.items()}
        state = {**self.remember(state, aligned), **add_logits(state, aligned["logits"])}
        return state, StepMasks(evidence["masks"], order.to(evidence["masks"].device))

    def match(self, state: StreamState, frame: dict[str, Tensor]) -> Tensor:
        """Query of every track in a frame that is not the first, (Q,) int64."""
        return assign_queries(cosine_similarity(state["queries"], frame["queries"]))

    def remember(self, state: StreamState, aligned: dict[str, Tensor]) -> StreamState:
        """What `match` needs of this frame, whose evidence is in the order of the tracks."""
        before = state.get("queries", torch.zeros_like(aligned["queries"]))
        return {"queries": keep_finite(aligned["queries"], before)}

    def decide(self, state: StreamState) -> tuple[Tensor, Tensor, Tensor]:
        """Best (track, class) pairs by the probabilities of mean logits; none before the first frame."""
        if not state:
            return torch.zeros(0), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
        return select_top(mean_probabilities(state), self.num_predictions)


class MatchedFrames(FrameMatching):
    """The frame segmenter of a model, run online; the model itself, whose attributes it has, stays as it is."""

    def __init__(self, segmenter: VideoSegmenter) -> None:
        self.segmenter = segmenter

    def __getattr__(self, name: str) -> Any:
        if name == "segmenter":
            raise AttributeError(name)  # a copy that is not filled yet
        return getattr(self.segmenter, name)

    def inference(self, video: dict[str, Any]) -> Any:
        output = super().inference(video)
        return image_output(output) if getattr(self.segmenter, "is_coco", False) else output


def finite_masks(logits: Tensor) -> Tensor:
    """Replace what is no finite number in mask logits by numbers as large."""
    return logits.nan_to_num(nan=FAR_OUTSIDE, posinf=-FAR_OUTSIDE, neginf=FAR_OUTSIDE)


def online_form(model: VideoSegmenter) -> OnlineSegmenter:
    """The form in which a model is run frame by frame: itself, or its frame segmenter with TEST.MATCH_FRAMES."""
    online = model.at_test()
    if isinstance(online, OnlineSegmenter):
        return online
    raise ValueError(
        f"{type(model).__name__} needs all frames of a video before it can decide. Choose an online method, or set "
        "TEST.MATCH_FRAMES True to follow its objects from frame to frame by their queries."
    )
