"""PMT equals numbers recorded from the published code; its encoder is never trained."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden_samples import training_sample
from helpers import GOLDEN
from synth_targets import clips
from vit_models import PMT, TINY, cfg_of, model_of, tiny
from vit_weights import normalised

from mask2former.registry import build_model


@pytest.fixture(scope="module")
def recorded():
    return np.load(GOLDEN / "pmt_small.npz")


@pytest.fixture(scope="module")
def small():
    return model_of(PMT)


@torch.no_grad()
def test_the_levels_of_the_encoder_and_their_sum_equal_the_recorded_ones(recorded, small):
    network, images = small.backbone, normalised(3, 160, 160)
    levels = network.encoder_levels(images, (10, 10))
    normed = [norm(level.flatten(0, 1)).view_as(level) for norm, level in zip(network.bn, levels, strict=True)]
    np.testing.assert_allclose(torch.stack(normed)[:, 0, ::4, ::16], recorded["level_features_f0_s"], atol=2e-5)
    tokens = network.encode(images)
    joined = torch.cat((tokens.prefix, tokens.patches.flatten(1, 2)), dim=1)
    np.testing.assert_allclose(joined[:, ::4, ::16], recorded["tokens_s"], atol=5e-5)


@pytest.mark.parametrize("prefix, size", [("", (160, 160)), ("ns_", (96, 160))])
@torch.no_grad()
def test_the_network_equals_the_recorded_one(recorded, small, prefix, size):
    """Recorded with noise of 3.4e-5 on masks of scale 33, and 1.9e-6 on logits."""
    outputs = small.clip_outputs(normalised(3, *size), 1)
    np.testing.assert_allclose(outputs["pred_logits"], recorded[f"{prefix}logits"][0], atol=2e-5)
    masks = outputs["pred_masks"].transpose(0, 1)[:, :, ::2, ::2]
    np.testing.assert_allclose(masks, recorded[f"{prefix}masks_s2"][0], atol=2e-4)


def small_clip(num_frames: int = 3) -> dict:
    clip = clips(num_frames)[0]
    clip["classes"][clip["classes"] > 12] = 12
    return training_sample(clip)


def test_the_encoder_is_never_trained_and_stays_in_evaluation_mode():
    model = tiny(PMT).train()
    assert not model.backbone.vit.training and model.backbone.decoder.training
    sum(model([small_clip()]).values()).backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {name for name, _ in model.named_parameters() if not name.startswith("backbone.encoder.")}
    assert not any(tensor.requires_grad for tensor in model.backbone.encoder_levels(torch.zeros(1, 3, 32, 32), (2, 2)))


def test_the_encoder_can_be_trained():
    model = tiny(PMT, MODEL__BACKBONE__FROZEN_ENCODER=False).train()
    assert model.backbone.vit.training
    sum(model([small_clip()]).values()).backward()
    assert model.backbone.vit.blocks[0].attn.qkv.weight.grad.abs().sum() > 0


def test_without_norms_of_the_levels_there_are_none():
    model = tiny(PMT, MODEL__BACKBONE__EXTRA_BN=False)
    assert not any(".bn." in name for name in model.state_dict())


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("MODEL.BACKBONE.MASKED_ATTN_ENABLED", True, "MASKED_ATTN_ENABLED must be False"),
        ("MODEL.BACKBONE.DECODER_PE", "learned", "DECODER_PE must be 'rope'"),
        ("MODEL.BACKBONE.INTERACTION_INDICES", [1, 4], "INTERACTION_INDICES must be rising numbers of the 4 blocks"),
        ("MODEL.BACKBONE.INTERACTION_INDICES", [3, 1], "INTERACTION_INDICES must be rising"),
        ("MODEL.BACKBONE.TEST.TASK", "vps", "TASK must be 'vis'"),
        ("MODEL.VIT.NUM_HEADS", 5, "cannot have 5 heads"),
    ],
)
def test_settings_without_a_meaning_are_refused(key, value, message):
    cfg = cfg_of({**PMT, **TINY, key: value})
    with pytest.raises(ValueError, match=message):
        build_model(cfg)
