"""Segment a video while it comes in: one frame in, the objects of that frame out.

predictor = StreamPredictor("configs/youtubevis_2019/genvis_R50_bs8_online.yaml", weights="genvis.pth")
for frame in camera:  # (H, W, 3) uint8 RGB
    objects = predictor.step(frame)  # a FramePrediction
prediction = predictor.finish()  # a VideoPrediction, what VideoPredictor finds in the whole video
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lbvq.inference.base import Predictor, short_form
from lbvq.inference.frames import ArrayFrames, Resize, ResizedFrames, as_rgb
from lbvq.inference.results import FramePrediction, VideoPrediction
from lbvq.modeling.online.frame_matching import online_form
from lbvq.modeling.online.segmenter import OnlineSegmenter, StepMasks, StreamState, evidence_length, join_evidence
from lbvq.modeling.postprocess import MaskStream, inside_sums, mask_quality, resize
from lbvq.refine import refiner_name
from mask2former.abilities import require
from mask2former.registry import model_class

if TYPE_CHECKING:
    from mask2former.cfg import Cfg

logger = logging.getLogger(__name__)

STATE_VERSION = 1


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
        half: bool = True,
        is_trained: bool = True,
        keep_masks: bool = True,
    ) -> None:
        """Args:
        model: a built video model, an online one or one with TEST.MATCH_FRAMES.
        resize, names, half, is_trained: see `Predictor`.
        keep_masks: keep the masks of all tracked objects for `finish`. Any of them may be among the best in the end,
            so all are encoded in every frame, which takes time: False is faster when only `step` matters.
        """
        super().__init__(online_form(model), resize=resize, names=names, half=half, is_trained=is_trained)
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
        self._state: StreamState | None = None  # after the last complete step
        self._pending: dict[str, Tensor] = {}  # evidence of the frames of the step that is not complete
        self._masks: MaskStream | None = None  # of the complete steps
        self._size: tuple[int, int] | None = None  # (height, width) of the frames
        self._ids: dict[tuple[int, int], int] = {}  # (row, label) -> identity, in order of appearance

    def step(self, frame: Any) -> FramePrediction:
        """Take the next frame.

        Args:
            frame: (H, W, 3) or (3, H, W) uint8 RGB array or tensor; all frames of a stream have one size.

        Returns:
            The objects that would be reported if the video ended here, best first, with their masks in this frame.
            An object keeps its identity through the whole stream. A semi-online model decides on several frames
            together: until they are complete, each answer is the model's best with the frames it has.
        """
        images = self._resized(frame)
        with self.inference_context():
            if self._state is None:
                self._state = self.model.start_stream()
            batch = self.model.batch_images([images[0]])
            pending = join_evidence(self._pending, self.model.observe(batch, self.num_frames))
            state, masks = self.model.advance(self._state, pending)
            if self._masks is None:
                sizes = {"padded_size": batch.padded_size, "image_size": batch.image_sizes[0]}
                at_output = self.model.quality_of_output
                self._masks = MaskStream(0, **sizes, output_size=images.original_size, quality_of_output=at_output)
            self._masks.reserve(len(masks))
            self._size, self._pending = images.original_size, pending
            self.num_frames += 1
            objects = self._objects(state, masks)
            if evidence_length(self._pending) >= self.model.clip_length:
                self._complete(state, masks)
        return objects

    def steps(self, frames: Iterable[Any]) -> list[FramePrediction]:
        """Take several frames; the same as one `step` after the other."""
        return [self.step(frame) for frame in frames]

    def finish(self) -> VideoPrediction:
        """End the stream: what was found in the whole of it, with the identities of the steps. Starts a new one."""
        if not self.keep_masks:
            raise ValueError("this predictor keeps no masks; build it with keep_masks=True to call finish()")
        if self._state is None:
            raise ValueError("the stream has no frames")
        with self.inference_context():
            if evidence_length(self._pending):
                self._complete(*self.model.advance(self._state, self._pending))
            scores, labels, rows = (part.cpu() for part in self.model.decide(self._state))
        scores = scores.float()
        if self.model.use_quality:
            scores = scores * self._masks.quality()[rows]
        ids = self._identities(rows, labels)
        masks = self._masks.masks(rows)
        prediction = VideoPrediction(masks, scores, labels, self._size, self.names, ids)
        self.reset()
        return prediction

    def state_dict(self) -> dict[str, Any]:
        """Everything the stream remembers, as tensors, numbers and strings: `torch.save` keeps it, and
        `torch.load(..., weights_only=True)` reads it.
        """
        return {
            "version": STATE_VERSION,
            "model": self._model_name(),
            "keep_masks": self.keep_masks,
            "num_frames": self.num_frames,
            "size": self._size,
            "state": _copied(self._state),
            "pending": _copied(self._pending),
            "masks": None if self._masks is None else self._masks.state_dict(),
            "ids": [[row, label, identity] for (row, label), identity in self._ids.items()],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with a saved stream; the model must be the one it was saved with."""
        expected = {"version": STATE_VERSION, "model": self._model_name(), "keep_masks": self.keep_masks}
        for name, value in expected.items():
            if state.get(name) != value:
                raise ValueError(f"this stream was saved with {name} {state.get(name)!r}, here it is {value!r}")
        self.reset()
        self.num_frames = state["num_frames"]
        self._size = None if state["size"] is None else tuple(state["size"])
        self._state = self.model.place(_copied(state["state"]))
        self._pending = self.model.place(_copied(state["pending"]))
        self._masks = None if state["masks"] is None else MaskStream.from_state_dict(state["masks"])
        self._ids = {(row, label): identity for row, label, identity in state["ids"]}

    def _resized(self, frame: Any) -> ResizedFrames:
        """The frame as a video of one frame of the network's size, checked."""
        images = self.resize(ArrayFrames([as_rgb(frame, self.num_frames)]))
        if self._size is not None and images.original_size != self._size:
            raise ValueError(
                f"all frames of a stream must have one size: frame {self.num_frames} is {images.original_size}, the "
                f"first was {self._size} (height, width). Call finish() or reset() to start a new stream."
            )
        return images

    def _objects(self, state: StreamState, masks: StepMasks) -> FramePrediction:
        """The best objects, with their masks in the last frame of `masks`."""
        scores, labels, rows = (part.cpu() for part in self.model.decide(state))
        unique, positions = rows.unique(return_inverse=True)
        logits = self._masks.as_measured(masks.logits(unique.to(masks.features.device)))
        scores = scores.float()
        if self.model.use_quality:
            before = (part[unique] for part in self._masks.sums())
            total, count = (old + new for old, new in zip(before, inside_sums(logits), strict=True))
            scores = scores * mask_quality(total, count)[positions]
        visible = (resize(logits[:, -1:], self._size)[:, 0] > 0).cpu()[positions]
        order = scores.argsort(descending=True, stable=True)
        return FramePrediction(
            visible[order].numpy(),
            scores[order].double().numpy(),
            labels[order].numpy(),
            self._identities(rows, labels)[order].numpy(),
            self.names,
        )

    def _identities(self, rows: Tensor, labels: Tensor) -> Tensor:
        """Identities of (row, label) pairs, (k,) int64 from 1, in the order in which they were first reported."""
        pairs = zip(rows.tolist(), labels.tolist(), strict=True)
        return torch.tensor([self._ids.setdefault(pair, len(self._ids) + 1) for pair in pairs], dtype=torch.int64)

    def _complete(self, state: StreamState, masks: StepMasks) -> None:
        """Make a step final."""
        self._state, self._pending = state, {}
        if self.keep_masks:
            self._masks.add(*masks.of_frames())
        else:
            self._masks.measure(*masks.of_frames())

    def _model_name(self) -> str:
        """What a saved stream must fit: the method and the size of the network."""
        model = getattr(self.model, "segmenter", self.model)
        count = sum(parameter.numel() for parameter in model.parameters())
        return f"{type(self.model).__name__}, {type(model).__name__} with {count} parameters"


def _copied(tree: Any) -> Any:
    """Copy nested dicts and lists; tensors are copied so that a saved stream does not keep larger ones alive."""
    if isinstance(tree, Tensor):
        with torch.inference_mode(False):
            return tree.detach().clone()
    if isinstance(tree, dict):
        return {name: _copied(value) for name, value in tree.items()}
    return [_copied(value) for value in tree] if isinstance(tree, (list, tuple)) else tree
