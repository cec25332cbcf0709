"""Registries, the configuration keys, and building from them."""

from __future__ import annotations

import logging

import pytest
import torch
from fvcore.common.config import CfgNode
from torch import nn

from mask2former.config import add_maskformer2_config
from mask2former.modeling.backbone import Backbone
from mask2former.modeling.resnet import ResNet
from mask2former.modeling.swin import D2SwinTransformer
from mask2former.registry import (
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    SEM_SEG_HEADS_REGISTRY,
    TRANSFORMER_MODULE_REGISTRY,
    Registry,
    build_backbone,
    build_from_cfg,
    build_model,
    resolve_device,
)
from mask2former.structures import ShapeSpec


def config() -> CfgNode:
    cfg = CfgNode()
    add_maskformer2_config(cfg)
    return cfg


# ---- registries


def test_a_registry_gives_what_was_registered_by_decorator_or_call():
    registry = Registry("THINGS")

    @registry.register()
    class Spoon:
        pass

    def fork():
        pass

    registry.register(fork)
    assert registry.get("Spoon") is Spoon and registry.get("fork") is fork
    assert "fork" in registry and "knife" not in registry
    assert registry.names() == ["Spoon", "fork"] and dict(registry) == {"Spoon": Spoon, "fork": fork}


def test_an_unknown_name_is_answered_with_the_valid_ones():
    with pytest.raises(
        KeyError, match=r"'build_resnet_backbon'.*BACKBONE.*Did you mean 'build_resnet_backbone'"
    ) as error:
        BACKBONE_REGISTRY.get("build_resnet_backbon")
    assert all(name in str(error.value) for name in BACKBONE_REGISTRY.names())
    with pytest.raises(KeyError, match="none"):
        Registry("EMPTY").get("x")


def test_a_second_registration_of_a_name_is_an_error():
    registry = Registry("THINGS")
    registry.register(len)
    with pytest.raises(AssertionError, match="len"):
        registry.register(len)


def test_the_published_names_are_registered():
    assert {"D2SwinTransformer", "build_resnet_backbone", "build_timm_backbone"} <= set(BACKBONE_REGISTRY.names())
    assert "MaskFormer" in META_ARCH_REGISTRY
    assert "MaskFormerHead" in SEM_SEG_HEADS_REGISTRY
    assert "MultiScaleMaskedTransformerDecoder" in TRANSFORMER_MODULE_REGISTRY


def test_classes_with_from_config_get_keywords_and_everything_else_gets_the_cfg():
    registry = Registry("THINGS")

    @registry.register()
    class WithKeywords:
        def __init__(self, *, width, channels):
            self.size = (width, channels)

        @classmethod
        def from_config(cls, cfg, channels):
            return {"width": cfg.WIDTH, "channels": channels}

    @registry.register()
    class Wider(WithKeywords):
        @classmethod
        def from_config(cls, cfg, channels):
            return {**super().from_config(cfg, channels), "width": 99}

    @registry.register()
    def plain(cfg, channels):
        return (cfg.WIDTH, channels)

    cfg = CfgNode({"WIDTH": 5})
    assert build_from_cfg(registry, "WithKeywords", cfg, 3).size == (5, 3)
    assert build_from_cfg(registry, "Wider", cfg, 3).size == (99, 3)
    assert build_from_cfg(registry, "plain", cfg, 3) == (5, 3)


# ---- configuration


def test_an_empty_configuration_gets_everything_with_published_defaults():
    cfg = config()
    assert cfg.MODEL.MASK_FORMER.TRAIN_NUM_POINTS == 12544 and cfg.MODEL.MASK_FORMER.TEST.SEMANTIC_ON is True
    assert cfg.MODEL.SWIN.DEPTHS == [2, 2, 6, 2] and cfg.MODEL.TIMM.OUT_LEVELS == (2, 3, 4, 5)
    assert cfg.MODEL.SEM_SEG_HEAD.MASK_DIM == 256 and cfg.MODEL.RESNETS.RES5_MULTI_GRID == [1, 2, 4]
    assert cfg.SOLVER.BACKBONE_MULTIPLIER == 0.1 and cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA == 1.0


