"""Keys of the engine and the data: the part of detectron2's tree that is used here, and our own additions.

Names, defaults and types are detectron2's, so published YAML files load unchanged. Keys marked (ours) have no published
counterpart. Keys that exist only so that published files load are listed with reasons in `unused.py`. The keys of the
frame segmenter (backbones, head, MASK_FORMER) are in `mask2former/config.py`, those of each method in `methods.py`.
"""

from __future__ import annotations

from typing import Any

from lbvq.config.node import VERSION

ENGINE: dict[str, Any] = {
    "VERSION": VERSION,  # of the key names; files must say 2
    "OUTPUT_DIR": "./output",  # checkpoints, logs, metrics.json and results go here
    "SEED": -1,  # of numpy, torch and python; negative: a new one for every run
    "CUDNN_BENCHMARK": False,  # let cuDNN try its algorithms; helps when input sizes repeat
    "FLOAT32_PRECISION": "",  # "highest", "high" or "medium" matrix products on CUDA; "" leaves torch's setting
    "VIS_PERIOD": 0,  # see unused.py
    "WANDB_PROJECT": "",  # (ours) Weights & Biases project that gets the training numbers; "" is off
}

MODEL: dict[str, Any] = {
    "COMPILE": False,  # (ours) torch.compile the heavy parts; the first call of each input size is slow
    "META_ARCHITECTURE": "GeneralizedRCNN",  # registered model class, e.g. Lbvq
    "WEIGHTS": "",  # file, https:// or detectron2:// address to start from; "" is random
    "GRAPHS": "",  # (ours) list of exported graphs to run frames with, as `lbvq export` writes it; "" is this code
    "CATEGORIES": {  # (ours) of the classes a model was trained on; they win over those of DATASETS.TEST
        "NAMES": [],  # by class index; [] when they are not known
        "IDS": [],  # category ids in results files, by class index; [] means class index + 1
    },
    "MASK_ON": False,  # see unused.py
    "KEYPOINT_ON": False,  # see unused.py
    "LOAD_PROPOSALS": False,  # see unused.py
}

DATA: dict[str, Any] = {
    "INPUT": {
        "MIN_SIZE_TRAIN": (800,),  # short sides to draw from, pixels
        "MIN_SIZE_TRAIN_SAMPLING": "choice",  # "choice" or "range"; with "_by_clip" one draw per clip
        "MAX_SIZE_TRAIN": 1333,  # limit of the long side
        "MIN_SIZE_TEST": 800,  # short side at test time; 0 keeps the frame size
        "MAX_SIZE_TEST": 1333,  # limit of the long side at test time
        "RANDOM_FLIP": "horizontal",  # "horizontal", "vertical", "none", or "flip_by_clip"
        "CROP": {
            "ENABLED": False,  # random crop of training frames
            "TYPE": "relative_range",  # or "relative", "absolute", "absolute_range"
            "SIZE": [0.9, 0.9],  # shares or pixels, as TYPE says
        },
        "FORMAT": "BGR",  # channel order the model sees: BGR or RGB
        "MASK_FORMAT": "polygon",  # see unused.py
    },
    "DATASETS": {
        "TRAIN": (),  # registered names
        "TEST": (),  # registered names, each is evaluated
        "REGISTER": (),  # (ours) data sets by path, each "name=annotations.json:frames", which are registered first
        "PROPOSAL_FILES_TRAIN": (),  # see unused.py
        "PROPOSAL_FILES_TEST": (),  # see unused.py
        "PRECOMPUTED_PROPOSAL_TOPK_TRAIN": 2000,  # see unused.py
        "PRECOMPUTED_PROPOSAL_TOPK_TEST": 1000,  # see unused.py
    },
    "DATALOADER": {
        "NUM_WORKERS": 4,  # loader processes per training process
        "ASPECT_RATIO_GROUPING": True,  # batches of all-landscape or all-portrait images
        "SAMPLER_TRAIN": "TrainingSampler",  # or RepeatFactorTrainingSampler
        "REPEAT_THRESHOLD": 0.0,  # categories in fewer images than this share are repeated
        "REPEAT_SQRT": True,  # repeat by the square root of threshold / share
        "FILTER_EMPTY_ANNOTATIONS": True,  # drop training records without an object
        "CHECK_FILES": True,  # before the first step, look whether every image that is listed is there
    },
}

