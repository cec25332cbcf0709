"""Backbones with timm's names: OVFormer's ResNet needs no timm; the rest does."""

from __future__ import annotations

import builtins
import gzip
import json
from typing import ClassVar

import pytest
import torch
from fvcore.common.config import CfgNode
from golden_fill import fill_
from helpers import GOLDEN

from mask2former.config import add_maskformer2_config
from mask2former.layers import FrozenBatchNorm2d
from mask2former.modeling.timm_backbone import TimmBackbone, compare_pixel_statistics
from mask2former.registry import build_backbone


def build(**options) -> TimmBackbone:
    cfg = CfgNode()
    add_maskformer2_config(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_timm_backbone"
    for key, value in options.items():
        assert key in cfg.MODEL.TIMM
        cfg.MODEL.TIMM[key] = value
    return build_backbone(cfg)


def test_ovformer_backbone_has_the_published_parameter_names_in_order():
    keys = json.loads(gzip.decompress((GOLDEN / "segmenter_keys.json.gz").read_bytes()))["timm_resnet50"]
    model = build(BASE_NAME="resnet50_in21k")
    assert [(name, list(value.shape)) for name, value in model.state_dict().items()] == list(keys.items())
    assert sum(isinstance(module, FrozenBatchNorm2d) for module in model.modules()) == 53


def test_step_counters_of_batchnorm_are_optional_in_files():
    model = fill_(build(BASE_NAME="resnet18"))
    old_file = {name: value for name, value in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    assert len(old_file) < len(model.state_dict())
    fresh = build(BASE_NAME="resnet18")
    fresh.load_state_dict(old_file)  # strict
    assert torch.equal(fresh.base.conv1.weight, model.base.conv1.weight)
    missing = [name for name in old_file if name.endswith("conv1.weight")]
    with pytest.raises(RuntimeError, match="Missing key"):
        fresh.load_state_dict({name: value for name, value in old_file.items() if name not in missing})


def test_levels_are_powers_of_two_and_only_wanted_ones_are_returned():
    model = build(BASE_NAME="resnet18", OUT_LEVELS=(5, 3)).eval()
    with torch.no_grad():
        outputs = model(torch.zeros(2, 3, 64, 96))
    assert list(outputs) == list(model.output_shape()) == ["layer3", "layer5"]
    assert outputs["layer3"].shape == (2, 128, 8, 12) and outputs["layer5"].shape == (2, 512, 2, 3)
    assert model.size_divisibility == 32


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d"])
def test_inference_equals_the_unfolded_network(name):
    model = fill_(build(BASE_NAME=name)).eval()
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    unfolded = {key: value.detach() for key, value in model(images).items()}
    with torch.no_grad():
        folded = model(images)
    for key, value in folded.items():
        torch.testing.assert_close(value, unfolded[key], atol=5e-5, rtol=1e-4)


def test_residual_branches_are_alive_without_pretrained_weights():
    """The published code zeroes the last norm of every block and then freezes it."""
    model = build(BASE_NAME="resnet50")
    assert all(norm.weight.abs().sum() > 0 for norm in model.modules() if isinstance(norm, FrozenBatchNorm2d))


@pytest.mark.parametrize("freeze_at, frozen", [(0, ()), (1, ("conv1", "bn1")), (2, ("conv1", "bn1", "layer1"))])
def test_freeze_at_stops_the_first_parts(freeze_at, frozen):
    model = build(BASE_NAME="resnet18", NORM="BN", FREEZE_AT=freeze_at)
    trainable = {name.split(".")[1] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4"} - set(frozen)
    assert isinstance(model.base.bn1, FrozenBatchNorm2d) == ("bn1" in frozen)
    assert isinstance(model.base.layer1[0].bn1, FrozenBatchNorm2d) == ("layer1" in frozen)


def test_wrong_settings_name_their_key():
    with pytest.raises(ValueError, match=r"MODEL\.TIMM\.NORM"):
        build(BASE_NAME="resnet18", NORM="GN")
    with pytest.raises(ValueError, match=r"MODEL\.TIMM\.OUT_LEVELS"):
        build(BASE_NAME="resnet18", OUT_LEVELS=(1, 2))


def test_another_network_without_timm_says_what_to_install(monkeypatch):
    original = builtins.__import__

    def without_timm(name, *args, **kwargs):
        if name == "timm":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_timm)
    with pytest.raises(ImportError, match=r"lbvq\[timm\]"):
        build(BASE_NAME="convnext_atto")
    assert isinstance(build(BASE_NAME="resnet18"), TimmBackbone)


def test_timm_itself_gives_the_same_feature_maps():
    timm = pytest.importorskip("timm")
    ours = fill_(build(BASE_NAME="resnet50")).eval()
    theirs = timm.create_model("resnet50", features_only=True, out_indices=(1, 2, 3, 4)).eval()
    theirs.load_state_dict({name.removeprefix("base."): value for name, value in ours.state_dict().items()})
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for mine, reference in zip(ours(images).values(), theirs(images), strict=True):
            torch.testing.assert_close(mine, reference, atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["convnext_atto", "efficientnet_b0"])
def test_any_timm_network_with_feature_maps_works(name):
    pytest.importorskip("timm")
    model = build(BASE_NAME=name, OUT_LEVELS=(3, 5)).eval()
    with torch.no_grad():
        outputs = model(torch.zeros(1, 3, 64, 96))
    for key, shape in model.output_shape().items():
        assert outputs[key].shape == (1, shape.channels, 64 // shape.stride, 96 // shape.stride)
    assert not any(type(module) is torch.nn.BatchNorm2d for module in model.modules())
    with pytest.raises(ValueError, match="OUT_LEVELS asks for"):
        build(BASE_NAME=name, OUT_LEVELS=(7,))
    with pytest.raises(ValueError, match="FREEZE_AT"):
        build(BASE_NAME=name, FREEZE_AT=1)


# -- settings that have no effect are told ----------------------------------------------------------------------------


def batchnorms(model) -> set[str]:
    return {type(module).__name__ for module in model.modules() if "BatchNorm" in type(module).__name__}


@pytest.mark.parametrize(
    "norm, kinds",
    [("FrozenBN", {"FrozenBatchNormAct2d"}), ("SyncBN", {"SyncBatchNormAct"}), ("BN", {"BatchNormAct2d"})],
)
def test_the_kind_of_normalisation_holds_for_any_timm_network(norm, kinds):
    pytest.importorskip("timm")
    assert batchnorms(build(BASE_NAME="tf_efficientnet_lite0", NORM=norm)) == kinds


@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0", "convnext_atto"])
@pytest.mark.parametrize("norm", ["FrozenBn", "GN", ""])
def test_an_unknown_kind_of_normalisation_is_refused_for_any_network(name, norm):
    with pytest.raises(ValueError, match=r"MODEL\.TIMM\.NORM must be one of FrozenBN, SyncBN, BN, got"):
        build(BASE_NAME=name, NORM=norm)


def test_a_network_without_batchnorm_says_that_the_setting_has_no_effect(caplog):
    pytest.importorskip("timm")
    build(BASE_NAME="convnext_atto", NORM="SyncBN")
    assert "convnext_atto has no BatchNorm: MODEL.TIMM.NORM SyncBN has no effect." in caplog.text
    caplog.clear()
    build(BASE_NAME="convnext_atto")
    assert "no effect" not in caplog.text  # the default asks for nothing


class Pretrained:
    pretrained_cfg: ClassVar = {"mean": (0.5, 0.4, 0.3), "std": (0.5, 0.5, 0.25)}


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_colours_that_timm_weights_do_not_expect_are_told(image_format, caplog):
    cfg = CfgNode({"INPUT": CfgNode({"FORMAT": image_format})})
    add_maskformer2_config(cfg)
    cfg.MODEL.TIMM.BASE_NAME, cfg.MODEL.TIMM.PRETRAINED = "lite", True
    compare_pixel_statistics(cfg, Pretrained())
    mean, std = [127.5, 102.0, 76.5], [127.5, 127.5, 63.75]
    if image_format == "BGR":
        mean, std = mean[::-1], std[::-1]
    assert (
        f"weights of lite were trained with MODEL.PIXEL_MEAN {mean} and PIXEL_STD {std} ({image_format})" in caplog.text
    )
    caplog.clear()
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = mean, std
    compare_pixel_statistics(cfg, Pretrained())
    compare_pixel_statistics(cfg, object())
    assert not caplog.records


def test_the_colours_of_a_network_are_compared_when_it_is_built(caplog):
    pytest.importorskip("timm")
    build(BASE_NAME="tf_efficientnet_lite0")
    assert "tf_efficientnet_lite0 were trained with MODEL.PIXEL_MEAN [127.5, 127.5, 127.5]" in caplog.text
