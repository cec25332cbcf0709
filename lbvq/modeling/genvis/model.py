"""GenVIS, "A Generalized Framework for Video Instance Segmentation" (CVPR 2023), online and semi-online.

VITA run clip after clip. The decoder queries at the end of one clip start the next one, and before they do, every query
reads what it looked like in all earlier clips. So an object stays in one query from its first frame to its last, and no
tracker is needed. With clips of one frame the method is online, with longer ones semi-online; the modules are the same.
Published AP with ResNet-50, online / semi-online: 50.0 / 51.3 on YouTube-VIS 2019, 47.1 / 46.3 on YouTube-VIS 2021,
35.8 / 34.5 on OVIS.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mask2former.modeling.criterion import weighted
from mask2former.registry import META_ARCH_REGISTRY
from mask2former.structures import ImageList

from ..base import EncodedFrames
from ..clips.decoder import ClipMasks
from ..online.segmenter import Evidence, OnlineSegmenter, StepMasks, StreamState
from ..targets import HOST, moved, prepare_targets
from ..vita import VITA, Vita
from .criterion import ClipInputs, GenvisCriterion, split_target
from .memory import Memory, recall, remember

if TYPE_CHECKING:
    from mask2former.cfg import Cfg

logger = logging.getLogger(__name__)


@META_ARCH_REGISTRY.register()
class Genvis(OnlineSegmenter, Vita):
    """The video model: VITA's with `GenVIS` as its clip module, under VITA's name so that VITA's weights fit."""

    can = replace(Vita.can, online=True)

    def __init__(self, *, genvis_criterion: GenvisCriterion, clip_length: int, **vita: Any) -> None:
        """Args:
        genvis_criterion: losses of one clip after another.
        clip_length: W, frames of a clip; 1 is online.
        vita: arguments of `Vita`.
        """
        super().__init__(**vita)
        if clip_length < 1:
            raise ValueError(f"clip_length must be at least 1, got {clip_length}; set MODEL.GENVIS.LEN_CLIP_WINDOW.")
        if self.num_frames % clip_length:
            logger.warning(
                "INPUT.SAMPLING_FRAME_NUM %d is no multiple of MODEL.GENVIS.LEN_CLIP_WINDOW %d: the frames left over "
                "do not take part in training.",
                self.num_frames,
                clip_length,
            )
        self.genvis_criterion = genvis_criterion  # checkpoint name
        self.clip_length = clip_length

    @classmethod
    def build_clip_module(cls, cfg: Cfg) -> GenVIS:
        return GenVIS(**GenVIS.from_config(cfg, "VITA"))

    @classmethod
    def from_config(cls, cfg: Cfg) -> dict[str, Any]:
        return {
            **super().from_config(cfg),
            "genvis_criterion": GenvisCriterion(**GenvisCriterion.from_config(cfg, "genvis", "VITA")),
            "clip_length": cfg.MODEL.GENVIS.LEN_CLIP_WINDOW,
        }

    def losses(self, samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Weighted losses of every clip of B videos, with the suffix `_clip<number>`; and the frame losses, if trained.

        Gradients flow from a clip back into all clips before it.
        """
        num_videos, length = len(samples), self.clip_length
        if length > self.num_frames:
            raise ValueError(
                f"INPUT.SAMPLING_FRAME_NUM = {self.num_frames} frames do not make one clip; "
                f"MODEL.GENVIS.LEN_CLIP_WINDOW is {length}."
            )
        encoded = self.encode_frames(self.batch_clips(samples))
        frame_targets, targets = prepare_targets(samples, encoded.padded_size, HOST, self.sem_seg_head.num_classes)
        frame_targets = [moved(target, self.device) for target in frame_targets]
        losses, frame_matches = self.frame_losses(encoded, frame_targets)
        queries = encoded.frame_queries.unflatten(1, (num_videos, -1))  # (L, B, T, Q, C)
        features = self.clip_module.mask_features(encoded.mask_features).unflatten(0, (num_videos, -1))
        clip_targets = zip(*(split_target(target, length) for target in targets), strict=True)

        memory: Memory = []
        clips: list[ClipInputs] = []
        state = self.clip_module.first_state(queries.shape[0] * num_videos)
        for clip, targets_of_clip in enumerate(clip_targets):
            frames = slice(clip * length, (clip + 1) * length)
            outputs, state = self.clip_module(queries[:, :, frames].flatten(1, 2), memory, state)
            memory = remember(memory, outputs["objects"])
            for layer in (outputs, *outputs["aux_outputs"]):
                layer["pred_masks"] = ClipMasks(layer["pred_mask_embed"], features[:, frames])
            clips.append(
                ClipInputs(
                    outputs,
                    [moved(target, self.device) for target in targets_of_clip],
                    frames_of_clip(frame_targets, num_videos, frames),
                    [frames_of_clip(matches, num_videos, frames) for matches in frame_matches],
                )
            )
        for clip, (clip_losses, _) in enumerate(self.genvis_criterion(clips)):
            clip_losses = weighted(clip_losses, self.genvis_criterion.weight_dict)
            losses |= {f"{name}_clip{clip}": loss for name, loss in clip_losses.items()}
        return losses

    def frame_losses(self, encoded: EncodedFrames, targets: list[dict[str, Any]]) -> tuple[dict[str, Tensor], list]:
        """Weighted losses of the frame segmenter, none if it is frozen; and the matches of its last L outputs."""
        if not self.freeze_detector:
            losses, matches = self.criterion(encoded.outputs, targets)
            return weighted(losses, self.criterion.weight_dict), matches
        layers = [*encoded.outputs["aux_outputs"], encoded.outputs][-len(encoded.frame_queries) :]
        matcher = self.criterion.matcher
        return {}, matcher.match_layers(layers, targets, [matcher.draw(layer, targets) for layer in layers])

    def start_stream(self) -> StreamState:
        """Learned queries, nothing remembered, nothing found."""
        query = self.clip_module.first_state(1).detach()
        num_classes = self.sem_seg_head.num_classes
        return {
            "query": query,
            "memory": [],
            "probabilities": torch.zeros(len(query), num_classes, device=query.device),  # best so far
        }

    def observe(self, images: ImageList, start: int) -> Evidence:
        """Frame queries of the last decoder layer, and mask features."""
        encoded = self.encode_frames(images, start)
        features = self.clip_module.mask_features(encoded.mask_features)
        return {"queries": encoded.frame_queries[-1], "features": features}

    def advance(self, state: StreamState, evidence: Evidence) -> tuple[StreamState, StepMasks]:
        """Decode one clip; of every (query, class) the best probability of all clips is kept."""
        outputs, query = self.clip_module(evidence["queries"][None], state["memory"], state["query"])
        probabilities = outputs["pred_logits"][-1, 0].float().softmax(-1)[:, :-1]
        state = {
            "query": query,
            "memory": remember(state["memory"], outputs["objects"]),
            "probabilities": torch.maximum(state["probabilities"], probabilities),
        }
        return state, StepMasks(evidence["features"], outputs["pred_mask_embed"][-1, 0])

    def class_scores(self, state: StreamState) -> tuple[Tensor, None]:
        return state["probabilities"], None


class GenVIS(VITA):
    """VITA's encoder and decoder with a state that is carried from clip to clip and a memory of all clips before."""

    def __init__(self, in_channels: int, **vita: Any) -> None:
        """Args: see `VITA`; `num_frames` is the length of a clip."""
        super().__init__(in_channels, **vita)
        hidden_dim = vita["hidden_dim"]
        self.pre_memory_embed_k = nn.Linear(hidden_dim, hidden_dim)  # checkpoint names
        self.pre_memory_embed_v = nn.Linear(hidden_dim, hidden_dim)
        self.pre_query_embed_k = nn.Linear(hidden_dim, hidden_dim)
        self.pre_query_embed_v = nn.Linear(hidden_dim, hidden_dim)

    @classmethod
    def from_config(cls, cfg: Cfg, group: str) -> dict[str, Any]:
        return {**super().from_config(cfg, group), "num_frames": cfg.MODEL.GENVIS.LEN_CLIP_WINDOW}

    def forward(  # type: ignore[override]  # `Genvis` alone calls it
        self, frame_queries: Tensor, memory: Memory, state: Tensor
    ) -> tuple[dict[str, Any], Tensor]:
        """Find the objects of the next clip of B videos.

        Args:
            frame_queries: (L, B*W, Q, C). At test the frames are one clip of any length and only the last of L is used.
            memory: of the clips before, see `genvis_memory.py`.
            state: (N, L*B, C), what this function returned for the clip before; `first_state` for the first.

        Returns:
            The outputs of `ClipDecoder.predict` with the entry `objects` (L, B, N, C), what is to be remembered of this
            clip; and the state for the next clip, which is not normalised.
        """
        encoded, num_outputs = self.encode(frame_queries)
        start = state + self.pre_query_embed_v(state) + self.read(memory, state)
        states = self.decode(start, encoded)
        outputs = self.predict(states, num_outputs, self.frame_similarity(encoded, num_outputs))
        objects = self.decoder_norm(states[-1]).transpose(0, 1).unflatten(0, (num_outputs, -1))
        return {**outputs, "objects": objects}, states[-1]

    def read(self, memory: Memory, state: Tensor) -> Tensor:
        """Let every query attend to itself in earlier clips: state (N, L*B, C) -> the same shape, zeros at first."""
        if not memory:
            return torch.zeros_like(state)
        queries, key = self.pre_query_embed_k(state), self.pre_memory_embed_k
        # As published there is a bias of the keys, which has no effect; used, it has a gradient, of zero.
        objects = recall(memory, queries @ key.weight, queries @ key.bias)
        return self.pre_memory_embed_v(objects)


def frames_of_clip(items: list, num_videos: int, frames: slice) -> list:
    """Select frames of every video from a list over all frames of B videos, video after video."""
    length = len(items) // num_videos
    return [item for start in range(0, len(items), length) for item in items[start : start + length][frames]]
