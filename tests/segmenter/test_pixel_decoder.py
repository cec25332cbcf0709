"""Deformable encoder and pixel decoder against recorded numbers and names."""

from __future__ import annotations

import gzip
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from golden_fill import fill_
from helpers import GOLDEN
from recorded_inputs import recorded_input

from mask2former.layers import PositionEmbeddingSine
from mask2former.modeling.pixel_decoder import DeformableEncoder, MSDeformAttnPixelDecoder
from mask2former.registry import SEM_SEG_HEADS_REGISTRY, build_from_cfg
from mask2former.structures import ShapeSpec

SIZES = [(2, 3), (4, 6), (8, 12)]
FEATURES = {"res2": (16, 4), "res3": (24, 8), "res4": (32, 16), "res5": (40, 32)}
SHAPES = {name: ShapeSpec(channels=channels, stride=stride) for name, (channels, stride) in FEATURES.items()}
TINY = {
    "transformer_dropout": 0.0,
    "transformer_nheads": 4,
    "transformer_dim_feedforward": 64,
    "transformer_enc_layers": 2,
    "conv_dim": 32,
    "mask_dim": 16,
    "norm": "GN",
    "transformer_in_features": ["res3", "res4", "res5"],
    "common_stride": 4,
}


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "m2f_parts.npz") as arrays:
        names = [name for name in arrays.files if name.startswith(("enc/", "pd/"))]
        return {name: torch.from_numpy(arrays[name]) for name in names}


def close(value, want, atol=1e-4):
    torch.testing.assert_close(value, want, rtol=0, atol=atol)


def tiny(**options):
    return fill_(MSDeformAttnPixelDecoder(SHAPES, **{**TINY, **options})).eval()


