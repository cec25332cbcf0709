"""OVFormer, "Unified Embedding Alignment for Open-Vocabulary Video Instance Segmentation" (ECCV 2024).

Classes are given as text. `OVFormer` is trained on images of LVIS; `OVFormerVideo` is the same network, which segments
the frames of a video one by one and follows their queries; `VideoOVFormer` is trained on clips of LV-VIS, segments five
frames together and follows the queries of clips. Published AP: zero-shot on YouTube-VIS 2019 34.8 (ResNet-50) and 44.3
(Swin-B), on LV-VIS, trained there, 21.9 and 24.7.

Besides pixels the network wants CLIP's embedding of every image. It comes with the sample (`clip_features`), from the
file in the configuration, or from CLIP itself.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mask2former.modeling.criterion import weighted
from mask2former.modeling.maskformer import MaskFormer
from mask2former.registry import META_ARCH_REGISTRY
from mask2former.structures import ImageList
from mask2former.transfer import to_device

from ..base import FrameSegmenter
from ..feature_store import FeatureStore
from ..online.frame_matching import finite_masks
from ..postprocess import second_pass, select_top, sizes_of
from ..targets import prepare_targets
from .criterion import OpenVocabularyCriterion
from .decoder import with_open_vocabulary_decoder
from .image_features import ImageFeatures, given_features
from .towers import ClipTowers
from .tracks import LinkedTracks
from .zero_shot import open_vocabulary_scores

if TYPE_CHECKING:
    from mask2former.cfg import Cfg

LVIS_VAL_FEATURES = "datasets/metadata/lvis_val_clip_feature.pkl"  # as published: no key of the configuration names it
LVVIS_CLASSES = 1196  # as published: `freq_weight` of the video models has this length whatever the vocabulary is
CLIP_LENGTH = 5  # frames of a clip at test
CLIP_PREDICTIONS = 50  # as published: TEST.DETECTIONS_PER_IMAGE is ignored by the clip model
WINDOW = 10  # frames encoded together by the frame model, on every device, as published: then results are the same
MEMORY_DECAY = 0.3  # weight of what was remembered when a frame is added to the memory of the frame model
ERASED_BELOW = 0.1  # a mask is empty in frames whose score is below this share of the score in the video
ERASED = -1.0  # mask logit there


class OpenVocabularyModel:
    """Mixin: where the embeddings of images come from, and how to change the vocabulary."""

    image_features: ImageFeatures  # at test
    training_image_features: ImageFeatures
    sem_seg_head: Any  # MaskFormerHead with a decoder of OVFormer's
    training: bool
    pixel_mean: Tensor

    @staticmethod
    def feature_sources(cfg: Cfg, test_path: str | None = None) -> dict[str, ImageFeatures]:
        """Arguments `image_features` and `training_image_features` of the constructors; no file is opened."""
        mask_former = cfg.MODEL.MASK_FORMER
        load = functools.partial(ClipTowers.load, mask_former.CLIP_MODEL, mask_former.CLIP_WEIGHTS)
        prefix = "MODEL.MASK_FORMER."
        path = mask_former.CLIP_IMAGE_PATH if test_path is None else test_path
        return {
            "image_features": ImageFeatures(path, load, setting=f"{prefix}CLIP_IMAGE_PATH"),
            "training_image_features": ImageFeatures(
                mask_former.CLIP_TRAIN_IMAGE_PATH, load, setting=f"{prefix}CLIP_TRAIN_IMAGE_PATH"
            ),
        }

    def set_vocabulary(self, text: Tensor) -> None:
        """Find other classes from now on: text (K, E), one embedding per class."""
        self.sem_seg_head.predictor.class_embed.set_vocabulary(text)
        self.sem_seg_head.num_classes = len(text)

    def use_towers(self, towers: ClipTowers) -> None:
        """Compute missing image embeddings with a CLIP that is loaded already."""
        self.image_features.towers = self.training_image_features.towers = towers

    def features_of(self, sample: Mapping[str, Any], start: int, images: Sequence[Tensor]) -> Tensor:
        """CLIP embeddings (t, E) of the frames from number `start` on of a video sample."""
        if sample.get("clip_features") is not None:
            given = given_features(sample["clip_features"], len(sample["image"]))
            return to_device(given[start : start + len(images)], self.pixel_mean.device)
        names = sample.get("file_names")
        keys = None if not names else names[start : start + len(images)]
        source = self.training_image_features if self.training else self.image_features
        return source.find(keys, images, self.pixel_mean.device)


@META_ARCH_REGISTRY.register()
class OVFormer(OpenVocabularyModel, MaskFormer):  # published name
    """The image model."""

    can = replace(MaskFormer.can, open_vocabulary=True)

    def __init__(
        self, *, image_features: ImageFeatures, training_image_features: ImageFeatures, **mask_former: Any
    ) -> None:
        """Args:
        image_features, training_image_features: give CLIP's embedding of each image.
        mask_former: arguments of `MaskFormer`.
        """
        super().__init__(**mask_former)
        self.image_features, self.training_image_features = image_features, training_image_features

    @classmethod
    def from_config(cls, cfg: Cfg) -> dict[str, Any]:
        cfg = with_open_vocabulary_decoder(cfg)
        return {
            **super().from_config(cfg),
            "criterion": OpenVocabularyCriterion(**OpenVocabularyCriterion.from_config(cfg)),
            **cls.feature_sources(cfg, cfg.MODEL.MASK_FORMER.CLIP_IMAGE_PATH or LVIS_VAL_FEATURES),
        }

    def forward(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor] | list[dict[str, Any]]:
        """As `MaskFormer.forward`; a sample has `image_id`, the key of its CLIP feature, or `clip_features` (E,)."""
        if self.training and any("instances" not in sample for sample in samples):
            raise ValueError("A training sample of OVFormer needs `instances` with gt_classes and gt_masks.")
        images = self.preprocess(samples)
        features = torch.stack([self.features_of_image(sample) for sample in samples], dim=1)  # (1, B, E)
        outputs, *_ = self.sem_seg_head(self.backbone(images.tensor), image_features=features)
        return self.losses(outputs, samples, images) if self.training else self.inference(outputs, samples, images)

    def features_of_image(self, sample: Mapping[str, Any]) -> Tensor:
        """CLIP embedding (1, E) of an image."""
        if sample.get("clip_features") is not None:
            return to_device(given_features(sample["clip_features"], 1), self.device)
        source = self.training_image_features if self.training else self.image_features
        keys = [sample["image_id"]] if "image_id" in sample else None
        return source.find(keys, [sample["image"]], self.device)

    def class_scores(self, outputs: dict[str, Any]) -> Tensor:
        return open_vocabulary_scores(outputs["pred_logits"].float(), outputs["pred_object_logits"].float())


class OpenVocabularyVideoModel(OpenVocabularyModel, FrameSegmenter):
    """What the frame model and the clip model share."""

    # it follows queries already; its decoder compares with texts that may be changed
    can = replace(FrameSegmenter.can, match_frames=False, open_vocabulary=True, export=False)

    def __init__(
        self, *, image_features: ImageFeatures, training_image_features: ImageFeatures, **segmenter: Any
    ) -> None:
        """Args:
        image_features, training_image_features: give CLIP's embedding of each frame.
        segmenter: arguments of `FrameSegmenter`.
        """
        super().__init__(**segmenter)
        self.image_features, self.training_image_features = image_features, training_image_features

    @classmethod
    def from_config(cls, cfg: Cfg) -> dict[str, Any]:
        cfg = with_open_vocabulary_decoder(cfg)
        arguments = {**OpenVocabularyCriterion.from_config(cfg), **cls.class_frequency_of(cfg)}
        return {
            **super().from_config(cfg),
            "criterion": OpenVocabularyCriterion(**arguments),
            **cls.feature_sources(cfg),
        }

    @classmethod
    def class_frequency_of(cls, cfg: Cfg) -> dict[str, Any]:
        """Argument `class_frequency` of the criterion, when it does not come from the configuration."""
        return {}

    def pixels_of(self, images: ImageList) -> Sequence[Tensor]:
        """Frames (3, h, w), 0..255, of a batch; the video is not read again, which decoders are slow at."""
        return _Pixels(images, self.pixel_mean, self.pixel_std)


@META_ARCH_REGISTRY.register()
class OVFormerVideo(OpenVocabularyVideoModel):  # published name
    """The image model on videos: every frame on its own, queries followed through a memory of their embeddings."""

    @classmethod
    def class_frequency_of(cls, cfg: Cfg) -> dict[str, Any]:
        return {"class_frequency": torch.zeros(LVVIS_CLASSES)}  # not trained, so the counts are of no use

    def losses(self, samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        raise ValueError(
            "OVFormerVideo is for inference. Train META_ARCHITECTURE OVFormer on images or VideoOVFormer on clips; the "
            "weights of both fit it."
        )

    def inference(self, video: dict[str, Any]) -> dict[str, Any]:
        """Segment one video of any length; maps beyond the memory budget wait in a temporary file."""
        tracks = LinkedTracks(decay=MEMORY_DECAY)
        budget = self.feature_budget_mib
        with FeatureStore(0.75 * budget) as masks, FeatureStore(0.25 * budget) as logits:
            for start, images in self.image_batches(video["image"], WINDOW):
                outputs = self.segment_frames(video, start, images)
                for embeddings, classes, objects in zip(
                    outputs["pred_embds"], outputs["pred_logits"], outputs["pred_object_logits"], strict=True
                ):
                    tracks.add(embeddings, classes, objects)
                masks.append(finite_masks(outputs["pred_masks"]))
                logits.append(outputs["pred_logits"].cpu())
                sizes = sizes_of(images)
            scores, labels, rows = select_top(tracks.scores(), self.num_predictions)

            def make_masks(pairs: Tensor) -> Iterator[Tensor]:
                for (start, maps), (_, classes) in zip(masks.chunks(WINDOW), logits.chunks(WINDOW), strict=True):
                    queries = torch.stack(tracks.orders[start : start + len(maps)])[:, rows[pairs]]  # (t, N)
                    frame_scores = tracks.frame_scores(start, classes, queries, labels[pairs])
                    visible = frame_scores >= ERASED_BELOW * scores[pairs]  # (t, N)
                    chosen = select_maps(maps, queries).masked_fill(
                        ~to_device(visible, maps.device)[:, :, None, None], ERASED
                    )
                    yield chosen.transpose(0, 1)  # (N, t, h, w)

            # A mask is erased where its class is unlikely, so every pair has its own; as published, the quality is that
            # of the padded maps, before they are resized.
            pairs = (scores, labels, torch.arange(len(rows)))
            return second_pass(video, pairs, make_masks, num_frames=len(masks), quality_of_maps=True, **sizes)

    def segment_frames(self, video: dict[str, Any], start: int, images: ImageList) -> dict[str, Tensor]:
        """Outputs of the decoder for t frames, float32, each frame a row of the batch."""
        features = self.features_of(video, start, self.pixels_of(images))[None]  # (1, t, E)
        return _float_outputs(self.encode_frames(images, start, image_features=features).outputs)


@META_ARCH_REGISTRY.register()
class VideoOVFormer(OpenVocabularyVideoModel):  # published name
    """The clip model: the frames of a clip share their queries, queries are followed from clip to clip."""

    @classmethod
    def from_config(cls, cfg: Cfg) -> dict[str, Any]:
        return {**super().from_config(cfg), "num_predictions": CLIP_PREDICTIONS}

    def losses(self, samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Losses of B training clips, weighted.

        The class of an instance is that of any frame which shows it; the published code takes the last frame's, and so
        teaches "no object" for those that are not in it.
        """
        images = self.batch_clips(samples)
        features = [self.features_of(sample, 0, sample["image"]) for sample in samples]
        encoded = self.encode_frames(images, image_features=torch.stack(features, dim=1))  # (T, B, E)
        _, targets = prepare_targets(samples, encoded.padded_size, self.device, self.sem_seg_head.num_classes)
        losses, _ = self.criterion(encoded.outputs, targets)
        return weighted(losses, self.criterion.weight_dict)

    def inference(self, video: dict[str, Any]) -> dict[str, Any]:
        """Segment one video of any length, clip by clip; maps beyond the memory budget wait in a temporary file."""
        tracks = LinkedTracks(decay=0.0)
        lengths = []
        with FeatureStore(self.feature_budget_mib) as masks:
            for start, images in self.image_batches(video["image"], CLIP_LENGTH):
                outputs = self.segment_clip(video, start, images)
                tracks.add(*(outputs[name][0] for name in ("pred_embds", "pred_logits", "pred_object_logits")))
                masks.append(finite_masks(outputs["pred_masks"][0].transpose(0, 1)))
                lengths.append(len(images.image_sizes))
                sizes = sizes_of(images)

            def make_masks(rows: Tensor) -> Iterator[Tensor]:
                for maps, order in zip(masks.runs(lengths), tracks.orders, strict=True):
                    yield maps[:, to_device(order[rows], maps.device)].transpose(0, 1)

            chosen = select_top(tracks.scores(), self.num_predictions)
            # as published: the quality of masks does not count
            return second_pass(video, chosen, make_masks, num_frames=len(masks), use_quality=False, **sizes)

    def segment_clip(self, video: dict[str, Any], start: int, images: ImageList) -> dict[str, Tensor]:
        """Outputs of the decoder for t frames as one clip, float32: the batch has one row."""
        features = self.features_of(video, start, self.pixels_of(images))[:, None]  # (t, 1, E)
        return _float_outputs(self.encode_frames(images, start, image_features=features).outputs)


def select_maps(maps: Tensor, queries: Tensor) -> Tensor:
    """Maps (t, Q, h, w) of the queries (t, N) of each frame: (t, N, h, w)."""
    frames = torch.arange(len(maps), device=maps.device)[:, None]
    return maps[frames, to_device(queries, maps.device)]


class _Pixels(Sequence):
    """The frames of a batch in 0..255, as they were before they were normalised; each is made when it is asked for."""

    def __init__(self, images: ImageList, mean: Tensor, std: Tensor) -> None:
        self._images, self._mean, self._std = images, mean, std

    def __len__(self) -> int:
        return len(self._images.image_sizes)

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._images[index] * self._std + self._mean


def _float_outputs(outputs: dict[str, Any]) -> dict[str, Tensor]:
    return {name: value.float() for name, value in outputs.items() if isinstance(value, Tensor)}
