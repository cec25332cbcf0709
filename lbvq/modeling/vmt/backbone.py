"""The shared backbones under the names of VMT's checkpoints, and the extra feature map that VMT reads.

VMT's ResNets have torchvision's names (`layer1.0.bn1`), ours detectron2's (`res2.0.conv1.norm`). The network is the
same, so only the state dict is renamed, on its way out and on its way in. Swin has the same names on both sides.
"""

from __future__ import annotations

import re
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from mask2former.modeling.backbone import Backbone
from mask2former.modeling.resnet import ResNet
from mask2former.structures import known_shapes

STEM_DIM = 64  # channels of the first convolution of a ResNet, if it is to be read; otherwise stride 4 is the finest
STAGES = ("res2", "res3", "res4", "res5")  # strides 4, 8, 16, 32

_OURS_TO_PUBLISHED = (
    (r"^stem\.conv1\.norm\.", "bn1."),
    (r"^stem\.conv1\.", "conv1."),
    (r"^(res\d\.\d+)\.shortcut\.norm\.", r"\1.downsample.1."),
    (r"^(res\d\.\d+)\.shortcut\.", r"\1.downsample.0."),
    (r"^(res\d\.\d+)\.conv(\d)\.norm\.", r"\1.bn\2."),
)
_PUBLISHED_TO_OURS = (
    (r"^bn1\.", "stem.conv1.norm."),
    (r"^conv1\.", "stem.conv1."),
    (r"^(layer\d\.\d+)\.downsample\.1\.", r"\1.shortcut.norm."),
    (r"^(layer\d\.\d+)\.downsample\.0\.", r"\1.shortcut."),
    (r"^(layer\d\.\d+)\.bn(\d)\.", r"\1.conv\2.norm."),
)


def published_name(name: str) -> str:
    """ "res2.0.conv1.norm.weight" -> "layer1.0.bn1.weight"."""
    name = _substitute(name, _OURS_TO_PUBLISHED)
    return re.sub(r"^res(\d)\.", lambda found: f"layer{int(found[1]) - 1}.", name)


def our_name(name: str) -> str:
    """ "layer1.0.bn1.weight" -> "res2.0.conv1.norm.weight"; names that are ours already stay."""
    name = _substitute(name, _PUBLISHED_TO_OURS)
    return re.sub(r"^layer(\d)\.", lambda found: f"res{int(found[1]) + 1}.", name)


class BackboneBody(nn.Module):
    """Run a backbone whose state dict has the published names; `body` is the checkpoint's name for it."""

    def __init__(self, body: Backbone) -> None:
        super().__init__()
        missing = [name for name in STAGES if name not in body.output_shape()]
        if missing:
            raise ValueError(
                f"VMT reads the maps {', '.join(STAGES)} of its backbone, which lacks {', '.join(missing)}; "
                "set MODEL.RESNETS.OUT_FEATURES or MODEL.SWIN.OUT_FEATURES."
            )
        self.body = body
        shapes = known_shapes({name: body.output_shape()[name] for name in STAGES})
        self.channels = [channels for channels, _ in shapes.values()]
        is_resnet = isinstance(body, ResNet)
        self.has_stem = is_resnet and _stem_of(body).out_channels == STEM_DIM
        if is_resnet:
            body.register_state_dict_post_hook(_rename_saved)
            body.register_load_state_dict_pre_hook(_rename_loaded)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(BT, 3, H, W) -> four maps at strides 4, 8, 16, 32."""
        features = self.body(images)
        return [features[name] for name in STAGES]

    def finest(self, images: Tensor) -> Tensor:
        """The first convolution before norm and ReLU, (BT, 3, H, W) -> (BT, 64, H / 2, W / 2); with `has_stem`."""
        conv = _stem_of(self.body)
        return F.conv2d(images, conv.weight, None, conv.stride, conv.padding)


def _stem_of(body: Backbone) -> nn.Conv2d:
    """The first convolution of a ResNet."""
    return cast(nn.Conv2d, body.get_submodule("stem.conv1"))


def _substitute(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    """Apply the first rule that fits."""
    for pattern, replacement in rules:
        changed, count = re.subn(pattern, replacement, name)
        if count:
            return changed
    return name


def _rename_saved(module: nn.Module, state: dict[str, Tensor], prefix: str, local_metadata: Any) -> None:
    """Give the entries of `module` their published names, in place and in order."""
    own = [name for name in state if name.startswith(prefix)]
    for name in own:
        state[prefix + published_name(name.removeprefix(prefix))] = state.pop(name)


def _rename_loaded(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Give published entries of `module` our names, in place."""
    for name in [name for name in state if name.startswith(prefix)]:
        state[prefix + our_name(name.removeprefix(prefix))] = state.pop(name)