def recorded_features():
    return {
        name: recorded_input(f"pd.{name}", 2, channels, 64 // stride, 96 // stride)
        for name, (channels, stride) in FEATURES.items()
    }


@pytest.mark.parametrize("grad", [True, False])
def test_the_encoder_equals_the_recorded_one(golden, grad):
    encoder = DeformableEncoder(32, num_heads=4, num_layers=2, dim_feedforward=64, num_levels=3)
    fill_(encoder).eval()
    maps = [recorded_input(f"enc.src{i}", 2, 32, *size) for i, size in enumerate(SIZES)]
    code = PositionEmbeddingSine(16, normalize=True)
    with torch.set_grad_enabled(grad):
        out = encoder(maps, [code(level) for level in maps])
    assert [tuple(level.shape[-2:]) for level in out] == SIZES
    close(torch.cat([level.flatten(2) for level in out], dim=2).transpose(1, 2), golden["enc/out"])
    close(encoder.reference_points(SIZES, torch.device("cpu"))[0], golden["enc/ref_points"], atol=1e-6)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_all_maps_equal_the_recorded_ones(golden, grad, memory_format):
    features = {name: x.contiguous(memory_format=memory_format) for name, x in recorded_features().items()}
    with torch.set_grad_enabled(grad):
        mask_features, finest, coarsest, multi_scale = tiny().forward_features(features)
    close(mask_features, golden["pd/mask_features"])
    close(finest[:, ::2], golden["pd/clip_mask_features"])
    for index, level in enumerate(multi_scale):
        close(level, golden[f"pd/multi_scale{index}"])
    assert torch.equal(coarsest, multi_scale[0]) and len(multi_scale) == 3


def test_names_shapes_and_order_are_those_of_published_checkpoints():
    with gzip.open(GOLDEN / "segmenter_keys.json.gz", "rt") as file:
        want = json.load(file)["part_pixel_decoder_tiny"]
    assert [[name, list(tensor.shape)] for name, tensor in tiny().state_dict().items()] == [
        list(e) for e in want.items()
    ]


def test_convolutions_without_norm_have_a_bias():
    names = set(tiny(norm="").state_dict())
    assert {"adapter_1.bias", "layer_1.bias"} <= names and not any("adapter_1.norm" in name for name in names)


@torch.no_grad()
def test_an_image_gives_the_same_alone_and_in_a_batch():
    decoder, features = tiny(), recorded_features()
    together = decoder.forward_features(features)
    alone = decoder.forward_features({name: x[1:] for name, x in features.items()})
    for index in range(3):
        close(alone[index], together[index][1:], atol=1e-5)


@torch.no_grad()
def test_images_of_another_size_in_between_change_nothing():
    decoder, features = tiny(), recorded_features()
    first = decoder.forward_features(features)[0]
    decoder.forward_features({name: x[:, :, :, : x.shape[3] // 3] for name, x in features.items()})
    assert torch.equal(decoder.forward_features(features)[0], first)


def test_autocast_and_half_precision_features_still_compute_in_float32(golden):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = tiny().forward_features(recorded_features())
    close(outputs[0], golden["pd/mask_features"])
    halved = tiny().forward_features({name: x.half() for name, x in recorded_features().items()})
    assert halved[0].dtype == torch.float32
    close(halved[0], golden["pd/mask_features"], atol=0.02)


@pytest.mark.parametrize("common_stride, num_finer", [(8, 0), (4, 1)])
def test_the_stride_of_the_masks_decides_how_many_finer_maps_are_made(common_stride, num_finer):
    decoder = tiny(common_stride=common_stride)
    assert len(decoder.finer_features) == num_finer
    mask_features, *_ = decoder.forward_features(recorded_features())
    assert mask_features.shape == (2, 16, 64 // common_stride, 96 // common_stride)


def test_dropout_acts_in_training_only():
    decoder, features = tiny(transformer_dropout=0.5), recorded_features()
    assert torch.equal(decoder.forward_features(features)[0], decoder.forward_features(features)[0])
    decoder.train()
    assert not torch.equal(decoder.forward_features(features)[0], decoder.forward_features(features)[0])


def test_gradients_reach_every_parameter_and_feature():
    decoder = tiny().train()
    features = {name: x.requires_grad_() for name, x in recorded_features().items()}
    mask_features, _, _, multi_scale = decoder.forward_features(features)
    (mask_features.square().sum() + sum(level.square().sum() for level in multi_scale)).backward()
    assert [name for name, p in decoder.named_parameters() if p.grad is None or p.grad.abs().max() == 0] == []
    assert all(x.grad.abs().max() > 0 for x in features.values())


def test_fresh_weights_follow_the_published_scheme():
    torch.manual_seed(0)
    decoder = MSDeformAttnPixelDecoder(SHAPES, **TINY)
    attention = decoder.transformer.encoder["layers"][0].self_attn
    assert attention.sampling_offsets.weight.abs().max() == 0 and attention.sampling_offsets.bias.abs().max() == 4
    assert decoder.input_proj[0][0].bias.abs().max() == 0 and decoder.mask_features.bias.abs().max() == 0
    assert 0.8 < decoder.transformer.level_embed.std() < 1.2


def config(**head):
    options = {
        "IN_FEATURES": ["res2", "res3", "res4", "res5"],
        "TRANSFORMER_ENC_LAYERS": 2,
        "CONVS_DIM": 64,
        "MASK_DIM": 32,
        "NORM": "GN",
        "COMMON_STRIDE": 4,
        "DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES": ["res3", "res4", "res5"],
        **head,
    }
    mask_former = SimpleNamespace(DROPOUT=0.0, NHEADS=8)
    return SimpleNamespace(MODEL=SimpleNamespace(SEM_SEG_HEAD=SimpleNamespace(**options), MASK_FORMER=mask_former))


def test_it_is_built_from_a_configuration_by_its_published_name():
    decoder = build_from_cfg(SEM_SEG_HEADS_REGISTRY, "MSDeformAttnPixelDecoder", config(), SHAPES)
    layers = decoder.transformer.encoder["layers"]
    assert len(layers) == 2 and layers[0].linear1.out_features == 1024 and layers[0].self_attn.n_heads == 8


@pytest.mark.parametrize("names", [["res4", "res5"], ["res3", "res4", "res6"]])
def test_too_few_or_unknown_features_are_refused(names):
    with pytest.raises(ValueError, match="ENCODER_IN_FEATURES"):
        tiny(transformer_in_features=names)
