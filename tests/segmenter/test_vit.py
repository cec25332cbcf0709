"""Plain ViTs: equal to the published ones at every size, files of other programs fitted, and the parts by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import GOLDEN
from vit_weights import fill_vit_, normalised

from mask2former.modeling.vit import (
    Attention,
    PatchProjection,
    RotaryVisionTransformer,
    Rotations,
    VisionTransformer,
    build_vit,
    resize_patch_kernel,
    resize_positions,
    rotate,
)

SIZES = {"sq": (160, 160), "wide": (96, 160), "tall": (224, 128)}


@pytest.fixture(scope="module")
def recorded():
    return np.load(GOLDEN / "vit_small_dinov2.npz")


@pytest.fixture(scope="module")
def small():
    return fill_vit_(VisionTransformer(image_size=160), "backbone.encoder.backbone.").eval()


@pytest.mark.parametrize("tag", SIZES)
@torch.no_grad()
def test_dinov2_equals_the_recorded_tokens_at_every_size(recorded, small, tag):
    """Recorded from timm on CPU; its own noise is 4e-6 at a scale of 5.6."""
    images = normalised(1, *SIZES[tag], seed=4)
    grid = small.grid(images.shape[-2:])
    np.testing.assert_allclose(small.positions(grid)[0, :, ::8], recorded[f"{tag}/position"], atol=1e-5)
    tokens = small.embed(images)
    np.testing.assert_allclose(tokens[0, :, ::16], recorded[f"{tag}/embedded"], atol=1e-5)
    for index, block in enumerate(small.blocks):
        tokens = block(tokens)
        if f"{tag}/block{index}" in recorded:
            np.testing.assert_allclose(tokens[0, :, ::16], recorded[f"{tag}/block{index}"], atol=2e-5)
    np.testing.assert_allclose(small.norm(tokens)[0, :, ::8], recorded[f"{tag}/normed"], atol=2e-5)
    assert torch.equal(small(images), small.norm(tokens))


def test_an_image_that_patches_do_not_fill_is_refused(small):
    with pytest.raises(ValueError, match="multiples of 16, got 100 x 160"):
        small(torch.zeros(1, 3, 100, 160))


def test_attention_by_hand():
    """One head, two tokens: queries and keys are the tokens, values are twice the tokens."""
    attention = Attention(2, 1)
    with torch.no_grad():
        attention.qkv.weight.copy_(torch.cat((torch.eye(2), torch.eye(2), 2 * torch.eye(2))))
        attention.proj.weight.copy_(torch.eye(2))
        attention.qkv.bias.zero_()
        attention.proj.bias.zero_()
        out = attention(torch.tensor([[[1.0, 0.0], [0.0, 2.0]]]))
    share = math.exp(1 / math.sqrt(2)) / (math.exp(1 / math.sqrt(2)) + 1)
    assert out[0, 0].tolist() == pytest.approx([2 * share, 4 * (1 - share)], rel=1e-6)


def test_a_patch_projection_is_its_convolution():
    projection = PatchProjection(3, 5, kernel_size=4, stride=4)
    images = torch.randn(2, 3, 8, 12)
    want = F.conv2d(images, projection.weight, projection.bias, stride=4)
    torch.testing.assert_close(projection(images), want, atol=1e-6, rtol=1e-5)


# -- DINOv3


@pytest.mark.parametrize("file, head_dim, step", [("videomt_dinov3_small", 24, 1), ("pmt_small", 64, 4)])
def test_angles_equal_the_recorded_ones(file, head_dim, step):
    recorded = np.load(GOLDEN / f"{file}.npz")
    cosine, sine = Rotations(head_dim).eval()((10, 10), torch.device("cpu"))
    np.testing.assert_allclose(cosine[:, ::step], recorded["rope_cos"], atol=2e-6)
    np.testing.assert_allclose(sine[:, ::step], recorded["rope_sin"], atol=2e-6)


def test_patches_are_turned_and_what_stands_before_them_is_not():
    quarter = torch.tensor([[math.pi / 2, 0.0, math.pi / 2, 0.0]])  # one patch; the first pair turns
    x = torch.tensor([[[[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]]]])
    turned = rotate(x, (quarter.cos(), quarter.sin()))
    assert turned[0, 0, 0].tolist() == [1, 2, 3, 4]
    assert turned[0, 0, 1].tolist() == pytest.approx([-3, 2, 1, 4], abs=1e-6)


def test_in_training_all_coordinates_are_stretched_by_one_factor(monkeypatch):
    rotations, device = Rotations(8), torch.device("cpu")
    angles = rotations._angles((2, 3), device)
    for drawn, factor in ((0.0, 0.5), (0.5, 1.0), (1.0, 2.0)):
        monkeypatch.setattr(torch, "rand", lambda *size, drawn=drawn, **options: torch.full(size, drawn))
        torch.testing.assert_close(rotations.train()((2, 3), device)[0], (angles * factor).cos())
    torch.testing.assert_close(rotations.eval()((2, 3), device)[0], angles.cos())


def test_heads_that_cannot_be_rotated_are_refused():
    with pytest.raises(ValueError, match="multiple of 4 channels, got 6"):
        RotaryVisionTransformer(embed_dim=12, num_heads=2, depth=1)


# -- names and files of other programs


@pytest.mark.parametrize(
    "name, want",
    [
        ("vit_small_patch14_reg4_dinov2", (VisionTransformer, 384, 12, 6)),
        ("vit_base_patch14_reg4_dinov2.lvd142m", (VisionTransformer, 768, 12, 12)),
        ("timm/vit_large_patch14_reg4_dinov2.lvd142m", (VisionTransformer, 1024, 24, 16)),
        ("facebook/dinov3-vitl16-pretrain-lvd1689m", (RotaryVisionTransformer, 1024, 24, 16)),
        ("facebook/dinov3-vits16-pretrain-lvd1689m", (RotaryVisionTransformer, 384, 12, 6)),
    ],
)
def test_a_published_name_gives_the_network_of_its_size(name, want):
    with torch.device("meta"):
        vit = build_vit(name, image_size=640, patch_size=16)
    assert (type(vit), vit.embed_dim, len(vit.blocks), vit.num_heads) == want
    assert vit.patch_size == 16 and vit.num_prefix_tokens == 5


def test_the_size_of_a_name_can_be_changed():
    vit = build_vit("vit_tiny_reg4", image_size=64, patch_size=16, embed_dim=48, depth=2, num_heads=0)
    assert (vit.embed_dim, len(vit.blocks), vit.num_heads) == (48, 2, 3)


@pytest.mark.parametrize("name", ["resnet50", "vit_small_patch14_dinov2", "facebook/dinov3-vit7b16-pretrain-lvd1689m"])
def test_a_name_without_a_network_is_refused(name):
    with pytest.raises(ValueError, match="MODEL_NAME"):
        build_vit(name, image_size=640, patch_size=16)


def test_a_resized_patch_gives_what_the_patch_gave():
    """Enlarging loses nothing, so the larger kernel over the enlarged patch is the small kernel over the patch."""
    torch.manual_seed(0)
    kernel, patch = torch.randn(4, 3, 14, 14, dtype=torch.float64), torch.randn(1, 3, 14, 14, dtype=torch.float64)
    larger = F.interpolate(patch, size=(16, 16), mode="bicubic", antialias=True, align_corners=False)
    want = (kernel * patch).sum((1, 2, 3))
    torch.testing.assert_close((resize_patch_kernel(kernel, (16, 16)) * larger).sum((1, 2, 3)), want)
    assert resize_patch_kernel(kernel, (14, 14)) is kernel


def test_weights_of_another_patch_size_are_fitted_as_timm_does():
    timm = pytest.importorskip("timm")
    layers = pytest.importorskip("timm.layers")
    theirs = timm.create_model("vit_small_patch14_reg4_dinov2", pretrained=False, img_size=42, num_classes=0, depth=1)
    ours = VisionTransformer(image_size=64, depth=1)
    torch.manual_seed(0)
    kernel, table = torch.randn(384, 3, 14, 14), torch.randn_like(theirs.pos_embed)
    want = layers.resample_patch_embed(kernel, [16, 16])
    torch.testing.assert_close(ours.fit_weight("patch_embed.proj.weight", kernel), want, atol=1e-4, rtol=1e-4)
    want = layers.resample_abs_pos_embed(table, new_size=[4, 4], num_prefix_tokens=0)
    torch.testing.assert_close(ours.fit_weight("pos_embed", table), want)
    names = {name.replace("patch_embed.norm.", "") for name in theirs.state_dict()}
    assert names == set(ours.state_dict())


def test_what_cannot_be_fitted_is_left_alone():
    ours = VisionTransformer(image_size=64, embed_dim=48, num_heads=3, depth=1)
    assert ours.fit_weight("pos_embed", torch.zeros(1, 10, 48)) is None
    assert ours.fit_weight("pos_embed", torch.zeros(1, 16, 96)) is None
    assert ours.fit_weight("patch_embed.proj.weight", torch.zeros(96, 3, 14, 14)) is None
    assert ours.fit_weight("norm.weight", torch.zeros(96)) is None
    table = torch.randn(1, 12, 4)
    assert resize_positions(table, (3, 4), (3, 4)) is table
