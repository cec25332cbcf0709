"""Keys of each method, one section per method.

Every `add_*_config` takes the configuration it extends, ours or detectron2's, and adds the keys it lacks; existing keys
keep their values, so calling one twice, or after `get_cfg()`, changes nothing.
"""

from __future__ import annotations

from typing import Any

from fvcore.common.config import CfgNode as FvcoreCfgNode

from lbvq.config.defaults import ENGINE, MODEL, SOLVER, TEST
from mask2former.config import add_missing

# -- shared by several methods ---------------------------------------------------------------------------------------

CLIP_SAMPLING: dict[str, Any] = {
    "INPUT": {
        "SAMPLING_FRAME_NUM": 2,  # frames of a training clip
        # how far from the reference frame the others may lie, frames; with NUM = 2 RANGE + 1 frames follow each other
        "SAMPLING_FRAME_RANGE": 20,
        "SAMPLING_FRAME_REPEATS": True,  # (ours) a frame may come several times; False: only if there are too few
        "SAMPLING_FRAME_SHUFFLE": False,  # shuffle the frames of a clip
        "AUGMENTATIONS": [],  # of "brightness", "contrast", "saturation", "rotation"
    }
}

JOINT_TRAINING: dict[str, Any] = {
    "DATASETS": {
        "DATASET_RATIO": [],  # share of each training set when there are several
        "TARGET": "",  # (ours) data set whose classes are trained; "": the last of TRAIN
    },
    "INPUT": {
        "PSEUDO": {  # clips made from single images
            "AUGMENTATIONS": ["rotation"],  # as INPUT.AUGMENTATIONS
            "MIN_SIZE_TRAIN": (480, 512, 544, 576, 608, 640, 672, 704, 736, 768),  # short sides to draw from
            "MAX_SIZE_TRAIN": 768,  # limit of the long side
            "MIN_SIZE_TRAIN_SAMPLING": "choice_by_clip",  # as INPUT.MIN_SIZE_TRAIN_SAMPLING
            "CROP": {
                "ENABLED": False,  # random crop
                "TYPE": "absolute_range",  # as INPUT.CROP.TYPE
                "SIZE": (384, 600),  # as INPUT.CROP.SIZE
            },
        },
        "LSJ_AUG": {  # large-scale jitter instead of resizing and cropping
            "ENABLED": False,  # use it
            "IMAGE_SIZE": 1024,  # side of the square result
            "MIN_SCALE": 0.1,  # smallest scale
            "MAX_SCALE": 2.0,  # largest scale
        },
    },
}

CLIPS_OF_RUNS: dict[str, Any] = {  # of DVIS, DVIS++, VidEoMT and PMT
    "DATASETS": {
        "DATASET_NEED_MAP": [False],  # see unused.py
        "DATASET_TYPE": ["video_instance"],  # see unused.py
        "DATASET_TYPE_TEST": ["video_instance"],  # see unused.py
    },
    "INPUT": {"REVERSE_AGU": False},  # turn half of the clips of consecutive frames around
}

CLIP_HEAD: dict[str, Any] = {  # the module over frame queries that LBVQ and VITA share
    "NHEADS": 8,  # attention heads
    "DROPOUT": 0.0,  # see unused.py
    "DIM_FEEDFORWARD": 2048,  # width of the feed-forward layers
    "DEC_LAYERS": 6,  # clip decoder layers
    "PRE_NORM": False,  # normalise before attention instead of after
    "HIDDEN_DIM": 256,  # channels
    "NUM_OBJECT_QUERIES": 100,  # clip queries
    "ENFORCE_INPUT_PROJ": True,  # project frame queries even when the width fits
    "NO_OBJECT_WEIGHT": 0.1,  # weight of "no object" in the classification loss
    "DEEP_SUPERVISION": True,  # losses after every clip decoder layer
    "LAST_LAYER_NUM": 3,  # frame decoder outputs the clip module trains on
    "MULTI_CLS_ON": True,  # see unused.py
    "APPLY_CLS_THRES": 0.01,  # see unused.py
    "SIM_USE_CLIP": True,  # similarity loss between frame and clip queries
    "SIM_WEIGHT": 0.5,  # weight of the similarity loss
    "FREEZE_DETECTOR": False,  # train the clip module only
    "TEST_RUN_CHUNK_SIZE": 18,  # frames encoded at once at test time
    "TEST_INTERPOLATE_CHUNK_SIZE": 5,  # frames whose masks are resized at once, on a GPU
}

