"""Segment videos in two lines.

predictor = VideoPredictor("configs/youtubevis_2019/lbvq_R50_bs8.yaml", weights="lbvq_r50_ytvis19.pth")
prediction = predictor("video.mp4")  # a VideoPrediction
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

import lbvq.modeling  # noqa: F401  registers the methods
from lbvq.config import get_cfg
from lbvq.data.builtin import MetadataCatalog
from lbvq.engine.checkpoint import load_weights
from lbvq.inference.frames import ResizedFrames, open_frames
from lbvq.inference.results import VideoPrediction
from lbvq.inference.vocabulary import with_classes
from lbvq.modeling.online.frame_matching import as_tested
from lbvq.modeling.ovformer.zero_shot import read_text_embeddings
from lbvq.refine import build_refiner, refine_tubes
from lbvq.zoo import MODELS, find_config
from mask2former.abilities import require
from mask2former.registry import build_model

if TYPE_CHECKING:
    from mask2former.cfg import Cfg

__all__ = ["VideoPredictor", "build_model", "class_names_of", "load_config", "load_model"]

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]


def load_config(name_or_yaml: str | os.PathLike, opts: Sequence[Any] = ()) -> Any:
    """Read a configuration, then apply KEY VALUE pairs.

    Args:
        name_or_yaml: a YAML file, a file below our folder `configs`, or a model of the zoo; the last brings its
            published weights along in MODEL.WEIGHTS.
        opts: KEY VALUE pairs.
    """
    cfg = get_cfg()
    cfg.merge_from_file(os.fspath(find_config(name_or_yaml)))
    if os.fspath(name_or_yaml) in MODELS:
        cfg.MODEL.WEIGHTS = MODELS[os.fspath(name_or_yaml)].weights
    cfg.merge_from_list(list(opts))
    return cfg


def load_model(
    name_or_yaml: str | os.PathLike, weights: str | os.PathLike | None = None, opts: Sequence[Any] = ()
) -> nn.Module:
    """Build a model for inference, with weights, on MODEL.DEVICE.

    Args:
        name_or_yaml: a YAML file, or a name of the model zoo.
        weights: a file or an address; by default the configuration's MODEL.WEIGHTS. "" builds an untrained network.
        opts: KEY VALUE pairs that override the configuration.
    """
    return _model_from(load_config(name_or_yaml, opts), weights)


class VideoPredictor:
    """Runs a model over videos of any length, decoding, resizing and masks included, in bounded memory.

    Attributes:
        model: the network in the form in which it is run (`as_tested`), left in the mode it was given in.
        names: names of the classes, or None when they are not known.
        is_trained: False when no weights were loaded; what such a network finds is noise.
    """

    def __init__(
        self,
        source: Any,
        classes: Sequence[str] | None = None,
        *,
        weights: str | os.PathLike | None = None,
        cfg: Cfg = None,
        opts: Sequence[Any] = (),
    ) -> None:
        """Args:
        source: a configuration, the path of a YAML file, a name of the model zoo, or a model that is built already.
        classes: names of the classes, by class index; by default those of the data set in DATASETS.TEST. An
            open-vocabulary model (OVFormer) finds exactly these classes, whatever they are; one that is built already
            is set to them.
        weights: as in `load_model`; not for a model that is built already.
        cfg: the configuration of a model that is built already. Without it frames are resized as for YouTube-VIS
            (short side 360, long side at most 1333, RGB).
        opts: KEY VALUE pairs, when `source` is a file or a name.
        """
        if isinstance(source, (str, os.PathLike)):
            cfg = load_config(source, opts)
        elif opts:
            raise ValueError("opts can be given only with the name of a configuration; change the configuration itself")
        elif not isinstance(source, nn.Module) and hasattr(source, "MODEL"):
            cfg = source
        elif not callable(source):
            raise ValueError(f"expected a configuration, a name, or a model, got {type(source).__name__}")
        self.is_trained = True
        is_built = cfg is None or not (isinstance(source, (str, os.PathLike)) or source is cfg)
        if classes is not None and is_open_vocabulary(cfg):
            cfg = with_classes(cfg, classes, known_names=class_names_of(cfg))
            if is_built:
                source.set_vocabulary(read_text_embeddings(cfg.MODEL.MASK_FORMER.CLIP_TEXT_PATH))
        if not is_built:
            self.is_trained = bool(cfg.MODEL.WEIGHTS if weights is None else os.fspath(weights))
            self.model = _model_from(cfg, weights)
        elif weights is not None:
            raise ValueError(
                "weights can be given only with a configuration; load them into the model with load_weights"
            )
        else:
            self.model = source
        require(self.model, "video")
        self.model = as_tested(self.model)
        self.names = tuple(classes) if classes is not None else class_names_of(cfg)
        self._check_names(cfg, given=classes is not None)
        self._min_size = 360 if cfg is None else cfg.INPUT.MIN_SIZE_TEST
        self._max_size = 1333 if cfg is None else cfg.INPUT.MAX_SIZE_TEST
        self._image_format = "RGB" if cfg is None else cfg.INPUT.FORMAT
        self._half = True if cfg is None else cfg.TEST.AMP.ENABLED
        self._refiner = None if cfg is None else build_refiner(cfg)
        self._refine_threshold = 0.0 if cfg is None else cfg.REFINE.SCORE_THRESHOLD

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
        images = self.resized(frames, _counting(progress, "segment", len(frames)))
        height, width = images.original_size
        output = self._run(
            {
                "image": images,
                "height": height,
                "width": width,
                "video_len": len(images),
                "frame_idx": list(range(len(images))),
                "dense_masks": False,
            }
        )
        if progress is not None:
            progress("segment", len(frames), len(frames))
        prediction = VideoPrediction.from_output(output, self.names)
        return self._refine(prediction, frames, progress) if self._refiner is not None else prediction

    def resized(self, frames: Sequence, on_read: Callable[[int], None] | None = None) -> ResizedFrames:
        """Frames (H, W, 3) uint8 RGB as the model reads them."""
        return ResizedFrames(
            frames,
            min_size=self._min_size,
            max_size=self._max_size,
            image_format=self._image_format,
            on_read=on_read,
        )

    @contextmanager
    def inference_context(self) -> Iterator[None]:
        """Evaluation mode without gradients, in half precision on CUDA if the configuration says so."""
        parameter = next(self.model.parameters(), None) if isinstance(self.model, nn.Module) else None
        on_cuda = parameter is not None and parameter.device.type == "cuda"
        was_training = getattr(self.model, "training", False)
        if was_training:
            self.model.eval()
        try:
            with (
                torch.inference_mode(),
                torch.autocast("cuda", torch.float16) if on_cuda and self._half else nullcontext(),
            ):
                yield
        finally:
            if was_training:
                self.model.train()

    def _run(self, sample: dict[str, Any]) -> dict[str, Any]:
        with self.inference_context():
            output = self.model([sample])
        if not isinstance(output, dict):
            raise ValueError("this model returns image results, it is not a video model")
        return output

    def _refine(self, prediction: VideoPrediction, frames: Sequence, progress: Progress | None) -> VideoPrediction:
        report_frames = None if progress is None else (lambda done: progress("refine", done, len(frames)))
        confident = [score >= self._refine_threshold for score in prediction.scores]
        tubes, report = refine_tubes(
            prediction.masks, frames, self._refiner, confident=confident, progress=report_frames
        )
        logger.info("Refinement: %s", report)
        return VideoPrediction(
            tubes, prediction.scores, prediction.labels, prediction.image_size, self.names, prediction.ids
        )

    def _check_names(self, cfg: Cfg, given: bool) -> None:
        """Names must cover every class; names of the data set that do not are left out with a warning."""
        configured = 0 if cfg is None else cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        num_classes = getattr(self.model, "num_classes", configured)
        if self.names is None or len(self.names) >= num_classes:
            return
        if given:
            raise ValueError(f"the model has {num_classes} classes, got {len(self.names)} names in `classes`")
        logger.warning(
            "The model has %d classes but %s names %d; classes are shown by number. Pass `classes`, or set "
            "DATASETS.TEST to the data set the model was trained for.",
            num_classes,
            cfg.DATASETS.TEST[0],
            len(self.names),
        )
        self.names = None


def class_names_of(cfg: Cfg) -> tuple[str, ...] | None:
    """Names of the classes of the data set in DATASETS.TEST, by class index; None when it is not known."""
    if cfg is None or not cfg.DATASETS.TEST:
        return None
    name = cfg.DATASETS.TEST[0]
    if name not in MetadataCatalog.list():
        return None
    names = MetadataCatalog.get(name).get("thing_classes")
    return tuple(names) if names else None


def is_open_vocabulary(cfg: Cfg) -> bool:
    """Whether the classes of a model are given as text, so that it finds whatever is named."""
    return cfg is not None and bool(getattr(cfg.MODEL.get("MASK_FORMER"), "CLIP_CLASSIFIER", False))


def _model_from(cfg: Cfg, weights: str | os.PathLike | None) -> nn.Module:
    """Build a model for inference and load its weights; an untrained one is announced loudly."""
    weights = cfg.MODEL.WEIGHTS if weights is None else os.fspath(weights)
    model = build_model(cfg).eval()
    if weights:
        load_weights(model, weights)
    else:
        logger.warning(
            "NO WEIGHTS: %s has random weights. It is UNTRAINED and what it finds is noise. "
            "Pass `weights` or set MODEL.WEIGHTS to a trained model.",
            cfg.MODEL.META_ARCHITECTURE,
        )
    return model


def _counting(progress: Progress | None, stage: str, total: int) -> Callable[[int], None] | None:
    """Call `progress` when a frame is read that was not read before."""
    if progress is None:
        return None
    seen = -1

    def on_read(index: int) -> None:
        nonlocal seen
        if index > seen:
            seen = index
            progress(stage, index, total)  # frames before this one are done

    return on_read
