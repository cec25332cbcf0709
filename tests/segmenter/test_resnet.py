"""ResNet backbone: equal to detectron2's, and the folding of its normalisation changes nothing that can be seen."""

from __future__ import annotations

import copy
import gzip
import json
import pickle

import numpy as np
import pytest
import torch
from golden_fill import fill_, frames
from helpers import GOLDEN
from torch import nn

from mask2former.layers import FrozenBatchNorm2d
from mask2former.modeling.folding import FoldCache
from mask2former.modeling.resnet import ResNet

BASIC = {"depth": 18, "res2_out_channels": 64}
KEYS = json.loads(gzip.decompress((GOLDEN / "segmenter_keys.json.gz").read_bytes()))
FREEZE = json.loads((GOLDEN / "engine_freeze.json").read_text())


def recorded_input() -> torch.Tensor:
    mean = torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1)
    std = torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1)
    return (frames(1, 96, 128, seed=0).float() - mean) / std


def small(**options) -> ResNet:
    return fill_(ResNet(**{**BASIC, **options}))


@pytest.mark.parametrize(
    "name, options",
    [("r50", {}), ("r50_stride1x1", {"stride_in_1x1": True}), ("r50_dil", {"res5_dilation": 2}), ("r18", BASIC)],
)
@pytest.mark.parametrize("has_gradient", [False, True], ids=["folded", "with_gradient"])
def test_resnet_equals_the_recorded_feature_maps(name, options, has_gradient):
    """Recorded from detectron2 on CPU, every (C / 16)-th channel; tolerance 1e-4, measured 4e-6."""
    recorded = np.load(GOLDEN / "engine_resnet.npz")
    model = fill_(ResNet(**options)).eval()
    with torch.set_grad_enabled(has_gradient):
        outputs = model(recorded_input().requires_grad_(has_gradient))
    assert list(outputs) == ["res2", "res3", "res4", "res5"]
    for key, value in outputs.items():
        shown = value.detach()[:, :: max(1, value.shape[1] // 16)]
        np.testing.assert_allclose(shown.numpy(), recorded[f"{name}.{key}"], atol=1e-4)
        assert (96 // value.shape[2], value.shape[1]) == (
            model.output_shape()[key].stride,
            model.output_shape()[key].channels,
        )


@pytest.mark.parametrize("depth", [18, 50, 101])
def test_resnet_has_detectron2_parameter_names_in_order(depth):
    model = ResNet(depth=depth, res2_out_channels=64 if depth == 18 else 256)
    got = [(name, list(value.shape)) for name, value in model.state_dict().items()]
    assert got == list(KEYS[f"engine_resnet{depth}"].items())


@pytest.mark.parametrize("depth, num_blocks", [(34, [3, 4, 6, 3]), (152, [3, 8, 36, 3])])
def test_the_other_depths_have_their_published_number_of_blocks(depth, num_blocks):
    with torch.device("meta"):
        model = ResNet(depth=depth, res2_out_channels=64 if depth == 34 else 256)
    assert [len(getattr(model, name)) for name in model.stage_names] == num_blocks


@pytest.mark.parametrize("case", FREEZE)
def test_freezing_equals_the_recorded_counts(case):
    norm, freeze_at = case.split("_")
    model = ResNet(**BASIC, norm=norm, freeze_at=int(freeze_at))
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert FREEZE[case] == {
        "trainable": trainable[:2],
        "n_trainable": len(trainable),
        "n_params": len(list(model.parameters())),
        "n_frozen_bn": sum(isinstance(module, FrozenBatchNorm2d) for module in model.modules()),
        "n_bn": sum(type(module) is nn.BatchNorm2d for module in model.modules()),
    }


def test_stages_after_the_last_wanted_map_are_not_built():
    model = small(out_features=["res3", "stem"])
    assert not hasattr(model, "res4")
    with torch.no_grad():
        outputs = model.eval()(recorded_input())
    assert {name: tuple(value.shape) for name, value in outputs.items()} == {
        "stem": (1, 64, 24, 32),
        "res3": (1, 128, 12, 16),
    }


def test_a_batch_gives_what_its_images_give_alone():
    model = small().eval()
    images = torch.cat([recorded_input(), recorded_input().flip(3)])
    with torch.no_grad():
        together, alone = model(images), [model(images[:1]), model(images[1:])]
    for name, value in together.items():
        torch.testing.assert_close(value, torch.cat([each[name] for each in alone]), atol=1e-5, rtol=1e-5)


def test_an_empty_batch_gives_empty_maps():
    with torch.no_grad():
        outputs = small().eval()(torch.zeros(0, 3, 64, 64))
    assert outputs["res5"].shape == (0, 512, 2, 2)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"depth": 20}, "DEPTH must be one of"),
        ({"depth": 18, "res2_out_channels": 256}, "RES2_OUT_CHANNELS 64"),
        ({"res5_dilation": 4}, "RES5_DILATION"),
        ({"out_features": ["res6"]}, "OUT_FEATURES"),
        ({"out_features": []}, "OUT_FEATURES"),
    ],
)
def test_what_does_not_exist_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ResNet(**options)


