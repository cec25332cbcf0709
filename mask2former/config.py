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
    "DEVICE": "cuda",  # "cuda" or "cpu"; without CUDA the CPU is used
    "META_ARCHITECTURE": "MaskFormer",  # registered model class
    # Per channel, in the order of INPUT.FORMAT.
    "PIXEL_MEAN": [103.53, 116.28, 123.675],
    "PIXEL_STD": [1.0, 1.0, 1.0],  # as PIXEL_MEAN
    "BACKBONE": {
        "NAME": "build_resnet_backbone",  # or D2SwinTransformer, build_timm_backbone
        "FREEZE_AT": 2,  # ResNet: 0 trains everything, 1 freezes the stem, 2 also res2, ...
    },
    "RESNETS": {
        "DEPTH": 50,  # 18, 34, 50, 101 or 152
        "OUT_FEATURES": ["res4"],  # stages whose outputs are used
        "NORM": "FrozenBN",  # normalisation: FrozenBN, BN, SyncBN, ...
        "NUM_GROUPS": 1,  # of the 3 x 3 convolutions
        "WIDTH_PER_GROUP": 64,  # channels of a group in res2
        "STRIDE_IN_1X1": True,  # where a block halves the size: its first convolution, or the 3 x 3 one
        "RES5_DILATION": 1,  # 1, or 2 for a res5 of stride 16
        "RES2_OUT_CHANNELS": 256,  # doubled by every later stage
        "STEM_OUT_CHANNELS": 64,  # channels of the first convolution
        "DEFORM_ON_PER_STAGE": [False, False, False, False],  # must be False
        "DEFORM_MODULATED": False,  # see unused.py
        "DEFORM_NUM_GROUPS": 1,  # see unused.py
    },
    "SWIN": {
        "PRETRAIN_IMG_SIZE": 224,  # side of the images that the weights come from, pixels; of APE
        "PATCH_SIZE": 4,  # side of a patch, pixels
        "EMBED_DIM": 96,  # channels of the first stage
        "DEPTHS": [2, 2, 6, 2],  # blocks of each stage
        "NUM_HEADS": [3, 6, 12, 24],  # attention heads of each stage
        "WINDOW_SIZE": 7,  # side of an attention window, patches
        "MLP_RATIO": 4.0,  # width of the feed-forward layers, in channels
        "QKV_BIAS": True,  # queries, keys and values have a bias
        "QK_SCALE": None,  # of the products; None: one over the root of the channels of a head
        "DROP_RATE": 0.0,  # dropout
        "ATTN_DROP_RATE": 0.0,  # dropout of attention
        "DROP_PATH_RATE": 0.3,  # of the last block; it grows from 0 over the blocks
        "APE": False,  # add learned positions
        "PATCH_NORM": True,  # normalise the patches
        "OUT_FEATURES": ["res2", "res3", "res4", "res5"],  # stages whose outputs are used
        "USE_CHECKPOINT": False,  # compute blocks twice in training instead of keeping their values
    },
    "TIMM": {
        "BASE_NAME": "resnet50",  # model of timm
        "OUT_LEVELS": (2, 3, 4, 5),  # levels used; level n has stride 2^n
        "NORM": "FrozenBN",  # FrozenBN, SyncBN or BN
        "FREEZE_AT": 0,  # as BACKBONE.FREEZE_AT
        "PRETRAINED": False,  # fetch timm's weights
    },
    "SEM_SEG_HEAD": {
        "NAME": "SemSegFPNHead",  # every shipped configuration sets MaskFormerHead
        "IN_FEATURES": ["p2", "p3", "p4", "p5"],  # stages of the backbone that the pixel decoder takes
        "IGNORE_VALUE": 255,  # see unused.py
        "NUM_CLASSES": 54,  # classes, without "no object"
        "CONVS_DIM": 128,  # channels of the pixel decoder
        "MASK_DIM": 256,  # channels of mask features and mask embeddings
        "COMMON_STRIDE": 4,  # of the mask features
        "NORM": "GN",  # normalisation of the convolutions of the pixel decoder
        "LOSS_WEIGHT": 1.0,  # see unused.py
        "PIXEL_DECODER_NAME": "BasePixelDecoder",  # every shipped configuration sets MSDeformAttnPixelDecoder
        "TRANSFORMER_ENC_LAYERS": 0,  # encoder layers of the pixel decoder
        "DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES": ["res3", "res4", "res5"],  # stages that these layers take
        "DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS": 4,  # see unused.py
        "DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS": 8,  # see unused.py
    },
    "MASK_FORMER": {
        "DEEP_SUPERVISION": True,  # losses after every decoder layer
        "NO_OBJECT_WEIGHT": 0.1,  # weight of "no object" in the classification loss
        "CLASS_WEIGHT": 1.0,  # losses and matching: class
        "DICE_WEIGHT": 1.0,  # losses and matching: dice
        "MASK_WEIGHT": 20.0,  # losses and matching: binary cross-entropy of masks
        "NHEADS": 8,  # attention heads
        "DROPOUT": 0.1,  # in training
        "DIM_FEEDFORWARD": 2048,  # width of the feed-forward layers
        "ENC_LAYERS": 0,  # see unused.py
        "DEC_LAYERS": 6,  # decoder layers, one more than are built: the losses before the first count
        "PRE_NORM": False,  # normalise before attention instead of after
        "HIDDEN_DIM": 256,  # channels
        "NUM_OBJECT_QUERIES": 100,  # most objects of a frame
        "TRANSFORMER_IN_FEATURE": "res5",  # every shipped configuration sets multi_scale_pixel_decoder
        "ENFORCE_INPUT_PROJ": False,  # project features even when the width fits
        "SIZE_DIVISIBILITY": 32,  # negative: the backbone's
        "TRANSFORMER_DECODER_NAME": "MultiScaleMaskedTransformerDecoder",  # registered decoder
        "TRAIN_NUM_POINTS": 12544,  # points of a mask that losses and matching look at
        "OVERSAMPLE_RATIO": 3.0,  # so many times these points are drawn, of which
        "IMPORTANCE_SAMPLE_RATIO": 0.75,  # this share are the least certain; the others are random
        "TEST": {
            "SEMANTIC_ON": True,  # see unused.py
            "INSTANCE_ON": False,  # see unused.py
            "PANOPTIC_ON": False,  # see unused.py
            "OBJECT_MASK_THRESHOLD": 0.0,  # see unused.py
            "OVERLAP_THRESHOLD": 0.0,  # see unused.py
            "SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE": False,  # see unused.py
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
        "OPTIMIZER": "ADAMW",  # ADAMW or SGD
        "BACKBONE_MULTIPLIER": 0.1,  # learning rate of the backbone relative to the rest
        "WEIGHT_DECAY_EMBED": 0.0,  # of embeddings
        "POLY_LR_POWER": 0.9,  # of WarmupPolyLR
        "POLY_LR_CONSTANT_ENDING": 0.0,  # of WarmupPolyLR: not below this share of the rate
    },
    "INPUT": {
        "DATASET_MAPPER_NAME": "mask_former_semantic",  # "coco_instance_lsj": large-scale jitter; no other counts
        "COLOR_AUG_SSD": False,  # change the colours of images
        "SIZE_DIVISIBILITY": -1,  # see unused.py
        "IMAGE_SIZE": 1024,  # large-scale jitter
        "MIN_SCALE": 0.1,  # least scale of it
        "MAX_SCALE": 2.0,  # largest scale of it
        "CROP": {"SINGLE_CATEGORY_MAX_AREA": 1.0},  # see unused.py
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
