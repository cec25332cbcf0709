"""What every video method shares.

`VideoModel` is all that data, engine, evaluation and predictors know of a method: frames in, normalised and padded a
few at a time, and a switch between two duties, `losses(clips)` in training and `inference(video)` at test.
`FrameSegmenter` is a `VideoModel` with a backbone, a pixel decoder and a frame decoder; most methods build on it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from mask2former.abilities import Abilities, refusal
from mask2former.ahead import ahead
from mask2former.modeling.backbone import Backbone
from mask2former.modeling.criterion import SetCriterion
from mask2former.modeling.head import MaskFormerHead
from mask2former.registry import build_backbone, build_sem_seg_head
from mask2former.structures import ImageList
from mask2former.transfer import to_device

from .graphs import IMAGE_AXES, FrameNetwork, Graph, GraphFunction, keep_parts, outputs_of_network
from .pretrained import push_to_hub, save_pretrained

if TYPE_CHECKING:
    from mask2former.cfg import Cfg

logger = logging.getLogger(__name__)


class VideoModel(nn.Module):
    """Reads videos and training clips; subclasses write `losses` and `inference`.

    Attributes:
        sample: what the model is given at a time.
        can: what it can do besides segmenting whole videos.
        match_frames: it is run by matching frame queries instead, see `FrameSegmenter`.
        exported: graphs that run in place of parts of it, see `run_exported`.
    """

    sample: ClassVar[str] = "video"
    can: ClassVar[Abilities] = Abilities()
    match_frames: bool = False
    exported: Mapping[str, GraphFunction] = {}

    config: Cfg | None = None  # what `build_model` built it from
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        *,
        num_frames: int,
        size_divisibility: int,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        num_predictions: int,
        run_chunk_size: int,
        feature_budget_mib: float,
    ) -> None:
        """Take what is the same for every model.

        Args:
            num_frames: T of a training clip.
            size_divisibility: frames are padded to a multiple of this.
            pixel_mean, pixel_std: per channel, 0..255.
            num_predictions: most (object, class) pairs reported per video.
            run_chunk_size: most frames encoded at once at test; results do not depend on it but for rounding.
            feature_budget_mib: what is kept of encoded frames in memory, MiB; the rest goes to a temporary file.
        """
        super().__init__()
        if run_chunk_size < 1:
            raise ValueError(f"{type(self).__name__}: TEST_RUN_CHUNK_SIZE must be at least 1, got {run_chunk_size}.")
        self.num_frames = num_frames
        self.size_divisibility = size_divisibility
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)
        self.num_predictions = num_predictions
        self.run_chunk_size = run_chunk_size
        self.feature_budget_mib = feature_budget_mib

    @classmethod
    def from_config(cls, cfg: Cfg) -> dict[str, Any]:
        """Keyword arguments of the constructor that are common to all methods."""
        return {
            "num_frames": cfg.INPUT.SAMPLING_FRAME_NUM,
            "size_divisibility": cfg.MODEL.MASK_FORMER.SIZE_DIVISIBILITY,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "num_predictions": cfg.TEST.DETECTIONS_PER_IMAGE,
            "run_chunk_size": 18,
            "feature_budget_mib": cfg.TEST.FEATURE_BUDGET_MB,
        }

    def settings(self) -> dict[str, Any]:
        """Arguments of the constructor with which another model reads videos as this one does."""
        names = ("num_frames", "size_divisibility", "num_predictions", "run_chunk_size", "feature_budget_mib")
        pixels = {name: getattr(self, name).flatten().tolist() for name in ("pixel_mean", "pixel_std")}
        return {**{name: getattr(self, name) for name in names}, **pixels}

    def save_pretrained(self, folder: str | os.PathLike, **saved: Any) -> Path:
        """Write a folder that `VideoPredictor.from_pretrained` reads; see `pretrained.save_pretrained`."""
        return save_pretrained(self, folder, **saved)

    def push_to_hub(self, repo_id: str, **saved: Any) -> str:
        """Send such a folder to the Hugging Face Hub; returns its address. See `pretrained.push_to_hub`."""
        return push_to_hub(self, repo_id, **saved)

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(self, samples: list[dict[str, Any]]) -> Any:
        """Return weighted losses of the clips in training, the output of one video at test."""
        if self.training:
            if self.exported:
                raise ValueError("an exported network cannot be trained; train the model it was exported from.")
            return self.losses(samples)
        if len(samples) != 1:
            raise ValueError(f"at test a video model takes one video at a time, got a list of {len(samples)}.")
        if self.match_frames:
            raise ValueError("with TEST.MATCH_FRAMES a model is run as lbvq.modeling.as_tested(model).")
        with torch.inference_mode():
            return self.inference(samples[0])

    def losses(self, samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Weighted losses of B training clips."""
        raise NotImplementedError

    def inference(self, video: dict[str, Any]) -> Any:
        """Published output dictionary of one video."""
        raise NotImplementedError

    def graphs(self, images: Tensor) -> dict[str, Graph]:
        """What can be exported of the model: by name, functions of tensors that it calls at test.

        Args:
            images: (t, 3, H, W) normalised and padded frames, to make examples of the inputs from.
        """
        raise ValueError(refusal(self, "export"))

    def run_exported(self, functions: Mapping[str, GraphFunction]) -> None:
        """Run exported forms of all `graphs` from now on, and drop the parts they were made of."""
        self.exported = dict(functions)

    @property
    def divisibility(self) -> int:
        """Frames are padded to a multiple of this now."""
        return self.size_divisibility

    def batch_images(self, frames: Sequence[Tensor]) -> ImageList:
        """Normalise frames (3, h, w), 0..255 RGB, and pad them to a common size with zeros."""
        images = [self.normalise(torch.as_tensor(frame)) for frame in frames]
        return ImageList.from_tensors(images, self.divisibility)

    def normalise(self, frame: Tensor) -> Tensor:
        """One frame (3, h, w), 0..255 -> float32 with the mean and deviation of the training images removed."""
        num_channels = len(self.pixel_mean)
        if frame.dim() != 3 or frame.shape[0] != num_channels or 0 in frame.shape:
            raise ValueError(f"a frame must have shape ({num_channels}, height, width), got {tuple(frame.shape)}.")
        return (to_device(frame, self.device) - self.pixel_mean) / self.pixel_std

    def batch_clips(self, samples: list[dict[str, Any]]) -> ImageList:
        """Normalise and pad the frames of B training clips, clip by clip."""
        for sample in samples:
            if len(sample["image"]) != self.num_frames or len(sample["instances"]) != self.num_frames:
                raise ValueError(
                    f"a training clip must have INPUT.SAMPLING_FRAME_NUM = {self.num_frames} frames, got "
                    f"{len(sample['image'])} images and {len(sample['instances'])} sets of instances."
                )
        return self.batch_images([frame for sample in samples for frame in sample["image"]])

    def image_batches(self, frames: Sequence[Tensor], chunk_size: int | None = None) -> Iterator[tuple[int, ImageList]]:
        """Cut a video into batches of frames that are ready for the backbone: (number of the first frame, batch).

        Args:
            frames: T tensors (3, h, w) of one size, uint8 or float 0..255 RGB; may be decoded when indexed.
            chunk_size: frames per piece, of which only the last may have fewer; None lets the device decide.
        """
        if len(frames) == 0:
            raise ValueError("the video has no frames.")
        chunks = _chunks(frames, chunk_size or self.frames_per_run)
        for start, images in ahead(chunks) if self.reads_ahead else chunks:
            yield start, self.batch_images(images)

    @property
    def reads_ahead(self) -> bool:
        """Frames are decoded while the network works on those before; on a CPU they would take each other's time."""
        return self.device.type == "cuda"

    @property
    def frames_per_run(self) -> int:
        """Frames encoded at once over a whole video.

        On a CPU one: more take memory and save little time, and libraries then choose other sums, so that a value next
        to the threshold of an attention mask may fall on its other side.
        """
        return 1 if self.device.type == "cpu" else self.run_chunk_size

    def freeze_all_but(self, module_name: str) -> None:
        """Stop training every parameter whose name lacks `module_name`; as published, nothing is put in eval mode."""
        for name, parameter in self.named_parameters():
            if module_name not in name:
                parameter.requires_grad_(False)


