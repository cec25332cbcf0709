"""What OVFormer takes from weight files and what only from its configuration."""

from __future__ import annotations

import torch
from ovformer_models import CLIP, FRAME, clip_cfg
from torch import nn

from lbvq.engine.weights import load_weights
from mask2former.registry import build_model


def filled(model: nn.Module, value: float) -> nn.Module:
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.fill_(value)
    return model


def test_text_and_counts_come_from_the_configuration_even_where_the_file_has_their_shape(tmp_path):
    """YouTube-VIS 2019 and 2021 have 40 classes both."""
    model = build_model(clip_cfg(FRAME, tmp_path))
    text = model.sem_seg_head.predictor.class_embed.zs_weight.clone()
    torch.save(filled(build_model(clip_cfg(FRAME, tmp_path)), 0.5).state_dict(), tmp_path / "weights.pth")
    report = load_weights(model, tmp_path / "weights.pth", allow_missing="none")
    assert report.complete and not report.mismatched
    assert torch.equal(model.sem_seg_head.predictor.class_embed.zs_weight, text)
    assert model.criterion.empty_object_weight.tolist() == torch.tensor([1.0, 0.4]).tolist()
    assert (model.sem_seg_head.predictor.mask_embed.layers[0].weight == 0.5).all()


def test_weights_of_another_vocabulary_load_completely(tmp_path):
    torch.save(filled(build_model(clip_cfg(CLIP, tmp_path)), 0.5).state_dict(), tmp_path / "lvvis.pth")
    report = load_weights(build_model(clip_cfg(FRAME, tmp_path)), tmp_path / "lvvis.pth", allow_missing="none")
    assert report.complete and not report.mismatched


def test_changing_the_vocabulary_changes_the_number_of_classes(tmp_path):
    model = build_model(clip_cfg(FRAME, tmp_path))
    model.set_vocabulary(torch.randn(3, 512))
    assert model.sem_seg_head.predictor.class_embed.zs_weight.shape == (512, 4)
    assert model.sem_seg_head.num_classes == 3
