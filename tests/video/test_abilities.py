"""What models say they can do, and the one sentence for those who ask for more."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn
from video_models import load_cfg, small_cfg

import lbvq.modeling
from lbvq.modeling import FrameSegmenter, VideoModel, as_tested, online_form
from lbvq.modeling.online.segmenter import OnlineSegmenter
from mask2former.abilities import REFUSALS, SETTINGS, Abilities, has_ability, require
from mask2former.registry import META_ARCH_REGISTRY, build_model

METHODS = {name: each for name, each in META_ARCH_REGISTRY if each.__module__.startswith(("lbvq.", "mask2former."))}
NO_MATCHING = {"VMT", "OVFormer", "OVFormerVideo", "VideoOVFormer", "MaskFormer"}
VMT = "synthetic/vmt_R18_tiny.yaml"


@pytest.mark.parametrize("name", METHODS)
def test_every_method_says_what_it_can_do(name):
    method = METHODS[name]
    assert isinstance(vars(method).get("can", method.can), Abilities)
    assert method.sample == ("video" if issubclass(method, VideoModel) else "image")
    assert method.can.online == issubclass(method, OnlineSegmenter)
    assert not method.can.match_frames or (issubclass(method, FrameSegmenter) and name not in NO_MATCHING)
    assert method.can.compile or not issubclass(method, FrameSegmenter)
    assert method.can.open_vocabulary == hasattr(method, "set_vocabulary")
    assert method.can.refine == (method.sample == "video")


def test_every_refusal_is_one_sentence_of_what_to_do():
    assert REFUSALS.keys() == {"video", *vars(Abilities())}

    class Nothing(nn.Module):
        sample = "image"
        can = Abilities(images=False, refine=False)

    for ability in REFUSALS:
        for model in (Nothing, Nothing()):
            with pytest.raises(ValueError, match="Nothing"):
                require(model, ability)


def test_a_model_that_declares_nothing_takes_whole_videos():
    model = nn.Identity()
    assert has_ability(model, "video") and has_ability(model, "refine") and has_ability(model, "images")
    assert not has_ability(model, "online")
    assert as_tested(model) is model


@pytest.mark.parametrize("key", SETTINGS)
@pytest.mark.parametrize("change", [{}, {"MODEL__META_ARCHITECTURE": "MaskFormer"}])
def test_a_setting_that_a_model_would_ignore_is_refused(key, change):
    cfg = small_cfg(**change) if change else load_cfg(VMT)
    cfg.merge_from_list([key, "sam" if key == "REFINE.NAME" else True])
    if has_ability(METHODS[cfg.MODEL.META_ARCHITECTURE], SETTINGS[key]):
        assert build_model(cfg) is not None
    else:
        with pytest.raises(ValueError, match=rf"{cfg.MODEL.META_ARCHITECTURE}.* Leave .*{key} "):
            build_model(cfg)


def test_a_setting_that_a_model_obeys_is_accepted(caplog):
    with caplog.at_level(logging.WARNING):
        model = build_model(small_cfg(TEST__MATCH_FRAMES=True))
    assert isinstance(as_tested(model), OnlineSegmenter)


def test_a_model_that_is_to_match_frames_is_not_run_as_if_it_were_not():
    model = build_model(small_cfg(TEST__MATCH_FRAMES=True)).eval()
    with pytest.raises(ValueError, match="as_tested"):
        model([{"image": torch.zeros(1, 3, 32, 32)}])


def test_the_form_in_which_a_model_is_tested_keeps_device_mode_and_parameters():
    model = build_model(small_cfg(TEST__MATCH_FRAMES=True)).eval()
    tested = as_tested(model)
    assert not tested.training and as_tested(model.train()).training
    assert {id(each) for each in tested.parameters()} == {id(each) for each in model.parameters()}
    assert torch.equal(tested.pixel_mean, model.pixel_mean) and tested.device == model.device
    assert as_tested(tested) is tested


@pytest.mark.parametrize("config, message", [(VMT, "VMT needs all frames of a video before it can decide. Choose an")])
def test_an_offline_method_without_matching_is_not_offered_it(config, message):
    with pytest.raises(ValueError, match=message) as caught:
        online_form(build_model(load_cfg(config)))
    assert "MATCH_FRAMES" not in str(caught.value)


def test_an_image_model_is_no_online_method():
    with pytest.raises(ValueError, match="MaskFormer segments single images, not videos"):
        online_form(build_model(small_cfg(MODEL__META_ARCHITECTURE="MaskFormer")))


def test_a_negative_divisor_is_that_of_the_backbone():
    model = build_model(small_cfg(MODEL__MASK_FORMER__SIZE_DIVISIBILITY=-1))
    assert model.size_divisibility == model.backbone.size_divisibility >= 0


def test_vmt_pads_its_frames_in_training_only():
    model, frames = build_model(load_cfg(VMT, MODEL__MASK_FORMER__SIZE_DIVISIBILITY=32)), torch.zeros(1, 3, 50, 70)
    assert model.train().batch_images(frames).padded_size == (64, 96)
    assert model.eval().batch_images(frames).padded_size == (50, 70)


def test_the_name_of_version_0_1_still_stands_for_the_frame_segmenter():
    assert lbvq.modeling.VideoSegmenter is lbvq.modeling.base.VideoSegmenter is FrameSegmenter