_OURS: dict[str, Any] = {  # engine keys without a published counterpart, needed when the tree is detectron2's
    "WANDB_PROJECT": ENGINE["WANDB_PROJECT"],
    "MODEL": {"COMPILE": MODEL["COMPILE"]},
    "SOLVER": {
        **{key: SOLVER[key] for key in ("MAX_TO_KEEP", "BEST_METRIC", "ACCUMULATE_STEPS", "PARAMETER_GROUPS")},
        **{key: SOLVER[key] for key in ("ACTIVATION_CHECKPOINTING", "FIND_UNUSED_PARAMETERS")},
        "AMP": {"DTYPE": SOLVER["AMP"]["DTYPE"]},
    },
    "TEST": {key: TEST[key] for key in ("MATCH_FRAMES", "FEATURE_BUDGET_MB", "AMP")},
}


def add_maskformer2_video_config(cfg: FvcoreCfgNode) -> None:
    """Add the clip sampling keys that all video methods read, and our own engine keys."""
    add_missing(cfg, _OURS)
    add_missing(cfg, CLIP_SAMPLING)


# -- LBVQ ------------------------------------------------------------------------------------------------------------

LBVQ: dict[str, Any] = {
    "SAM": False,  # refine the masks with HQ-SAM ViT-H after inference
    "MODEL": {"LBVQ": CLIP_HEAD},
}


def add_lbvq_config(cfg: FvcoreCfgNode) -> None:
    """Add LBVQ's keys: SAM, MODEL.LBVQ, clip sampling and joint training."""
    add_maskformer2_video_config(cfg)
    add_missing(cfg, JOINT_TRAINING)
    add_missing(cfg, LBVQ)


# -- VITA ------------------------------------------------------------------------------------------------------------

VITA: dict[str, Any] = {
    "MODEL": {
        "VITA": {
            **CLIP_HEAD,
            "DEC_LAYERS": 3,  # clip decoder layers
            "ENC_LAYERS": 6,  # layers over the frame queries before the decoder
            "ENC_WINDOW_SIZE": 0,  # frames that see each other in those layers; 0: all
        }
    }
}


def add_vita_config(cfg: FvcoreCfgNode) -> None:
    """Add VITA's keys: MODEL.VITA, clip sampling and joint training."""
    add_maskformer2_video_config(cfg)
    add_missing(cfg, JOINT_TRAINING)
    add_missing(cfg, VITA)


# -- GenVIS ----------------------------------------------------------------------------------------------------------

GENVIS: dict[str, Any] = {
    "MODEL": {
        "GENVIS": {
            "LEN_CLIP_WINDOW": 5,  # frames per step: 1 is online, more is semi-online
        }
    }
}


def add_genvis_config(cfg: FvcoreCfgNode) -> None:
    """Add GenVIS' key and VITA's, on which it builds."""
    add_vita_config(cfg)
    add_missing(cfg, GENVIS)


# -- MinVIS ----------------------------------------------------------------------------------------------------------

MINVIS: dict[str, Any] = {
    "INPUT": {"SAMPLING_FRAME_RATIO": 1.0},  # share of each video's frames that training may use
    "MODEL": {
        "MASK_FORMER": {"TEST": {"WINDOW_INFERENCE": False}},  # see unused.py
        "MINVIS": {  # (ours) constants of the published code
            "NUM_PREDICTIONS": 10,  # most (object, class) pairs reported per video
            "WINDOW_SIZE": 30,  # most frames encoded at once at test time
        },
    },
}