@dataclass
class EncodedFrames:
    """What the frame segmenter says about t consecutive frames of a video."""

    start: int  # number of the first frame
    image_size: tuple[int, int]  # (height, width) of a frame
    padded_size: tuple[int, int]  # (height, width) with padding
    backbone_features: dict[str, Tensor]
    outputs: dict[str, Any]  # of the frame decoder
    frame_queries: Tensor  # (L, t, Q, C)
    mask_features: Tensor  # (t, C, h, w), the pixel decoder's finest map


class FrameSegmenter(VideoModel):
    """A video model that segments single frames by backbone, pixel decoder and frame decoder."""

    can: ClassVar[Abilities] = Abilities(match_frames=True, compile=True, export=True)
    backbone: Any  # a `Backbone`, or nothing when its exported form runs

    def __init__(
        self,
        *,
        backbone: Backbone,
        sem_seg_head: MaskFormerHead,
        criterion: SetCriterion,
        size_divisibility: int,
        compile_encoder: bool,
        match_frames: bool = False,
        **video_model: Any,
    ) -> None:
        """Take the three parts and what every model has.

        Args:
            backbone, sem_seg_head, criterion: the frame segmenter and its losses.
            size_divisibility: frames are padded to a multiple of this; negative means what the backbone asks for.
            compile_encoder: torch.compile the backbone, the pixel decoder and the frame decoder.
            match_frames: at test, match the queries of frames as MinVIS does instead of what the method does; such a
                model is run as `as_tested(model)`.
            video_model: arguments of `VideoModel`.
        """
        divisibility = backbone.size_divisibility if size_divisibility < 0 else size_divisibility
        super().__init__(size_divisibility=divisibility, **video_model)
        # batches come channels last; convolutions would copy weights that do not in every training step
        self.backbone = backbone.to(memory_format=torch.channels_last)
        self.sem_seg_head = sem_seg_head.to(memory_format=torch.channels_last)
        self.criterion = criterion
        self.match_frames = match_frames
        if compile_encoder:
            self.compile_encoder()

    @classmethod
    def from_config(cls, cfg: Cfg) -> dict[str, Any]:
        backbone = build_backbone(cfg)
        return {
            **super().from_config(cfg),
            "backbone": backbone,
            "sem_seg_head": build_sem_seg_head(cfg, backbone.output_shape()),
            "criterion": SetCriterion(**SetCriterion.from_config(cfg)),
            "compile_encoder": is_compiled(cfg),
            "match_frames": cfg.TEST.MATCH_FRAMES,
        }

    def encode_video(self, frames: Sequence[Tensor], chunk_size: int | None = None) -> Iterator[EncodedFrames]:
        """Run the frame segmenter over a video, a few frames at a time; see `image_batches`."""
        for start, images in self.image_batches(frames, chunk_size):
            yield self.encode_frames(images, start)

    def encode_frames(self, images: ImageList, start: int = 0, **context: Any) -> EncodedFrames:
        """Run the frame segmenter over a batch of frames of equal size; `context` is for its decoder."""
        if self.exported:
            found = outputs_of_network(self.exported["frame_network"](images=images.tensor, **context))
            features, outputs, frame_queries, mask_features = found
        else:
            features = self.backbone(images.tensor.contiguous(memory_format=torch.channels_last))
            outputs, frame_queries, mask_features = self.sem_seg_head(features, **context)
        return EncodedFrames(
            start=start,
            image_size=images.image_sizes[0],
            padded_size=images.padded_size,
            backbone_features=features,
            outputs=outputs,
            frame_queries=frame_queries,
            mask_features=mask_features,
        )

    def graphs(self, images: Tensor) -> dict[str, Graph]:
        network = FrameNetwork(self.backbone, self.sem_seg_head)
        return {"frame_network": Graph(network, {"images": images}, {"images": IMAGE_AXES})}

    def run_exported(self, functions: Mapping[str, GraphFunction]) -> None:
        super().run_exported(functions)
        self.backbone = None
        keep_parts(self.sem_seg_head, ())

    def compile_encoder(self) -> None:
        """Compile the frame segmenter; parameter names stay as they are."""
        self.backbone.compile()
        self.sem_seg_head.compile()


