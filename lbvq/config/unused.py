"""Published keys that nothing reads, and why.

They exist because published YAML files set them. A merge that sets one to a value outside `quiet` (the values found in
published files, which are as good as not set) logs a warning, so nobody tunes a key without effect. A test holds this
list equal to the keys that no source file reads.
"""

from __future__ import annotations

from fvcore.common.config import CfgNode as FvcoreCfgNode

_BOXES = "it belongs to detectron2's box and keypoint detectors"
_DEEPLAB = "it belongs to DeepLab heads"
_PROPOSALS = "precomputed proposals are not supported"
_TTA = "test-time augmentation is not supported"
_STEM = "the ResNet stem is always a 7x7 convolution and res5 has no grid of dilations"
_PUBLISHED = "the published code does not read it either"
_WHOLE_CLIP = "a crop, a turn or a flip serves a whole clip"

_PUBLISHED_VIDEO = "the published code does not read it when it trains on videos"
_NO_PART = "neither VidEoMT nor PMT has a part that it is about"
_OF_VIDEOMT = {  # of MODEL.BACKBONE
    **dict.fromkeys(("CONTEXT_FILTER_SIZE", "DIM_FEEDFORWARD", "DYNAMIC_EVAL", "ENC_LAYERS", "ENFORCE_INPUT_PROJ"), ()),
    **dict.fromkeys(("FUSED_QKV", "MASKED", "NHEADS", "NUM_Q", "PRE_NORM", "REID_BRANCH", "TRACKER_BLOCKS"), ()),
    **dict.fromkeys(("TRANSFORMER_IN_FEATURE", "WINDOW_INFERENCE"), ()),
    "DROPOUT": (0.0,),
}
_KIND = "the kind of a data set is known from its registration"
_PANOPTIC = "it belongs to panoptic and semantic segmentation"

