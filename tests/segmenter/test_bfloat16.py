"""Products in bfloat16 on the CPU: they are, what must stay float32 is, and nothing changes elsewhere."""

from __future__ import annotations

import copy
import pickle
import threading

import pytest
import torch
import torch.nn.functional as F
from golden_fill import fill_
from product_counter import ProductCounter
from torch import nn

from mask2former import bfloat16 as module
from mask2former.attention import attend
from mask2former.bfloat16 import Bfloat16Products, active_products, wants_bfloat16
from mask2former.layers import MLP, Conv2d, FFNLayer
from mask2former.linear import Linear, compact, exact, linear, linear_transposed, mask_logits, pointwise_conv
from mask2former.modeling.deform_attn import MSDeformAttn
from mask2former.modeling.resnet import ConvNorm, ResNet

ROUNDING = 2.0**-8  # of one bfloat16 number


@pytest.fixture
def products():
    return Bfloat16Products()


def count(function, products):
    """Result of a function in bfloat16 without gradients, and the count of its products."""
    with torch.inference_mode(), products.active(), ProductCounter() as counter:
        return function(), counter


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_a_product_sums_in_float32_what_is_rounded_and_gives_back_the_type_it_got(products):
    x, weight, bias = drawn(64, 2000), drawn(8, 2000, seed=1), drawn(8, seed=2)
    want = F.linear(x.bfloat16().double(), weight.bfloat16().double(), bias.bfloat16().double())
    got, counter = count(lambda: linear(x, weight, bias), products)
    assert got.dtype == torch.float32 and counter.share(torch.bfloat16) == 1
    torch.testing.assert_close(got.double(), want, rtol=ROUNDING, atol=ROUNDING)  # sums of 2,000 rounded once
    assert torch.equal(got, got.bfloat16().float())


@pytest.mark.parametrize("activation", ["", "relu", "gelu"])
@pytest.mark.parametrize("has_bias", [True, False])
def test_every_form_of_a_linear_map_is_near_the_exact_one(activation, has_bias, products):
    layer, x = fill_(Linear(16, 40, bias=has_bias)), drawn(2, 50, 16)
    call = lambda: linear(x, layer.weight, layer.bias, **{activation: True} if activation else {})  # noqa: E731
    with torch.no_grad():
        want = call()
    got, counter = count(call, products)
    torch.testing.assert_close(got, want, rtol=0.02, atol=0.02)
    assert set(counter.counts) == {torch.bfloat16} and not torch.equal(got, want)


@pytest.mark.parametrize(
    "kernel, options",
    [(1, {}), (3, {"padding": 1}), (3, {"stride": 2, "groups": 2}), (3, {"padding": 1, "padding_mode": "reflect"})],
)
def test_convolutions_are_computed_in_bfloat16(kernel, options, products):
    conv, x = fill_(Conv2d(8, 6, kernel, **options)), drawn(2, 8, 12, 10).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        want = conv(x)
    got, counter = count(lambda: conv(x), products)
    assert got.dtype == torch.float32 and set(counter.counts) == {torch.bfloat16}
    torch.testing.assert_close(got, want, rtol=0.02, atol=0.02)


def test_a_folded_convolution_is_computed_in_bfloat16(products):
    conv, x = fill_(ConvNorm(8, 6, 3, norm="FrozenBN")).eval(), drawn(1, 8, 12, 10)
    with torch.no_grad():
        want = conv(x)
    got, counter = count(lambda: conv(x), products)
    assert got.dtype == torch.float32 and set(counter.counts) == {torch.bfloat16}
    torch.testing.assert_close(got, want, rtol=0.03, atol=0.03)
    with torch.no_grad():
        assert torch.equal(conv(x), want)  # the cache must not hand out the rounded weights now


def test_a_backbone_hands_out_float32(products):
    resnet, x = fill_(ResNet(depth=18, res2_out_channels=16)).eval(), drawn(1, 3, 64, 96)
    with torch.no_grad():
        want = resnet(x)
    got, counter = count(lambda: resnet(x), products)
    assert set(counter.counts) == {torch.bfloat16} and {each.dtype for each in got.values()} == {torch.float32}
    for name, each in got.items():
        assert (each - want[name]).norm() < 0.02 * want[name].norm()


def test_logits_of_masks_and_transposed_products_stay_in_float32(products):
    embeddings, features = drawn(2, 40, 16), drawn(2, 16, 8, 9, seed=1)
    layer = Linear(16, 50)
    with torch.no_grad():
        want = mask_logits(embeddings, features), linear_transposed(embeddings, layer.weight, layer.bias)
    got, counter = count(
        lambda: (mask_logits(embeddings, features), linear_transposed(embeddings, layer.weight, layer.bias)), products
    )
    assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1]) and set(counter.counts) == {torch.float32}


def test_sampling_places_do_not_depend_on_bfloat16(products, monkeypatch):
    attention, seen = fill_(MSDeformAttn(32, 1, 2, 3)), []
    monkeypatch.setattr(attention, "kernel", "seen")
    kernels = "mask2former.modeling.deform_attn.KERNELS"
    monkeypatch.setattr(
        kernels, {"seen": lambda value, sizes, *where: seen.append((value, *where)) or value.flatten(2)}
    )
    tokens, places = drawn(1, 48, 32), torch.rand(1, 48, 1, 2)
    with torch.inference_mode():
        attention(tokens, places, tokens, [(6, 8)])
    count(lambda: attention(tokens, places, tokens, [(6, 8)]), products)
    (value, points, weights), (rounded, *where) = seen
    assert torch.equal(points, where[0]) and torch.equal(weights, where[1])
    assert not torch.equal(value, rounded)
    assert rounded.dtype == torch.bfloat16 and points.dtype == weights.dtype == torch.float32


