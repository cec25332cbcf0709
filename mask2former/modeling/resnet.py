"""ResNet backbone with detectron2's names.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016 (table 1). Two choices are configurable: the
position of the stride inside a bottleneck, and a res5 that dilates instead of halving the map.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..layers import Conv2d, FrozenBatchNorm2d, c2_msra_fill, get_norm
from ..linear import compact
from ..registry import BACKBONE_REGISTRY
from ..structures import ShapeSpec
from .backbone import Backbone, check_out_features
from .folding import WithFolds

if TYPE_CHECKING:
    from ..cfg import Cfg

BLOCKS_PER_STAGE = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
BASIC_DEPTHS = (18, 34)


class ConvNorm(WithFolds, Conv2d):
    """Convolution without bias, then normalisation; one operation at inference."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *, norm: str, **conv: Any) -> None:
        padding = (kernel_size // 2) * conv.get("dilation", 1)
        norm_layer = get_norm(norm, out_channels)
        super().__init__(in_channels, out_channels, kernel_size, padding=padding, bias=False, norm=norm_layer, **conv)
        c2_msra_fill(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.folds.apply(self, self.norm, x)


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, norm: str) -> None:
        super().__init__()
        self.shortcut = _projection(in_channels, out_channels, stride, norm)
        self.conv1 = ConvNorm(in_channels, out_channels, 3, stride=stride, norm=norm)
        self.conv2 = ConvNorm(out_channels, out_channels, 3, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv2(F.relu_(self.conv1(x)))
        out += x if self.shortcut is None else self.shortcut(x)
        return F.relu_(out)


class BottleneckBlock(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions and a shortcut; `inner_channels` is the width of the 3 x 3 one."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        inner_channels: int,
        stride: int,
        norm: str,
        num_groups: int,
        stride_in_1x1: bool,
        dilation: int,
    ) -> None:
        super().__init__()
        stride_1x1, stride_3x3 = (stride, 1) if stride_in_1x1 else (1, stride)
        self.shortcut = _projection(in_channels, out_channels, stride, norm)
        self.conv1 = ConvNorm(in_channels, inner_channels, 1, stride=stride_1x1, norm=norm)
        self.conv2 = ConvNorm(
            inner_channels, inner_channels, 3, stride=stride_3x3, groups=num_groups, dilation=dilation, norm=norm
        )
        self.conv3 = ConvNorm(inner_channels, out_channels, 1, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu_(self.conv1(x))
        out = self.conv3(F.relu_(self.conv2(out)))
        out += x if self.shortcut is None else self.shortcut(x)
        return F.relu_(out)


class Stem(nn.Module):
    """7 x 7 convolution and max pooling: stride 4."""

    def __init__(self, in_channels: int, out_channels: int, norm: str) -> None:
        super().__init__()
        self.conv1 = ConvNorm(in_channels, out_channels, 7, stride=2, norm=norm)

    def forward(self, images: Tensor) -> Tensor:
        return F.max_pool2d(F.relu_(self.conv1(images)), kernel_size=3, stride=2, padding=1)


class ResNet(Backbone):
    """ResNet-18, 34, 50, 101 or 152; feature maps stem, res2 to res5 at strides 4, 4, 8, 16, 32."""

    def __init__(
        self,
        *,
        depth: int = 50,
        out_features: Sequence[str] = ("res2", "res3", "res4", "res5"),
        norm: str = "FrozenBN",
        freeze_at: int = 0,
        in_channels: int = 3,
        stem_out_channels: int = 64,
        res2_out_channels: int = 256,
        num_groups: int = 1,
        width_per_group: int = 64,
        stride_in_1x1: bool = False,
        res5_dilation: int = 1,
        use_checkpoint: bool = False,
    ) -> None:
        """Build the stem and the stages up to the last wanted feature map.

        Args:
            norm: name for `mask2former.layers.get_norm`.
            freeze_at: 0 trains everything, 1 freezes the stem, 2 also res2, ..., 5 everything.
            res2_out_channels: doubles from stage to stage; 64 for depth 18 and 34.
            stride_in_1x1: put the stride of a bottleneck on its first 1 x 1 convolution instead of the 3 x 3 one.
            res5_dilation: 2 keeps res5 at stride 16 and dilates its 3 x 3 convolutions.
            use_checkpoint: in training, recompute every block in the backward pass instead of keeping its activations.
        """
        super().__init__()
        is_basic = depth in BASIC_DEPTHS
        _check_architecture(depth, is_basic, res2_out_channels, num_groups, res5_dilation)
        check_out_features(out_features, ("stem", "res2", "res3", "res4", "res5"), "MODEL.RESNETS.OUT_FEATURES")
        self.use_checkpoint = use_checkpoint
        self.stem = Stem(in_channels, stem_out_channels, norm)
        self._out_feature_channels = {"stem": stem_out_channels}
        self._out_feature_strides = {"stem": 4}

        channels, stride = stem_out_channels, 4
        self.stage_names = [f"res{idx}" for idx in range(2, 1 + max([1, *map(_stage_number, out_features)]))]
        for idx, name in enumerate(self.stage_names):
            dilation = res5_dilation if name == "res5" else 1
            first_stride = 1 if idx == 0 or dilation == 2 else 2
            out_channels = res2_out_channels * 2**idx
            block: Callable[..., nn.Module]
            if is_basic:
                block = partial(BasicBlock, norm=norm)
            else:
                inner_channels = num_groups * width_per_group * 2**idx
                block = partial(BottleneckBlock, inner_channels=inner_channels, norm=norm, num_groups=num_groups)
                block = partial(block, stride_in_1x1=stride_in_1x1, dilation=dilation)
            first = block(channels, out_channels, stride=first_stride)
            num_others = BLOCKS_PER_STAGE[depth][idx] - 1
            others = [block(out_channels, out_channels, stride=1) for _ in range(num_others)]
            self.add_module(name, nn.Sequential(first, *others))
            channels, stride = out_channels, stride * first_stride
            self._out_feature_channels[name] = out_channels
            self._out_feature_strides[name] = stride
        self._out_features = [name for name in ("stem", *self.stage_names) if name in out_features]
        self.freeze(freeze_at)

    @classmethod
    def from_config(cls, cfg: Cfg, input_shape: ShapeSpec) -> dict[str, Any]:
        resnets = cfg.MODEL.RESNETS
        if any(resnets.DEFORM_ON_PER_STAGE):
            raise ValueError(
                "Deformable convolutions are not available; set MODEL.RESNETS.DEFORM_ON_PER_STAGE to False."
            )
        return {
            "depth": resnets.DEPTH,
            "out_features": resnets.OUT_FEATURES,
            "norm": resnets.NORM,
            "freeze_at": cfg.MODEL.BACKBONE.FREEZE_AT,
            "in_channels": input_shape.channels,
            "stem_out_channels": resnets.STEM_OUT_CHANNELS,
            "res2_out_channels": resnets.RES2_OUT_CHANNELS,
            "num_groups": resnets.NUM_GROUPS,
            "width_per_group": resnets.WIDTH_PER_GROUP,
            "stride_in_1x1": resnets.STRIDE_IN_1X1,
            "res5_dilation": resnets.RES5_DILATION,
        }

    def freeze(self, freeze_at: int) -> None:
        """Stop training the first parts: parameters no longer get gradients and normalisation keeps its statistics."""
        for number, name in enumerate(("stem", *self.stage_names), start=1):
            if freeze_at < number:
                break
            part = getattr(self, name)
            part.requires_grad_(False)
            FrozenBatchNorm2d.convert_frozen_batchnorm(part)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) -> {name: (B, C, H / stride, W / stride)}, sizes rounded up."""
        outputs = {}
        rounded = compact(images)
        x = self.stem(rounded)
        if "stem" in self._out_features:
            outputs["stem"] = x
        for name in self.stage_names:
            for block in getattr(self, name):
                x = self._run_block(block, x)
            if name in self._out_features:
                outputs[name] = x
        if rounded is images:
            return outputs
        return {name: x.to(images.dtype) for name, x in outputs.items()}

    def _run_block(self, block: nn.Module, x: Tensor) -> Tensor:
        if self.use_checkpoint and self.training and torch.is_grad_enabled():
            return checkpoint(block, x, use_reentrant=False)
        return block(x)


@BACKBONE_REGISTRY.register()
def build_resnet_backbone(cfg: Cfg, input_shape: ShapeSpec) -> ResNet:
    """Build the ResNet that `MODEL.RESNETS` and `MODEL.BACKBONE.FREEZE_AT` describe."""
    return ResNet(**ResNet.from_config(cfg, input_shape))


def _projection(in_channels: int, out_channels: int, stride: int, norm: str) -> ConvNorm | None:
    """Return the convolution of a shortcut that changes the width, None where the input is added as it is."""
    if in_channels == out_channels:
        return None
    return ConvNorm(in_channels, out_channels, 1, stride=stride, norm=norm)


def _stage_number(name: str) -> int:
    """ "stem" -> 1, "res2" -> 2, ..."""
    return 1 if name == "stem" else int(name.removeprefix("res"))


def _check_architecture(depth: int, is_basic: bool, res2_channels: int, num_groups: int, res5_dilation: int) -> None:
    """Raise ValueError for a combination that does not exist."""
    if depth not in BLOCKS_PER_STAGE:
        raise ValueError(f"MODEL.RESNETS.DEPTH must be one of {sorted(BLOCKS_PER_STAGE)}, got {depth}.")
    if res5_dilation not in (1, 2):
        raise ValueError(f"MODEL.RESNETS.RES5_DILATION must be 1 or 2, got {res5_dilation}.")
    # More than 64 is the default of the deeper networks, left standing by mistake; fewer make a narrow network.
    if is_basic and (res2_channels > 64 or (num_groups, res5_dilation) != (1, 1)):
        raise ValueError(
            f"ResNet-{depth} needs MODEL.RESNETS.RES2_OUT_CHANNELS 64 or fewer, NUM_GROUPS 1 and RES5_DILATION 1, "
            f"got {res2_channels}, {num_groups} and {res5_dilation}."
        )
