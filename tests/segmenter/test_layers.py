"""Layers: position codes against recorded numbers, transformer layers against torch's own, norms and loading."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import GOLDEN
from torch import nn

from mask2former.attention import attend
from mask2former.group_norm import GroupNorm
from mask2former.layers import (
    MLP,
    Conv2d,
    CrossAttentionLayer,
    FFNLayer,
    FrozenBatchNorm2d,
    PositionEmbeddingSine,
    PositionEmbeddingSine1D,
    PositionEmbeddingSine3D,
    SelfAttentionLayer,
    ShapeCache,
    c2_msra_fill,
    c2_xavier_fill,
    get_norm,
)


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "m2f_parts.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files if name.startswith("pe")}


def close(value, want, atol=1e-5):
    torch.testing.assert_close(value, want, rtol=0, atol=atol)


# ---- position codes


def test_position_codes_of_maps_and_of_time_equal_the_recorded_ones(golden):
    maps = torch.zeros(2, 8, 5, 7)
    mask = torch.zeros(2, 5, 7, dtype=torch.bool)
    mask[1, 4:] = True
    mask[1, :, 5:] = True
    close(PositionEmbeddingSine(128, normalize=True)(maps)[0], golden["pe2d/norm_128"])
    close(PositionEmbeddingSine(8)(maps)[0], golden["pe2d/raw_8"])
    close(PositionEmbeddingSine(8, normalize=True)(maps, mask), golden["pe2d/masked_8"])
    close(PositionEmbeddingSine1D(8, normalize=True)(torch.zeros(4, 2, 3, 16)), golden["pe1d/norm_8"])


def test_a_mask_without_padding_changes_no_position_code():
    maps = torch.zeros(2, 8, 3, 4)
    code = PositionEmbeddingSine(6, normalize=True)
    close(code(maps, torch.zeros(2, 3, 4, dtype=torch.bool)), code(maps))


def test_position_codes_of_a_clip_are_those_of_the_map_plus_those_of_time():
    clip = torch.zeros(2, 3, 8, 4, 5)
    code = PositionEmbeddingSine3D(6, normalize=True)(clip)
    assert code.shape == (2, 3, 12, 4, 5)
    pair = torch.arange(12) // 2 * 2
    angles = (torch.arange(1, 4)[:, None] / (3 + 1e-6) * 2 * math.pi) / 10000 ** (pair / 12)
    time = torch.where(torch.arange(12) % 2 == 0, angles.sin(), angles.cos())
    close(code - PositionEmbeddingSine(6, normalize=True)(clip[:, 0])[:, None], time[None, :, :, None, None] + 0 * code)


def test_an_offset_moves_position_codes_to_pixel_centres():
    code = PositionEmbeddingSine(2, normalize=True, offset=-0.5)(torch.zeros(1, 1, 1, 4))
    want = (torch.arange(4) + 0.5) / (4 + 1e-6) * 2 * math.pi
    close(code[0, 2, 0], want.sin())


def test_position_codes_are_float32_whatever_the_map_and_exist_for_empty_batches():
    assert PositionEmbeddingSine(4)(torch.zeros(1, 1, 2, 2, dtype=torch.float16)).dtype == torch.float32
    assert PositionEmbeddingSine(4)(torch.zeros(0, 1, 2, 3)).shape == (0, 8, 2, 3)


def test_position_codes_made_at_inference_can_be_trained_with():
    code = PositionEmbeddingSine(4)
    with torch.inference_mode():
        code(torch.zeros(1, 1, 2, 2))
    weight = torch.ones(1, requires_grad=True)
    (weight * code(torch.zeros(1, 1, 2, 2))).sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize("options, message", [({"scale": 1.0}, "normalize"), ({"num_pos_feats": 5}, "even")])
def test_impossible_position_codes_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PositionEmbeddingSine(**options)


def test_the_shape_cache_keeps_the_newest_entries_and_is_never_copied():
    cache = ShapeCache(max_entries=2)
    tensors = [cache.get(key, lambda: torch.zeros(1)) for key in "abc"]
    assert len(cache) == 2
    assert cache.get("c", lambda: torch.ones(1)) is tensors[2]
    assert cache.get("a", lambda: torch.ones(1)).item() == 1
    assert len(copy.deepcopy(cache)) == len(pickle.loads(pickle.dumps(cache))) == 0


# ---- attention


def random_masks(batch, heads, queries, keys):
    blocked = torch.rand(batch * heads, queries, keys) > 0.6
    blocked[..., 0] = False
    padding = torch.zeros(batch, keys, dtype=torch.bool)
    padding[1, -2:] = True
    return blocked, padding


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("kind", ["none", "bool", "float", "padding", "bool+padding", "float+padding", "shared"])
def test_attention_equals_that_of_torch(kind, grad):
    torch.manual_seed(0)
    module = nn.MultiheadAttention(32, 4)
    query, key, value = torch.randn(50, 2, 32), torch.randn(40, 2, 32), torch.randn(40, 2, 32)
    blocked, padding = random_masks(2, 4, 50, 40)
    mask, padding = (blocked if kind != "padding" else None), (padding if "padding" in kind else None)
    if kind == "none":
        mask = None
    if "float" in kind:
        mask = torch.randn(8, 50, 40)
    ours = mask
    if kind == "shared":
        ours = blocked.unflatten(0, (2, 4))[:, :1]
        mask = ours.expand(-1, 4, -1, -1).flatten(0, 1)
    torch_padding = padding
    if kind == "float+padding":
        torch_padding = torch.zeros(2, 40).masked_fill(padding, float("-inf"))
    with torch.set_grad_enabled(grad):
        want, _ = module(query, key, value, attn_mask=mask, key_padding_mask=torch_padding, need_weights=False)
        close(attend(module, query, key, value, ours, padding), want)


def test_a_mask_for_all_images_and_heads_may_have_two_dimensions():
    module, x = nn.MultiheadAttention(16, 2), torch.randn(5, 3, 16)
    mask = torch.ones(5, 5, dtype=torch.bool).triu(1)
    close(attend(module, x, x, x, mask), module(x, x, x, attn_mask=mask, need_weights=False)[0])


def test_attention_drops_weights_in_training_only():
    torch.manual_seed(0)
    module, x = nn.MultiheadAttention(16, 2, dropout=0.5), torch.randn(5, 3, 16)
    assert not torch.equal(attend(module, x, x, x), attend(module, x, x, x))
    module.eval()
    assert torch.equal(attend(module, x, x, x), attend(module, x, x, x))


@pytest.mark.parametrize("pre_norm", [False, True])
def test_transformer_layers_follow_their_definition(pre_norm):
    torch.manual_seed(0)
    x, memory, pos, query_pos = (
        torch.randn(5, 2, 16),
        torch.randn(7, 2, 16),
        torch.randn(7, 1, 16),
        torch.randn(5, 1, 16),
    )
    self_layer = SelfAttentionLayer(16, 4, normalize_before=pre_norm)
    cross_layer = CrossAttentionLayer(16, 4, normalize_before=pre_norm)
    ffn = FFNLayer(16, 24, normalize_before=pre_norm)

    def residual(layer, update):
        return x + update(layer.norm(x)) if pre_norm else layer.norm(x + update(x))

    close(
        self_layer(x, query_pos=query_pos),
        residual(self_layer, lambda y: self_layer.self_attn(y + query_pos, y + query_pos, y)[0]),
    )
    close(
        cross_layer(x, memory, pos=pos, query_pos=query_pos),
        residual(cross_layer, lambda y: cross_layer.multihead_attn(y + query_pos, memory + pos, memory)[0]),
    )
    close(ffn(x), residual(ffn, lambda y: ffn.linear2(F.relu(ffn.linear1(y)))))


def test_transformer_layers_have_the_names_and_the_order_of_published_checkpoints():
    attention = ["in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"]
    norm = ["norm.weight", "norm.bias"]
    assert list(SelfAttentionLayer(8, 2).state_dict()) == [*(f"self_attn.{name}" for name in attention), *norm]
    assert list(CrossAttentionLayer(8, 2).state_dict()) == [*(f"multihead_attn.{name}" for name in attention), *norm]
    linear = ["linear1.weight", "linear1.bias", "linear2.weight", "linear2.bias"]
    assert list(FFNLayer(8, 16).state_dict()) == [*linear, *norm]
    assert list(MLP(8, 8, 4, 3).state_dict()) == [f"layers.{i}.{kind}" for i in range(3) for kind in ("weight", "bias")]


def test_the_mlp_has_relus_between_its_layers_only():
    mlp, x = MLP(4, 6, 3, 2), torch.randn(5, 4)
    close(mlp(x), mlp.layers[1](F.relu(mlp.layers[0](x))))
    assert mlp(torch.zeros(0, 4)).shape == (0, 3) and MLP(4, 9, 2, 1)(x).shape == (5, 2)


# ---- convolutions, norms, initial weights


def test_a_convolution_applies_its_norm_and_then_its_activation():
    conv = Conv2d(3, 32, 3, padding=1, bias=False, norm=get_norm("GN", 32), activation=F.relu)
    x = torch.randn(2, 3, 5, 6)
    close(conv(x), F.relu(conv.norm(F.conv2d(x, conv.weight, padding=1))))
    assert set(conv.state_dict()) == {"weight", "norm.weight", "norm.bias"}


@pytest.mark.parametrize(
    "name, kind",
    [("BN", "BatchNorm2d"), ("SyncBN", "SyncBatchNorm"), ("FrozenBN", "FrozenBatchNorm2d"), ("GN", "GroupNorm")],
)
def test_norms_are_made_by_name(name, kind):
    assert type(get_norm(name, 64)).__name__ == kind


def test_no_norm_a_callable_and_an_unknown_name():
    assert get_norm("", 8) is None and get_norm(None, 8) is None
    assert isinstance(get_norm(nn.InstanceNorm2d, 8), nn.InstanceNorm2d)
    with pytest.raises(ValueError, match=r"FrozenBN.*'XN'"):
        get_norm("XN", 8)
    with pytest.raises(ValueError, match="multiple of 32"):
        get_norm("GN", 48)


def test_the_layer_norm_of_maps_normalises_the_channels_of_every_pixel():
    x = torch.randn(2, 6, 3, 4) * 5 + 2
    out = get_norm("LN", 6)(x)
    close(out.mean(1), torch.zeros(2, 3, 4))
    close(out.var(1, unbiased=False), torch.ones(2, 3, 4), atol=1e-3)


def frozen_example():
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4).eval()
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        tensor.data.uniform_(0.5, 2)
    return norm, FrozenBatchNorm2d.convert_frozen_batchnorm(copy.deepcopy(norm)), torch.randn(2, 4, 3, 3)


@pytest.mark.parametrize("requires_grad", [False, True])
def test_frozen_batch_norm_equals_batch_norm_in_evaluation(requires_grad):
    norm, frozen, x = frozen_example()
    close(frozen(x.requires_grad_(requires_grad)), norm(x))
    assert list(frozen.parameters()) == []


def test_frozen_batch_norm_keeps_half_precision():
    _, frozen, x = frozen_example()
    assert frozen(x.half().requires_grad_()).dtype == torch.float16


def test_a_fresh_frozen_batch_norm_changes_nothing_and_has_four_keys():
    x = torch.randn(1, 3, 2, 2)
    frozen = FrozenBatchNorm2d(3)
    close(frozen(x), x)
    assert list(frozen.state_dict()) == ["weight", "bias", "running_mean", "running_var"]


def test_batch_norms_are_frozen_everywhere_inside_a_module():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.BatchNorm2d(4), nn.SyncBatchNorm(4)), nn.GroupNorm(2, 4))
    frozen = FrozenBatchNorm2d.convert_frozen_batchnorm(net)
    kinds = [type(module).__name__ for module in frozen.modules()]
    assert kinds.count("FrozenBatchNorm2d") == 2 and kinds.count("GroupNorm") == 1
    assert "1.0.num_batches_tracked" in frozen.state_dict()


def test_a_caffe2_file_without_statistics_and_a_torch_file_with_a_counter_load():
    frozen = FrozenBatchNorm2d(2)
    report = frozen.load_state_dict({"weight": torch.full((2,), 2.0), "bias": torch.ones(2)})
    assert not report.missing_keys
    close(torch.stack((frozen.running_mean, frozen.running_var)), torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
    frozen.load_state_dict(nn.BatchNorm2d(2).state_dict())
    close(frozen.running_var, torch.ones(2))


def test_initial_weights_have_the_spread_of_caffe2_fills():
    torch.manual_seed(0)
    conv = nn.Conv2d(64, 128, 3)
    c2_xavier_fill(conv)
    assert conv.weight.abs().max() <= math.sqrt(3 / (64 * 9)) and conv.bias.abs().max() == 0
    c2_msra_fill(conv)
    assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / (128 * 9)), rel=0.02)
    c2_msra_fill(nn.Conv2d(2, 2, 1, bias=False))


@pytest.mark.parametrize("num_channels, is_slow", [(8, True), (32, False)])
def test_group_norm_of_few_channels_is_trained_channels_first_with_the_same_results(num_channels, is_slow, monkeypatch):
    norm = GroupNorm(4, num_channels)
    x = torch.randn(2, num_channels, 5, 6, generator=torch.Generator().manual_seed(0))
    x = x.to(memory_format=torch.channels_last).requires_grad_()
    plain = nn.GroupNorm(4, num_channels)
    layouts = []
    group_norm = F.group_norm
    monkeypatch.setattr(F, "group_norm", lambda x, *given: layouts.append(x.is_contiguous()) or group_norm(x, *given))
    results = []
    for module in (norm, plain):
        out = module(x)
        assert out.is_contiguous(memory_format=torch.channels_last)
        results.append((out, *torch.autograd.grad(out.square().sin().sum(), [x, module.weight, module.bias])))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        norm(x)
    assert layouts == [is_slow, False, False]  # in training, of PyTorch's module, and without gradients
