"""Backbones with timm's parameter names, under `base.`: OVFormer's ResNet, and any timm model with feature maps.

ResNets come from torchvision, whose names and arithmetic are the same (stride on the 3 x 3 convolution), so the
published OVFormer needs no optional package. Every other name is built by timm, an optional extra.
Level k is the feature map `layer{k}` at stride 2^k.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet as tv_resnet

from ..layers import FrozenBatchNorm2d
from ..registry import BACKBONE_REGISTRY
from ..structures import ShapeSpec
from .backbone import Backbone
from .folding import WithFolds

if TYPE_CHECKING:
    from ..cfg import Cfg


NORMS = ("FrozenBN", "SyncBN", "BN")  # values of MODEL.TIMM.NORM

logger = logging.getLogger(__name__)


class FoldingBasicBlock(WithFolds, tv_resnet.BasicBlock):
    """torchvision's block with folded normalisation at inference."""

    conv1: nn.Conv2d
    conv2: nn.Conv2d
    bn1: nn.Module
    bn2: nn.Module
    downsample: nn.Sequential | None

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu_(self.folds.apply(self.conv1, self.bn1, x))
        out = self.folds.apply(self.conv2, self.bn2, out)
        return F.relu_(out + _shortcut(self, x))


class FoldingBottleneck(WithFolds, tv_resnet.Bottleneck):
    """torchvision's bottleneck with folded normalisation at inference."""

    conv1: nn.Conv2d
    conv2: nn.Conv2d
    conv3: nn.Conv2d
    bn1: nn.Module
    bn2: nn.Module
    bn3: nn.Module
    downsample: nn.Sequential | None

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu_(self.folds.apply(self.conv1, self.bn1, x))
        out = F.relu_(self.folds.apply(self.conv2, self.bn2, out))
        out = self.folds.apply(self.conv3, self.bn3, out)
        return F.relu_(out + _shortcut(self, x))


# timm's name -> block, blocks per stage, further arguments
Block = type[FoldingBasicBlock] | type[FoldingBottleneck]
RESNETS: dict[str, tuple[Block, list[int], dict[str, int]]] = {
    "resnet18": (FoldingBasicBlock, [2, 2, 2, 2], {}),
    "resnet34": (FoldingBasicBlock, [3, 4, 6, 3], {}),
    "resnet50": (FoldingBottleneck, [3, 4, 6, 3], {}),
    "resnet101": (FoldingBottleneck, [3, 4, 23, 3], {}),
    "resnet152": (FoldingBottleneck, [3, 8, 36, 3], {}),
    "resnext50_32x4d": (FoldingBottleneck, [3, 4, 6, 3], {"groups": 32, "width_per_group": 4}),
    "wide_resnet50_2": (FoldingBottleneck, [3, 4, 6, 3], {"width_per_group": 128}),
}