def add_minvis_config(cfg: FvcoreCfgNode) -> None:
    """Add MinVIS' two keys and clip sampling."""
    add_maskformer2_video_config(cfg)
    add_missing(cfg, MINVIS)


# -- Mask2Former-VIS -------------------------------------------------------------------------------------------------

MASK2FORMER_VIS: dict[str, Any] = {
    "MODEL": {
        "MASK2FORMER_VIS": {  # (ours) constants of the published code, and what is odd in it
            "NUM_PREDICTIONS": 10,  # most (object, class) pairs reported per video
            "LABELS_OF_LAST_FRAME": False,  # train as published: absent in the last frame of a clip is "no object"
        },
    },
}


def add_mask2former_vis_config(cfg: FvcoreCfgNode) -> None:
    """Add Mask2Former-VIS' two keys and clip sampling."""
    add_maskformer2_video_config(cfg)
    add_missing(cfg, MASK2FORMER_VIS)


# -- VISAGE ----------------------------------------------------------------------------------------------------------

VISAGE: dict[str, Any] = {
    "INPUT": {"PSEUDO": {"COPY_PASTE": False}},  # paste objects of one image into another for pseudo clips
    "MODEL": {
        "APPEARANCE_WEIGHT": 0.75,  # share of appearance in the matching of frames, the rest is object queries
        "APPEARANCE_DECODER": {
            "IN_FEATURES": ["res3", "res4", "res5"],  # backbone features that appearance is read from
            "REID_WEIGHT": 2.0,  # weight of the contrastive loss of object queries
            "AUX_REID_WEIGHT": 3.0,  # and of its cosine part
            "APP_REID_WEIGHT": 2.0,  # weight of the contrastive loss of appearance
            "APP_AUX_REID_WEIGHT": 3.0,  # and of its cosine part
        },
        "MASK_FORMER": {"MEMORY_BANK": {"BANK_SIZE": 5}},  # frames remembered per object
        "VISAGE": {  # (ours) constants of the published code, and what is odd in it
            "NUM_PREDICTIONS": 0,  # most (object, class) pairs reported per video; 0: as many as there are classes
            "WINDOW_SIZE": 30,  # most frames encoded at once at test time
            "NEWEST_WEIGHS_MOST": False,  # in the memory; as published the oldest frame weighs most
            "SHARED_LABELS": False,  # train as published: absent in one frame of a clip is "no object" in all of them
        },
    },
}


def add_visage_config(cfg: FvcoreCfgNode) -> None:
    """Add VISAGE's keys, MinVIS' keys, clip sampling and joint training."""
    add_minvis_config(cfg)
    add_missing(cfg, JOINT_TRAINING)
    add_missing(cfg, VISAGE)


# -- OVFormer --------------------------------------------------------------------------------------------------------

OVFORMER: dict[str, Any] = {
    "MODEL": {
        "MASK_FORMER": {
            "OBJECT_WEIGHT": 1.0,  # weight of the object / no object loss
            "CLIP_CLASSIFIER": False,  # classify with text embeddings instead of a learned layer
            "AGNOSTIC_CLASSIFIER": False,  # see unused.py
            "CLIP_TEXT_PATH": "",  # .npy of text embeddings, (classes, 512), classes in data set order
            "CLIP_IMAGE_PATH": "",  # .pkl of CLIP embeddings of the test images; "": computed by open_clip
            "CLIP_TRAIN_IMAGE_PATH": "",  # (ours) the same for training
            "CLIP_MODEL": "ViT-B-32-quickgelu",  # (ours) name in open_clip, for what is computed
            "CLIP_WEIGHTS": "openai",  # (ours) tag of open_clip, or a file
            "CLIP_PROMPTS": "photo",  # (ours) prompts for names of classes, see lbvq/inference/vocabulary.py
            "CLASS_COUNTS_PATH": "",  # (ours) .json of training images per class, for negative classes; "": all alike
        },
    }
}