def test_what_is_set_already_stays():
    cfg = CfgNode({"MODEL": {"SWIN": {"EMBED_DIM": 7}, "DEVICE": "cpu"}, "SOLVER": {"OPTIMIZER": "SGD"}})
    add_maskformer2_config(cfg)
    assert (cfg.MODEL.SWIN.EMBED_DIM, cfg.MODEL.DEVICE, cfg.SOLVER.OPTIMIZER) == (7, "cpu", "SGD")
    assert cfg.MODEL.SWIN.WINDOW_SIZE == 7
    before = cfg.dump()
    add_maskformer2_config(cfg)
    assert cfg.dump() == before


def test_groups_have_the_type_of_the_tree_and_share_no_list():
    class OtherNode(CfgNode):
        pass

    cfg = OtherNode()
    add_maskformer2_config(cfg)
    assert type(cfg.MODEL.MASK_FORMER.TEST) is OtherNode
    cfg.MODEL.SWIN.DEPTHS.append(1)
    assert config().MODEL.SWIN.DEPTHS == [2, 2, 6, 2]


# ---- building


def test_backbones_are_built_from_their_keys():
    cfg = config()
    cfg.MODEL.RESNETS.update(DEPTH=18, RES2_OUT_CHANNELS=64, STRIDE_IN_1X1=False, OUT_FEATURES=["res2", "res5"])
    resnet = build_backbone(cfg)
    assert isinstance(resnet, ResNet) and isinstance(resnet, Backbone)
    assert resnet.output_shape() == {
        "res2": ShapeSpec(channels=64, stride=4),
        "res5": ShapeSpec(channels=512, stride=32),
    }
    assert not any(parameter.requires_grad for parameter in resnet.res2.parameters())  # FREEZE_AT 2
    cfg.MODEL.BACKBONE.NAME = "D2SwinTransformer"
    cfg.MODEL.SWIN.update(EMBED_DIM=8, DEPTHS=[1, 1], NUM_HEADS=[2, 2], OUT_FEATURES=["res3"], DROP_PATH_RATE=0.0)
    swin = build_backbone(cfg, ShapeSpec(channels=1))
    assert isinstance(swin, D2SwinTransformer) and swin.patch_embed.proj.in_channels == 1
    assert swin.output_shape() == {"res3": ShapeSpec(channels=16, stride=8)}


def test_the_number_of_input_channels_is_that_of_the_pixel_mean():
    cfg = config()
    cfg.MODEL.RESNETS.update(DEPTH=18, RES2_OUT_CHANNELS=64)
    cfg.MODEL.PIXEL_MEAN = [0.0]
    assert build_backbone(cfg).stem.conv1.in_channels == 1


def test_deformable_resnets_are_refused():
    cfg = config()
    cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE = [False, False, False, True]
    with pytest.raises(ValueError, match="DEFORM_ON_PER_STAGE"):
        build_backbone(cfg)


def test_a_backbone_must_know_its_output_shape():
    def build_nothing(cfg, input_shape):
        return nn.Identity()

    BACKBONE_REGISTRY.register(build_nothing)
    cfg = config()
    cfg.MODEL.BACKBONE.NAME = "build_nothing"
    try:
        with pytest.raises(TypeError, match="output_shape"):
            build_backbone(cfg)
    finally:
        del BACKBONE_REGISTRY._obj_map["build_nothing"]


def test_an_unknown_model_names_the_known_ones():
    cfg = config()
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    with pytest.raises(KeyError, match="MaskFormer"):
        build_model(cfg)


def test_without_cuda_the_model_goes_to_the_cpu_with_a_warning(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with caplog.at_level(logging.WARNING):
        assert resolve_device("cuda") == torch.device("cpu")
    assert "MODEL.DEVICE" in caplog.text
    caplog.clear()
    assert resolve_device("cpu") == torch.device("cpu") and not caplog.records


def test_a_device_that_does_not_exist_is_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"MODEL\.DEVICE"):
        resolve_device("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert resolve_device("cuda:0").index == 0
    with pytest.raises(ValueError, match="1 CUDA device"):
        resolve_device("cuda:1")