class ResNetBase(WithFolds, tv_resnet.ResNet):
    """torchvision's ResNet without the classifier, returning the output of every stage."""

    conv1: nn.Conv2d
    bn1: nn.Module
    maxpool: nn.Module
    layer1: nn.Module
    layer2: nn.Module
    layer3: nn.Module
    layer4: nn.Module

    def __init__(self, block: Block, blocks_per_stage: list[int], **kwargs: int) -> None:
        super().__init__(block, blocks_per_stage, **kwargs)
        del self.avgpool, self.fc

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> maps at strides 4, 8, 16, 32."""
        x = self.maxpool(F.relu_(self.folds.apply(self.conv1, self.bn1, images)))
        outputs = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            outputs.append(x)
        return outputs


class TimmBackbone(Backbone):
    """A network with timm's names whose feature maps are called `layer{level}`."""

    def __init__(
        self, base: nn.Module, *, base_levels: Sequence[int], base_channels: Sequence[int], out_levels: Sequence[int]
    ) -> None:
        """Wrap `base`, which returns one map per level of `base_levels`; `out_levels` says which of them to return."""
        super().__init__()
        missing = [level for level in out_levels if level not in base_levels]
        if missing or not out_levels:
            raise ValueError(f"MODEL.TIMM.OUT_LEVELS must be a selection of {list(base_levels)}, got {out_levels}.")
        self.base = base  # checkpoint name
        self._base_features = [f"layer{level}" for level in base_levels]
        self._out_features = [f"layer{level}" for level in sorted(out_levels)]
        self._out_feature_channels = dict(zip(self._base_features, base_channels, strict=True))
        self._out_feature_strides = {f"layer{level}": 2**level for level in base_levels}

    @property
    def size_divisibility(self) -> int:
        return max(self._out_feature_strides.values())

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) -> {layer{level}: (B, C, H / 2^level, W / 2^level)}."""
        maps = dict(zip(self._base_features, self.base(images), strict=True))
        return {name: maps[name] for name in self._out_features}

    def _load_from_state_dict(self, state_dict: dict, prefix: str, local_metadata: dict, *args: Any) -> None:
        """Accept files without the step counters of BatchNorm, which published checkpoints do not have."""
        for name, tensor in self.state_dict().items():
            if name.endswith(".num_batches_tracked"):
                state_dict.setdefault(prefix + name, tensor)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: Cfg, input_shape: ShapeSpec) -> TimmBackbone:
    """Build the network that `MODEL.TIMM` describes; `MODEL.BACKBONE.FREEZE_AT` does not matter here."""
    options = cfg.MODEL.TIMM
    if options.NORM not in NORMS:
        raise ValueError(f"MODEL.TIMM.NORM must be one of {', '.join(NORMS)}, got {options.NORM!r}.")
    # The suffix names the training data of published weights, not another network.
    resnet = RESNETS.get(options.BASE_NAME.removesuffix("_in21k"))
    if resnet is None:
        return _build_with_timm(cfg)
    if input_shape.channels != 3:
        raise ValueError(f"{options.BASE_NAME} needs 3 input channels, MODEL.PIXEL_MEAN has {input_shape.channels}.")
    block, blocks_per_stage, extra = resnet
    base = ResNetBase(block, blocks_per_stage, **extra)
    if options.PRETRAINED:
        pretrained = _import_timm().create_model(options.BASE_NAME, pretrained=True, num_classes=0)
        base.load_state_dict(pretrained.state_dict())
        compare_pixel_statistics(cfg, pretrained)
    _freeze_resnet(base, options.FREEZE_AT)
    channels = [64 * block.expansion * 2**idx for idx in range(4)]
    backbone = TimmBackbone(base, base_levels=(2, 3, 4, 5), base_channels=channels, out_levels=options.OUT_LEVELS)
    return _convert_norm(backbone, options.NORM)


def _freeze_resnet(base: ResNetBase, freeze_at: int) -> None:
    """1 freezes the first convolution, 2 also layer1 (stride 4), and so on."""
    parts = [[base.conv1, base.bn1], [base.layer1], [base.layer2], [base.layer3], [base.layer4]]
    for part in [module for group in parts[:freeze_at] for module in group]:
        part.requires_grad_(False)
    if freeze_at >= 1:
        base.bn1 = FrozenBatchNorm2d.convert_frozen_batchnorm(base.bn1)
    for group in parts[1 : max(freeze_at, 1)]:
        FrozenBatchNorm2d.convert_frozen_batchnorm(group[0])


def _build_with_timm(cfg: Cfg) -> TimmBackbone:
    """Build any timm model that returns feature maps."""
    timm, options = _import_timm(), cfg.MODEL.TIMM
    if options.FREEZE_AT:
        raise ValueError(f"MODEL.TIMM.FREEZE_AT works for {sorted(RESNETS)} only; set it to 0.")
    base = timm.create_model(options.BASE_NAME, features_only=True)  # only to learn what it offers
    levels = {stride.bit_length() - 1: idx for idx, stride in enumerate(base.feature_info.reduction())}
    missing = [level for level in options.OUT_LEVELS if level not in levels]
    if missing:
        raise ValueError(
            f"{options.BASE_NAME} has levels {sorted(levels)} only, MODEL.TIMM.OUT_LEVELS asks for {missing}."
        )
    wanted = sorted(options.OUT_LEVELS)
    base = timm.create_model(
        options.BASE_NAME,
        pretrained=options.PRETRAINED,
        features_only=True,
        out_indices=tuple(levels[level] for level in wanted),
    )
    compare_pixel_statistics(cfg, base)
    channels = base.feature_info.channels()
    base = _convert_timm_norm(base, options.NORM, options.BASE_NAME)
    return TimmBackbone(base, base_levels=wanted, base_channels=channels, out_levels=wanted)


def _convert_norm(backbone: TimmBackbone, norm: str) -> TimmBackbone:
    """Replace the BatchNorm layers by the kind that `MODEL.TIMM.NORM` names."""
    if norm == "FrozenBN":
        FrozenBatchNorm2d.convert_frozen_batchnorm(backbone)  # in place, as is the next
    elif norm == "SyncBN":
        nn.SyncBatchNorm.convert_sync_batchnorm(backbone)
    return backbone


def _convert_timm_norm(base: nn.Module, norm: str, name: str) -> nn.Module:
    """The same for a network of timm, whose BatchNorm layers may hold an activation; say it when there are none."""
    layers = _import_timm().layers
    if not any(isinstance(module, nn.BatchNorm2d) for module in base.modules()):
        level = logging.INFO if norm == NORMS[0] else logging.WARNING  # the default stands in every configuration
        logger.log(level, "%s has no BatchNorm: MODEL.TIMM.NORM %s has no effect.", name, norm)
        return base
    convert = {"FrozenBN": layers.freeze_batch_norm_2d, "SyncBN": layers.convert_sync_batchnorm}.get(norm)
    return base if convert is None else convert(base)


def compare_pixel_statistics(cfg: Cfg, network: nn.Module) -> None:
    """Say it when the mean and deviation of colours are not those that timm's weights of a network were trained with.

    They are a matter of MODEL.PIXEL_MEAN and MODEL.PIXEL_STD alone, whose channels are in the order of INPUT.FORMAT.
    """
    facts = getattr(network, "pretrained_cfg", None) or {}
    if "mean" not in facts or "std" not in facts:
        return
    image_format = getattr(getattr(cfg, "INPUT", None), "FORMAT", "RGB")
    order = slice(None) if image_format == "RGB" else slice(None, None, -1)
    wanted = {key: [round(255 * float(value), 3) for value in facts[key][order]] for key in ("mean", "std")}
    given = {"mean": list(cfg.MODEL.PIXEL_MEAN), "std": list(cfg.MODEL.PIXEL_STD)}
    if all(abs(a - b) < 0.05 for key in wanted for a, b in zip(wanted[key], given[key], strict=False)):
        return
    logger.warning(
        "timm's weights of %s were trained with MODEL.PIXEL_MEAN %s and PIXEL_STD %s (%s), set are %s and %s.",
        cfg.MODEL.TIMM.BASE_NAME,
        *(wanted["mean"], wanted["std"], image_format, given["mean"], given["std"]),
    )


def _shortcut(block: FoldingBasicBlock | FoldingBottleneck, x: Tensor) -> Tensor:
    """Return the input of a torchvision block, projected where the block changes its shape."""
    if block.downsample is None:
        return x
    conv, norm = block.downsample.children()
    return block.folds.apply(cast(nn.Conv2d, conv), norm, x)


def _import_timm() -> Any:
    """Import timm where it is needed: it is an optional extra."""
    try:
        import timm
    except ImportError as error:
        raise ImportError(
            'This MODEL.TIMM.BASE_NAME, or PRETRAINED True, needs the package timm: pip install "lbvq[timm]".'
        ) from error
    return timm
