"""The parts of the segmenter; importing this package registers them."""

from . import head, maskformer, pixel_decoder, resnet, swin, timm_backbone, transformer_decoder, vit_adapter

__all__ = [
    "head",
    "maskformer",
    "pixel_decoder",
    "resnet",
    "swin",
    "timm_backbone",
    "transformer_decoder",
    "vit_adapter",
]