VideoSegmenter = FrameSegmenter  # its name in version 0.1


def is_compiled(cfg: Cfg) -> bool:
    """Whether to compile the frame segmenter; says so when that will not help."""
    if cfg.MODEL.COMPILE and not (str(cfg.MODEL.DEVICE).startswith("cuda") and torch.cuda.is_available()):
        logger.warning(
            "MODEL.COMPILE is for GPUs: on a CPU the first video takes minutes and the others are not faster, because "
            "the ordinary code already calls the fastest CPU library, which compiled code does not."
        )
    return cfg.MODEL.COMPILE


def _chunks(frames: Sequence[Tensor], step: int) -> Iterator[tuple[int, list[Tensor]]]:
    """`step` frames at a time with the number of the first, read when they are asked for; all must be of one size."""
    first = torch.as_tensor(frames[0])
    for start in range(0, len(frames), step):
        stop = min(start + step, len(frames))
        images = [first if t == 0 else torch.as_tensor(frames[t]) for t in range(start, stop)]
        for t, frame in enumerate(images, start):
            if frame.shape != first.shape:
                raise ValueError(
                    f"all frames of a video must have one shape; frame 0 has {tuple(first.shape)}, frame {t} has "
                    f"{tuple(frame.shape)}. Resize them before, or split the video."
                )
        yield start, images