def add_ovformer_config(cfg: FvcoreCfgNode) -> None:
    """Add OVFormer's keys: text and image embeddings, clip sampling."""
    add_maskformer2_video_config(cfg)
    add_missing(cfg, OVFORMER)


# -- VMT -------------------------------------------------------------------------------------------------------------

VMT: dict[str, Any] = {  # (ours) the published code has command line arguments instead
    "MODEL": {
        "VMT": {
            "NUM_CLASSES": 42,  # class outputs; index c is the data set's category id c
            "NUM_OBJECT_QUERIES": 300,  # instance queries
            "HIDDEN_DIM": 256,  # channels
            "NHEADS": 8,  # attention heads
            "DIM_FEEDFORWARD": 1024,  # width of the feed-forward layers
            "DROPOUT": 0.1,  # in training
            "ENC_LAYERS": 6,  # encoder layers
            "DEC_LAYERS": 6,  # decoder layers
            "NUM_FEATURE_LEVELS": 4,  # feature maps of the deformable transformer
            "ENC_POINTS": 4,  # sampling points per level and head in the encoder
            "DEC_POINTS": 4,  # and in the decoder
            "MAX_REFINED_POINTS": 12000,  # most edge pixels per frame that the point transformer takes at once
            "POINT_SUBSET": "even",  # of a frame with more: "even", "random" (as published), or "all" in several runs
            "POINT_LAYERS": 3,  # layers of the point transformer
            "POINT_DIM_FEEDFORWARD": 2048,  # width of its feed-forward layers
            "WRAP_BOXES": True,  # as published: boxes over the top or left border come out empty for the mask head
            "CROP_MASKS": False,  # cut masks to the frame; as published they are squeezed into it, by a pixel or less
            "KEEP_UNUSED_CLASSES": False,  # report classes the data set lacks, as published
            "SCORE_THRESHOLD": 0.001,  # (query, class) pairs below it are not reported
            "CLASS_OFFSET": 1,  # class output of the data set's first class
            "OUTPUT": "refined",  # masks that are reported: refined, second or coarse
            "TRAIN_REFINEMENT": True,  # False: SeqFormer, coarse masks alone
            "TEST_RUN_CHUNK_SIZE": 8,  # frames handled at once at test time, on a GPU
            "DEEP_SUPERVISION": True,  # losses after every decoder layer
            "FOCAL_ALPHA": 0.25,  # of the classification loss
            "CLASS_COST": 2.0,  # matching: class
            "BOX_COST": 5.0,  # matching: box distance
            "GIOU_COST": 2.0,  # matching: generalised IoU
            "CLASS_WEIGHT": 2.0,  # losses: class
            "BOX_WEIGHT": 5.0,  # losses: box distance
            "GIOU_WEIGHT": 2.0,  # losses: generalised IoU
            "MASK_WEIGHT": 2.0,  # losses: focal, on coarse masks
            "DICE_WEIGHT": 5.0,  # losses: dice, on coarse masks
            "REFINE_MASK_WEIGHT": 2.0,  # losses: focal, on refined masks
            "REFINE_DICE_WEIGHT": 5.0,  # losses: dice, on refined masks
            "REFINE_BOUNDARY_WEIGHT": 5.0,  # losses: dice, on boundary pixels of refined masks
            "REFINE_SECOND_WEIGHT": 2.0,  # losses: focal and dice, on second masks
            "FOREGROUND_WEIGHT": 1.0,  # losses: focal, on all refined masks of a frame together
            "FOREGROUND_DICE_WEIGHT": 1.0,  # losses: dice, of the same
        }
    }
}


