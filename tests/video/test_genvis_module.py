"""The GenVIS clip module and its memory, against numbers recorded from the published code and by their properties.

Recorded: `genvis_parts.npz`, hidden 64, 10 frame queries, 12 clip queries, 3 + 3 layers, three clips one after another;
the published code moves by less than 5e-6 between one and two threads.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden_fill import fill_
from golden_tame import tame_
from helpers import GOLDEN

from lbvq.modeling.genvis import memory as genvis_memory
from lbvq.modeling.genvis.memory import recall, remember
from lbvq.modeling.genvis.model import GenVIS

TINY = {
    "in_channels": 64,
    "hidden_dim": 64,
    "num_frame_queries": 10,
    "num_queries": 12,
    "num_heads": 8,
    "dim_feedforward": 128,
    "num_encoder_layers": 3,
    "num_layers": 3,
    "pre_norm": False,
    "num_frames": 3,
    "num_classes": 7,
    "conv_dim": 64,
    "mask_dim": 64,
    "window_size": 0,
    "enforce_input_project": True,
    "aux_loss": True,
    "use_sim": True,
    "sim_use_clip": True,
}


def tiny(**changes) -> GenVIS:
    return tame_(fill_(GenVIS(**{**TINY, **changes})), ("enc_", "transformer_"))


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape).astype(np.float32))


def run(module: GenVIS, clips: list[torch.Tensor], batch: int = 1) -> list[tuple[dict, torch.Tensor]]:
    """Outputs and state after every clip."""
    memory, state, results = [], module.first_state(batch), []
    for clip in clips:
        outputs, state = module(clip, memory, state)
        memory = remember(memory, outputs["objects"])
        results.append((outputs, state))
    return results


@pytest.fixture(scope="module")
def recorded():
    return np.load(GOLDEN / "genvis_parts.npz")


def check(recorded, tag: str, module: GenVIS, outputs: dict, state: torch.Tensor) -> None:
    got = {name: outputs[name] for name in ("pred_logits", "pred_mask_embed", "pred_fq_embed", "pred_cq_embed")}
    objects = outputs["objects"][None]  # published are the keys and values of them
    got |= {"mem_k": module.pre_memory_embed_k(objects), "mem_v": module.pre_memory_embed_v(objects), "out_q": state}
    for i, layer in enumerate(outputs["aux_outputs"]):
        got |= {f"aux{i}_logits": layer["pred_logits"], f"aux{i}_mask_embed": layer["pred_mask_embed"]}
    assert {f"{tag}/{name}" for name in got} == {name for name in recorded.files if name.startswith(f"{tag}/")}
    for name, tensor in got.items():
        torch.testing.assert_close(tensor, torch.from_numpy(recorded[f"{tag}/{name}"]), atol=3e-5, rtol=0)


@pytest.mark.parametrize("window", [0, 2])
def test_three_clips_at_test_are_the_recorded_ones(recorded, window):
    clips = [normal(100 + clip, 2, length, 10, 64) for clip, length in enumerate((3, 3, 1))]
    module = tiny(window_size=window).eval()
    with torch.no_grad():
        for clip, result in enumerate(run(module, clips)):
            check(recorded, f"eval_w{window}_c{clip}", module, *result)


def test_three_clips_in_training_are_the_recorded_ones(recorded):
    clips = [normal(200 + clip, 2, 6, 10, 64) for clip in range(3)]
    module = tiny().train()
    for clip, result in enumerate(run(module, clips, batch=4)):
        check(recorded, f"train_c{clip}", module, *result)


def test_gradients_reach_the_first_clip():
    module = tiny().train()
    clips = [normal(200 + clip, 1, 3, 10, 64).requires_grad_() for clip in range(3)]
    outputs, _ = run(module, clips)[-1]
    outputs["pred_logits"].sum().backward()
    assert all(clip.grad.abs().sum() > 0 for clip in clips)


def test_the_state_is_not_normalised():
    outputs, state = run(tiny().eval(), [normal(1, 1, 2, 10, 64)])[0]
    assert not torch.allclose(tiny().decoder_norm(state), state)
    assert outputs["pred_logits"].shape == (1, 1, 12, 8)


def test_reading_an_empty_memory_gives_zeros():
    assert torch.equal(tiny().read([], torch.ones(12, 2, 64)), torch.zeros(12, 2, 64))


def test_recalling_by_hand():
    """Two clips, one query: weights are the softmax of plain products."""
    memory = remember(remember([], torch.full((1, 1, 1, 2), 0.0)), torch.full((1, 1, 1, 2), 2.0))
    recalled = recall(memory, torch.tensor([[[0.5, 0.0]]]), torch.zeros(1, 1))
    weight = 1 / (1 + torch.exp(torch.tensor(-1.0)))  # of the second clip: e^1 / (e^0 + e^1)
    torch.testing.assert_close(recalled, (2 * weight).expand(1, 1, 2))


def test_reading_is_attention_to_keys_and_values():
    """The published form, with a key and a value of every object."""
    module = tiny()
    clips = [normal(i, 1, 2, 12, 64) for i in range(3)]
    memory = []
    for clip in clips:
        memory = remember(memory, clip)
    state = normal(9, 12, 2, 64)
    with torch.no_grad():
        past = torch.stack(clips)[:, 0].transpose(1, 2)  # (M, N, B, C)
        keys, values = module.pre_memory_embed_k(past), module.pre_memory_embed_v(past)
        weights = (module.pre_query_embed_k(state) * keys).sum(-1, keepdim=True).softmax(dim=0)
        torch.testing.assert_close(module.read(memory, state), (weights * values).sum(0), atol=1e-4, rtol=1e-4)


def test_queries_recall_their_own_past_only():
    clips, queries = [normal(i, 1, 2, 5, 4) for i in range(3)], normal(7, 5, 2, 4)

    def recalled(clips):
        memory = []
        for clip in clips:
            memory = remember(memory, clip)
        return recall(memory, queries, torch.zeros(5, 2))

    changed = [clip.clone() for clip in clips]
    changed[1][:, :, 3] += 1
    difference = (recalled(clips) - recalled(changed)).abs().amax(dim=(1, 2))
    assert difference.nonzero().flatten().tolist() == [3]


@pytest.mark.parametrize("block", [2, 3, 64])
def test_recalling_does_not_depend_on_how_the_memory_is_kept(block, monkeypatch):
    monkeypatch.setattr(genvis_memory, "BLOCK", block)
    clips = [normal(i, 1, 1, 5, 4) for i in range(11)]
    memory, snapshots = [], []
    for clip in clips:
        memory = remember(memory, clip)
        snapshots.append(memory)
    assert sum(len(part) for part in memory) == 11
    assert len(memory) == 11 // block + 11 % block
    past, queries = torch.stack(clips)[:, 0, 0], normal(99, 5, 1, 4)  # (M, N, C)
    for count in (1, 4, 11):
        weights = torch.einsum("nc,mnc->mn", queries[:, 0], past[:count]).softmax(0)
        want = torch.einsum("mn,mnc->nc", weights, past[:count])[:, None]
        torch.testing.assert_close(recall(snapshots[count - 1], queries, torch.zeros(5, 1)), want)
