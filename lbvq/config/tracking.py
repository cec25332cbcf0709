"""Keys of the methods with a tracker: CTVIS, DVIS and DVIS++, which share groups."""

from __future__ import annotations

from typing import Any

from fvcore.common.config import CfgNode as FvcoreCfgNode

from lbvq.config.methods import CLIPS_OF_RUNS, JOINT_TRAINING, add_minvis_config
from mask2former.config import add_missing

# -- CTVIS, whose segmenter DVIS++ builds on -------------------------------------------------------------------------

CONTRASTIVE_SEGMENTER: dict[str, Any] = {
    "INPUT": {"PSEUDO": {"ROTATE_ANGLE": 15}},  # "rotation" of pseudo clips turns by at most so many degrees
    "MODEL": {
        "MASK_FORMER": {
            "REID_HIDDEN_DIM": 256,  # width of the head whose vectors are compared
            "NUM_REID_HEAD_LAYERS": 3,  # its layers; 0: queries are compared as they are
        },
        "CL_PLUGIN": {
            "CL_PLUGIN_NAME": "CTCLPlugin",  # the only one
            "REID_WEIGHT": 2.0,  # weight of the contrastive loss
            "AUX_REID_WEIGHT": 3.0,  # and of its cosine part
            "NUM_NEGATIVES": 99,  # most other queries an object is told from
            "MOMENTUM_EMBED": True,  # compare with the moving average half of the time
            "PAD_TARGETS": True,  # (ours) False: match against masks without padding, at wrong places, as published
            "SKIP_FIRST_APPEARANCE": False,  # (ours) True: as published, skip some objects when they appear first
            "FUSION_LOSS": False,  # see unused.py
            "BIO_CL": False,  # see unused.py
            "ONE_DIRECTION": True,  # see unused.py
            "NOISE_EMBED": False,  # see unused.py
        },
    },
}

CTVIS: dict[str, Any] = {
    "FIND_UNUSED_PARAMETERS": False,  # as SOLVER.FIND_UNUSED_PARAMETERS
    "INPUT": {
        "COCO_PRETRAIN": None,  # see unused.py
        "PRETRAIN_SAME_CROP": False,  # see unused.py
        "IMAGE_MODE": False,  # see unused.py
        "CROP": {
            "CLIP_FRAME_CNT": 1,  # see unused.py
            "SAME_CROP": True,  # see unused.py
        },
    },
    "MODEL": {
        "CLIP_NUM_FRAMES": 20,  # see unused.py
        "TRACKER": {
            "TRACKER_NAME": "SimpleTracker",  # the only one
            "MATCH_METRIC": "bisoftmax",  # the only one
            "MATCH_TYPE": "greedy",  # the only one
            "TEMPORAL_SCORE_TYPE": "mean",  # the only one
            "INFERENCE_SELECT_THR": 0.01,  # class probability above which a query is a detection
            "INIT_SCORE_THR": 0.01,  # and above which it may begin a track
            "MASK_NMS_THR": 0.6,  # IoU above which the worse of two detections is dropped
            "MATCH_SCORE_THR": 0.2,  # similarity above which a detection continues a track
            "FRAME_WEIGHT": True,  # weigh tracks that fit by their number of appearances
            "LEAST_COSINE": -1.0,  # (ours) least cosine for continuing a track; with -1, as published, there is none
            "NOISE_FRAME_NUM": 8,  # after this frame, tracks are left out of the result that appeared in
            "SUPPRESS_FRAME_NUM": 3,  # fewer frames than this and
            "NONE_FRAME_NUM": 2,  # in none of so many last ones
            "NOISE_FRAME_RATIO": 0.4,  # see unused.py
            "REID_WEIGHT": 2.0,  # see unused.py
            "AUX_REID_WEIGHT": 3.0,  # see unused.py
            "MEMORY_BANK": {
                "EMBED_TYPE": "similarity_guided",  # the only one
                "NUM_DEAD_FRAMES": 20,  # frames without an appearance after which a track is forgotten
                "maximum_cache": 10,  # vectors of a track that a new one is compared with
            },
        },
    },
    "SOLVER": {"DETECTOR_MULTIPLIER": 1.0},  # learning rate of all but the backbone and the re-identification head
    "TEST": {
        "NUM_CLIP_FRAMES": 5,  # most frames encoded at once at test time
        "TEST_INTERPOLATE_CHUNK_SIZE": 5,  # see unused.py
        "TEST_INSTANCE_CHUNK_SIZE": 5,  # see unused.py
        "TO_CPU_FRAMES": 40,  # see unused.py
    },
}


def add_ctvis_config(cfg: FvcoreCfgNode) -> None:
    """Add CTVIS' keys, MinVIS' keys, clip sampling and joint training."""
    add_minvis_config(cfg)
    add_missing(cfg, JOINT_TRAINING)
    add_missing(cfg, CONTRASTIVE_SEGMENTER)
    add_missing(cfg, CTVIS)


# -- DVIS and DVIS++ -------------------------------------------------------------------------------------------------

DVIS: dict[str, Any] = {
    "MODEL": {
        "MASK_FORMER": {
            "REID_BRANCH": True,  # of DVIS++: join the vectors of CTVIS to the queries
            "TEST": {
                "MAX_NUM": 20,  # most (object, class) pairs reported per video
                "TASK": "vis",  # the only one here
                "WINDOW_SIZE": 3,  # most frames encoded at once at test time
            },
        },
        "SEM_SEG_HEAD": {"RETURN_TRANSFORMER_FEATURE": False},  # see unused.py
        "TRACKER": {
            "DECODER_LAYERS": 6,  # layers
            "NOISE_MODE": "none",  # of DVIS++ in training: none, rs, wa or cc, see lbvq/modeling/dvis/noise.py
            "NOISE_RATIO": 0.5,  # share of the frames with noise
            "USE_CL": True,  # of DVIS++: contrastive loss of the tracker
            "INVERSE_ORDER": True,  # (ours) of DVIS: as published, use the inverse of the order that matching finds
            "REUSE_QUERIES": False,  # (ours) of DVIS: as published (True), objects of later frames may share a query
            "LAST_FRAME_LABELS": False,  # (ours) of DVIS: as published (True), hidden in the last frame: "no object"
            "EARLIER_MATCH": False,  # (ours) of DVIS++: as published (True), contrast by the match of the layer before
        },
        "REFINER": {
            "DECODER_LAYERS": 6,  # layers
            "USE_CL": True,  # of DVIS++: contrastive loss of the refiner
        },
        "VIT_ADAPTER": {
            "NAME": "vitl",  # size of the plain ViT: vits, vitb or vitl
            "VIT_WEIGHT": "dinov2_vitl14_pretrain.pth",  # file that training starts the ViT from; "": none
            "FREEZE_VIT": True,  # do not train the ViT
            "FINETUNE": False,  # but for the blocks of
            "FINETUNE_INDEXES": [0],  # these quarters of it
            "WITH_CP": True,  # see unused.py
        },
    },
}


def add_dvis_config(cfg: FvcoreCfgNode) -> None:
    """Add the keys of DVIS and DVIS++, those of the segmenter of CTVIS, clip sampling and joint training."""
    add_minvis_config(cfg)
    add_missing(cfg, JOINT_TRAINING)
    add_missing(cfg, CLIPS_OF_RUNS)
    add_missing(cfg, CONTRASTIVE_SEGMENTER)
    add_missing(cfg, DVIS)
