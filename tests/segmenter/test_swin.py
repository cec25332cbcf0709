"""Swin backbone: equal to the published one on a tiny network with odd sizes, and the parts by hand."""

from __future__ import annotations

import gzip
import json
import zlib

import numpy as np
import pytest
import torch
from golden_fill import fill_
from helpers import GOLDEN

from mask2former.modeling.swin import (
    SHIFT_PENALTY,
    D2SwinTransformer,
    DropPath,
    PatchMerging,
    join_windows,
    relative_position_index,
    split_windows,
    window_shift_mask,
)

TINY = {"pretrain_img_size": 64, "embed_dim": 24, "depths": [2, 2, 2, 2], "num_heads": [2, 4, 8, 8], "window_size": 4}


@pytest.fixture(scope="module")
def recorded():
    return np.load(GOLDEN / "m2f_parts.npz")


def tiny(**options) -> D2SwinTransformer:
    return fill_(D2SwinTransformer(**{**TINY, "drop_path_rate": 0.3, **options}))


def recorded_input(batch: int = 1) -> torch.Tensor:
    """Every padding branch is taken: grids 18 x 27, 9 x 14, 5 x 7 and 3 x 4 with windows of 4."""
    rng = np.random.RandomState(zlib.crc32(b"in:swin.x"))
    return torch.from_numpy(rng.standard_normal((1, 3, 70, 106)).astype(np.float32)).repeat(batch, 1, 1, 1)


@pytest.mark.parametrize("ape", [False, True])
def test_swin_equals_the_recorded_feature_maps(recorded, ape):
    """Recorded from the published network on CPU, every second channel; tolerance 1e-4, measured 3e-6."""
    name = "swin_tiny_ape" if ape else "swin_tiny"
    with torch.no_grad():
        outputs = tiny(ape=ape).eval()(recorded_input())
    assert list(outputs) == ["res2", "res3", "res4", "res5"]
    for key, value in outputs.items():
        np.testing.assert_allclose(value[:, ::2].numpy(), recorded[f"{name}/{key}"], atol=1e-4)


@pytest.mark.parametrize("ape", [False, True])
def test_swin_has_the_published_parameter_names_in_order(ape):
    keys = json.loads(gzip.decompress((GOLDEN / "segmenter_keys.json.gz").read_bytes()))
    want = keys["part_swin_tiny_ape" if ape else "part_swin_tiny"]
    assert [(name, list(value.shape)) for name, value in tiny(ape=ape).state_dict().items()] == list(want.items())


def test_relative_position_index_equals_the_recorded_one(recorded):
    assert np.array_equal(relative_position_index(4).numpy(), recorded["swin_tiny/relative_position_index"])


def test_relative_position_index_of_a_2_by_2_window_by_hand():
    # Same place: row 1, column 1 of a 3 x 3 table = 4. Token 0 is above token 2: row 0, column 1 = 1.
    assert relative_position_index(2).tolist() == [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]


def test_shift_mask_separates_tokens_that_meet_only_by_wrapping_around():
    mask = window_shift_mask(4, 4, 2, torch.device("cpu"))  # 4 windows of 4 tokens
    assert mask.shape == (4, 4, 4)
    assert not mask[0].any()
    # The last column of windows holds one column that is in place and one that wrapped.
    apart = torch.tensor([[0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0]]).float()
    assert torch.equal(mask[1], apart * SHIFT_PENALTY)
    assert torch.equal(mask[3], (1 - torch.eye(4)) * SHIFT_PENALTY)


def test_windows_are_split_and_joined_without_loss():
    x = torch.arange(2 * 4 * 6 * 3).view(2, 4, 6, 3)
    windows = split_windows(x, 2)
    assert windows.shape == (2 * 6, 4, 3)
    assert torch.equal(windows[1], x[0, :2, 2:4].reshape(4, 3))
    assert torch.equal(join_windows(windows, 2, 2, (4, 6)), x)


def test_patch_merging_takes_rows_before_columns_and_rounds_up():
    merging = PatchMerging(1)
    merging.norm = torch.nn.Identity()
    merging.reduction = torch.nn.Identity()
    x = torch.tensor([[0.0, 1, 2], [3, 4, 5]]).view(1, 2, 3, 1)
    assert merging(x).squeeze(0).tolist() == [[[0, 3, 1, 4], [2, 5, 0, 0]]]


def test_a_batch_gives_what_its_images_give_alone():
    model = tiny(ape=True).eval()
    images = torch.cat([recorded_input(), recorded_input().flip(3)])
    with torch.no_grad():
        together, alone = model(images), [model(images[:1]), model(images[1:])]
    for name, value in together.items():
        torch.testing.assert_close(value, torch.cat([each[name] for each in alone]), atol=1e-5, rtol=1e-5)


def test_only_wanted_maps_are_returned_and_their_shapes_are_known_before():
    model = tiny(out_features=["res5", "res3"]).eval()
    with torch.no_grad():
        outputs = model(torch.zeros(1, 3, 64, 96))
    assert list(outputs) == list(model.output_shape()) == ["res3", "res5"]
    for name, shape in model.output_shape().items():
        assert outputs[name].shape == (1, shape.channels, 64 // shape.stride, 96 // shape.stride)
    assert model.size_divisibility == 32
    assert f"norm{0}.weight" in model.state_dict()  # all four norms exist, as in the published files


def test_an_empty_batch_gives_empty_maps():
    with torch.no_grad():
        outputs = tiny().eval()(torch.zeros(0, 3, 64, 64))
    assert [tuple(value.shape) for value in outputs.values()] == [
        (0, 24, 16, 16),
        (0, 48, 8, 8),
        (0, 96, 4, 4),
        (0, 192, 2, 2),
    ]


def test_activation_checkpointing_changes_neither_results_nor_gradients():
    gradients = []
    for use_checkpoint in (False, True):
        model = tiny(drop_path_rate=0.0, use_checkpoint=use_checkpoint).train()
        assert model.train() is model
        model(recorded_input())["res5"].square().sum().backward()
        gradients.append(model.patch_embed.proj.weight.grad)
    assert gradients[0].abs().sum() > 0
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-5)


def test_stochastic_depth_grows_linearly_and_acts_in_training_only():
    model = tiny()
    rates = [block.drop_path.rate for stage in model.layers for block in stage.blocks]
    assert rates == pytest.approx(np.linspace(0, 0.3, 8).tolist())
    drop = DropPath(0.25)
    assert torch.equal(drop.eval()(torch.ones(5, 2)), torch.ones(5, 2))
    torch.manual_seed(0)
    kept = drop.train()(torch.ones(4000, 2))
    assert set(kept.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert torch.equal(kept[:, 0], kept[:, 1])  # one draw per sample
    assert kept.mean().item() == pytest.approx(1, abs=0.05)
    assert not DropPath(1.0).train()(torch.ones(5, 2)).any()


def test_stage_lists_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="NUM_HEADS"):
        D2SwinTransformer(**{**TINY, "num_heads": [2, 4]})
    with pytest.raises(ValueError, match="5 heads"):
        D2SwinTransformer(**{**TINY, "num_heads": [5, 4, 8, 8]})
    with pytest.raises(ValueError, match="OUT_FEATURES"):
        D2SwinTransformer(**TINY, out_features=["res6"])
