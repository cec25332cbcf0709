"""VMT, "Video Mask Transfiner for High-Quality Video Instance Segmentation" (ECCV 2022).

SeqFormer finds the objects of a video and their boxes in every frame. Each object then brings three small networks that
make its mask coarsely at stride 8, again at stride 4, and once more at stride 2, where a transformer over the pixels
near the outlines has refined what the networks see. Published tube-boundary AP on HQ-YTVIS test: 30.7 with ResNet-50,
33.0 with ResNet-101, 44.8 with Swin-L.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mask2former.registry import META_ARCH_REGISTRY, build_backbone
from mask2former.structures import ImageList

from ..base import output_size
from ..postprocess import MaskStream, select_top, video_output
from ..targets import clip_target
from .backbone import BackboneBody
from .boxes import boxes_of_masks
from .criterion import ClipTarget, LayerOutput, Match, VmtCriterion
from .detector import ClipDetector
from .dynamic_masks import centres_in_pixels
from .edges import PointTransformer
from .frame_store import FrameStore
from .mask_heads import FrameMaps, ObjectMasks, ObjectParameters, VideoMaskHeads, output_logits
from .transformer import ClipTransformer, DecoderState

OUTPUTS = ("refined", "second", "coarse")


@META_ARCH_REGISTRY.register()
class VMT(VideoMaskHeads):
    """The video model: `detr`, SeqFormer's detector, and the mask heads."""

    def __init__(
        self,
        *,
        detector: ClipDetector,
        criterion: VmtCriterion,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        size_divisibility: int,
        num_classes: int,
        class_offset: int,
        num_predictions: int,
        score_threshold: float,
        output: str,
        crop_masks: bool,
        keep_unused_classes: bool,
        train_refinement: bool,
        run_chunk_size: int,
        feature_budget_mib: float,
        **mask_heads: Any,
    ) -> None:
        """Args:
        pixel_mean, pixel_std: per channel, 0..255.
        size_divisibility: training clips are padded to a multiple of this; at test nothing is padded.
        num_classes: K of the data set.
        class_offset: the class output of the data set's first class; earlier and later ones are never trained.
        num_predictions: most (object, class) pairs reported per video.
        score_threshold: a pair with a lower score is not reported.
        output: which masks are reported: "refined", "second" or "coarse".
        crop_masks: cut off the rows and columns by which masks exceed a frame whose size is not a multiple of their
            stride; as published they are squeezed in.
        keep_unused_classes: report classes that the data set does not have, as published: labels -1 and K.
        train_refinement: train all masks; otherwise the coarse ones alone, as SeqFormer.
        run_chunk_size: most frames handled at once at test.
        feature_budget_mib: what is kept of encoded frames in memory, MiB; the rest goes to temporary files.
        mask_heads: arguments of `VideoMaskHeads`.
        """
        super().__init__(**mask_heads)
        if output not in OUTPUTS:
            raise ValueError(f"MODEL.VMT.OUTPUT must be one of {', '.join(OUTPUTS)}, got {output!r}.")
        num_outputs = detector.class_embed[0].out_features
        if not 0 <= class_offset <= num_outputs - num_classes:
            raise ValueError(
                f"{num_classes} classes from output {class_offset} on do not fit into {num_outputs} class outputs; "
                "change MODEL.VMT.NUM_CLASSES, MODEL.VMT.CLASS_OFFSET or MODEL.SEM_SEG_HEAD.NUM_CLASSES."
            )
        if run_chunk_size < 1:
            raise ValueError(f"MODEL.VMT.TEST_RUN_CHUNK_SIZE must be at least 1, got {run_chunk_size}.")
        self.detr = detector  # checkpoint name
        self.criterion = criterion
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)
        self.size_divisibility = size_divisibility
        self.num_classes, self.class_offset = num_classes, class_offset
        self.num_predictions, self.score_threshold = num_predictions, score_threshold
        self.output, self.crop_masks, self.keep_unused_classes = output, crop_masks, keep_unused_classes
        self.train_refinement = train_refinement
        self.run_chunk_size = run_chunk_size
        self.feature_budget_mib = feature_budget_mib

    @classmethod
    def from_config(cls, cfg: Any) -> dict[str, Any]:
        vmt = cfg.MODEL.VMT
        body = BackboneBody(build_backbone(cfg))
        transformer = ClipTransformer(
            dim=vmt.HIDDEN_DIM,
            num_heads=vmt.NHEADS,
            hidden_dim=vmt.DIM_FEEDFORWARD,
            dropout=vmt.DROPOUT,
            num_levels=vmt.NUM_FEATURE_LEVELS,
            num_encoder_layers=vmt.ENC_LAYERS,
            num_decoder_layers=vmt.DEC_LAYERS,
            encoder_points=vmt.ENC_POINTS,
            decoder_points=vmt.DEC_POINTS,
        )
        points = PointTransformer(
            hidden_dim=vmt.POINT_DIM_FEEDFORWARD,
            dropout=vmt.DROPOUT,
            num_layers=vmt.POINT_LAYERS,
            max_points=vmt.MAX_REFINED_POINTS,
            subset=vmt.POINT_SUBSET,
        )
        return {
            "detector": ClipDetector(
                body=body, transformer=transformer, num_classes=vmt.NUM_CLASSES, num_queries=vmt.NUM_OBJECT_QUERIES
            ),
            "criterion": VmtCriterion(**VmtCriterion.from_config(cfg)),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "size_divisibility": cfg.MODEL.MASK_FORMER.SIZE_DIVISIBILITY,
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "class_offset": vmt.CLASS_OFFSET,
            "num_predictions": cfg.TEST.DETECTIONS_PER_IMAGE,
            "score_threshold": vmt.SCORE_THRESHOLD,
            "output": vmt.OUTPUT,
            "crop_masks": vmt.CROP_MASKS,
            "keep_unused_classes": vmt.KEEP_UNUSED_CLASSES,
            "train_refinement": vmt.TRAIN_REFINEMENT,
            "run_chunk_size": vmt.TEST_RUN_CHUNK_SIZE,
            "feature_budget_mib": cfg.TEST.FEATURE_BUDGET_MB,
            "dim": vmt.HIDDEN_DIM,
            "tap_channels": body.channels[0],
            "has_stem": body.has_stem,
            "point_transformer": points,
            "wrap_boxes": vmt.WRAP_BOXES,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return weighted losses of the clips in training, the output of one video at test."""
        if self.training:
            return self.losses(samples)
        if len(samples) != 1:
            raise ValueError(f"at test a video model takes one video at a time, got a list of {len(samples)}.")
        with torch.inference_mode():
            return self.inference(samples[0])

    # -- training ----------------------------------------------------------------------------------------------------

    def losses(self, samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Weighted losses of B training clips of equal length."""
        images, targets = self.batch_clips(samples)
        losses = self.unweighted_losses(images, targets)
        if not any(len(target.classes) for target in targets):
            # Parts that nothing was matched to get a gradient of 0, as in the other processes of a training run.
            losses["loss_ce"] = losses["loss_ce"] + 0.0 * sum(p.sum() for p in self.parameters() if p.requires_grad)
        weights = self.criterion.weight_dict
        return {name: weights[name] * loss for name, loss in losses.items() if name in weights}

    def batch_clips(self, samples: list[dict[str, Any]]) -> tuple[ImageList, list[ClipTarget]]:
        """Normalise and pad the frames of B clips, clip by clip, and make their targets."""
        lengths = {len(sample[key]) for sample in samples for key in ("image", "instances")}
        if len(lengths) != 1:
            raise ValueError(f"all training clips must have the same number of frames, got {sorted(lengths)}.")
        frames = [self.normalise(torch.as_tensor(frame)) for sample in samples for frame in sample["image"]]
        images = ImageList.from_tensors(frames, self.size_divisibility)
        targets = []
        for number, sample in enumerate(samples):
            target = clip_target(sample, tuple(images.tensor.shape[-2:]), self.device, self.num_classes)
            size = images.image_sizes[number * len(sample["image"])]
            boxes = boxes_of_masks(target["masks"], size)
            targets.append(ClipTarget(target["labels"] + self.class_offset, boxes, target["masks"], size))
        return images, targets

    def unweighted_losses(self, images: ImageList, targets: list[ClipTarget]) -> dict[str, Tensor]:
        """Losses of B clips by their published names; layer i before the last has the suffix _i."""
        num_frames = len(images.tensor) // len(targets)
        memory, taps, layout = self.detr.encode(images.tensor, _padding(images, num_frames))
        maps = self.frame_maps(self.detr.split_levels(memory, layout)[:3], taps[0], images.tensor)
        clips = [_frames_of(maps, slice(n * num_frames, (n + 1) * num_frames)) for n in range(len(targets))]
        states = self.detr.decode(num_frames, lambda: iter([memory.unflatten(0, (-1, num_frames))]), layout)
        num_objects = self.criterion.count_objects(targets, self.device)
        num_layers = len(self.detr.class_embed)
        losses = {}
        for layer, state in enumerate(states):
            output = LayerOutput(self.detr.class_embed[layer](state.content), state.pred_boxes)
            matches = self.criterion.matcher(output, targets)
            gt = [target.masks[objects] for target, (_, objects) in zip(targets, matches, strict=True)]
            coarse = self._matched_coarse(clips, state, targets, matches)
            layer_losses = {
                **self.criterion.detection_losses(output, targets, matches, num_objects),
                **self.criterion.coarse_losses(coarse, gt, num_objects),
            }
            suffix = "" if layer == num_layers - 1 else f"_{layer}"
            losses |= {name + suffix: loss for name, loss in layer_losses.items()}
        if self.train_refinement:
            masks = self._matched_masks(clips, state, targets, matches, coarse)
            losses |= self.criterion.refinement_losses(masks, gt, num_objects)
        return losses

    def _matched_coarse(
        self, clips: list[FrameMaps], state: DecoderState, targets: list[ClipTarget], matches: list[Match]
    ) -> list[Tensor]:
        """Coarse logits (T, k, h, w) of the matched queries of each clip."""
        masks = []
        for number, (maps, target, (queries, _)) in enumerate(zip(clips, targets, matches, strict=True)):
            centres = centres_in_pixels(state.references[number][:, queries], target.size)
            masks.append(self.coarse_masks(maps, self.controller(state.content[number, queries]), centres))
        return masks

    def _matched_masks(
        self,
        clips: list[FrameMaps],
        state: DecoderState,
        targets: list[ClipTarget],
        matches: list[Match],
        coarse: list[Tensor],
    ) -> Iterator[ObjectMasks]:
        """All masks of the matched queries of each clip."""
        for number, (maps, target, (queries, _)) in enumerate(zip(clips, targets, matches, strict=True)):
            parameters = self.parameters_of(state.content[number, queries])
            centres = centres_in_pixels(state.references[number][:, queries], target.size)
            yield self._masks(maps, parameters, centres, state.pred_boxes[number][:, queries], coarse[number])

    def _masks(
        self, maps: FrameMaps, parameters: ObjectParameters, centres: Tensor, boxes: Tensor, coarse: Tensor
    ) -> ObjectMasks:
        """Second and refined masks of n objects in the frames of `maps`, from their coarse masks."""
        stem = None if maps.shallow is not None else self.detr.backbone[0].finest(maps.images)
        second = self.second_masks(maps, parameters.second, centres, coarse)
        refined, edges = self.refined_masks(maps, stem, parameters.refined, (centres, boxes), coarse, second)
        return ObjectMasks(coarse, second, refined, edges)

    # -- test --------------------------------------------------------------------------------------------------------

    def inference(self, video: dict[str, Any]) -> dict[str, Any]:
        """Segment one video of any length; encoded frames beyond the memory budget wait in temporary files."""
        frames = video["image"]
        has_shallow = self.lay_compress is not None
        with FrameStore(self.feature_budget_mib, has_shallow=has_shallow) as store:
            for images in self.read_frames(frames):
                memory, taps, layout = self.detr.encode(images)
                store.append(memory, self.frame_maps(self.detr.split_levels(memory, layout)[:3], taps[0], images))
                size = tuple(images.shape[-2:])
            chunk = self.frames_per_run
            states = self.detr.decode(len(store), lambda: store.read_memory(chunk), layout)
            state = deque(states, maxlen=1).pop()  # only the last layer counts
            probabilities = self.detr.class_embed[-1](state.content)[0].float().sigmoid()
            scores, classes, queries = select_top(probabilities, self.num_predictions)
            queries, rows = queries.unique(return_inverse=True)
            wanted = output_size(video, size)
            stream = MaskStream(  # as published, masks are resized once, straight to the output
                len(queries),
                padded_size=wanted,
                image_size=wanted,
                output_size=wanted,
                dense_frames=len(store) if video.get("dense_masks", True) else None,
            )
            for logits in self.mask_logits(store, state, queries, size):
                stream.add(logits)
        return self.report(scores, classes, rows, stream)

    def read_frames(self, frames: Sequence[Tensor]) -> Iterator[Tensor]:
        """Normalise the T frames (3, H, W) of a video; yields (t, 3, H, W), a few at a time."""
        if len(frames) == 0:
            raise ValueError("the video has no frames.")
        shape = None
        for start in range(0, len(frames), self.frames_per_run):
            images = []
            for t in range(start, min(start + self.frames_per_run, len(frames))):
                images.append(self.normalise(torch.as_tensor(frames[t])))
                shape = shape or images[0].shape
                if images[-1].shape != shape:
                    raise ValueError(
                        f"all frames of a video must have one shape; frame 0 has {tuple(shape)}, frame {t} has "
                        f"{tuple(images[-1].shape)}. Resize them before, or split the video."
                    )
            yield torch.stack(images)

    @property
    def frames_per_run(self) -> int:
        """Frames handled at once: one on a CPU, where more take memory and save little time."""
        return 1 if self.device.type == "cpu" else self.run_chunk_size

    def normalise(self, frame: Tensor) -> Tensor:
        """One frame (3, h, w), 0..255 -> float32 with the mean and deviation of the training images removed."""
        num_channels = len(self.pixel_mean)
        if frame.dim() != 3 or frame.shape[0] != num_channels or 0 in frame.shape:
            raise ValueError(f"a frame must have shape ({num_channels}, height, width), got {tuple(frame.shape)}.")
        return (frame.to(self.device) - self.pixel_mean) / self.pixel_std

    def mask_logits(
        self, store: FrameStore, state: DecoderState, queries: Tensor, size: tuple[int, int]
    ) -> Iterator[Tensor]:
        """Logits (n, t, h, w) of the reported masks of some queries, a few frames at a time."""
        parameters = self.parameters_of(state.content[0, queries])
        centres = centres_in_pixels(state.references[0][:, queries], size)  # (T, n, 2)
        boxes = state.pred_boxes[0][:, queries]
        for start, maps in store.read_maps(self.frames_per_run):
            frames = slice(start, start + len(maps.coarse))
            logits = self.coarse_masks(maps, parameters.coarse, centres[frames])
            if self.output != "coarse":
                masks = self._masks(maps, parameters, centres[frames], boxes[frames], logits)
                logits = getattr(masks, self.output)
            logits = output_logits(logits)
            yield self._cropped(logits, size) if self.crop_masks else logits

    def _cropped(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Cut off what lies beyond the frame: (n, t, h, w) at stride 4, 2 or 1."""
        stride = {"coarse": 4, "second": 2, "refined": 1}[self.output]
        return logits[..., : -(-size[0] // stride), : -(-size[1] // stride)]

    def report(self, scores: Tensor, classes: Tensor, rows: Tensor, stream: MaskStream) -> dict[str, Any]:
        """Output dictionary; pairs without a visible mask, with a tiny score or an unknown class are left out."""
        labels = classes - self.class_offset
        is_visible = (stream.sums()[1] > 0).to(rows.device)[rows]
        kept = is_visible & (scores >= self.score_threshold)
        if not self.keep_unused_classes:
            kept &= (labels >= 0) & (labels < self.num_classes)
        return video_output(scores[kept], labels[kept], rows[kept], stream, use_quality=False)


def _padding(images: ImageList, num_frames: int) -> Tensor:
    """(B, H, W) bool, True where clips are padded; all frames of a clip have one size."""
    height, width = images.tensor.shape[-2:]
    sizes = images.image_sizes[::num_frames]
    if any(size != sizes[index // num_frames] for index, size in enumerate(images.image_sizes)):
        raise ValueError(f"all frames of a training clip must have one size, got {images.image_sizes}.")
    padding = torch.ones(len(sizes), height, width, dtype=torch.bool, device=images.device)
    for clip, (rows, columns) in zip(padding, sizes, strict=True):
        clip[:rows, :columns] = False
    return padding


def _frames_of(maps: FrameMaps, frames: slice) -> FrameMaps:
    """Some of the frames."""
    return FrameMaps(**{name: None if tensor is None else tensor[frames] for name, tensor in vars(maps).items()})