UNUSED_KEYS: dict[str, tuple[str, tuple]] = {  # key: (reason, quiet values besides the default)
    "VIS_PERIOD": ("training images are not drawn", ()),
    "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA": ("it belongs to semantic segmentation", ()),
    "INPUT.SIZE_DIVISIBILITY": ("the model pads its input, see MODEL.MASK_FORMER.SIZE_DIVISIBILITY", ()),
    "INPUT.MASK_FORMAT": ("masks are always bitmaps", ("bitmask",)),
    "DATASETS.PROPOSAL_FILES_TRAIN": (_PROPOSALS, ()),
    "DATASETS.PROPOSAL_FILES_TEST": (_PROPOSALS, ()),
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN": (_PROPOSALS, ()),
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST": (_PROPOSALS, ()),
    "MODEL.KEYPOINT_ON": (_BOXES, ()),
    "MODEL.LOAD_PROPOSALS": (_PROPOSALS, ()),
    "MODEL.MASK_ON": ("every model here predicts masks", (True,)),
    "MODEL.RESNETS.DEFORM_MODULATED": ("deformable ResNet blocks are not supported", ()),
    "MODEL.RESNETS.DEFORM_NUM_GROUPS": ("deformable ResNet blocks are not supported", ()),
    "MODEL.RESNETS.RES4_DILATION": (_DEEPLAB, ()),
    "MODEL.RESNETS.RES5_MULTI_GRID": (_STEM, ([1, 1, 1],)),
    "MODEL.RESNETS.STEM_TYPE": (_STEM, ("basic",)),
    "MODEL.SEM_SEG_HEAD.IGNORE_VALUE": ("it belongs to semantic segmentation", ()),
    "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT": ("losses are weighted by MODEL.MASK_FORMER.*_WEIGHT", ()),
    "MODEL.SEM_SEG_HEAD.LOSS_TYPE": (_DEEPLAB, ()),
    "MODEL.SEM_SEG_HEAD.PROJECT_FEATURES": (_DEEPLAB, ()),
    "MODEL.SEM_SEG_HEAD.PROJECT_CHANNELS": (_DEEPLAB, ()),
    "MODEL.SEM_SEG_HEAD.ASPP_CHANNELS": (_DEEPLAB, ()),
    "MODEL.SEM_SEG_HEAD.ASPP_DILATIONS": (_DEEPLAB, ()),
    "MODEL.SEM_SEG_HEAD.ASPP_DROPOUT": (_DEEPLAB, ()),
    "MODEL.SEM_SEG_HEAD.USE_DEPTHWISE_SEPARABLE_CONV": (_DEEPLAB, ()),
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS": (f"{_PUBLISHED}; there are always 4 points", ()),
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS": (
        f"{_PUBLISHED}; MODEL.MASK_FORMER.NHEADS gives the number of heads",
        (),
    ),
    "MODEL.MASK_FORMER.ENC_LAYERS": (f"{_PUBLISHED}; see MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", ()),
    "MODEL.MASK_FORMER.TEST.WINDOW_INFERENCE": (
        "a video is always encoded in pieces; MODEL.MINVIS.WINDOW_SIZE and MODEL.VISAGE.WINDOW_SIZE limit them",
        (True,),
    ),
    "MODEL.MASK_FORMER.TEST.SEMANTIC_ON": (_PANOPTIC, (False,)),
    "MODEL.MASK_FORMER.TEST.INSTANCE_ON": ("instances are what is always returned", (True,)),
    "MODEL.MASK_FORMER.TEST.PANOPTIC_ON": (_PANOPTIC, ()),
    "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD": (_PANOPTIC, (0.8,)),
    "MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD": (_PANOPTIC, (0.8,)),
    "MODEL.MASK_FORMER.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE": (_PANOPTIC, ()),
    "MODEL.MASK_FORMER.AGNOSTIC_CLASSIFIER": (_PUBLISHED, ()),
    "MODEL.LBVQ.DROPOUT": (_PUBLISHED, ()),
    "MODEL.LBVQ.MULTI_CLS_ON": (_PUBLISHED, ()),
    "MODEL.LBVQ.APPLY_CLS_THRES": (_PUBLISHED, ()),
    "MODEL.VITA.DROPOUT": (_PUBLISHED, ()),
    "MODEL.VITA.MULTI_CLS_ON": (_PUBLISHED, ()),
    "MODEL.VITA.APPLY_CLS_THRES": (_PUBLISHED, ()),
    "MODEL.BACKBONE.TEST.WINDOW_INFERENCE": ("a video is always encoded in pieces of TEST.WINDOW_SIZE frames", ()),
    "MODEL.BACKBONE.TEST.INSTANCE_ON": (_PANOPTIC, ()),
    "MODEL.BACKBONE.TEST.SEMANTIC_ON": (_PANOPTIC, ()),
    "MODEL.BACKBONE.TEST.PANOPTIC_ON": (_PANOPTIC, ()),
    "MODEL.BACKBONE.TEST.OBJECT_MASK_THRESHOLD": (_PANOPTIC, (0.8,)),
    "MODEL.BACKBONE.TEST.OVERLAP_THRESHOLD": (_PANOPTIC, (0.8,)),
    "MODEL.BACKBONE.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE": (_PANOPTIC, ()),
    "MODEL.BACKBONE.DEC_LAYERS": ("there are losses of every block of the queries", (3, 4, 10)),
    "MODEL.BACKBONE.ATTN_MASK_ANNEALING_ENABLED": (_PUBLISHED_VIDEO, ()),
    "MODEL.BACKBONE.START_STEPS": (_PUBLISHED_VIDEO, ()),
    "MODEL.BACKBONE.END_STEPS": (_PUBLISHED_VIDEO, ()),
    **{f"MODEL.BACKBONE.{key}": (_NO_PART, quiet) for key, quiet in _OF_VIDEOMT.items()},
    "DATASETS.DATASET_NEED_MAP": ("classes of different data sets are matched by their names", ([True, False],)),
    "DATASETS.DATASET_TYPE": (_KIND, (["image_instance", "video_instance"],)),
    "DATASETS.DATASET_TYPE_TEST": (_KIND, ()),
    "INPUT.COCO_PRETRAIN": ("pseudo clips are made of every set of images in DATASETS.TRAIN", ()),
    "INPUT.PRETRAIN_SAME_CROP": (_WHOLE_CLIP, ()),
    "INPUT.IMAGE_MODE": ("a set of images makes pseudo clips of INPUT.SAMPLING_FRAME_NUM frames", ()),
    "INPUT.CROP.CLIP_FRAME_CNT": (_WHOLE_CLIP, (6, 8, 10)),
    "INPUT.CROP.SAME_CROP": (_WHOLE_CLIP, ()),
    "MODEL.CLIP_NUM_FRAMES": (_PUBLISHED, ()),
    "MODEL.SEM_SEG_HEAD.RETURN_TRANSFORMER_FEATURE": (_PUBLISHED, ()),
    "MODEL.CL_PLUGIN.FUSION_LOSS": (_PUBLISHED, ()),
    "MODEL.CL_PLUGIN.BIO_CL": (_PUBLISHED, ()),
    "MODEL.CL_PLUGIN.ONE_DIRECTION": (_PUBLISHED, ()),
    "MODEL.CL_PLUGIN.NOISE_EMBED": ("no published model is trained with it", ()),
    "MODEL.TRACKER.NOISE_FRAME_RATIO": (_PUBLISHED, ()),
    "MODEL.TRACKER.REID_WEIGHT": ("the losses are weighted by MODEL.CL_PLUGIN.REID_WEIGHT", ()),
    "MODEL.TRACKER.AUX_REID_WEIGHT": ("the losses are weighted by MODEL.CL_PLUGIN.AUX_REID_WEIGHT", ()),
    "MODEL.VIT_ADAPTER.WITH_CP": ("SOLVER.ACTIVATION_CHECKPOINTING does what it is for", ()),
    "TEST.TEST_INTERPOLATE_CHUNK_SIZE": ("masks are resized in pieces that fit the memory", ()),
    "TEST.TEST_INSTANCE_CHUNK_SIZE": ("masks are resized in pieces that fit the memory", ()),
    "TEST.TO_CPU_FRAMES": ("TEST.FEATURE_BUDGET_MB says what is kept in memory", ()),
    "SOLVER.NESTEROV": (_PUBLISHED, ()),
    "SOLVER.BIAS_LR_FACTOR": (_PUBLISHED, ()),
    "SOLVER.WEIGHT_DECAY_BIAS": (_PUBLISHED, ()),
    "TEST.KEYPOINT_OKS_SIGMAS": (_BOXES, ()),
    "TEST.AUG.ENABLED": (_TTA, ()),
    "TEST.AUG.MIN_SIZES": (_TTA, ()),
    "TEST.AUG.MAX_SIZE": (_TTA, ()),
    "TEST.AUG.FLIP": (_TTA, ()),
    "TEST.PRECISE_BN.ENABLED": ("no published model trains a BatchNorm layer", ()),
    "TEST.PRECISE_BN.NUM_ITER": ("no published model trains a BatchNorm layer", ()),
}


def register_unused_keys(cfg: FvcoreCfgNode) -> None:
    """Make merges into `cfg` warn about the keys above."""
    for key, (reason, quiet_values) in UNUSED_KEYS.items():
        cfg.register_unused_key(key, reason, quiet_values)
