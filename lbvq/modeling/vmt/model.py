"""VMT, "Video Mask Transfiner for High-Quality Video Instance Segmentation" (ECCV 2022).

SeqFormer finds the objects of a video and their boxes in every frame. Each object then brings three small networks that
make its mask coarsely at stride 8, again at stride 4, and once more at stride 2, where a transformer over the pixels
near the outlines has refined what the networks see. Published tube-boundary AP on HQ-YTVIS test: 30.7 with ResNet-50,
33.0 with ResNet-101, 44.8 with Swin-L.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from mask2former.modeling.criterion import select_rows
from mask2former.registry import META_ARCH_REGISTRY, build_backbone
from mask2former.structures import ImageList
from mask2former.transfer import to_device

from ..base import VideoModel
from ..postprocess import output_size, second_pass, select_top
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

if TYPE_CHECKING:
    from mask2former.cfg import Cfg

OUTPUTS = ("refined", "second", "coarse")


@META_ARCH_REGISTRY.register()
class VMT(VideoMaskHeads, VideoModel):
    """The video model: `detr`, SeqFormer's detector, and the mask heads."""

    def __init__(
        self,
        *,
        detector: ClipDetector,
        criterion: VmtCriterion,
        num_classes: int,
        class_offset: int,
        score_threshold: float,
        output: str,
        crop_masks: bool,
        keep_unused_classes: bool,
        train_refinement: bool,
        **parents: Any,
    ) -> None:
        """Args:
        num_classes: K of the data set.
        class_offset: the class output of the data set's first class; earlier and later ones are never trained.
        score_threshold: a pair with a lower score is not reported.
        output: which masks are reported: "refined", "second" or "coarse".
        crop_masks: cut off the rows and columns by which masks exceed a frame whose size is not a multiple of their
            stride; as published they are squeezed in.
        keep_unused_classes: report classes that the data set does not have, as published: labels -1 and K.
        train_refinement: train all masks; otherwise the coarse ones alone, as SeqFormer.
        parents: arguments of `VideoMaskHeads` and `VideoModel`.
        """
        super().__init__(**parents)
        if output not in OUTPUTS:
            raise ValueError(f"MODEL.VMT.OUTPUT must be one of {', '.join(OUTPUTS)}, got {output!r}.")
        num_outputs = cast(nn.Linear, detector.class_embed[0]).out_features
        if not 0 <= class_offset <= num_outputs - num_classes:
            raise ValueError(
                f"{num_classes} classes from output {class_offset} on do not fit into {num_outputs} class outputs; "
                "change MODEL.VMT.NUM_CLASSES, MODEL.VMT.CLASS_OFFSET or MODEL.SEM_SEG_HEAD.NUM_CLASSES."
            )
        self.detr = detector  # checkpoint name
        self.criterion = criterion
        self.num_classes, self.class_offset = num_classes, class_offset
        self.score_threshold = score_threshold
        self.output, self.crop_masks, self.keep_unused_classes = output, crop_masks, keep_unused_classes
        self.train_refinement = train_refinement

    @classmethod
    def from_config(cls, cfg: Cfg) -> dict[str, Any]:
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
            **super().from_config(cfg),
            "detector": ClipDetector(
                body=body, transformer=transformer, num_classes=vmt.NUM_CLASSES, num_queries=vmt.NUM_OBJECT_QUERIES
            ),
            "criterion": VmtCriterion(**VmtCriterion.from_config(cfg)),
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "class_offset": vmt.CLASS_OFFSET,
            "score_threshold": vmt.SCORE_THRESHOLD,
            "output": vmt.OUTPUT,
            "crop_masks": vmt.CROP_MASKS,
            "keep_unused_classes": vmt.KEEP_UNUSED_CLASSES,
            "train_refinement": vmt.TRAIN_REFINEMENT,
            "run_chunk_size": vmt.TEST_RUN_CHUNK_SIZE,
            "dim": vmt.HIDDEN_DIM,
            "tap_channels": body.channels[0],
            "has_stem": body.has_stem,
            "point_transformer": points,
            "wrap_boxes": vmt.WRAP_BOXES,
        }

    @property
    def divisibility(self) -> int:
        """At test nothing is padded."""
        return self.size_divisibility if self.training else 1

    # -- training ----------------------------------------------------------------------------------------------------

    def losses(self, samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Weighted losses of B training clips of equal length."""
        images = self.batch_clips(samples)
        targets = self.clip_targets(samples, images)
        losses = self.unweighted_losses(images, targets)
        if not any(len(target.classes) for target in targets):
            # Parts that nothing was matched to get a gradient of 0, as in the other processes of a training run.
            losses["loss_ce"] = losses["loss_ce"] + 0.0 * sum(p.sum() for p in self.parameters() if p.requires_grad)
        weights = self.criterion.weight_dict
        return {name: weights[name] * loss for name, loss in losses.items() if name in weights}

    def clip_targets(self, samples: list[dict[str, Any]], images: ImageList) -> list[ClipTarget]:
        """Targets of B clips, whose frames are `images`, clip by clip."""
        targets = []
        for sample, size in zip(samples, images.image_sizes[:: self.num_frames], strict=True):
            target = clip_target(sample, images.padded_size, self.device, self.num_classes)
            boxes = boxes_of_masks(target["masks"], size)
            targets.append(ClipTarget(target["labels"] + self.class_offset, boxes, target["masks"], size))
        return targets

    def unweighted_losses(self, images: ImageList, targets: list[ClipTarget]) -> dict[str, Tensor]:
        """Losses of B clips by their published names; layer i before the last has the suffix _i."""
        num_frames = len(images.tensor) // len(targets)
        memory, taps, layout = self.detr.encode(images.tensor, _padding(images, num_frames))
        maps = self.frame_maps(self.detr.split_levels(memory, layout)[:3], taps[0], images.tensor)
        clips = [_frames_of(maps, slice(n * num_frames, (n + 1) * num_frames)) for n in range(len(targets))]
        states = list(self.detr.decode(num_frames, lambda: iter([memory.unflatten(0, (-1, num_frames))]), layout))
        num_objects = self.criterion.count_objects(targets, self.device)
        num_layers = len(self.detr.class_embed)
        losses: dict[str, Tensor] = {}
        outputs = [
            LayerOutput(self.detr.class_embed[layer](state.content), state.pred_boxes)
            for layer, state in enumerate(states)
        ]
        found = self.criterion.matcher.match_layers(outputs, targets)
        for layer, (state, output, matches) in enumerate(zip(states, outputs, found, strict=True)):
            gt = [select_rows(target.masks, objects) for target, (_, objects) in zip(targets, matches, strict=True)]
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
            queries = to_device(queries, self.device)
            centres = centres_in_pixels(state.references[number][:, queries], target.size)
            masks.append(self.coarse_masks(maps, self.controller(state.content[number][queries]), centres))
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
            queries = to_device(queries, self.device)
            parameters = self.parameters_of(state.content[number][queries])
            centres = centres_in_pixels(state.references[number][:, queries], target.size)
            yield self._masks(maps, parameters, centres, state.pred_boxes[number][:, queries], coarse[number])

    def _masks(
        self, maps: FrameMaps, parameters: ObjectParameters, centres: Tensor, boxes: Tensor, coarse: Tensor
    ) -> ObjectMasks:
        """Second and refined masks of n objects in the frames of `maps`, from their coarse masks."""
        stem = None if maps.shallow is not None else self.detr.body.finest(maps.images)
        second = self.second_masks(maps, parameters.second, centres, coarse)
        refined, edges = self.refined_masks(maps, stem, parameters.refined, (centres, boxes), coarse, second)
        return ObjectMasks(coarse, second, refined, edges)

    # -- test --------------------------------------------------------------------------------------------------------

    def inference(self, video: dict[str, Any]) -> dict[str, Any]:
        """Segment one video of any length; encoded frames beyond the memory budget wait in temporary files."""
        has_shallow = self.lay_compress is not None
        with FrameStore(self.feature_budget_mib, has_shallow=has_shallow) as store:
            for _, images in self.image_batches(video["image"]):
                memory, taps, layout = self.detr.encode(images.tensor)
                levels = self.detr.split_levels(memory, layout)[:3]
                store.append(memory, self.frame_maps(levels, taps[0], images.tensor))
                size = images.image_sizes[0]
            chunk = self.frames_per_run
            states = self.detr.decode(len(store), lambda: store.read_memory(chunk), layout)
            state = deque(states, maxlen=1).pop()  # only the last layer counts
            probabilities = self.detr.class_embed[-1](state.content)[0].float().sigmoid()
            scores, classes, queries = select_top(probabilities, self.num_predictions)
            wanted = output_size(video, size)
            return second_pass(
                video,
                (scores, classes - self.class_offset, queries),
                lambda queries: self.mask_logits(store, state, queries, size),
                num_frames=len(store),
                image_size=wanted,  # as published, masks are resized once, straight to the output
                padded_size=wanted,
                use_quality=False,
                keep=self.is_reported,
            )

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

    def is_reported(self, scores: Tensor, labels: Tensor, is_visible: Tensor) -> Tensor:
        """Leave out pairs without a visible mask, with a tiny score or an unknown class: (k,) each -> (k,) bool."""
        kept = is_visible & (scores >= self.score_threshold)
        if not self.keep_unused_classes:
            kept &= (labels >= 0) & (labels < self.num_classes)
        return kept


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
    shallow = None if maps.shallow is None else maps.shallow[frames]
    return FrameMaps(maps.coarse[frames], maps.fine[frames], maps.high[frames], shallow, maps.images[frames])
