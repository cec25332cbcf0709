"""Video models whose queries are carried from frame to frame, so that query n is track n: VidEoMT and PMT.

All that such a model remembers of a video is one (N, C) tensor, what became of the queries in the frame before, and
the sums of their class logits. Nothing is matched at test. In training the queries go through the frames of a clip as
they do at test, and the gradient goes back through all of them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from mask2former.abilities import Abilities
from mask2former.modeling.criterion import SetCriterion, layer_weights, weighted
from mask2former.modeling.vit import PlainViT, build_vit
from mask2former.structures import ImageList

from ..base import is_compiled
from ..clips.consistent import ConsistentMatcher
from ..graphs import IMAGE_AXES, Graph, GraphFunction, keep_parts
from ..targets import ABSENT, clip_target
from .query_network import FrameTokens, QueryBackbone, QueryNetwork, Readings
from .segmenter import Evidence, OnlineSegmenter, StepMasks, StreamState
from .tracking import add_logits, keep_finite, mean_probabilities

if TYPE_CHECKING:
    from mask2former.cfg import Cfg

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PublishedFaults:
    """Faults of the published training code; none is made unless a configuration asks for it.

    Attributes:
        hidden_as_last_class: teach an object that the last frame of a clip does not show the last class of the data
            set. (Its class is read from that frame, where it is "no object", and then clamped to a real class.)
        mixed_clips: with several clips at once, take what the last block says about a frame of one clip for a frame
            of another. Published runs had one clip per process.
    """

    hidden_as_last_class: bool = False
    mixed_clips: bool = False


class FrameEncoder(nn.Module):
    """The part of a `QueryBackbone` that sees every frame by itself, as a function of tensors."""

    def __init__(self, backbone: QueryBackbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(t, 3, H, W) -> prefix (t, P, C) and patches (t, h, w, C)."""
        frames = self.backbone.encode(images)
        return {"prefix": frames.prefix, "patches": frames.patches}


class QueryStep(nn.Module):
    """`QueryNetwork.step` as a function of tensors."""

    def __init__(self, network: QueryNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, queries: Tensor, prefix: Tensor, patches: Tensor) -> dict[str, Tensor]:
        """Queries (1, N, C) and the tokens of one frame -> what is read (see `Readings`), and `carried` (1, N, C)."""
        grid = (patches.shape[1], patches.shape[2])
        readings, carried = self.network.step(queries, FrameTokens(prefix, patches, self.network.rotation(grid)))
        return {
            "logits": readings.logits,
            "embeddings": readings.embeddings,
            "features": readings.patches,
            "carried": carried,
        }