# ---- folding


def outputs_of(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(recorded_input())["res5"]


@pytest.mark.parametrize("norm", ["FrozenBN", "BN", ""])
def test_inference_equals_the_unfolded_network(norm):
    model = small(norm=norm).eval()
    unfolded = model(recorded_input())["res5"].detach()
    torch.testing.assert_close(outputs_of(model), unfolded, atol=2e-5, rtol=1e-5)


def test_folding_leaves_parameters_and_state_dict_alone():
    model = small().eval()
    before = copy.deepcopy(model.state_dict())
    outputs_of(model)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_folded_weights_follow_every_change_of_their_sources():
    model, fresh = small().eval(), small().eval()
    first = outputs_of(model)
    for change in (
        lambda net: net.load_state_dict({name: value * 1.1 for name, value in small().state_dict().items()}),
        lambda net: net.res2[0].conv1.weight.detach().mul_(1.5),
        lambda net: net.res3[0].conv2.norm.bias.add_(1.0),
        lambda net: net.stem.conv1.weight.data.mul_(0.5) if net.train() is net.eval() else None,
        lambda net: net.to(torch.float16).to(torch.float32),
    ):
        change(model)
        change(fresh)
        changed = outputs_of(model)
        assert not torch.equal(changed, first)
        assert torch.equal(changed, outputs_of(copy.deepcopy(fresh)))
        first = changed


def test_copies_and_pickles_do_not_carry_folded_weights():
    model = small().eval()
    outputs_of(model)
    assert model.stem.conv1.folds._entries
    for clone in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert not clone.stem.conv1.folds._entries
        assert torch.equal(outputs_of(clone), outputs_of(model))


def test_training_uses_and_keeps_no_folded_weights():
    model = small(norm="BN")
    outputs_of(model.eval())
    model.train()
    mean = model.stem.conv1.norm.running_mean.clone()
    outputs_of(model)
    assert not torch.equal(mean, model.stem.conv1.norm.running_mean)  # batch statistics were used
    assert not model.stem.conv1.folds._entries


def test_folding_works_on_weights_made_in_inference_mode():
    with torch.inference_mode():
        model = small().eval()
        inside = model(recorded_input())["res5"].clone()
    torch.testing.assert_close(inside.clone(), outputs_of(small().eval()), atol=1e-5, rtol=1e-5)


def test_weights_folded_in_inference_mode_serve_later_calls_too():
    model = small().eval()
    with torch.inference_mode():
        model(recorded_input())
    torch.testing.assert_close(outputs_of(model), outputs_of(small().eval()))
    model(recorded_input())["res5"].sum().backward()
    assert model.res2[0].conv1.weight.grad is not None


@pytest.mark.xfail(torch.__version__ < (2, 7), reason="PyTorch 2.6 stops compiling at a context variable")
def test_compilers_see_one_graph_and_no_cache():
    model = small().eval()
    with torch.no_grad():
        compiled = torch.compile(model, backend="eager", fullgraph=True)(recorded_input())["res5"]
    assert not model.stem.conv1.folds._entries
    torch.testing.assert_close(compiled, outputs_of(model), atol=2e-5, rtol=1e-5)


def test_a_convolution_bias_is_folded_too():
    conv, norm = nn.Conv2d(2, 3, 1), fill_(nn.BatchNorm2d(3)).eval()
    x = torch.randn(1, 2, 4, 5, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(FoldCache().apply(conv.eval(), norm, x), norm(conv(x)))


def test_folding_under_autocast_computes_in_its_type():
    model = small().eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = outputs_of(model)
    assert low.dtype == torch.bfloat16
    high = outputs_of(model)  # the cache must not hand out the rounded weights now
    assert high.dtype == torch.float32
    torch.testing.assert_close(high, outputs_of(small().eval()))
    torch.testing.assert_close(low.float(), high, atol=0.1, rtol=0.1)


def test_activation_checkpointing_changes_no_gradient():
    gradients = []
    for use_checkpoint in (False, True):
        model = small(use_checkpoint=use_checkpoint).train()
        model(recorded_input())["res5"].square().sum().backward()
        gradients.append(model.stem.conv1.weight.grad)
    assert gradients[0].abs().sum() > 0
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)