def test_feed_forward_is_bfloat16_between_its_products_and_float32_after(products):
    layer, x = fill_(FFNLayer(32, 64)).eval(), drawn(40, 2, 32)
    types = []
    layer.linear2.register_forward_pre_hook(lambda _, inputs: types.append(inputs[0].dtype))
    layer.norm.register_forward_pre_hook(lambda _, inputs: types.append(inputs[0].dtype))
    with torch.no_grad():
        want = layer(x)
    types.clear()
    got, counter = count(lambda: layer(x), products)
    assert types == [torch.bfloat16, torch.float32] and set(counter.counts) == {torch.bfloat16}
    torch.testing.assert_close(got, want, rtol=0.05, atol=0.05)


def test_attention_weights_stay_in_float32(products, monkeypatch):
    attention, x = fill_(nn.MultiheadAttention(32, 4)), drawn(40, 2, 32)
    types, compute = [], F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda *a, **k: types.extend(t.dtype for t in a) or compute(*a, **k)
    )
    got, counter = count(lambda: attend(attention, x, x, x), products)
    assert set(types) == {torch.float32} and counter.counts[torch.bfloat16] == 40 * 2 * 32 * (96 + 32)
    with torch.no_grad():
        want = attend(attention, x, x, x)
    assert (got - want).norm() < 0.05 * want.norm()


def test_what_products_gave_is_float32_again_where_it_was_compact_only(products):
    x = drawn(40, 16)
    with products.active():
        assert exact(compact(x)).dtype == torch.float32 and exact(x) is x
    assert exact(x.bfloat16()).dtype == torch.bfloat16


def test_with_gradients_nothing_changes(products):
    layer, x = fill_(MLP(16, 32, 8, 2)), drawn(64, 16)
    want = layer(x)
    with products.active():
        got = layer(x)
        assert compact(x) is x
    assert torch.equal(got, want)
    got.sum().backward()
    assert layer.layers[0].weight.grad.dtype == torch.float32


@torch.no_grad()
def test_without_it_nothing_is_rounded():
    x = drawn(64, 16)
    assert active_products() is None and compact(x) is x
    conv = fill_(Conv2d(8, 8, 3))
    assert torch.equal(conv(drawn(1, 8, 9, 9)), nn.Conv2d.forward(conv, drawn(1, 8, 9, 9)))


@torch.no_grad()
def test_few_rows_other_types_and_empty_inputs_take_the_ordinary_path(products):
    layer = fill_(Linear(16, 4))
    with products.active():
        assert torch.equal(layer(drawn(3, 16)), F.linear(drawn(3, 16), layer.weight, layer.bias))
        assert layer(drawn(0, 16)).shape == (0, 4)
        assert compact(drawn(0, 16)).dtype == torch.float32
        assert compact(drawn(3, 16).double()).dtype == torch.float64
        assert layer(compact(drawn(3, 16))).dtype == torch.bfloat16  # what was rounded before stays so
        assert pointwise_conv(drawn(1, 8, 2, 2), drawn(4, 8, 1, 1)).dtype == torch.float32
        assert Conv2d(8, 4, 3).double()(drawn(1, 8, 5, 5).double()).dtype == torch.float64


@torch.no_grad()
def test_rounded_weights_are_kept_and_follow_changes(products):
    layer, x = Linear(16, 4), drawn(64, 16)
    with products.active():
        layer(x)
        first = products.rounded(layer.weight)
        assert products.rounded(layer.weight) is first
        layer.weight.mul_(2)
        assert torch.equal(products.rounded(layer.weight), 2 * first)
        layer.load_state_dict({"weight": torch.ones(4, 16), "bias": torch.zeros(4)})
        torch.testing.assert_close(layer(x), x.sum(1, keepdim=True).expand(-1, 4), rtol=0.05, atol=0.1)
        temporary = drawn(4, 16)
        assert products.rounded(temporary) is not products.rounded(temporary)  # what is no parameter is not kept
    assert len(products._rounded) == 2


def test_copies_start_empty(products):
    products.rounded(Linear(4, 4).weight)
    for other in (copy.deepcopy(products), pickle.loads(pickle.dumps(products))):
        assert isinstance(other, Bfloat16Products) and not other._rounded


def test_it_acts_in_its_thread_and_block_only(products):
    seen = []
    with products.active():
        thread = threading.Thread(target=lambda: seen.append(active_products()))
        thread.start()
        thread.join()
        with Bfloat16Products().active():
            assert active_products() is not products
        assert active_products() is products
    assert seen == [None] and active_products() is None
    with pytest.raises(RuntimeError), products.active():
        raise RuntimeError
    assert active_products() is None


@pytest.mark.parametrize("has_instructions", [True, False])
def test_the_setting_decides_and_auto_asks_the_cpu(has_instructions, monkeypatch):
    monkeypatch.setattr(module, "cpu_computes_in_bfloat16", lambda: has_instructions)
    assert [wants_bfloat16(each) for each in ("float32", "bfloat16", "auto")] == [False, True, has_instructions]
    with pytest.raises(ValueError, match=r"TEST\.AMP\.CPU must be 'auto', 'bfloat16' or 'float32', got 'float16'"):
        wants_bfloat16("float16")
