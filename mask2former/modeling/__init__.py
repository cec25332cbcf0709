"""The parts of the segmenter; importing this package registers them."""

from . import resnet, swin, timm_backbone

__all__ = ["resnet", "swin", "timm_backbone"]
