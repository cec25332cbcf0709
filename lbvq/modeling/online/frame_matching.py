"""Segment every frame on its own, then follow the objects by matching frame queries.

`FrameMatching` is what MinVIS and VISAGE share. It asks nothing of a model but frames with queries, so
TEST.MATCH_FRAMES offers it to every method with a frame segmenter: `as_tested` makes `MatchedFrames` of it, which runs
the frame segmenter online, and what else the method has not at all.
"""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mask2former.abilities import require
from mask2former.structures import ImageList
from mask2former.transfer import to_device, to_host

from ..base import EncodedFrames, FrameSegmenter
from .segmenter import Evidence, OnlineSegmenter, StepMasks, StreamState
from .tracking import add_logits, assign_queries, cosine_similarity, keep_finite, mean_probabilities

logger = logging.getLogger(__name__)

FAR_OUTSIDE = -1e4  # mask logit of a pixel whose logit is not a number; infinities would spread when resized


class FrameMatching(OnlineSegmenter):
    """N = Q objects, frame 0 gives their order, every later frame is brought into it.

    A method names it after the `FrameSegmenter` that encodes its frames; it may keep more as evidence, and replace
    `match` and `remember`.
    """

    use_quality = False
    state_on_cpu = True

    def encode_frames(self, images: ImageList, start: int = 0, **context: Any) -> EncodedFrames:
        """See `FrameSegmenter.encode_frames`."""
        raise NotImplementedError

    def start_stream(self) -> StreamState:
        return {}

    def observe(self, images: ImageList, start: int) -> Evidence:
        return self.evidence_of(self.encode_frames(images, start))

    def evidence_of(self, encoded: EncodedFrames) -> Evidence:
        """Queries (t, Q, C) and class logits (t, Q, K+1) on the CPU, mask logits (t, Q, h, w) where they are."""
        masks = finite_masks(encoded.outputs["pred_masks"].float())
        queries, logits = to_host([encoded.frame_queries[-1].float(), encoded.outputs["pred_logits"].float()])
        warn_if_not_finite(encoded.start, queries, logits)
        return {"queries": queries, "logits": logits, "masks": masks}

    def advance(self, state: StreamState, evidence: Evidence) -> tuple[StreamState, StepMasks]:
        frame = {name: tensor[0] for name, tensor in evidence.items() if name != "masks"}
        if state:
            order = self.match(state, frame)
        else:
            order = torch.arange(len(frame["logits"]))
        aligned = {name: tensor[order] for name, tensor in frame.items()}
        state = {**self.remember(state, aligned), **add_logits(state, aligned["logits"])}
        return state, StepMasks(evidence["masks"], to_device(order, evidence["masks"].device))

    def match(self, state: StreamState, frame: dict[str, Tensor]) -> Tensor:
        """Query of every track in a frame that is not the first, (Q,) int64."""
        return assign_queries(cosine_similarity(state["queries"], frame["queries"]))

    def remember(self, state: StreamState, aligned: dict[str, Tensor]) -> StreamState:
        """What `match` needs of this frame, whose evidence is in the order of the tracks."""
        before = state.get("queries", torch.zeros_like(aligned["queries"]))
        return {"queries": keep_finite(aligned["queries"], before)}

    def class_scores(self, state: StreamState) -> tuple[Tensor, None]:
        return mean_probabilities(state), None


class MatchedFrames(FrameMatching):
    """The frame segmenter of a model, run online; the model itself stays as it is."""

    can = replace(FrameSegmenter.can, online=True)

    def __init__(self, segmenter: FrameSegmenter) -> None:
        super().__init__(**segmenter.settings())
        self.segmenter = segmenter
        self.to(segmenter.device).train(segmenter.training)

    def encode_frames(self, images: ImageList, start: int = 0, **context: Any) -> EncodedFrames:
        return self.segmenter.encode_frames(images, start, **context)

    def save_pretrained(self, folder: str | os.PathLike, **saved: Any) -> Path:
        return self.segmenter.save_pretrained(folder, **saved)

    def push_to_hub(self, repo_id: str, **saved: Any) -> str:
        return self.segmenter.push_to_hub(repo_id, **saved)


def as_tested(model: Any) -> Any:
    """What segments videos for a model: itself, or its frame segmenter alone with TEST.MATCH_FRAMES.

    To be called once, by whoever runs a model. Any callable that takes samples may be given.
    """
    return MatchedFrames(model) if getattr(model, "match_frames", False) else model


def online_form(model: Any) -> OnlineSegmenter:
    """`as_tested`, for whoever runs a model frame by frame; ValueError when it cannot be."""
    require(model, "video")
    online = as_tested(model)
    require(online, "online")
    return online


def warn_if_not_finite(start: int, *outputs: Tensor) -> None:
    """Say that outputs (t, ...) of the frames from number `start` on are not finite."""
    if not all(to_host([output.isfinite().all() for output in outputs])):
        logger.warning(
            "The network's outputs are not finite somewhere in the %d frame(s) from number %d on; objects wait for "
            "the next frame. Set TEST.AMP.ENABLED False if this happens often.",
            len(outputs[0]),
            start,
        )


def finite_masks(logits: Tensor) -> Tensor:
    """Replace what is no finite number in mask logits by numbers as large."""
    return logits.nan_to_num(nan=FAR_OUTSIDE, posinf=-FAR_OUTSIDE, neginf=FAR_OUTSIDE)
