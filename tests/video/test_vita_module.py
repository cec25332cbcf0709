"""The VITA clip module against numbers recorded from the published code, and its own properties.

Recorded: `vita_parts.npz`, hidden 32, 5 frame queries, 7 clip queries, 4 heads, 4 + 3 layers, windows of 0, 3, 4 and 6
frames. These tiny networks amplify rounding: a float64 run of the published code differs by 4e-4, a wrong mask by 3.
"""

from __future__ import annotations

import zlib

import numpy as np
import pytest
import torch
from golden_fill import fill_
from helpers import GOLDEN
from video_models import damp_

from lbvq.modeling.clips import encoder as clip_encoder
from lbvq.modeling.clips.encoder import frame_runs
from lbvq.modeling.vita import VITA

TINY = {
    "in_channels": 32,
    "hidden_dim": 32,
    "num_frame_queries": 5,
    "num_queries": 7,
    "num_heads": 4,
    "dim_feedforward": 64,
    "num_encoder_layers": 4,
    "num_layers": 3,
    "pre_norm": False,
    "num_frames": 4,
    "num_classes": 5,
    "conv_dim": 32,
    "mask_dim": 16,
    "window_size": 0,
    "enforce_input_project": True,
    "aux_loss": True,
    "use_sim": True,
    "sim_use_clip": True,
}
OUTPUTS = ("pred_logits", "pred_mask_embed", "pred_fq_embed", "pred_cq_embed")


def tiny(**changes) -> VITA:
    return damp_(fill_(VITA(**{**TINY, **changes})))


def frame_queries(*shape: int) -> torch.Tensor:
    generator = np.random.RandomState(zlib.crc32(b"in:vita.fq"))
    return torch.from_numpy(generator.standard_normal(shape).astype(np.float32))


def close(got: torch.Tensor, want: np.ndarray) -> None:
    torch.testing.assert_close(got, torch.from_numpy(want), atol=2e-3, rtol=0)


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("window", [0, 3, 4, 6])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_outputs_are_the_recorded_ones(window, norm, mode):
    recorded = np.load(GOLDEN / "vita_parts.npz")
    module = tiny(window_size=window, pre_norm=norm == "pre").train(mode == "train")
    outputs = module(frame_queries(2, 8, 5, 32))
    for name in OUTPUTS:
        close(outputs[name], recorded[f"vita_tiny_w{window}_{norm}/{mode}_{name}"])
    assert len(outputs["aux_outputs"]) == (2 if mode == "train" else 0)
    if mode == "train":
        want = recorded[f"vita_tiny_w{window}_{norm}/train_aux0_logits"]
        close(outputs["aux_outputs"][0]["pred_logits"], want)


@pytest.mark.parametrize(
    "num_frames, window, shifted, want",
    [
        (8, 0, True, [(1, 8)]),
        (8, 4, False, [(2, 4)]),
        (8, 3, False, [(2, 3), (1, 2)]),
        (8, 3, True, [(1, 1), (2, 3), (1, 1)]),  # a window of 3 moves by 2
        (8, 4, True, [(1, 2), (1, 4), (1, 2)]),
        (8, 6, True, [(1, 3), (1, 5)]),
        (2, 6, True, [(1, 2)]),
        (3, 1, True, [(3, 1)]),
    ],
)
def test_windows_are_runs_of_consecutive_frames(num_frames, window, shifted, want):
    assert frame_runs(num_frames, window, shifted) == want


@pytest.mark.parametrize(
    "window, layers, reached", [(4, 1, [0, 1, 2, 3]), (4, 2, [0, 1, 2, 3, 4, 5]), (0, 1, [*range(12)])]
)
def test_information_travels_through_shifted_windows_only(window, layers, reached):
    module = tiny(window_size=window, num_encoder_layers=layers).eval()
    video = frame_queries(1, 12, 5, 32)
    changed = video.clone()
    changed[:, 0] += 1
    with torch.no_grad():
        difference = (module.encode(video)[0] - module.encode(changed)[0]).abs().amax(dim=(1, 2, 3))
    assert difference.nonzero().flatten().tolist() == reached


def test_training_does_not_shift_the_windows():
    module = tiny(window_size=2, num_encoder_layers=2).train()
    video = frame_queries(1, 4, 5, 32)
    changed = video.clone()
    changed[:, 0] += 1
    difference = (module.encode(video)[0] - module.encode(changed)[0]).abs().amax(dim=(1, 2, 3))
    assert difference.nonzero().flatten().tolist() == [0, 1]


@pytest.mark.parametrize("window", [0, 3])
def test_the_order_of_frames_matters_only_through_windows(window):
    module = tiny(window_size=window).eval()
    video = frame_queries(1, 9, 5, 32)
    with torch.no_grad():
        straight, backwards = (module(each)["pred_logits"] for each in (video, video.flip(1)))
    assert torch.allclose(straight, backwards, atol=2e-3) == (window == 0)


@pytest.mark.parametrize("tokens", [1, 20, 40])
def test_results_do_not_depend_on_how_many_windows_are_encoded_at_once(tokens, monkeypatch):
    module, video = tiny(window_size=2).eval(), frame_queries(1, 17, 5, 32)
    with torch.no_grad():
        want, _ = module.encode(video)
        monkeypatch.setattr(clip_encoder, "TOKENS_AT_ONCE", tokens)
        got, _ = module.encode(video)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=0)


def test_each_clip_of_a_batch_is_by_itself():
    module = tiny(window_size=3).train()
    video = frame_queries(2, 8, 5, 32)
    both = module(video)["pred_logits"]
    alone = [module(part)["pred_logits"] for part in video.split(4, dim=1)]
    torch.testing.assert_close(both, torch.cat(alone, dim=1), atol=2e-3, rtol=0)


def test_without_encoder_layers_the_encoder_is_the_identity():
    module = tiny(num_encoder_layers=0).eval()
    assert not [name for name in module.state_dict() if name.startswith("enc_")]
    video = frame_queries(1, 3, 5, 32)
    torch.testing.assert_close(module.encode(video)[0], module.arrange(video)[0])


def test_a_negative_window_is_refused():
    with pytest.raises(ValueError, match="ENC_WINDOW_SIZE must be at least 0"):
        tiny(window_size=-1)
