"""Every method with products in bfloat16: near what it finds in float32, and a stream ends as the whole video does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden_fill import frames
from ovformer_models import CLIP, FRAME, clip_cfg
from product_counter import ProductCounter
from video_models import load_cfg
from vit_models import PMT, TINY, cfg_of

from lbvq.config import get_cfg
from lbvq.inference.predictor import VideoPredictor
from lbvq.inference.stream import StreamPredictor
from lbvq.modeling.base import FrameSegmenter
from mask2former.bfloat16 import Bfloat16Products
from mask2former.registry import build_model

VIDEO = frames(4, 96, 128, seed=1).permute(0, 2, 3, 1).numpy()  # (T, H, W, 3)
ONLINE = {
    "genvis": "synthetic/genvis_R18_tiny_online.yaml",
    "minvis": "synthetic/minvis_R18_tiny.yaml",
    "visage": "synthetic/visage_R18_tiny.yaml",
    "ctvis": "synthetic/ctvis_R18_tiny.yaml",
    "dvis, online": "synthetic/dvis_R18_tiny_online.yaml",
    "videomt": "synthetic/videomt_tiny.yaml",
}
OFFLINE = {
    "lbvq": "synthetic/lbvq_R18_tiny.yaml",
    "vita": "synthetic/vita_R18_tiny.yaml",
    "dvis, offline": "synthetic/dvis_R18_tiny_offline.yaml",
    "vmt": "synthetic/vmt_R18_tiny.yaml",
}
OPEN_VOCABULARY = {"ovformer, frames": FRAME, "ovformer, clips": CLIP}
METHODS = [*ONLINE, *OFFLINE, "pmt", *OPEN_VOCABULARY]
MOST_SCORES_APART, MOST_PIXELS_APART = 0.01, 0.04  # untrained networks; hardly any logit is far from 0
LEAST_SHARE = {"vmt": 0.2}  # of the products in bfloat16; the others have at least 0.9


def cfg_of_method(method, folder, **changes):
    sizes = {"INPUT__MIN_SIZE_TEST": 0, "TEST__DETECTIONS_PER_IMAGE": 6, **changes}
    if method == "pmt":
        return cfg_of({**PMT, **TINY}, **sizes)
    if method in OPEN_VOCABULARY:
        names = [f"v/{number:05d}.jpg" for number in range(len(VIDEO))]
        return clip_cfg(OPEN_VOCABULARY[method], folder, names, **sizes)
    return load_cfg({**ONLINE, **OFFLINE}[method], **sizes)


def built(cfg):
    torch.manual_seed(0)
    return build_model(cfg).eval()


def segmented(model, bfloat16):
    """Scores, dense masks and the share of products in bfloat16."""
    sample = {"image": list(torch.from_numpy(VIDEO).permute(0, 3, 1, 2)), "height": 96, "width": 128}
    sample["file_names"] = [f"v/{number:05d}.jpg" for number in range(len(VIDEO))]
    with ProductCounter() as counter:
        if bfloat16:
            with Bfloat16Products().active():
                output = model([sample])
        else:
            output = model([sample])
    masks = torch.as_tensor(np.asarray(output["pred_masks"]))
    return np.array(output["pred_scores"]), masks, counter.share(torch.bfloat16)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_found_is_near_what_is_found_in_float32(method, tmp_path):
    model = built(cfg_of_method(method, tmp_path))
    scores, masks, share = segmented(model, bfloat16=False)
    low_scores, low_masks, low_share = segmented(model, bfloat16=True)
    assert share == 0 and low_share >= LEAST_SHARE.get(method, 0.9)
    assert 0 < np.abs(scores - low_scores).max() < MOST_SCORES_APART
    assert masks.any() and (masks != low_masks).float().mean() < MOST_PIXELS_APART


@pytest.mark.parametrize("method", ONLINE)
def test_a_stream_ends_as_the_whole_video_does(method, tmp_path):
    cfg = cfg_of_method(method, tmp_path, TEST__AMP__CPU="bfloat16")
    model = built(cfg)
    want = VideoPredictor(model, cfg=cfg)(VIDEO)
    stream = StreamPredictor(model, cfg=cfg)
    stream.steps(VIDEO)
    got = stream.finish()
    assert got.labels.tolist() == want.labels.tolist()
    np.testing.assert_allclose(got.scores, want.scores, rtol=1e-5)
    assert (got.masks.to_dense() != want.masks.to_dense()).float().mean() < 1e-4


def test_predictors_follow_the_setting_and_tell_masks_and_scores_in_float32(tmp_path):
    cfg = cfg_of_method("minvis", tmp_path)
    model = built(cfg)
    assert isinstance(model, FrameSegmenter)
    types, shares = set(), []

    def note_types(_module, _inputs, out):
        types.update(value.dtype for name, value in out[0].items() if name.startswith("pred"))

    model.sem_seg_head.register_forward_hook(note_types)
    for setting in ("float32", "bfloat16"):
        cfg.TEST.AMP.CPU = setting
        predictor = VideoPredictor(model, cfg=cfg)
        with ProductCounter() as counter:
            predictor(VIDEO)
        shares.append(counter.share(torch.bfloat16))
    assert shares[0] == 0 and shares[1] > 0.9
    assert types == {torch.float32}


def test_full_precision_is_what_a_configuration_starts_with():
    assert get_cfg().TEST.AMP.CPU == "float32"