SOLVER: dict[str, Any] = {
    "LR_SCHEDULER_NAME": "WarmupMultiStepLR",  # or ...CosineLR, ...StepWithFixedGammaLR, ...PolyLR, TwoStagePolyLR
    "MAX_ITER": 40000,  # training iterations
    "BASE_LR": 0.001,  # learning rate of everything but the backbone
    "BASE_LR_END": 0.0,  # last learning rate of the cosine schedule
    "PARAMETER_GROUPS": "modules",  # (ours) rates and decays by "modules", or by "layers" of a plain ViT; see solver.py
    "MOMENTUM": 0.9,  # of SGD
    "NESTEROV": False,  # see unused.py
    "WEIGHT_DECAY": 0.0001,  # of all parameters not named below
    "WEIGHT_DECAY_NORM": 0.0,  # of normalisation layers
    "WEIGHT_DECAY_BIAS": None,  # see unused.py
    "BIAS_LR_FACTOR": 1.0,  # see unused.py
    "GAMMA": 0.1,  # factor of the learning rate at each step
    "STEPS": (30000,),  # iterations at which the learning rate drops
    "NUM_DECAYS": 3,  # drops of WarmupStepWithFixedGammaLR
    "WARMUP_FACTOR": 0.001,  # share of the learning rate at iteration 0
    "WARMUP_ITERS": 1000,  # iterations until the full learning rate
    "WARMUP_METHOD": "linear",  # or "constant"
    "RESCALE_INTERVAL": False,  # start the schedule after the warm-up instead of under it
    "CHECKPOINT_PERIOD": 5000,  # iterations between checkpoints
    "MAX_TO_KEEP": 0,  # (ours) periodic checkpoints kept, older ones are deleted; 0 keeps all
    "BEST_METRIC": "",  # (ours) e.g. "segm/AP": keep model_best.pth by it; "" is off
    "EARLY_STOP": 0,  # (ours) end after so many evaluations without a new best BEST_METRIC; 0 is off
    "REST_BACKBONE_ITERS": 0,  # (ours) iterations in which the backbone does not learn yet
    "IMS_PER_BATCH": 16,  # clips or images per iteration, all processes together
    "ACCUMULATE_STEPS": 1,  # (ours) split each batch into so many forward passes to save memory
    "ACTIVATION_CHECKPOINTING": False,  # (ours) recompute layers in the backward pass instead of keeping them
    "FIND_UNUSED_PARAMETERS": False,  # (ours) for models whose parameters are not all used in every iteration
    "REFERENCE_WORLD_SIZE": 0,  # processes the schedule was made for; rescales it to the real number; 0 is off
    "CLIP_GRADIENTS": {
        "ENABLED": False,  # limit gradients
        "CLIP_TYPE": "value",  # "value" and "norm" act on each parameter, "full_model" on all together
        "CLIP_VALUE": 1.0,  # limit; full_model: of the 2-norm of all gradients
        "NORM_TYPE": 2.0,  # of CLIP_TYPE "norm" only
    },
    "AMP": {
        "ENABLED": False,  # mixed precision in training; the CPU does bfloat16 only, and warns otherwise
        "DTYPE": "float16",  # (ours) float16 with loss scaling, or bfloat16 without
    },
}

TEST: dict[str, Any] = {
    "EVAL_PERIOD": 0,  # iterations between evaluations while training; 0: only at the end
    "EXPECTED_RESULTS": [],  # rows [task, metric, value, tolerance] checked after the last evaluation
    "DETECTIONS_PER_IMAGE": 100,  # most objects reported per image or video
    "MATCH_FRAMES": False,  # (ours) MinVIS' inference with any method: match frame queries, leave the clip module out
    "ANALYSIS": True,  # (ours) print where AP is lost after the scores of videos, and write analysis.json beside them
    "REPORT": "",  # (ours) folder of a report of the scores of videos, with a page to look at; "": none
    "FEATURE_BUDGET_MB": 512,  # (ours) mask features of a video held in memory before spilling to disk, MiB
    "AMP": {
        "ENABLED": True,  # (ours) float16 at test time on CUDA, as the published scripts do; of no effect on the CPU
        "CPU": "float32",  # (ours) products at test time on the CPU in "float32", "bfloat16", or "auto": what is faster
    },
    "KEYPOINT_OKS_SIGMAS": [],  # see unused.py
    "AUG": {
        "ENABLED": False,  # see unused.py
        "MIN_SIZES": (400, 500, 600, 700, 800, 900, 1000, 1100, 1200),  # see unused.py
        "MAX_SIZE": 4000,  # see unused.py
        "FLIP": True,  # see unused.py
    },
    "PRECISE_BN": {
        "ENABLED": False,  # see unused.py
        "NUM_ITER": 200,  # see unused.py
    },
}

DEFAULTS: dict[str, Any] = {
    **ENGINE,
    "MODEL": MODEL,
    **DATA,
    "SOLVER": SOLVER,
    "TEST": TEST,
}

IGNORED_GROUPS = (  # of detectron2's box detectors: a full detectron2 dump loads, these parts of it are skipped
    "GLOBAL",
    "MODEL.ANCHOR_GENERATOR",
    "MODEL.FPN",
    "MODEL.PANOPTIC_FPN",
    "MODEL.PROPOSAL_GENERATOR",
    "MODEL.RETINANET",
    "MODEL.ROI_BOX_CASCADE_HEAD",
    "MODEL.ROI_BOX_HEAD",
    "MODEL.ROI_HEADS",
    "MODEL.ROI_KEYPOINT_HEAD",
    "MODEL.ROI_MASK_HEAD",
    "MODEL.RPN",
)
