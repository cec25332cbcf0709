"""Training of every method on the frame segmenter starts from one of images, as the published trainings do."""

from __future__ import annotations

import pytest
import torch
from ovformer_models import CLIP, FRAME, clip_cfg
from video_models import load_cfg

from lbvq.engine.weights import load_weights
from mask2former.registry import build_model

METHODS = ("lbvq", "vita", "genvis_online", "minvis", "visage", "ctvis", "dvis_online", "dvis_offline")
OF_IMAGES = ("backbone.", "sem_seg_head.pixel_decoder.", "sem_seg_head.predictor.")
CLASSIFIER = "sem_seg_head.predictor.class_embed."


def image_weights(folder, cfg):
    """Weights of the frame segmenter of a method whose decoder is Mask2Former's own."""
    decoder = {"MODEL.META_ARCHITECTURE": "VideoMaskFormer_frame", "MODEL.WEIGHTS": ""}
    decoder["MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME"] = "VideoMultiScaleMaskedTransformerDecoder_minvis"
    cfg = cfg.clone()
    cfg.defrost()
    cfg.merge_from_list([word for pair in decoder.items() for word in pair])
    state = build_model(cfg).state_dict()
    state = {name: torch.full_like(value, 0.5) for name, value in state.items() if name.startswith(OF_IMAGES)}
    path = folder / "images.pth"
    torch.save({"model": state}, path)
    return path, state


@pytest.mark.parametrize("method", [*METHODS, "ovformer, frames", "ovformer, clips"])
def test_training_starts_from_a_segmenter_of_images(method, tmp_path):
    if method.startswith("ovformer"):
        cfg = clip_cfg(CLIP if method.endswith("clips") else FRAME, tmp_path, ["v/0.jpg"])
    else:
        cfg = load_cfg(f"synthetic/{method.replace('_', '_R18_tiny_') if '_' in method else f'{method}_R18_tiny'}.yaml")
    path, state = image_weights(tmp_path, cfg)
    model = build_model(cfg)
    report = load_weights(model, path, allow_missing="new_modules")
    wanted = {name for name in state if not name.startswith(CLASSIFIER)}
    assert wanted and wanted <= set(report.matched)
    own = model.state_dict()
    assert all(torch.equal(own[name], state[name]) for name in wanted)


def test_what_was_added_is_needed_to_run_a_model(tmp_path):
    cfg = load_cfg("synthetic/ctvis_R18_tiny.yaml")
    path, _ = image_weights(tmp_path, cfg)
    with pytest.raises(ValueError, match=r"reid_embed"):
        load_weights(build_model(cfg), path)


def test_a_part_of_what_was_added_is_not_new(tmp_path):
    cfg = load_cfg("synthetic/ctvis_R18_tiny.yaml")
    path, state = image_weights(tmp_path, cfg)
    name = "sem_seg_head.predictor.reid_embed.layers.0.bias"
    torch.save({"model": {**state, name: build_model(cfg).state_dict()[name]}}, path)
    with pytest.raises(ValueError, match=r"reid_embed"):
        load_weights(build_model(cfg), path, allow_missing="new_modules")
