"""The LBVQ clip module against numbers recorded from the published code, and its own properties.

Recorded: `m2f_parts.npz`, hidden 32, 10 + 10 queries, 4 heads, 3 layers, deterministic weights; float32 on a CPU agrees
to 1e-4 with a second description of the module.
"""

from __future__ import annotations

import zlib

import numpy as np
import pytest
import torch
from golden_fill import fill_
from helpers import GOLDEN

from lbvq.modeling.clips.decoder import ClipMasks
from lbvq.modeling.lbvq import LBVQ

TINY = {
    "in_channels": 32,
    "hidden_dim": 32,
    "num_frame_queries": 10,
    "num_queries": 10,
    "num_heads": 4,
    "dim_feedforward": 64,
    "num_layers": 3,
    "pre_norm": False,
    "num_frames": 3,
    "num_classes": 5,
    "conv_dim": 32,
    "mask_dim": 16,
    "enforce_input_project": True,
    "aux_loss": True,
    "use_sim": True,
    "sim_use_clip": True,
}


def stored_input(name: str, *shape: int) -> torch.Tensor:
    """The input that the goldens were recorded with: normal numbers seeded by its name."""
    generator = np.random.RandomState(zlib.crc32(f"in:{name}".encode()))
    return torch.from_numpy(generator.standard_normal(shape).astype(np.float32))


def tiny(**changes) -> LBVQ:
    return fill_(LBVQ(**{**TINY, **changes}))


@pytest.fixture(scope="module")
def recorded():
    return np.load(GOLDEN / "m2f_parts.npz")


@pytest.fixture
def frame_queries():
    return stored_input("lbvq.fq", 3, 6, 10, 32)


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_outputs_are_those_of_the_published_module(recorded, frame_queries, norm, mode):
    module = tiny(pre_norm=norm == "pre").train(mode == "train")
    with torch.no_grad():
        outputs = module(frame_queries)
    for name in ("pred_logits", "pred_mask_embed", "pred_fq_embed", "pred_cq_embed"):
        want = torch.from_numpy(recorded[f"lbvq_tiny_{norm}/{mode}_{name}"])
        got = outputs[name] if outputs[name].shape == want.shape else outputs[name][..., ::2]
        torch.testing.assert_close(got, want, atol=2e-4, rtol=0)
    if mode == "train":
        want = torch.from_numpy(recorded[f"lbvq_tiny_{norm}/train_aux0_logits"])
        torch.testing.assert_close(outputs["aux_outputs"][0]["pred_logits"], want, atol=2e-4, rtol=0)


def test_auxiliary_outputs_exist_in_training_with_deep_supervision_only(frame_queries):
    assert len(tiny().train()(frame_queries)["aux_outputs"]) == 2
    assert tiny(aux_loss=False).train()(frame_queries)["aux_outputs"] == []
    assert tiny().eval()(frame_queries)["aux_outputs"] == []


def test_without_similarity_loss_there_are_no_similarity_layers(frame_queries):
    module = tiny(use_sim=False).train()
    outputs = module(frame_queries)
    assert outputs["pred_fq_embed"] is None and outputs["pred_cq_embed"] is None
    assert not [name for name in module.state_dict() if name.startswith("sim_embed")]


def test_similarity_of_frames_only_leaves_clip_queries_out(frame_queries):
    outputs = tiny(sim_use_clip=False).train()(frame_queries)
    assert outputs["pred_fq_embed"] is not None and outputs["pred_cq_embed"] is None


def test_the_bias_of_the_time_weights_changes_nothing(frame_queries):
    module = tiny().eval()
    with torch.no_grad():
        before = module(frame_queries)["pred_logits"]
        module.time_attention_weights.bias += 3
        torch.testing.assert_close(module(frame_queries)["pred_logits"], before, atol=2e-4, rtol=0)


def test_frames_are_summed_the_same_in_one_call_or_in_several(frame_queries, monkeypatch):
    module = tiny().eval()
    long_video = frame_queries.flatten(0, 1)[None]  # 18 frames
    with torch.no_grad():
        want = module(long_video)["pred_mask_embed"]
        monkeypatch.setattr("lbvq.modeling.lbvq.FRAMES_AT_ONCE", 5)
        torch.testing.assert_close(module(long_video)["pred_mask_embed"], want, atol=2e-4, rtol=0)


def test_order_of_the_frames_does_not_matter(frame_queries):
    module = tiny().eval()
    with torch.no_grad():
        want = module(frame_queries)["pred_logits"]
        got = module(frame_queries.flip(1))["pred_logits"]
    torch.testing.assert_close(got, want, atol=2e-4, rtol=0)  # sums in another order


def test_a_video_of_one_frame_works(frame_queries):
    outputs = tiny().eval()(frame_queries[:, :1])
    assert outputs["pred_logits"].shape == (1, 1, 10, 6)
    assert outputs["pred_fq_embed"].shape == (1, 1, 1, 10, 32)


def test_as_many_clip_queries_as_frame_queries_are_required():
    with pytest.raises(ValueError, match=r"MODEL.LBVQ.NUM_OBJECT_QUERIES must equal .* got 12 and 10"):
        LBVQ(**{**TINY, "num_queries": 12})


def test_a_training_batch_of_broken_clips_is_refused(frame_queries):
    with pytest.raises(ValueError, match="whole clips of 3 frames, got 5 frames"):
        tiny().train()(frame_queries[:, :5])


def test_the_input_projection_exists_when_asked_for_or_needed():
    assert "input_proj_dec.weight" not in LBVQ(**{**TINY, "enforce_input_project": False}).state_dict()
    narrow = LBVQ(**{**TINY, "enforce_input_project": False, "in_channels": 24})
    assert narrow.input_proj_dec.weight.shape == (32, 24)


def test_new_modules_start_as_published():
    module = LBVQ(**TINY)
    attention = module.transformer_self_attention_layers[0].self_attn
    bound = (6 / (3 * 32 + 32)) ** 0.5  # xavier uniform of the (96, 32) projection
    assert attention.in_proj_weight.abs().max().item() <= bound
    assert attention.in_proj_weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert module.query_embed.weight.std().item() == pytest.approx(1, rel=0.15)
    assert module.lbvq_mask_features.bias.abs().max().item() == 0
    assert module.lbvq_mask_features.weight.abs().max().item() <= (3 / 32) ** 0.5  # kaiming uniform with a = 1


def test_masks_made_on_demand_equal_the_dense_product():
    generator = torch.Generator().manual_seed(0)
    masks = ClipMasks(torch.randn(2, 3, 5, 4, generator=generator), torch.randn(3, 2, 4, 6, 7, generator=generator))
    dense = masks.dense()
    assert masks.shape == dense.shape == (2, 3, 5, 2, 6, 7)
    queries = torch.tensor([4, 0])
    torch.testing.assert_close(masks[1, 2], dense[1, 2])
    torch.testing.assert_close(masks[1, 2, queries], dense[1, 2, queries])
    assert masks[0, 1, torch.tensor([], dtype=torch.int64)].shape == (0, 2, 6, 7)