def add_vmt_config(cfg: FvcoreCfgNode) -> None:
    """Add MODEL.VMT, clip sampling and joint training."""
    add_maskformer2_video_config(cfg)
    add_missing(cfg, JOINT_TRAINING)
    add_missing(cfg, VMT)


# -- VidEoMT and PMT -------------------------------------------------------------------------------------------------

VIDEOMT: dict[str, Any] = {
    "MODEL": {
        "BACKBONE": {  # as published, the settings of the whole network stand here
            "MODEL_NAME": "vit_large_patch14_reg4_dinov2",  # of the ViT, see mask2former/modeling/vit.py
            "IMG_SIZE": 640,  # side of the square that the position table is for; other sizes work
            "PATCH_SIZE": 16,  # pixels per side of a patch, whatever the name says
            "SIZE_DIVISIBILITY": 32,  # frames are padded to a multiple of this
            "SEGMENTER_BLOCKS": [20, 21, 22, 23],  # blocks that the queries go through: the last ones
            "NUM_OBJECT_QUERIES": 100,  # queries
            "NUM_CLASSES": 133,  # classes of the data set
            "HIDDEN_DIM": 1024,  # width of the small networks of the blocks of PMT's decoder
            "NORM_QUERIES": False,  # carry the queries on after the last norm instead of before it
            "DEEP_SUPERVISION": True,  # losses of what enters the blocks of the queries, too
            "CLASS_WEIGHT": 1.0,  # losses and matching: class
            "MASK_WEIGHT": 20.0,  # losses and matching: cross entropy of masks
            "DICE_WEIGHT": 1.0,  # losses and matching: dice of masks
            "NO_OBJECT_WEIGHT": 0.1,  # weight of "no object" in the classification loss
            "TRAIN_NUM_POINTS": 12544,  # points at which masks are compared
            "OVERSAMPLE_RATIO": 3.0,  # candidates per point
            "IMPORTANCE_SAMPLE_RATIO": 0.75,  # share of points where the mask is least certain
            "TEST": {
                "TASK": "vis",  # the only one here
                "MAX_NUM": 20,  # most (object, class) pairs reported per video
                "WINDOW_SIZE": 3,  # most frames whose first blocks are computed at once, on a GPU
                "WINDOW_INFERENCE": True,  # see unused.py
                "INSTANCE_ON": False,  # see unused.py
                "SEMANTIC_ON": True,  # see unused.py
                "PANOPTIC_ON": False,  # see unused.py
                "OBJECT_MASK_THRESHOLD": 0.0,  # see unused.py
                "OVERLAP_THRESHOLD": 0.0,  # see unused.py
                "SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE": False,  # see unused.py
            },
            # for what follows see unused.py
            **dict.fromkeys(("ATTN_MASK_ANNEALING_ENABLED", "REID_BRANCH", "WINDOW_INFERENCE"), True),
            **dict.fromkeys(("DYNAMIC_EVAL", "ENFORCE_INPUT_PROJ", "FUSED_QKV", "MASKED", "PRE_NORM"), False),
            "CONTEXT_FILTER_SIZE": 9,  # see unused.py
            "DEC_LAYERS": 6,  # see unused.py
            "DIM_FEEDFORWARD": 2048,  # see unused.py
            "DROPOUT": 0.1,  # see unused.py
            "ENC_LAYERS": 0,  # see unused.py
            "NHEADS": 8,  # see unused.py
            "NUM_Q": 200,  # see unused.py
            "START_STEPS": [14782, 29564, 44346, 59128],  # see unused.py
            "END_STEPS": [29564, 44346, 59128, 73910],  # see unused.py
            "TRACKER_BLOCKS": [22, 23],  # see unused.py
            "TRANSFORMER_IN_FEATURE": "res5",  # see unused.py
        },
        "VIT": {  # (ours) other sizes than those of a name, and what is odd in the published training
            "EMBED_DIM": 0,  # channels of the ViT; 0: as MODEL.BACKBONE.MODEL_NAME says
            "DEPTH": 0,  # its blocks; 0: the same
            "NUM_HEADS": 0,  # its attention heads; 0: the same
            "SUPERVISE_LAST_INPUT": False,  # losses of what enters the last block, which as published has none
            "HIDDEN_AS_LAST_CLASS": False,  # as published: objects hidden in the last frame learn the last class
            "MIXED_CLIPS": False,  # as published: with several clips per process their last outputs are mixed up
        },
    },
    "SOLVER": {
        "LLRD": 0.8,  # a block of the ViT learns at this share of the rate of the block above; see PARAMETER_GROUPS
        "WARMUP_STEPS": (500, 1000),  # of TwoStagePolyLR: iterations until all but the ViT, and then until the ViT
        "POLY_POWER": 0.9,  # of TwoStagePolyLR
    },
}

