"""The backbone of DVIS++: DINOv2 with the extractors of ViT-Adapter. Names and shapes are in `test_checkpoint_keys`."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from golden_fill import fill_
from torch import nn
from video_models import load_cfg

from lbvq.engine.weights import load_start_files, load_weights
from mask2former.modeling.vit_adapter import D2VitAdapterDinoV2, DinoVisionTransformer, centres
from mask2former.registry import BACKBONE_REGISTRY, build_from_cfg

DIM = 192
IMAGES = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def small(**changes) -> D2VitAdapterDinoV2:
    """The smallest ViT with deterministic weights, in evaluation mode."""
    settings = {"MODEL__BACKBONE__NAME": "D2VitAdapterDinoV2", "MODEL__VIT_ADAPTER__NAME": "vitt"}
    cfg = load_cfg("dvis_Plus/ovis/vit_adapter/MinVIS_VitAdapterL.yaml", **{**settings, **changes})
    return fill_(build_from_cfg(BACKBONE_REGISTRY, "D2VitAdapterDinoV2", cfg, None)).eval()


@pytest.fixture(scope="module")
def backbone() -> D2VitAdapterDinoV2:
    return small()


@torch.no_grad()
def test_four_maps_of_the_width_of_the_vit(backbone):
    maps = backbone(IMAGES)
    assert {name: tuple(each.shape) for name, each in maps.items()} == {
        "res2": (2, DIM, 16, 24),
        "res3": (2, DIM, 8, 12),
        "res4": (2, DIM, 4, 6),
        "res5": (2, DIM, 2, 3),
    }
    assert {name: (shape.channels, shape.stride) for name, shape in backbone.output_shape().items()} == {
        name: (DIM, stride) for name, stride in (("res2", 4), ("res3", 8), ("res4", 16), ("res5", 32))
    }
    assert backbone.size_divisibility == 32


@torch.no_grad()
def test_images_do_not_know_of_each_other(backbone):
    both, alone = backbone(IMAGES), backbone(IMAGES[1:])
    for name, each in alone.items():
        torch.testing.assert_close(both[name][1:], each, atol=2e-4, rtol=1e-4)


@torch.no_grad()
def test_extractors_that_add_nothing_leave_convolutions_and_tokens():
    """Then every map is its convolution with the code of its level, plus the tokens after its quarter of the blocks."""
    backbone = small()
    for name, parameter in backbone.named_parameters():
        if ("attn.output_proj" in name and name.startswith("interactions")) or "ffn.fc2" in name:
            parameter.zero_()
    maps = backbone(IMAGES)
    first, *others = backbone.spm(IMAGES)
    others = [each + code[:, None, None] for each, code in zip(others, backbone.level_embed, strict=True)]
    convolved = [backbone.up(others[0]) + first, *others]
    tokens, after = backbone.vit_module.embed(IMAGES), []
    for number, block in enumerate(backbone.vit_module.blocks):
        tokens = block(tokens)
        if number % 3 == 2:
            after.append(tokens[:, 1:].transpose(1, 2).unflatten(2, (4, 6)))
    norms = (backbone.norm1, backbone.norm2, backbone.norm3, backbone.norm4)
    for got, each, of_vit, norm in zip(maps.values(), convolved, after, norms, strict=True):
        want = norm(each + F.interpolate(of_vit, size=each.shape[-2:], mode="bilinear"))
        torch.testing.assert_close(got, want, atol=2e-4, rtol=1e-4)


@torch.no_grad()
def test_a_cell_reads_the_tokens_where_it_is():
    """With one point at the centre of every cell, attention is the tokens' map, read bilinearly."""
    backbone = small()
    extractor = backbone.interactions[0].extractor
    for module in (extractor.attn.sampling_offsets, extractor.attn.attention_weights):
        nn.init.zeros_(module.weight)
        nn.init.zeros_(module.bias)
    for module in (extractor.attn.value_proj, extractor.attn.output_proj):
        module.weight.copy_(torch.eye(DIM))
        nn.init.zeros_(module.bias)
    nn.init.zeros_(extractor.ffn.fc2.weight)
    nn.init.zeros_(extractor.ffn.fc2.bias)
    sizes, grid = [(8, 12), (4, 6), (2, 3)], (4, 6)
    cells, tokens = torch.zeros(1, 96 + 24 + 6, DIM), torch.randn(1, 24, DIM)
    got = extractor(cells, centres(sizes, cells.device), tokens, grid, sizes)
    value = extractor.feat_norm(tokens).transpose(1, 2).unflatten(2, grid)
    torch.testing.assert_close(got[:, 96:120], value.flatten(2).transpose(1, 2), atol=1e-5, rtol=1e-5)
    halves = F.avg_pool2d(value, 2)  # the centre of a cell at stride 32 is the corner of four patches
    torch.testing.assert_close(got[:, 120:], halves.flatten(2).transpose(1, 2), atol=1e-5, rtol=1e-5)


