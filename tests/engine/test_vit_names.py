"""Weights of plain ViTs as other programs write them give, in our networks, what those programs give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from vit_models import PMT, VIDEOMT, cfg_of
from vit_weights import normalised

from lbvq.engine.weights import LoadReport, load_weights
from mask2former.registry import build_model

SIZE = {"hidden_size": 48, "num_attention_heads": 3, "num_hidden_layers": 4}
OURS = {
    "MODEL.VIT.EMBED_DIM": 48,
    "MODEL.VIT.DEPTH": 4,
    "MODEL.VIT.NUM_HEADS": 3,
    "MODEL.BACKBONE.IMG_SIZE": 64,
    "MODEL.BACKBONE.SEGMENTER_BLOCKS": [2, 3],
    "MODEL.BACKBONE.INTERACTION_INDICES": [1, 3],
    "MODEL.BACKBONE.NUM_OBJECT_QUERIES": 7,
    "MODEL.BACKBONE.NUM_CLASSES": 13,
}
DINOV3 = "facebook/dinov3-vits16-pretrain-lvd1689m"


def moved(model: nn.Module) -> nn.Module:
    """Every number moved off its initial value."""
    torch.manual_seed(0)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor += 0.1 * torch.randn_like(tensor)
    return model.eval()


def ours(method: dict[str, Any] = VIDEOMT, **changes: Any) -> nn.Module:
    torch.manual_seed(1)
    return build_model(cfg_of({**method, **OURS}, **changes)).eval()


def heads_may_be_new(name: str) -> bool:
    return ".encoder.backbone." not in name


def load(model: nn.Module, tensors: dict[str, Tensor], folder: Path) -> LoadReport:
    torch.save(tensors, folder / "weights.pth")
    return load_weights(model, folder / "weights.pth", allow_missing=heads_may_be_new)


def vit_of(model: nn.Module) -> nn.Module:
    return model.backbone.vit


# -- VidEoMT and EoMT of transformers


def peer(kind: str) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, f"{kind}Config"):
        pytest.skip(f"transformers {transformers.__version__} has no {kind}")
    config = getattr(transformers, f"{kind}Config")
    classes = {"Videomt": "VideomtForUniversalSegmentation", "Eomt": "EomtForUniversalSegmentation"}
    settings = {"image_size": 64, "num_queries": 7, "num_blocks": 2, "num_labels": 13, "num_register_tokens": 4}
    return moved(getattr(transformers, classes[kind])(config(**SIZE, **settings)))


@pytest.mark.parametrize("spelling", ["of the hub", "in memory"])
@torch.no_grad()
def test_videomt_of_transformers_gives_the_same_numbers_here(spelling, tmp_path):
    """Their own class as the peer, random weights: logits and masks of three frames to 2e-5 of the largest."""
    theirs, model = peer("Videomt"), ours()
    if spelling == "of the hub":
        theirs.save_pretrained(tmp_path)
        report = load_weights(model, tmp_path / "model.safetensors", allow_missing="none")
    else:
        report = load(model, theirs.state_dict(), tmp_path)
    assert report.complete and "VidEoMT of transformers" in report.kind
    frames = normalised(3, 64, 64)
    want = theirs(pixel_values_videos=frames[None])
    outputs = model.clip_outputs(frames, 1)
    for got, expected in (
        (outputs["pred_logits"], want.class_queries_logits),
        (outputs["pred_masks"], want.masks_queries_logits),
    ):
        expected = expected.flatten(0, -4) if expected.dim() > got.dim() else expected
        torch.testing.assert_close(got, expected, rtol=2e-5, atol=2e-5 * expected.abs().max().item())


@torch.no_grad()
def test_eomt_of_transformers_gives_the_same_numbers_on_a_video_of_one_frame(tmp_path):
    """The image model is the video model without its past; only the maker of the next queries is new.

    A trained EoMT masks no attention any more: its probabilities of masking have come down to 0.
    """
    pytest.importorskip("transformers")
    theirs, model = peer("Eomt"), ours()
    theirs.attn_mask_probs.zero_()
    report = load(model, theirs.state_dict(), tmp_path)
    assert report.missing == ["backbone.query_updater.bias", "backbone.query_updater.weight"]
    assert not report.unexpected and "EoMT of transformers" in report.kind
    image = normalised(1, 64, 64)
    want, outputs = theirs(pixel_values=image), model.clip_outputs(image, 1)
    torch.testing.assert_close(outputs["pred_logits"], want.class_queries_logits, rtol=2e-5, atol=2e-4)
    torch.testing.assert_close(outputs["pred_masks"], want.masks_queries_logits, rtol=2e-5, atol=1e-3)


def test_the_published_spelling_loads_as_it_is(tmp_path):
    source, model = moved(ours()), ours()
    torch.save({"model": source.state_dict(), "iteration": 39999}, tmp_path / "yt_2019_vit_small_52.8.pth")
    report = load_weights(model, tmp_path / "yt_2019_vit_small_52.8.pth", allow_missing="none")
    assert report.complete and not report.resized
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in source.state_dict().items())


def test_a_third_of_an_attention_matrix_that_is_missing_is_named(tmp_path):
    pytest.importorskip("transformers")
    tensors = peer("Eomt").state_dict()
    del tensors["layers.1.attention.k_proj.weight"]
    with pytest.raises(ValueError, match=r"blocks\.1\.attn\.qkv\.weight is made of .* the file has only v, q"):
        load(ours(), tensors, tmp_path)


# -- the ViT alone


def dinov2_of_transformers() -> nn.Module:
    import transformers

    config = transformers.Dinov2WithRegistersConfig(**SIZE, image_size=70, patch_size=14, num_register_tokens=4)
    return moved(transformers.Dinov2WithRegistersModel(config))


@pytest.mark.parametrize("method", [VIDEOMT, PMT], ids=["videomt", "pmt"])
@pytest.mark.parametrize("spelling", ["of the hub", "in memory"])
@torch.no_grad()
def test_dinov2_of_the_hub_gives_the_same_tokens_here(method, spelling, tmp_path):
    pytest.importorskip("transformers")
    theirs = dinov2_of_transformers()
    model = ours(method, MODEL__BACKBONE__PATCH_SIZE=14, MODEL__BACKBONE__IMG_SIZE=70)
    if spelling == "of the hub":
        theirs.save_pretrained(tmp_path)
        report = load_weights(model, tmp_path / "model.safetensors", allow_missing=heads_may_be_new)
    else:
        report = load(model, theirs.state_dict(), tmp_path)
    assert not report.unexpected and not report.resized and "DINOv2 of transformers" in report.kind
    image = normalised(1, 70, 70)
    want = theirs(image).last_hidden_state  # class token, registers, patches
    torch.testing.assert_close(vit_of(model)(image), want, rtol=2e-5, atol=2e-5)


@torch.no_grad()
def test_dinov2_of_meta_is_that_of_the_hub(tmp_path):
    """The same weights under the names of Meta's own files; the class token has a position there."""
    pytest.importorskip("transformers")
    theirs = dinov2_of_transformers()
    theirs.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")  # of the hub; names in memory depend on the version
    meta = {
        "cls_token": state["embeddings.cls_token"],
        "register_tokens": state["embeddings.register_tokens"],
        "mask_token": state["embeddings.mask_token"],
        "pos_embed": state["embeddings.position_embeddings"],
        "patch_embed.proj.weight": state["embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": state["embeddings.patch_embeddings.projection.bias"],
        "norm.weight": state["layernorm.weight"],
        "norm.bias": state["layernorm.bias"],
    }
    for block in range(SIZE["num_hidden_layers"]):
        there = f"encoder.layer.{block}."
        for leaf in ("weight", "bias"):
            thirds = [state[f"{there}attention.attention.{part}.{leaf}"] for part in ("query", "key", "value")]
            meta[f"blocks.{block}.attn.qkv.{leaf}"] = torch.cat(thirds)
            meta[f"blocks.{block}.attn.proj.{leaf}"] = state[f"{there}attention.output.dense.{leaf}"]
            for part in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                meta[f"blocks.{block}.{part}.{leaf}"] = state[f"{there}{part}.{leaf}"]
        for scale in "12":
            meta[f"blocks.{block}.ls{scale}.gamma"] = state[f"{there}layer_scale{scale}.lambda1"]
    settings = {"MODEL__BACKBONE__PATCH_SIZE": 14, "MODEL__BACKBONE__IMG_SIZE": 70}
    one, other = ours(**settings), ours(**settings)
    report = load(one, meta, tmp_path)
    assert not report.unexpected and "Meta's DINOv2" in report.kind
    load(other, state, tmp_path)
    image = normalised(1, 70, 70)
    assert torch.equal(vit_of(one)(image), vit_of(other)(image))


@torch.no_grad()
def test_dinov2_of_timm_gives_the_same_tokens_here(tmp_path):
    timm = pytest.importorskip("timm")
    size = {"embed_dim": 48, "depth": 4, "num_heads": 3, "img_size": 64, "patch_size": 16, "num_classes": 0}
    theirs = moved(timm.create_model("vit_small_patch14_reg4_dinov2", pretrained=False, **size))
    model = ours()
    report = load(model, theirs.state_dict(), tmp_path)
    assert not report.unexpected and not report.resized and "timm's DINOv2" in report.kind
    image = normalised(1, 64, 64)
    torch.testing.assert_close(vit_of(model)(image), theirs.forward_features(image), rtol=2e-5, atol=2e-5)


def test_weights_for_patches_of_14_pixels_are_resized_and_the_report_says_so(tmp_path):
    timm = pytest.importorskip("timm")
    size = {"embed_dim": 48, "depth": 4, "num_heads": 3, "img_size": 70, "num_classes": 0}
    theirs = moved(timm.create_model("vit_small_patch14_reg4_dinov2", pretrained=False, **size))
    model = ours()
    report = load(model, theirs.state_dict(), tmp_path)
    prefix = "backbone.encoder.backbone."
    assert report.resized == [
        (f"{prefix}pos_embed", (1, 25, 48), (1, 16, 48)),
        (f"{prefix}patch_embed.proj.weight", (48, 3, 14, 14), (48, 3, 16, 16)),
    ]
    assert "Resized to the shape of the model" in str(report) and not report.mismatched
    want = vit_of(model).fit_weight("pos_embed", theirs.pos_embed.detach())
    assert torch.equal(vit_of(model).pos_embed, want)


@torch.no_grad()
def test_dinov3_of_the_hub_gives_the_same_tokens_here(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.DINOv3ViTConfig(
        **SIZE, image_size=64, patch_size=16, num_register_tokens=4, intermediate_size=192
    )
    theirs = moved(transformers.DINOv3ViTModel(config))
    for spelling in ("of the hub", "in memory"):
        model = ours(MODEL__BACKBONE__MODEL_NAME=DINOV3)
        if spelling == "of the hub":
            theirs.save_pretrained(tmp_path)
            report = load_weights(model, tmp_path / "model.safetensors", allow_missing=heads_may_be_new)
        else:
            report = load(model, theirs.state_dict(), tmp_path)
        assert not report.unexpected and "DINOv3 of transformers" in report.kind
        image = normalised(1, 64, 96)
        want = theirs(image).last_hidden_state
        torch.testing.assert_close(vit_of(model)(image), want, rtol=2e-5, atol=5e-5)


def test_a_vit_of_the_other_kind_is_refused(tmp_path):
    pytest.importorskip("transformers")
    with pytest.raises(ValueError, match=r"Nothing in .* fits the model"):
        load(ours(MODEL__BACKBONE__MODEL_NAME=DINOV3), dinov2_of_transformers().state_dict(), tmp_path)


def test_training_starts_from_a_vit_alone(tmp_path):
    """What a training run asks for: the queries and heads are new modules."""
    timm = pytest.importorskip("timm")
    size = {"embed_dim": 48, "depth": 4, "num_heads": 3, "img_size": 64, "patch_size": 16, "num_classes": 0}
    theirs = timm.create_model("vit_small_patch14_reg4_dinov2", pretrained=False, **size)
    torch.save(theirs.state_dict(), tmp_path / "vit.pth")
    for method in (VIDEOMT, PMT):
        report = load_weights(ours(method), tmp_path / "vit.pth", allow_missing="new_modules")
        assert not any(".encoder." in name for name in report.missing)
