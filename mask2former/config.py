"""Configuration keys of the segmenter, with the published names and defaults.

`add_maskformer2_config` works on any CfgNode-like tree: ours, detectron2's, or an empty one. It only adds what is
missing, so the order of such calls does not matter and values that are already set stay.
"""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cfg import Cfg

# Read by this package.
_MODEL: dict[str, Any] = {
    "DEVICE": "cuda",
    "META_ARCHITECTURE": "MaskFormer",
    # Per channel, in the order of INPUT.FORMAT.
    "PIXEL_MEAN": [103.53, 116.28, 123.675],
    "PIXEL_STD": [1.0, 1.0, 1.0],
    "BACKBONE": {
        "NAME": "build_resnet_backbone",  # or D2SwinTransformer, build_timm_backbone
        "FREEZE_AT": 2,  # ResNet: 0 trains everything, 1 freezes the stem, 2 also res2, ...
    },
    "RESNETS": {
        "DEPTH": 50,
        "OUT_FEATURES": ["res4"],
        "NORM": "FrozenBN",
        "NUM_GROUPS": 1,
        "WIDTH_PER_GROUP": 64,
        "STRIDE_IN_1X1": True,
        "RES5_DILATION": 1,
        "RES2_OUT_CHANNELS": 256,
        "STEM_OUT_CHANNELS": 64,
        "DEFORM_ON_PER_STAGE": [False, False, False, False],
        "DEFORM_MODULATED": False,
        "DEFORM_NUM_GROUPS": 1,
    },
    "SWIN": {
        "PRETRAIN_IMG_SIZE": 224,
        "PATCH_SIZE": 4,
        "EMBED_DIM": 96,
        "DEPTHS": [2, 2, 6, 2],
        "NUM_HEADS": [3, 6, 12, 24],
        "WINDOW_SIZE": 7,
        "MLP_RATIO": 4.0,
        "QKV_BIAS": True,
        "QK_SCALE": None,
        "DROP_RATE": 0.0,
        "ATTN_DROP_RATE": 0.0,
        "DROP_PATH_RATE": 0.3,
        "APE": False,
        "PATCH_NORM": True,
        "OUT_FEATURES": ["res2", "res3", "res4", "res5"],
        "USE_CHECKPOINT": False,
    },
    "TIMM": {
        "BASE_NAME": "resnet50",
        "OUT_LEVELS": (2, 3, 4, 5),
        "NORM": "FrozenBN",
        "FREEZE_AT": 0,
        "PRETRAINED": False,
    },
    "SEM_SEG_HEAD": {
        "NAME": "SemSegFPNHead",  # every shipped configuration sets MaskFormerHead
        "IN_FEATURES": ["p2", "p3", "p4", "p5"],
        "IGNORE_VALUE": 255,
        "NUM_CLASSES": 54,
        "CONVS_DIM": 128,
        "MASK_DIM": 256,
        "COMMON_STRIDE": 4,
        "NORM": "GN",
        "LOSS_WEIGHT": 1.0,
        "PIXEL_DECODER_NAME": "BasePixelDecoder",  # every shipped configuration sets MSDeformAttnPixelDecoder
        "TRANSFORMER_ENC_LAYERS": 0,
        "DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES": ["res3", "res4", "res5"],
        "DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS": 4,
        "DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS": 8,
    },
    "MASK_FORMER": {
        "DEEP_SUPERVISION": True,
        "NO_OBJECT_WEIGHT": 0.1,
        "CLASS_WEIGHT": 1.0,
        "DICE_WEIGHT": 1.0,
        "MASK_WEIGHT": 20.0,
        "NHEADS": 8,
        "DROPOUT": 0.1,
        "DIM_FEEDFORWARD": 2048,
        "ENC_LAYERS": 0,
        "DEC_LAYERS": 6,
        "PRE_NORM": False,
        "HIDDEN_DIM": 256,
        "NUM_OBJECT_QUERIES": 100,
        "TRANSFORMER_IN_FEATURE": "res5",  # every shipped configuration sets multi_scale_pixel_decoder
        "ENFORCE_INPUT_PROJ": False,
        "SIZE_DIVISIBILITY": 32,  # negative: the backbone's
        "TRANSFORMER_DECODER_NAME": "MultiScaleMaskedTransformerDecoder",
        "TRAIN_NUM_POINTS": 12544,
        "OVERSAMPLE_RATIO": 3.0,
        "IMPORTANCE_SAMPLE_RATIO": 0.75,
        "TEST": {
            "SEMANTIC_ON": True,
            "INSTANCE_ON": False,
            "PANOPTIC_ON": False,
            "OBJECT_MASK_THRESHOLD": 0.0,
            "OVERLAP_THRESHOLD": 0.0,
            "SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE": False,
        },
    },
}

# Nobody reads these: published YAML files set them, because DeepLab's configuration was merged in.
_DEEPLAB_MODEL: dict[str, Any] = {
    "SEM_SEG_HEAD": {
        "LOSS_TYPE": "hard_pixel_mining",
        "PROJECT_FEATURES": ["res2"],
        "PROJECT_CHANNELS": [48],
        "ASPP_CHANNELS": 256,
        "ASPP_DILATIONS": [6, 12, 18],
        "ASPP_DROPOUT": 0.1,
        "USE_DEPTHWISE_SEPARABLE_CONV": False,
    },
    "RESNETS": {"RES4_DILATION": 1, "RES5_MULTI_GRID": [1, 2, 4], "STEM_TYPE": "deeplab"},
}

# Read by the training engine and the image mapper.
_OTHERS: dict[str, Any] = {
    "SOLVER": {
        "OPTIMIZER": "ADAMW",
        "BACKBONE_MULTIPLIER": 0.1,  # learning rate of the backbone relative to the rest
        "WEIGHT_DECAY_EMBED": 0.0,
        "POLY_LR_POWER": 0.9,
        "POLY_LR_CONSTANT_ENDING": 0.0,
    },
    "INPUT": {
        "DATASET_MAPPER_NAME": "mask_former_semantic",
        "COLOR_AUG_SSD": False,
        "SIZE_DIVISIBILITY": -1,
        "IMAGE_SIZE": 1024,  # large-scale jitter
        "MIN_SCALE": 0.1,
        "MAX_SCALE": 2.0,
        "CROP": {"SINGLE_CATEGORY_MAX_AREA": 1.0},
    },
    "TEST": {"DETECTIONS_PER_IMAGE": 100},
}


def add_maskformer2_config(cfg: Cfg) -> None:
    """Add every key of the segmenter that `cfg` lacks, in place."""
    add_missing(cfg, {"MODEL": _MODEL})
    add_missing(cfg, {"MODEL": _DEEPLAB_MODEL})
    add_missing(cfg, _OTHERS)


def add_missing(node: Any, defaults: dict[str, Any]) -> None:
    """Copy `defaults` into a node where it has no such key, group by group; what is there keeps its value.

    New groups get the type of the node, so that a detectron2 configuration stays one throughout.
    """
    for key, value in defaults.items():
        if isinstance(value, dict):
            if key not in node:
                setattr(node, key, type(node)())
            add_missing(getattr(node, key), value)
        elif key not in node:
            setattr(node, key, deepcopy(value))
