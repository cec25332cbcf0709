"""Segment a video while it comes in: one frame in, the objects of that frame out.

predictor = StreamPredictor("configs/youtubevis_2019/genvis_R50_bs8_online.yaml", weights="genvis.pth")
for frame in camera:  # (H, W, 3) uint8 RGB
    objects = predictor.step(frame)  # a FramePrediction
prediction = predictor.finish()  # a VideoPrediction, what VideoPredictor finds in the whole video

An identity is that of a tracked object, whatever its class: its number stays when the class that is best so far becomes
another. Each answer lists an object once. `finish` gives the (object, class) pairs that a whole video gives, as results
are evaluated, of which those of one object have one identity; `finish(pairs=False)` lists an object once there, too.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lbvq.inference.base import Predictor, short_form
from lbvq.inference.frames import ArrayFrames, Resize, ResizedFrames, as_rgb
from lbvq.inference.results import FramePrediction, VideoPrediction
from lbvq.modeling.online.frame_matching import online_form
from lbvq.modeling.online.segmenter import (
    Evidence,
    OnlineSegmenter,
    StepMasks,
    StreamState,
    evidence_length,
    join_evidence,
)
from lbvq.modeling.postprocess import Chosen, MaskStream, inside_sums, mask_quality, over_frames, resize, sizes_of
from lbvq.refine import refiner_name
from mask2former.abilities import require
from mask2former.ahead import FRAMES_AHEAD, ahead
from mask2former.registry import model_class
from mask2former.structures import ImageList
from mask2former.transfer import to_host

if TYPE_CHECKING:
    from mask2former.cfg import Cfg

logger = logging.getLogger(__name__)

STATE_VERSION = 2  # 1 had an identity for every (row, label)


class StreamPredictor(Predictor):
    """Runs an online model over a video that comes in frame by frame.

    The state of the stream is in this object, none of it in the model: several predictors may share a model, and
    `state_dict` and `load_state_dict` stop a stream and go on with it, elsewhere if need be. Results depend on the
    frames and their order alone.

    Per frame the memory grows by the run lengths of the masks and by what the method remembers of the frame; with
    `keep_masks=False` only by the latter.

    Attributes:
        num_frames: frames taken so far.
    """

    model: OnlineSegmenter

    @short_form
    def __init__(
        self,
        model: Any,
        *,
        resize: Resize | None = None,
        names: Sequence[str] | None = None,
        category_ids: Sequence[int] | None = None,
        half: bool = True,
        bfloat16: bool = False,
        is_trained: bool = True,
        keep_masks: bool = True,
    ) -> None:
        """Take a built online model and what belongs to it; `from_pretrained` builds them.

        Args:
            model: a built video model, an online one or one with TEST.MATCH_FRAMES.
            resize, names, category_ids, half, is_trained: see `Predictor`.
            bfloat16: compute products in bfloat16 where the model runs on a CPU.
            keep_masks: keep the masks of all tracked objects for `finish`. Any may be among the best in the end,
                so all are encoded in every frame, which takes time: False is faster when only `step` matters.
        """
        shared: dict[str, Any] = {"resize": resize, "names": names, "category_ids": category_ids, "half": half}
        shared |= {"bfloat16": bfloat16, "is_trained": is_trained}
        super().__init__(online_form(model), **shared)
        self.keep_masks = keep_masks
        self.reset()

    @classmethod
    def parts(
        cls,
        cfg: Cfg,
        weights: str | os.PathLike | None = None,
        classes: Sequence[str] | None = None,
        model: Any = None,
    ) -> dict[str, Any]:
        if model is None and not cfg.TEST.MATCH_FRAMES:
            require(model_class(cfg), "video")
            require(model_class(cfg), "online")  # known before any weight is read
        if refiner_name(cfg):
            logger.warning("%s is ignored: the masks of a stream are not refined.", refiner_name(cfg))
        return super().parts(cfg, weights, classes, model)

    def reset(self) -> None:
        """Forget the stream and start a new one."""
        self.num_frames = 0
        self._stream: _Stream | None = None  # once there is a frame
        self._ids: dict[int, int] = {}  # row -> identity, in order of appearance

    def step(self, frame: Any) -> FramePrediction:
        """Take the next frame.

        Args:
            frame: (H, W, 3) or (3, H, W) uint8 RGB array or tensor; all frames of a stream have one size.

        Returns:
            The objects that would be reported if the video ended here, best first, with their masks in this frame,
            each once, with the class that is best over all frames so far. An object keeps its identity through the
            whole stream. A semi-online model decides on several frames together: until they are complete, each answer
            is the model's best with the frames it has.
        """
        images = self._resized(frame)
        with self.inference_context():
            batch = self.model.batch_images([images[0]])
            stream = self._stream or self._start(batch, images.original_size)
            pending = join_evidence(stream.pending, self.model.observe(batch, self.num_frames))
            state, masks = self.model.advance(stream.state, pending)
            stream.masks.reserve(len(masks))
            self._stream, stream.pending = stream, pending
            self.num_frames += 1
            objects = self._objects(stream, state, masks)
            if evidence_length(pending) >= self.model.clip_length:
                self._complete(stream, state, masks)
        return objects

    def _start(self, batch: ImageList, size: tuple[int, int]) -> _Stream:
        """What is known before the first frame, except its sizes."""
        at_output = self.model.quality_of_output
        masks = MaskStream(0, **sizes_of(batch), output_size=size, quality_of_output=at_output)
        return _Stream(size, self.model.start_stream(), masks)

    def steps(self, frames: Iterable[Any]) -> list[FramePrediction]:
        """Take several frames; the same as one `step` after the other.

        On a GPU the next frames are taken from `frames`, which may decode them, while the network works.
        """
        if not self.model.reads_ahead:
            return [self.step(frame) for frame in frames]
        with closing(ahead(frames, FRAMES_AHEAD)) as decoded:
            return [self.step(frame) for frame in decoded]

    def finish(self, *, pairs: bool = True) -> VideoPrediction:
        """End the stream: what was found in the whole of it, with the identities of the steps. Starts a new one.

        Args:
            pairs: the best (object, class) pairs, as of a whole video, where an object may be listed with several
                classes; False: the best objects, each once with its best class, as in the steps.
        """
        if not self.keep_masks:
            raise ValueError("this predictor keeps no masks; build it with keep_masks=True to call finish()")
        stream = self._stream
        if stream is None:
            raise ValueError("the stream has no frames")
        with self.inference_context():
            if evidence_length(stream.pending):
                self._complete(stream, *self.model.advance(stream.state, stream.pending))
            scores, labels, rows = self._decided(stream.state, pairs)
        if self.model.use_quality:
            scores = scores * stream.masks.quality()[rows]
        ids = self._identities(rows)
        masks = stream.masks.masks(rows)
        prediction = VideoPrediction(masks, scores, labels, stream.size, self.names, ids, self.category_ids)
        self.reset()
        return prediction

    def state_dict(self) -> dict[str, Any]:
        """Everything the stream remembers, as tensors, numbers and strings: `torch.save` keeps it, and
        `torch.load(..., weights_only=True)` reads it.
        """
        stream = self._stream
        return {
            "version": STATE_VERSION,
            "model": self._model_name(),
            "keep_masks": self.keep_masks,
            "num_frames": self.num_frames,
            **({"size": None, "state": None, "pending": {}, "masks": None} if stream is None else stream.state_dict()),
            "ids": [[row, identity] for row, identity in self._ids.items()],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with a saved stream; the model must be the one it was saved with."""
        expected = {"version": STATE_VERSION, "model": self._model_name(), "keep_masks": self.keep_masks}
        for name, value in expected.items():
            if state.get(name) != value:
                raise ValueError(f"this stream was saved with {name} {state.get(name)!r}, here it is {value!r}")
        self.reset()
        self.num_frames = state["num_frames"]
        if state["size"] is not None:
            height, width = state["size"]
            remembered, pending = (self.model.place(_copied(state[name])) for name in ("state", "pending"))
            self._stream = _Stream((height, width), remembered, MaskStream.from_state_dict(state["masks"]), pending)
        self._ids = {row: identity for row, identity in state["ids"]}

    def _resized(self, frame: Any) -> ResizedFrames:
        """The frame as a video of one frame of the network's size, checked."""
        images = self.resize(ArrayFrames([as_rgb(frame, self.num_frames)]))
        if self._stream is not None and images.original_size != self._stream.size:
            raise ValueError(
                f"all frames of a stream must have one size: frame {self.num_frames} is {images.original_size}, the "
                f"first was {self._stream.size} (height, width). Call finish() or reset() to start a new stream."
            )
        return images

    def _objects(self, stream: _Stream, state: StreamState, masks: StepMasks) -> FramePrediction:
        """The best objects, with their masks in the last frame of `masks`."""
        scores, labels, rows = self._decided(state, pairs=False)
        logits = stream.masks.as_measured(masks.logits(rows))
        measured = inside_sums(logits) if self.model.use_quality else ()
        visible, *sums = to_host([resize(logits[:, -1:], stream.size)[:, 0] > 0, *measured])
        if sums:
            before = (part[rows] for part in stream.masks.sums())
            total, count = (old + over_frames(new) for old, new in zip(before, sums, strict=True))
            scores = scores * mask_quality(total, count)
        order = scores.argsort(descending=True, stable=True)
        return FramePrediction(
            visible[order].numpy(),
            scores[order].double().numpy(),
            labels[order].numpy(),
            self._identities(rows)[order].numpy(),
            self.names,
        )

    def _decided(self, state: StreamState, pairs: bool) -> Chosen:
        """See `OnlineSegmenter.decide`; on the CPU, scores in float32."""
        scores, labels, rows = to_host(self.model.decide(state, pairs=pairs))
        return scores.float(), labels, rows

    def _identities(self, rows: Tensor) -> Tensor:
        """Identities of objects, (k,) int64 from 1, in the order in which they were first reported."""
        return torch.tensor([self._ids.setdefault(row, len(self._ids) + 1) for row in rows.tolist()], dtype=torch.int64)

    def _complete(self, stream: _Stream, state: StreamState, masks: StepMasks) -> None:
        """Make a step final."""
        stream.state, stream.pending = state, {}
        take = stream.masks.add if self.keep_masks else stream.masks.measure
        take(*masks.of_frames())

    def _model_name(self) -> str:
        """What a saved stream must fit: the method and the size of the network."""
        model = getattr(self.model, "segmenter", self.model)
        count = sum(parameter.numel() for parameter in model.parameters())
        return f"{type(self.model).__name__}, {type(model).__name__} with {count} parameters"


@dataclass
class _Stream:
    """A stream that has a frame."""

    size: tuple[int, int]  # (height, width) of the frames
    state: StreamState  # after the last complete step
    masks: MaskStream  # of the complete steps
    pending: Evidence = field(default_factory=dict)  # of the frames of the step that is not complete

    def state_dict(self) -> dict[str, Any]:
        state, pending = _copied(self.state), _copied(self.pending)
        return {"size": self.size, "state": state, "pending": pending, "masks": self.masks.state_dict()}


def _copied(tree: Any) -> Any:
    """Copy nested dicts and lists; tensors are copied so that a saved stream does not keep larger ones alive."""
    if isinstance(tree, Tensor):
        with torch.inference_mode(False):
            return tree.detach().clone()
    if isinstance(tree, dict):
        return {name: _copied(value) for name, value in tree.items()}
    return [_copied(value) for value in tree] if isinstance(tree, (list, tuple)) else tree