PMT: dict[str, Any] = {
    "MODEL": {
        "BACKBONE": {
            "NUM_BLOCKS": 6,  # of the decoder
            "INTERACTION_INDICES": [5, 11, 17, 23],  # blocks of the ViT whose outputs the decoder adds up
            "FROZEN_ENCODER": True,  # never train the ViT
            "EXTRA_BN": True,  # normalise these outputs over the batch
            "DECODER_TYPE": "online",  # the only one here
            "DECODER_PE": "rope",  # the only one here
            "LATERAL_PROJECTION": "mlp",  # the only one here
            "LEVEL_SCALERS": True,  # the only one here
            "RESIDUAL_PATH": True,  # the only one here
            "RESIDUAL_PROJECTION": True,  # the only one here
            "MASKED_ATTN_ENABLED": True,  # every published video model sets it False, and it must be
        }
    }
}


def add_videomt_config(cfg: FvcoreCfgNode) -> None:
    """Add VidEoMT's keys: MODEL.BACKBONE, MODEL.VIT, its schedule, clip sampling and joint training."""
    add_maskformer2_video_config(cfg)
    add_missing(cfg, JOINT_TRAINING)
    add_missing(cfg, CLIPS_OF_RUNS)
    add_missing(cfg, VIDEOMT)


def add_pmt_config(cfg: FvcoreCfgNode) -> None:
    """Add PMT's keys and those it shares with VidEoMT."""
    add_videomt_config(cfg)
    add_missing(cfg, PMT)


# -- mask refinement, for every method -------------------------------------------------------------------------------

REFINE: dict[str, Any] = {
    "REFINE": {
        "NAME": "",  # sam, hq_sam, sam2, sam2_video; "": none, or hq_sam when SAM is True
        "MODEL_TYPE": "vit_h",  # of sam and hq_sam: vit_b, vit_l, vit_h, and vit_tiny for hq_sam
        "CHECKPOINT": "",  # file, for sam2 a folder; "": the published file name in the working directory
        "DEVICE": "",  # "": MODEL.DEVICE
        "HALF": True,  # compute in half precision on CUDA
        "IOU_THRESHOLD": 0.9,  # take the refined mask when its IoU with the original is above this
        "PROMPT": "box",  # box, box_point or mask, of every connected component
        "CONNECTIVITY": 4,  # neighbours that make a component: 4 or 8
        "MIN_AREA": 0,  # keep components with fewer pixels as they are
        "BATCH_SIZE": 64,  # prompts decoded at once
        "SCORE_THRESHOLD": 0.0,  # refine only objects with at least this score
        "WINDOW": 32,  # frames that sam2_video follows an object through
    }
}


def add_refine_config(cfg: FvcoreCfgNode) -> None:
    """Add the settings of mask refinement; `SAM: True` alone is HQ-SAM with these defaults, as published."""
    add_missing(cfg, {"SAM": False})
    add_missing(cfg, REFINE)
