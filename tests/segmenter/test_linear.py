"""The faster forms at inference give the numbers of the ordinary ones, and stay away where they do not belong."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mask2former import linear as module
from mask2former.layers import Conv2d
from mask2former.linear import Linear, feed_forward, linear, linear_transposed, mask_logits, pointwise_conv
from mask2former.resize import resize_bilinear

SHAPES = [(100, 16), (3, 50, 16), (2, 16), (0, 16), (16,)]


def close(value, want):
    torch.testing.assert_close(value, want, rtol=1e-5, atol=1e-5)


@pytest.fixture
def fast_calls(monkeypatch):
    """Collect whether each call was sent to the fast library."""
    if not module._HAS_ONEDNN:
        pytest.skip("PyTorch was built without oneDNN")
    calls, decide = [], module._can_use_onednn

    def spy(*tensors):
        calls.append(decide(*tensors))
        return calls[-1]

    monkeypatch.setattr(module, "_can_use_onednn", spy)
    return calls


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("has_bias, activation", [(True, ""), (True, "relu"), (True, "gelu"), (False, "")])
def test_a_linear_map_without_gradients_equals_the_ordinary_one(shape, has_bias, activation):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(shape), torch.randn(5, 16), torch.randn(5) if has_bias else None
    want = F.linear(x, weight, bias)
    with torch.no_grad():
        got = linear(x, weight, bias, **{activation: True}) if activation else linear(x, weight, bias)
        close(got, getattr(F, activation)(want) if activation else want)


def test_the_fast_library_is_used_for_large_inputs_without_gradients_only(fast_calls):
    layer = Linear(8, 4)
    with torch.inference_mode():
        layer(torch.randn(64, 8))
        layer(torch.randn(3, 8))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer(torch.randn(64, 8)).dtype == torch.bfloat16
        Linear(8, 4).double()(torch.randn(64, 8, dtype=torch.float64))
    out = layer(torch.randn(64, 8))
    assert fast_calls == [True, False, False, False, False]
    out.sum().backward()
    assert layer.weight.grad is not None


def test_inputs_that_are_not_contiguous_are_read_rightly():
    x, weight = torch.randn(16, 40, 2).permute(1, 2, 0), torch.randn(16, 5).T
    with torch.no_grad():
        close(linear(x, weight), F.linear(x, weight))


@pytest.mark.parametrize("grad", [True, False])
def test_a_transposed_linear_map_equals_the_ordinary_one(grad):
    layer, x = Linear(16, 50), torch.randn(3, 40, 16)
    with torch.set_grad_enabled(grad):
        close(linear_transposed(x, layer.weight, layer.bias), F.linear(x, layer.weight, layer.bias).transpose(1, 2))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("stride", [1, 2])
def test_pointwise_convolutions_equal_the_ordinary_ones(memory_format, stride):
    x = torch.randn(2, 8, 9, 6).contiguous(memory_format=memory_format)
    conv = nn.Conv2d(8, 5, 1, stride=stride)
    with torch.no_grad():
        close(pointwise_conv(x, conv.weight, conv.bias, conv.stride), conv(x))


def test_only_plain_pointwise_convolutions_take_the_short_way():
    x = torch.randn(1, 8, 6, 6)
    for options in ({}, {"stride": 2}, {"groups": 2}, {"padding": 1}, {"kernel_size": 3}):
        conv = Conv2d(8, 4, **{"kernel_size": 1, **options})
        with torch.no_grad():
            close(conv(x), nn.Conv2d.forward(conv, x))


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_mask_logits_are_inner_products_with_every_pixel(batch, grad):
    embeddings, features = torch.randn(batch, 40, 8), torch.randn(batch, 8, 5, 6)
    want = torch.einsum("bqc,bchw->bqhw", embeddings, features)
    with torch.set_grad_enabled(grad):
        close(mask_logits(embeddings.requires_grad_(grad), features), want)
        close(mask_logits(embeddings, features.contiguous(memory_format=torch.channels_last)), want)


@pytest.mark.parametrize("size", [(70, 90), (140, 60), (3, 200), (35, 45)])
def test_resizing_many_channels_equals_the_ordinary_way_and_keeps_the_memory_format(size):
    x = torch.randn(2, 8, 35, 45).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        out = resize_bilinear(x, size)
    close(out, F.interpolate(x, size=size, mode="bilinear", align_corners=False))
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_resizing_has_gradients():
    x = torch.randn(1, 8, 35, 45).contiguous(memory_format=torch.channels_last).requires_grad_()
    resize_bilinear(x, (70, 90)).sum().backward()
    assert x.grad.sum().item() == pytest.approx(8 * 70 * 90, rel=1e-4)


# ---- training


def results_of(function, *inputs):
    """What a function returns, and its gradients with respect to the inputs that want one."""
    out = function(*inputs)
    weights = torch.arange(out.numel(), dtype=out.dtype).view_as(out).cos()
    wanted = [each for each in inputs if each.requires_grad]
    return out, *torch.autograd.grad((out * weights).sum(), wanted)


@pytest.mark.parametrize("shape", [(2, 10, 8), (20, 8), (1, 8)])
@pytest.mark.parametrize("is_frozen", [False, True])
def test_a_feed_forward_network_trained_in_parts_has_the_gradients_of_the_ordinary_one(shape, is_frozen, monkeypatch):
    torch.manual_seed(0)
    first, second, dropout = Linear(8, 12), Linear(12, 5), nn.Dropout(0.0)
    first.requires_grad_(not is_frozen)
    parameters = [*first.parameters(), *second.parameters()]
    x = torch.randn(shape).requires_grad_()
    want = results_of(lambda x, *_: F.linear(F.relu(F.linear(x, *parameters[:2])), *parameters[2:]), x, *parameters)
    for at_once in (7, 512):
        monkeypatch.setattr(module, "ROWS_AT_ONCE", at_once)
        monkeypatch.setattr(module, "MIN_HIDDEN", 1)
        got = results_of(lambda x, *_: feed_forward(x, first, second, dropout), x, *parameters)
        assert "FeedForward" in type(got[0].grad_fn).__name__
        close(got, want)


def test_a_feed_forward_network_takes_the_ordinary_path_where_parts_do_not_belong(monkeypatch):
    x, first, second = torch.randn(40, 8), Linear(8, 12), Linear(12, 5)
    in_parts = lambda *given: "FeedForward" in type(feed_forward(*given).grad_fn).__name__  # noqa: E731
    assert not in_parts(x, first, second, nn.Dropout(0.0))  # too small
    monkeypatch.setattr(module, "MIN_HIDDEN", 40 * 12)
    assert in_parts(x, first, second, nn.Dropout(0.0))
    assert in_parts(x, first, second, nn.Dropout(0.5).eval())
    assert not in_parts(x, first, second, nn.Dropout(0.5))
    with torch.no_grad():
        assert not in_parts(x, first, second, nn.Dropout(0.0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not in_parts(x, first, second, nn.Dropout(0.0))


@pytest.mark.parametrize("stride", [(1, 1), (2, 1)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("has_bias", [True, False])
def test_a_pointwise_convolution_in_training_is_the_ordinary_one(stride, layout, has_bias):
    torch.manual_seed(0)
    x = torch.randn(2, 6, 5, 7).to(memory_format=layout).requires_grad_()
    given = [x, torch.randn(4, 6, 1, 1).to(memory_format=layout).requires_grad_()]
    given += [torch.randn(4).requires_grad_()] if has_bias else []
    bias = lambda rest: rest[0] if rest else None  # noqa: E731
    got = results_of(lambda x, weight, *rest: pointwise_conv(x, weight, bias(rest), stride), *given)
    close(got, results_of(lambda x, weight, *rest: F.conv2d(x, weight, bias(rest), stride), *given))
    assert "Mkldnn" in type(got[0].grad_fn).__name__
