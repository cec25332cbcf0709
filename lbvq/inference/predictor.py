"""Segment videos in two lines.

predictor = VideoPredictor("configs/youtubevis_2019/lbvq_R50_bs8.yaml", weights="lbvq_r50_ytvis19.pth")
prediction = predictor("video.mp4")  # a VideoPrediction
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lbvq.inference.base import Predictor, short_form
from lbvq.inference.frames import Resize, open_frames
from lbvq.inference.loading import class_names_of, load_config, load_model
from lbvq.inference.results import VideoPrediction
from lbvq.modeling.online.frame_matching import as_tested
from lbvq.refine import MaskRefiner, build_refiner, refine_tubes
from mask2former.abilities import require
from mask2former.registry import build_model

if TYPE_CHECKING:
    from mask2former.cfg import Cfg

__all__ = ["VideoPredictor", "build_model", "class_names_of", "load_config", "load_model"]

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]


class VideoPredictor(Predictor):
    """Runs a model over videos of any length, decoding, resizing and masks included, in bounded memory."""

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
        refiner: MaskRefiner | None = None,
        refine_threshold: float = 0.0,
    ) -> None:
        """Take a built model and what belongs to it; `from_pretrained` builds them.

        Args:
            model: a built video model, or any function that takes [sample] and returns the output of a video.
            resize, names, category_ids, half, is_trained: see `Predictor`.
            bfloat16: compute products in bfloat16 where the model runs on a CPU.
            refiner: refines the masks.
            refine_threshold: objects with a lower score keep their masks.
        """
        require(model, "video")
        shared: dict[str, Any] = {"resize": resize, "names": names, "category_ids": category_ids, "half": half}
        shared |= {"bfloat16": bfloat16, "is_trained": is_trained}
        super().__init__(as_tested(model), **shared)
        self.refiner, self.refine_threshold = refiner, refine_threshold

    @classmethod
    def parts(
        cls,
        cfg: Cfg,
        weights: str | os.PathLike | None = None,
        classes: Sequence[str] | None = None,
        model: Any = None,
    ) -> dict[str, Any]:
        parts = super().parts(cfg, weights, classes, model)
        return {**parts, "refiner": build_refiner(cfg), "refine_threshold": cfg.REFINE.SCORE_THRESHOLD}

    def __call__(
        self, video: Any, *, progress: Progress | None = None, allow_truncated: bool = False
    ) -> VideoPrediction:
        """Segment one video.

        Args:
            video: a path, a pattern, frames or an array; see `lbvq.inference.frames.open_frames`.
            progress: called as progress(stage, done, total), with the stages "segment" and "refine".
            allow_truncated: use what can be read of a file that is cut off, with a warning.
        """
        frames = open_frames(video, allow_truncated=allow_truncated)
        done = _progress_of("segment", len(frames), progress)
        with self.inference_context():
            output = self.model([self.resize(frames, _first_reads(done)).sample()])
        if not isinstance(output, dict):
            raise ValueError("this model returns image results, it is not a video model")
        done(len(frames))
        prediction = VideoPrediction.from_output(output, self.names, self.category_ids)
        return self._refined(prediction, frames, _progress_of("refine", len(frames), progress))

    def _refined(
        self, prediction: VideoPrediction, frames: Sequence[np.ndarray], done: Callable[[int], None]
    ) -> VideoPrediction:
        if self.refiner is None:
            return prediction
        confident = [score >= self.refine_threshold for score in prediction.scores]
        tubes, report = refine_tubes(prediction.masks, frames, self.refiner, confident=confident, progress=done)
        logger.info("Refinement: %s", report)
        return prediction.with_masks(tubes)


def _progress_of(stage: str, total: int, progress: Progress | None) -> Callable[[int], None]:
    """What to call with the number of frames that are done in a stage."""
    return lambda done: None if progress is None else progress(stage, done, total)


def _first_reads(done: Callable[[int], None]) -> Callable[[int], None]:
    """What to call with the index of every frame that is read: frames before one read for the first time are done."""
    seen = -1

    def on_read(index: int) -> None:
        nonlocal seen
        if index > seen:
            seen = index
            done(index)

    return on_read
