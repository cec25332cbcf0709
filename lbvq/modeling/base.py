"""What every video method built on the frame segmenter shares.

A method is a `VideoSegmenter` with two duties: `losses(clips)` in training and `inference(video)` at test. This class
normalises and pads frames, runs the frame segmenter over a video of any length piece by piece, and switches between the
two duties.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mask2former.modeling.criterion import SetCriterion
from mask2former.registry import build_backbone, build_sem_seg_head
from mask2former.structures import ImageList

if TYPE_CHECKING:
    from .online.frame_matching import MatchedFrames

logger = logging.getLogger(__name__)


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


class VideoSegmenter(nn.Module):
    """Frame segmenter plus the code around it; subclasses write `losses` and `inference`."""

    def __init__(
        self,
        *,
        backbone: nn.Module,
        sem_seg_head: nn.Module,
        criterion: nn.Module,
        num_frames: int,
        size_divisibility: int,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        num_predictions: int,
        run_chunk_size: int,
        feature_budget_mib: float,
        match_frames: bool = False,
        compile_encoder: bool,
    ) -> None:
        """Args:
        backbone, sem_seg_head, criterion: the frame segmenter and its losses.
        num_frames: T of a training clip.
        size_divisibility: frames are padded to a multiple of this; negative means what the backbone asks for.
        pixel_mean, pixel_std: per channel, 0..255.
        num_predictions: most (object, class) pairs reported per video.
        run_chunk_size: most frames encoded at once at test; results do not depend on it but for rounding.
        feature_budget_mib: mask features of a video kept in memory, MiB; the rest goes to a temporary file.
        match_frames: at test, match the queries of frames as MinVIS does instead of what the method does.
        compile_encoder: torch.compile the backbone, the pixel decoder and the frame decoder.
        """
        super().__init__()
        if run_chunk_size < 1:
            raise ValueError(f"TEST_RUN_CHUNK_SIZE must be at least 1, got {run_chunk_size}.")
        # batches come channels last; convolutions would copy weights that do not in every training step
        self.backbone = backbone.to(memory_format=torch.channels_last)
        self.sem_seg_head = sem_seg_head.to(memory_format=torch.channels_last)
        self.criterion = criterion
        self.num_frames = num_frames
        self.size_divisibility = backbone.size_divisibility if size_divisibility < 0 else size_divisibility
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)
        self.num_predictions = num_predictions
        self.run_chunk_size = run_chunk_size
        self.feature_budget_mib = feature_budget_mib
        self.match_frames = match_frames
        if compile_encoder:
            self.compile_encoder()

    @classmethod
    def from_config(cls, cfg: Any) -> dict[str, Any]:
        """Keyword arguments of the constructor that are common to all methods."""
        mask_former = cfg.MODEL.MASK_FORMER
        backbone = build_backbone(cfg)
        return {
            "backbone": backbone,
            "sem_seg_head": build_sem_seg_head(cfg, backbone.output_shape()),
            "criterion": SetCriterion(**SetCriterion.from_config(cfg)),
            "num_frames": cfg.INPUT.SAMPLING_FRAME_NUM,
            "size_divisibility": mask_former.SIZE_DIVISIBILITY,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "num_predictions": cfg.TEST.DETECTIONS_PER_IMAGE,
            "run_chunk_size": 18,
            "feature_budget_mib": cfg.TEST.FEATURE_BUDGET_MB,
            "match_frames": cfg.TEST.MATCH_FRAMES,
            "compile_encoder": is_compiled(cfg),
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(self, samples: list[dict[str, Any]]) -> Any:
        """Return weighted losses of the clips in training, the output of one video at test."""
        if self.training:
            return self.losses(samples)
        if len(samples) != 1:
            raise ValueError(f"at test a video model takes one video at a time, got a list of {len(samples)}.")
        with torch.inference_mode():
            return self.at_test().inference(samples[0])

    def at_test(self) -> VideoSegmenter | MatchedFrames:
        """What segments a video: this model, or its frame segmenter alone with TEST.MATCH_FRAMES."""
        if not self.match_frames:
            return self
        from .online.frame_matching import MatchedFrames  # imported here: it is made of the classes of this module

        return MatchedFrames(self)

    def losses(self, samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Weighted losses of B training clips."""
        raise NotImplementedError

    def inference(self, video: dict[str, Any]) -> Any:
        """Published output dictionary of one video."""
        raise NotImplementedError

    def batch_images(self, frames: Sequence[Tensor]) -> ImageList:
        """Normalise frames (3, h, w), 0..255 RGB, and pad them to a common size with zeros."""
        images = [self.normalise(torch.as_tensor(frame)) for frame in frames]
        return ImageList.from_tensors(images, self.size_divisibility)

    def normalise(self, frame: Tensor) -> Tensor:
        """One frame (3, h, w), 0..255 -> float32 with the mean and deviation of the training images removed."""
        num_channels = len(self.pixel_mean)
        if frame.dim() != 3 or frame.shape[0] != num_channels or 0 in frame.shape:
            raise ValueError(f"a frame must have shape ({num_channels}, height, width), got {tuple(frame.shape)}.")
        return (frame.to(self.device) - self.pixel_mean) / self.pixel_std

    def batch_clips(self, samples: list[dict[str, Any]]) -> ImageList:
        """Normalise and pad the frames of B training clips, clip by clip."""
        for sample in samples:
            if len(sample["image"]) != self.num_frames or len(sample["instances"]) != self.num_frames:
                raise ValueError(
                    f"a training clip must have INPUT.SAMPLING_FRAME_NUM = {self.num_frames} frames, got "
                    f"{len(sample['image'])} images and {len(sample['instances'])} sets of instances."
                )
        return self.batch_images([frame for sample in samples for frame in sample["image"]])

    def encode_video(self, frames: Sequence[Tensor], chunk_size: int | None = None) -> Iterator[EncodedFrames]:
        """Run the frame segmenter over a video, a few frames at a time; see `image_batches`."""
        for start, images in self.image_batches(frames, chunk_size):
            yield self.encode_frames(images, start)

    def image_batches(self, frames: Sequence[Tensor], chunk_size: int | None = None) -> Iterator[tuple[int, ImageList]]:
        """Cut a video into batches of frames that are ready for the backbone: (number of the first frame, batch).

        Args:
            frames: T tensors (3, h, w) of one size, uint8 or float 0..255 RGB; may be decoded when indexed.
            chunk_size: frames per piece, of which only the last may have fewer; None lets the device decide.
        """
        if len(frames) == 0:
            raise ValueError("the video has no frames.")
        first = torch.as_tensor(frames[0])
        step = chunk_size or self.frames_per_run
        for start in range(0, len(frames), step):
            stop = min(start + step, len(frames))
            images = [first if t == 0 else torch.as_tensor(frames[t]) for t in range(start, stop)]
            for t, frame in enumerate(images, start):
                if frame.shape != first.shape:
                    raise ValueError(
                        f"all frames of a video must have one shape; frame 0 has {tuple(first.shape)}, frame {t} has "
                        f"{tuple(frame.shape)}. Resize them before, or split the video."
                    )
            yield start, self.batch_images(images)

    @property
    def frames_per_run(self) -> int:
        """Frames encoded at once over a whole video.

        On a CPU one: more take memory and save little time, and libraries then choose other sums, so that a value next
        to the threshold of an attention mask may fall on its other side.
        """
        return 1 if self.device.type == "cpu" else self.run_chunk_size

    def encode_frames(self, images: ImageList, start: int = 0, **context: Any) -> EncodedFrames:
        """Run the frame segmenter over a batch of frames of equal size; `context` is for its decoder."""
        batch = images.tensor.contiguous(memory_format=torch.channels_last)
        features = self.backbone(batch)
        outputs, frame_queries, mask_features = self.sem_seg_head(features, **context)
        return EncodedFrames(
            start=start,
            image_size=images.image_sizes[0],
            padded_size=tuple(batch.shape[-2:]),
            backbone_features=features,
            outputs=outputs,
            frame_queries=frame_queries,
            mask_features=mask_features,
        )

    def compile_encoder(self) -> None:
        """Compile the frame segmenter; parameter names stay as they are."""
        self.backbone.compile()
        self.sem_seg_head.compile()

    def freeze_all_but(self, module_name: str) -> None:
        """Stop training every parameter whose name lacks `module_name`; as published, nothing is put in eval mode."""
        for name, parameter in self.named_parameters():
            if module_name not in name:
                parameter.requires_grad_(False)


def is_compiled(cfg: Any) -> bool:
    """Whether to compile the frame segmenter; says so when that will not help."""
    if cfg.MODEL.COMPILE and not (str(cfg.MODEL.DEVICE).startswith("cuda") and torch.cuda.is_available()):
        logger.warning(
            "MODEL.COMPILE is for GPUs: on a CPU the first video takes minutes and the others are not faster, because "
            "the ordinary code already calls the fastest CPU library, which compiled code does not."
        )
    return cfg.MODEL.COMPILE


def output_size(video: dict[str, Any], image_size: tuple[int, int]) -> tuple[int, int]:
    """Size (height, width) of the masks to return: the sample's `height` and `width`, else the network input's."""
    return (int(video.get("height", image_size[0])), int(video.get("width", image_size[1])))
