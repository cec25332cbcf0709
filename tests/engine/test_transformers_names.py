"""Weights of Mask2Former as transformers writes them give what transformers' own model gives."""

from __future__ import annotations

import pytest
import torch
from helpers import CONFIGS
from torch import nn

import lbvq.modeling  # noqa: F401  registers the networks
from lbvq.config import get_cfg
from lbvq.engine.transformers_names import from_transformers_mask2former
from lbvq.engine.weights import load_weights
from mask2former.registry import build_model

CONFIG_OF = {
    "swin": CONFIGS / "coco" / "mask2former_swin_tiny_video.yaml",
    "resnet": CONFIGS / "coco" / "mask2former_r50_video.yaml",
}


def theirs(backbone: str) -> nn.Module:
    """Their network of 80 classes, every parameter and statistic moved off its initial value."""
    import transformers

    stages = ["stage1", "stage2", "stage3", "stage4"]
    if backbone == "swin":
        config = transformers.SwinConfig(depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24], out_features=stages)
    else:
        config = transformers.ResNetConfig(out_features=stages)
    whole = transformers.Mask2FormerConfig(backbone_config=config, num_labels=80)
    torch.manual_seed(0)
    model = transformers.Mask2FormerForUniversalSegmentation(whole).eval()
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point() and tensor.dim():
                tensor += 0.02 * torch.randn_like(tensor)
    return model


def ours(backbone: str) -> nn.Module:
    cfg = get_cfg()
    cfg.merge_from_file(str(CONFIG_OF[backbone]))
    cfg.MODEL.DEVICE = "cpu"
    return build_model(cfg).eval()


@pytest.mark.parametrize("backbone", ["swin", "resnet"])
@pytest.mark.parametrize("spelling", ["of the hub", "in memory"])
def test_their_weights_give_their_results(backbone, spelling, tmp_path):
    peer = theirs(backbone)
    if spelling == "of the hub":
        peer.save_pretrained(tmp_path)
        path = tmp_path / "model.safetensors"
    else:
        path = tmp_path / "in_memory.pth"
        torch.save(peer.state_dict(), path)
    model = ours(backbone)
    report = load_weights(model, path, allow_missing="none")
    assert report.complete
    image = torch.randint(0, 256, (1, 3, 96, 128), generator=torch.Generator().manual_seed(1)).float()
    normalised = (image - model.pixel_mean) / model.pixel_std
    with torch.inference_mode():
        want = peer(pixel_values=normalised)
        outputs, _, _ = model.sem_seg_head(model.backbone(normalised))
    torch.testing.assert_close(outputs["pred_logits"].flatten(0, 1), want.class_queries_logits[0], rtol=0, atol=1e-5)
    masks = outputs["pred_masks"].reshape(want.masks_queries_logits[0].shape)
    torch.testing.assert_close(masks, want.masks_queries_logits[0], rtol=1e-5, atol=1e-5)


def test_a_file_that_lacks_a_part_of_an_attention_is_refused():
    stem = "model.pixel_level_module.encoder.encoder.layers.0.blocks.1.attention.self"
    with pytest.raises(ValueError, match=r"blocks\.1\.attn\.qkv\.weight .* has only q, v"):
        from_transformers_mask2former({f"{stem}.{part}.weight": torch.zeros(3, 3) for part in ("query", "value")})


def test_a_name_that_no_rule_knows_is_kept_for_the_report():
    name = "model.pixel_level_module.encoder.something.new"
    assert list(from_transformers_mask2former({name: torch.zeros(1)})) == [name.removeprefix("model.")]
