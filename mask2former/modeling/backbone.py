"""What every backbone offers: feature maps by name, and their shapes before any image is seen."""

from __future__ import annotations

from abc import ABCMeta, abstractmethod
from collections.abc import Sequence

import torch.distributed as dist
from torch import Tensor, nn

from ..structures import ShapeSpec


class Backbone(nn.Module, metaclass=ABCMeta):
    """Turn images into feature maps.

    A subclass sets, in its constructor, `_out_features` (names in the order of the result), `_out_feature_channels`
    and `_out_feature_strides` (both by name). These attribute names are detectron2's.
    """

    _out_features: Sequence[str]
    _out_feature_channels: dict[str, int]
    _out_feature_strides: dict[str, int]

    @abstractmethod
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(BT, 3, H, W) normalised images -> {name: (BT, C, H / stride, W / stride)}."""

    @property
    def size_divisibility(self) -> int:
        """Height and width the input must be a multiple of; 0 = any size works."""
        return 0

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Return channels and stride of every feature map that `forward` returns."""
        return {
            name: ShapeSpec(channels=self._out_feature_channels[name], stride=self._out_feature_strides[name])
            for name in self._out_features
        }


def check_out_features(wanted: Sequence[str], available: Sequence[str], config_key: str) -> None:
    """Raise ValueError unless `wanted` is a non-empty selection of `available`."""
    unknown = [name for name in wanted if name not in available]
    if unknown or not wanted:
        raise ValueError(f"{config_key} must name at least one of {list(available)}, got {list(wanted)}.")


def batch_norm(device: str, alone: type[nn.Module]) -> type[nn.Module]:
    """`alone`, a batch normalisation, or the one that has the statistics of all GPUs when several processes train."""
    several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    return nn.SyncBatchNorm if several and str(device).startswith("cuda") else alone