def test_the_network_between_works_on_each_map(backbone):
    """A convolution whose middle is 1 and whose rest is 0 changes nothing."""
    network = small().interactions[0].extractor.ffn
    with torch.no_grad():
        network.dwconv["dwconv"].weight.zero_()
        network.dwconv["dwconv"].weight[:, :, 1, 1] = 1.0
        network.dwconv["dwconv"].bias.zero_()
        x = torch.randn(1, 8 + 2, DIM)
        want = network.fc2(F.gelu(network.fc1(x)))
        torch.testing.assert_close(network(x, [(2, 4), (1, 2)]), want, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_positions_are_the_table_at_its_own_size_and_resized_elsewhere(backbone):
    vit = backbone.vit_module
    assert vit.positions((37, 37)) is vit.pos_embed
    positions = vit.positions((4, 6))
    assert positions.shape == (1, 25, DIM) and torch.equal(positions[:, :1], vit.pos_embed[:, :1])
    table = torch.arange(37.0).repeat_interleave(37)[None, :, None].expand(1, -1, DIM)  # the row of each patch
    with torch.no_grad():
        before = vit.pos_embed.clone()
        vit.pos_embed[:, 1:] = table
        rows = vit.positions((20, 10))[0, 1:, 0].view(20, 10)
        vit.pos_embed.copy_(before)
    # cubic weights of a straight line give about the line: row r of 20 is at (r + 0.5) * 37 / 20.1 - 0.5
    want = (torch.arange(20) + 0.5) * 37 / 20.1 - 0.5  # with 20 it would be a tenth of a row further in the middle
    torch.testing.assert_close(rows[2:-2, 5], want[2:-2], atol=0.06, rtol=0)
    assert (rows[2:-2, 5] - want[2:-2]).mean().abs() < 0.01


@torch.no_grad()
def test_the_vit_is_dinov2():
    """Against the package transformers, at the size of the position table."""
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=3, image_size=592, patch_size=16, layerscale_value=0.5
    )
    theirs = transformers.Dinov2Model(config).eval()
    ours = fill_(DinoVisionTransformer(embed_dim=48, depth=2, num_heads=3)).eval()
    state = {f"embeddings.{name}": getattr(ours, name) for name in ("cls_token", "mask_token")}
    state["embeddings.position_embeddings"] = ours.pos_embed
    for kind in ("weight", "bias"):
        state[f"embeddings.patch_embeddings.projection.{kind}"] = getattr(ours.patch_embed["proj"], kind)
        state[f"layernorm.{kind}"] = getattr(ours.norm, kind)
    is_new = "encoder.layer.0.attention.q_proj.weight" in theirs.state_dict()  # names of transformers 5, and before
    out = "attention.o_proj" if is_new else "attention.output.dense"
    inputs = [f"attention.{part}_proj" for part in "qkv"]
    if not is_new:
        inputs = [f"attention.attention.{part}" for part in ("query", "key", "value")]
    names = {out: "attn.proj", **{name: name for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2")}}
    for number, block in enumerate(ours.blocks):
        place = f"encoder.layer.{number}"
        for kind in ("weight", "bias"):
            for theirs_name, our_name in names.items():
                state[f"{place}.{theirs_name}.{kind}"] = block.get_parameter(f"{our_name}.{kind}")
            parts = getattr(block.attn.qkv, kind).chunk(3)
            for part, value in zip(inputs, parts, strict=True):
                state[f"{place}.{part}.{kind}"] = value
        state[f"{place}.layer_scale1.lambda1"] = block.ls1.gamma
        state[f"{place}.layer_scale2.lambda1"] = block.ls2.gamma
    theirs.load_state_dict(state)
    image = torch.randn(1, 3, 592, 592, generator=torch.Generator().manual_seed(1))
    tokens = ours.embed(image)
    for block in ours.blocks:
        tokens = block(tokens)
    torch.testing.assert_close(ours.norm(tokens), theirs(image).last_hidden_state, atol=1e-4, rtol=1e-4)


def gradients(backbone: D2VitAdapterDinoV2) -> set[str]:
    backbone.zero_grad(set_to_none=True)
    sum(each.square().mean() for each in backbone.train()(IMAGES[:, :, :32, :32]).values()).backward()
    return {name for name, value in backbone.named_parameters() if value.grad is not None}


def test_a_frozen_vit_is_left_alone_and_all_else_is_trained():
    backbone = small()
    trained = gradients(backbone)
    assert trained == {name for name, value in backbone.named_parameters() if value.requires_grad}
    assert trained == {name for name, _ in backbone.named_parameters() if not name.startswith("vit_module.")}
    assert not any(block.training for block in backbone.vit_module.blocks) and backbone.spm.training


def test_quarters_of_the_vit_can_be_trained():
    backbone = small(MODEL__VIT_ADAPTER__FINETUNE=True, MODEL__VIT_ADAPTER__FINETUNE_INDEXES=[0, 2])
    inside = {name.removeprefix("vit_module.") for name in gradients(backbone) if name.startswith("vit_module.")}
    assert {name.split(".")[1] for name in inside if name.startswith("blocks")} == {"0", "1", "2", "6", "7", "8"}
    assert "patch_embed.proj.weight" in inside and "norm.weight" not in inside
    with pytest.raises(ValueError, match=r"FINETUNE_INDEXES must be in 0\.\.3"):
        small(MODEL__VIT_ADAPTER__FINETUNE=True, MODEL__VIT_ADAPTER__FINETUNE_INDEXES=[4])


def test_without_freezing_all_blocks_are_trained():
    inside = {name.split(".")[2] for name in gradients(small(MODEL__VIT_ADAPTER__FREEZE_VIT=False)) if "blocks" in name}
    assert inside == {str(number) for number in range(12)}


def test_an_unknown_size_is_refused():
    with pytest.raises(ValueError, match=r"VIT_ADAPTER\.NAME must be one of"):
        small(MODEL__VIT_ADAPTER__NAME="vitg")


def test_building_reads_no_file_and_training_starts_from_it(tmp_path):
    """The published file has 14 x 14 kernels, which are resized; a part that the model's own file had stays."""
    path = tmp_path / "dinov2.pth"
    backbone = small(MODEL__VIT_ADAPTER__VIT_WEIGHT=str(path))
    file = {name: torch.full_like(value, 0.5) for name, value in backbone.vit_module.state_dict().items()}
    kernel = torch.randn(DIM, 3, 14, 14)
    torch.save({**file, "patch_embed.proj.weight": kernel}, path)
    model = nn.ModuleDict({"backbone": backbone})
    before = backbone.spm.fc1.weight.clone()
    (report,) = load_start_files(model, None)
    assert report.complete and backbone.vit_module.pos_embed.eq(0.5).all()
    want = F.interpolate(kernel, (16, 16), mode="bilinear", align_corners=True)
    torch.testing.assert_close(backbone.vit_module.patch_embed["proj"].weight, want)
    assert torch.equal(backbone.spm.fc1.weight, before)
    torch.save(
        {"model": {name: torch.zeros_like(value) for name, value in model.state_dict().items()}}, tmp_path / "a.pth"
    )
    assert load_start_files(model, load_weights(model, tmp_path / "a.pth")) == []
    assert backbone.vit_module.pos_embed.eq(0).all()