class PropagatedQueries(OnlineSegmenter):
    """A ViT and a `QueryNetwork` that are run over videos and trained on clips.

    A subclass builds both (`build_backbone`).
    """

    backbone: QueryBackbone

    can: ClassVar[Abilities] = Abilities(online=True, compile=True, export=True)
    use_quality = False

    def __init__(
        self,
        *,
        backbone: QueryBackbone,
        criterion: SetCriterion,
        num_auxiliary: int,
        faults: PublishedFaults,
        compile_blocks: bool,
        **video_model: Any,
    ) -> None:
        """Args:
        backbone: encoder and network.
        criterion: gives the losses of single frames; its matcher makes them consistent over a clip.
        num_auxiliary: the heads are also trained on what enters the first so many blocks of the queries.
        faults: of the published code, to train with.
        compile_blocks: torch.compile the heavy parts.
        video_model: arguments of `VideoModel`.
        """
        super().__init__(**video_model)
        self.backbone = backbone  # checkpoint name
        self.criterion = criterion
        self.num_auxiliary = num_auxiliary
        self.faults = faults
        if self.num_frames == 1:  # trained on single images, it has no next frame
            self.network.query_updater.requires_grad_(False)
        for part in backbone.compiled_parts if compile_blocks else ():
            part.compile()

    @classmethod
    def from_config(cls, cfg: Cfg) -> dict[str, Any]:
        settings, ours = cfg.MODEL.BACKBONE, cfg.MODEL.VIT
        if settings.TEST.TASK != "vis":
            raise ValueError(f"MODEL.BACKBONE.TEST.TASK must be 'vis', got {settings.TEST.TASK!r}.")
        backbone = cls.build_backbone(cfg)
        num_blocks = len(backbone.network.query_blocks)
        # as published: what enters the last block is not trained, though it is computed and matched there
        num_trained = num_blocks if ours.SUPERVISE_LAST_INPUT else num_blocks - 1
        num_auxiliary = num_trained if settings.DEEP_SUPERVISION else 0
        return {
            **super().from_config(cfg),
            "backbone": backbone,
            "criterion": build_criterion(cfg, num_auxiliary),
            "num_auxiliary": num_auxiliary,
            "faults": PublishedFaults(ours.HIDDEN_AS_LAST_CLASS, ours.MIXED_CLIPS),
            "compile_blocks": is_compiled(cfg),
            "size_divisibility": settings.SIZE_DIVISIBILITY,
            "num_predictions": settings.TEST.MAX_NUM,
            "run_chunk_size": settings.TEST.WINDOW_SIZE,
        }

    @classmethod
    def build_backbone(cls, cfg: Cfg) -> QueryBackbone:
        """Encoder and network that MODEL.BACKBONE describes."""
        raise NotImplementedError

    @property
    def network(self) -> QueryNetwork:
        """The part that the queries go through."""
        return self.backbone.network

    @property
    def num_classes(self) -> int:
        return self.network.num_classes

    # -- test --------------------------------------------------------------------------------------------------------

    def start_stream(self) -> StreamState:
        return {}

    def observe(self, images: ImageList, start: int) -> Evidence:
        """Tokens of the frames: `prefix` (t, P, C) and `patches` (t, h, w, C)."""
        if self.exported:
            return self.exported["encoder"](images=images.tensor)
        frames = self.backbone.encode(images.tensor)
        return {"prefix": frames.prefix, "patches": frames.patches}

    def advance(self, state: StreamState, evidence: Evidence) -> tuple[StreamState, StepMasks]:
        network = self.network
        queries = network.queries_after(state.get("carried"))
        step = self.exported.get("queries") or QueryStep(network)
        read = step(queries=queries, **evidence)
        logits = read["logits"][0].float()
        if not logits.isfinite().all():
            logger.warning(
                "The network's outputs are not finite somewhere in a frame; its objects wait for the next one. Set "
                "TEST.AMP.ENABLED False if this happens often."
            )
        carried = keep_finite(read["carried"].float(), state.get("carried", queries.float()))
        masks = StepMasks(read["features"].permute(0, 3, 1, 2), read["embeddings"][0], enlarge=network.enlarged)
        return {"carried": carried, **add_logits(state, logits)}, masks

    def class_scores(self, state: StreamState) -> tuple[Tensor, None]:
        return mean_probabilities(state), None

    # -- export ------------------------------------------------------------------------------------------------------

    def graphs(self, images: Tensor) -> dict[str, Graph]:
        """The blocks that see the frames one by one, and those that take the queries through one frame."""
        encoder = Graph(FrameEncoder(self.backbone), {"images": images}, {"images": IMAGE_AXES})
        tokens = encoder.module(images[:1])
        queries = {"queries": self.network.queries_after(None), **tokens}
        axes = {"patches": {1: "rows", 2: "columns"}}
        return {"encoder": encoder, "queries": Graph(QueryStep(self.network), queries, axes)}

    def run_exported(self, functions: Mapping[str, GraphFunction]) -> None:
        super().run_exported(functions)
        network = self.network
        keep_parts(network, ("q", "query_updater", "upscale"))
        if self.backbone is not network:
            keep_parts(self.backbone, [name for name, part in self.backbone.named_children() if part is network])

    # -- training ----------------------------------------------------------------------------------------------------

    def losses(self, samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Frame losses of B training clips under one query per object and clip, weighted."""
        images = self.batch_clips(samples)
        targets = [target for sample in samples for target in self.frame_targets(sample, images.padded_size)]
        losses, _ = self.criterion(self.clip_outputs(images.tensor, len(samples)), targets)
        return weighted(losses, self.criterion.weight_dict)

    def frame_targets(self, sample: dict[str, Any], padded_size: tuple[int, int]) -> list[dict[str, Any]]:
        """T frame targets that all list the objects of the clip, with id -1 and an empty mask where one is hidden."""
        target = clip_target(sample, padded_size, self.device, self.num_classes)
        labels = {"labels": target["labels"]}
        if self.faults.hidden_as_last_class:
            is_shown = target["ids"][:, -1] != ABSENT
            labels["labels"] = torch.where(is_shown, target["labels"], self.num_classes - 1)
            labels["cost_labels"] = torch.where(is_shown, target["labels"], self.num_classes)
        return [
            {
                **labels,
                "ids": target["ids"][:, t],
                "masks": target["masks"][:, t],
                "name": f"{target['name']}, frame {t} of the clip",
            }
            for t in range(self.num_frames)
        ]

    def clip_outputs(self, images: Tensor, num_clips: int) -> dict[str, Any]:
        """What the heads say about every frame of B clips after the last block, and about what enters the others.

        Args:
            images: (B T, 3, H, W), clip by clip.
            num_clips: B.

        Returns:
            `pred_logits` (B T, N, K+1), `pred_masks` (B T, N, 4 h, 4 w), and the same in each of the `aux_outputs`.
        """
        network, frames = self.network, self.backbone.encode(images)
        prefix, patches = (tokens.unflatten(0, (num_clips, -1)) for tokens in (frames.prefix, frames.patches))
        carried, readings = None, []
        for t in range(prefix.shape[1]):
            queries = network.queries_after(carried, num_clips)
            stages = network.run_blocks(queries, FrameTokens(prefix[:, t], patches[:, t], frames.rotation))
            carried = network.carried(stages[-1])
            trained = [*stages[: self.num_auxiliary], network.last_norm(stages[-1])]
            readings.append([network.read(stage, frames.grid) for stage in trained])
        *auxiliary, last = (self.outputs_of(layer) for layer in zip(*readings, strict=True))
        if self.faults.mixed_clips:
            last = {
                key: value.unflatten(0, (num_clips, -1)).transpose(0, 1).flatten(0, 1) for key, value in last.items()
            }
        return {**last, "aux_outputs": auxiliary}

    def outputs_of(self, frames: tuple[Readings, ...]) -> dict[str, Tensor]:
        """Outputs of B clips, clip by clip, from what was read in each of their T frames."""
        logits, embeddings, patches = (
            torch.stack([getattr(frame, name) for frame in frames], dim=1).flatten(0, 1)
            for name in ("logits", "embeddings", "patches")
        )
        features = self.network.upscale(patches)
        masks = (embeddings @ features.flatten(1, 2).mT).unflatten(2, features.shape[1:3])
        return {"pred_logits": logits, "pred_masks": masks}


def vit_from_config(cfg: Cfg) -> PlainViT:
    """The ViT that MODEL.BACKBONE names, with the sizes that MODEL.VIT changes."""
    settings, size = cfg.MODEL.BACKBONE, cfg.MODEL.VIT
    return build_vit(
        settings.MODEL_NAME,
        image_size=settings.IMG_SIZE,
        patch_size=settings.PATCH_SIZE,
        in_channels=len(cfg.MODEL.PIXEL_MEAN),
        embed_dim=size.EMBED_DIM,
        depth=size.DEPTH,
        num_heads=size.NUM_HEADS,
    )


def build_criterion(cfg: Cfg, num_auxiliary: int) -> SetCriterion:
    """Losses of single frames with the weights in MODEL.BACKBONE, under consistent matching."""
    settings = cfg.MODEL.BACKBONE
    weights = {
        "loss_ce": settings.CLASS_WEIGHT,
        "loss_mask": settings.MASK_WEIGHT,
        "loss_dice": settings.DICE_WEIGHT,
    }
    return SetCriterion(
        settings.NUM_CLASSES,
        matcher=ConsistentMatcher(
            num_frames=cfg.INPUT.SAMPLING_FRAME_NUM,
            cost_class=settings.CLASS_WEIGHT,
            cost_mask=settings.MASK_WEIGHT,
            cost_dice=settings.DICE_WEIGHT,
            num_points=settings.TRAIN_NUM_POINTS,
        ),
        weight_dict=layer_weights(weights, num_auxiliary),
        no_object_weight=settings.NO_OBJECT_WEIGHT,
        num_points=settings.TRAIN_NUM_POINTS,
        oversample_ratio=settings.OVERSAMPLE_RATIO,
        importance_sample_ratio=settings.IMPORTANCE_SAMPLE_RATIO,
    )
