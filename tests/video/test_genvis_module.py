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

from lbvq.modeling import genvis_memory
from lbvq.modeling.genvis import GenVIS
from lbvq.modeling.genvis_memory import empty_memory, read_memory, remember

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
    memory, state, results = empty_memory(), module.first_state(batch), []
    for clip in clips:
        outputs, state = module(clip, memory, state)
        memory = remember(memory, outputs["pre_memory"])
        results.append((outputs, state))
    return results


@pytest.fixture(scope="module")
def recorded():
    return np.load(GOLDEN / "genvis_parts.npz")


def check(recorded, tag: str, outputs: dict, state: torch.Tensor) -> None:
    got = {name: outputs[name] for name in ("pred_logits", "pred_mask_embed", "pred_fq_embed", "pred_cq_embed")}
    got |= {"mem_k": outputs["pre_memory"]["k"], "mem_v": outputs["pre_memory"]["v"], "out_q": state}
    for i, layer in enumerate(outputs["aux_outputs"]):
        got |= {f"aux{i}_logits": layer["pred_logits"], f"aux{i}_mask_embed": layer["pred_mask_embed"]}
    assert {f"{tag}/{name}" for name in got} == {name for name in recorded.files if name.startswith(f"{tag}/")}
    for name, tensor in got.items():
        torch.testing.assert_close(tensor, torch.from_numpy(recorded[f"{tag}/{name}"]), atol=3e-5, rtol=0)


@pytest.mark.parametrize("window", [0, 2])
def test_three_clips_at_test_are_the_recorded_ones(recorded, window):
    clips = [normal(100 + clip, 2, length, 10, 64) for clip, length in enumerate((3, 3, 1))]
    with torch.no_grad():
        results = run(tiny(window_size=window).eval(), clips)
    for clip, result in enumerate(results):
        check(recorded, f"eval_w{window}_c{clip}", *result)


def test_three_clips_in_training_are_the_recorded_ones(recorded):
    clips = [normal(200 + clip, 2, 6, 10, 64) for clip in range(3)]
    for clip, result in enumerate(run(tiny().train(), clips, batch=4)):
        check(recorded, f"train_c{clip}", *result)


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
    assert torch.equal(read_memory(empty_memory(), torch.ones(3, 2, 4)), torch.zeros(3, 2, 4))


def test_reading_by_hand():
    """Two clips, one query: weights are the softmax of plain products."""
    memory = empty_memory()
    for key, value in ((0.0, 10.0), (2.0, 20.0)):
        memory = remember(memory, {"k": torch.full((1, 1, 1, 1, 2), key), "v": torch.full((1, 1, 1, 1, 2), value)})
    read = read_memory(memory, torch.tensor([[[0.5, 0.0]]]))
    weight = 1 / (1 + torch.exp(torch.tensor(-1.0)))  # of the second clip: e^1 / (e^0 + e^1)
    torch.testing.assert_close(read, (10 * (1 - weight) + 20 * weight).expand(1, 1, 2))


def test_queries_read_their_own_past_only():
    entries = [{"k": normal(i, 1, 1, 2, 5, 4), "v": normal(i + 9, 1, 1, 2, 5, 4)} for i in range(3)]
    queries = normal(7, 5, 2, 4)

    def read(entries):
        memory = empty_memory()
        for entry in entries:
            memory = remember(memory, entry)
        return read_memory(memory, queries)

    changed = [{name: tensor.clone() for name, tensor in entry.items()} for entry in entries]
    changed[1]["v"][:, :, :, 3] += 1
    difference = (read(entries) - read(changed)).abs().amax(dim=(1, 2))
    assert difference.nonzero().flatten().tolist() == [3]


@pytest.mark.parametrize("block", [2, 3, 64])
def test_reading_does_not_depend_on_how_the_memory_is_kept(block, monkeypatch):
    monkeypatch.setattr(genvis_memory, "BLOCK", block)
    entries = [{"k": normal(i, 1, 1, 1, 5, 4), "v": normal(i + 50, 1, 1, 1, 5, 4)} for i in range(11)]
    memory, snapshots = empty_memory(), []
    for entry in entries:
        memory = remember(memory, entry)
        snapshots.append(memory)
    assert sum(len(part) for part in memory["k"]) == 11
    assert len(memory["k"]) == 11 // block + 11 % block
    keys, values = (torch.cat([entry[name] for entry in entries])[:, 0, 0] for name in ("k", "v"))  # (M, N, C)
    queries = normal(99, 5, 1, 4)
    for count in (1, 4, 11):
        weights = torch.einsum("nc,mnc->mn", queries[:, 0], keys[:count]).softmax(0)
        want = torch.einsum("mn,mnc->nc", weights, values[:count])[:, None]
        torch.testing.assert_close(read_memory(snapshots[count - 1], queries), want)
