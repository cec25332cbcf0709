"""Parts of a model as functions of tensors, which can be exported as graphs and run elsewhere.

A model says which parts those are (`VideoModel.graphs`) and calls exported forms of them in their place
(`VideoModel.run_exported`). What follows objects from frame to frame stays Python.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

# Called with tensors by name: what it returns has names, too.
GraphFunction = Callable[..., dict[str, Tensor]]

# Axes of a batch of frames (t, 3, H, W) that a graph may leave open.
IMAGE_AXES = {0: "frames", 2: "height", 3: "width"}

_BACKBONE = "backbone."  # in front of the names of backbone features


@dataclass(frozen=True)
class Graph:
    """A function of tensors.

    Attributes:
        module: its `forward` takes the inputs in order and returns tensors by name.
        inputs: examples by name.
        axes: of inputs whose length may differ from the example's: input -> axis -> name of the length.
    """

    module: nn.Module
    inputs: dict[str, Tensor]
    axes: dict[str, dict[int, str]]


class FrameNetwork(nn.Module):
    """Backbone, pixel decoder and frame decoder as a function of tensors."""

    def __init__(self, backbone: nn.Module, sem_seg_head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.sem_seg_head = backbone, sem_seg_head

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Everything that methods read of frames (t, 3, H, W).

        Returns:
            `frame_queries` (L, t, Q, C); `finest_map` (t, C, H/4, W/4), what clip modules make mask features of; the
            outputs of the frame decoder under their names; backbone features as `backbone.<name>`.
        """
        features = self.backbone(images)
        outputs, frame_queries, finest_map = self.sem_seg_head(features)
        return {
            **{name: value for name, value in outputs.items() if isinstance(value, Tensor)},
            "frame_queries": frame_queries,
            "finest_map": finest_map,
            **{_BACKBONE + name: feature for name, feature in features.items()},
        }


def outputs_of_network(found: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any], Tensor, Tensor]:
    """What `FrameNetwork` returns -> backbone features, outputs of the decoder, frame queries, finest map."""
    features = {name.removeprefix(_BACKBONE): value for name, value in found.items() if name.startswith(_BACKBONE)}
    others = {name: value for name, value in found.items() if not name.startswith(_BACKBONE)}
    frame_queries, finest_map = others.pop("frame_queries"), others.pop("finest_map")
    return features, {**others, "aux_outputs": []}, frame_queries, finest_map


def keep_parts(module: nn.Module, names: Collection[str]) -> None:
    """Drop all modules inside a module, and with them their parameters, but for those that are named."""
    for name in [name for name, _ in module.named_children() if name not in names]:
        delattr(module, name)
