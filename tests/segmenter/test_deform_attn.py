"""Deformable attention: recorded numbers, a case by hand, and its kernels against each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden_fill import fill_
from helpers import GOLDEN

from mask2former.modeling import deform_attn
from mask2former.modeling.deform_attn import KERNELS, MSDeformAttn, sample_by_bags, sample_by_grid
from mask2former.modeling.deform_attn_compiled import SAMPLING

SIZES = [(2, 3), (4, 6), (8, 12)]
HERE = {"grid_sample", "embedding_bag"} | ({"compiled"} if SAMPLING.load() is not None else set())
NAMES = sorted(HERE)  # Triton's kernel has cases of its own, `triton_cases.py`


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "m2f_parts.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files if name.startswith("msda")}


def close(value, want, atol=1e-4):
    torch.testing.assert_close(value, want, rtol=0, atol=atol)


def random_case(sizes=SIZES, batch=2, num_heads=3, num_points=2, num_queries=50, head_dim=4, spread=4.0):
    """Values, points (many of them outside of their map) and weights."""
    torch.manual_seed(0)
    num_levels, num_cells = len(sizes), sum(height * width for height, width in sizes)
    value = torch.randn(batch, num_cells, num_heads, head_dim)
    middle = torch.tensor([[(width - 1) / 2 for _, width in sizes], [(height - 1) / 2 for height, _ in sizes]])
    points = torch.randn(batch, 2, num_heads, num_levels, num_points, num_queries) * spread
    weights = torch.rand(batch, num_heads, num_levels, num_points, num_queries)
    return value, sizes, points + middle[:, None, :, None, None], weights


@pytest.mark.parametrize("kernel", [None, *NAMES])
@pytest.mark.parametrize("grad", [True, False])
def test_outputs_equal_the_recorded_ones(golden, kernel, grad):
    module = fill_(MSDeformAttn(32, 3, 4, 4, kernel=kernel))
    query, value, reference = golden["msda/query"], golden["msda/value"], golden["msda/ref"]
    with torch.set_grad_enabled(grad):
        close(module(query, reference, value, SIZES), golden["msda/out"])
        close(module(query, reference, value, SIZES, golden["msda/pad"]), golden["msda/out_padded"])
        boxes = torch.cat((reference, reference / 2), dim=-1)
        close(module(query, boxes, value, torch.tensor(SIZES)), golden["msda/out_ref4"])


def test_fresh_heads_look_in_the_recorded_directions_with_equal_weights(golden):
    module = MSDeformAttn(256, 3, 8, 4)
    close(module.sampling_offsets.bias, golden["msda/init_offset_bias"], atol=1e-6)
    for parameter in (module.sampling_offsets.weight, *module.attention_weights.parameters(), module.value_proj.bias):
        assert parameter.abs().max() == 0


@pytest.mark.parametrize("name", NAMES)
def test_a_point_between_four_cells_reads_their_mean_and_half_outside_half_of_it(name):
    value = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 4, 1, 1)
    x, y = torch.tensor([0.5, -0.5, 1.0, 5.0]), torch.tensor([0.5, 0.0, 1.0, 0.0])
    points = torch.stack((x, y)).view(1, 2, 1, 1, 1, 4)
    out = KERNELS[name](value, [(2, 2)], points, torch.ones(1, 1, 1, 1, 4))
    close(out.flatten(), torch.tensor([2.5, 0.5, 4.0, 0.0]), atol=1e-6)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "grid_sample"])
@pytest.mark.parametrize("spread", [0.5, 4.0, 1e4, 1e12])
@pytest.mark.parametrize("sizes", [SIZES, [(1, 1)], [(1, 7), (5, 1)]])
def test_kernels_agree_inside_and_outside_of_the_maps(name, spread, sizes):
    case = random_case(sizes, spread=spread)
    close(KERNELS[name](*case), sample_by_grid(*case), atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_points_on_cell_borders_and_far_corners_agree_with_a_plain_loop(name):
    height, width = 3, 4
    steps_x, steps_y = torch.arange(-2.5, width + 2.0, 0.25), torch.arange(-2.5, height + 2.0, 0.25)
    y, x = (axis.flatten() for axis in torch.meshgrid(steps_y, steps_x, indexing="ij"))
    cells = torch.randn(height, width)

    def cell(row, column):
        inside = 0 <= row < height and 0 <= column < width
        return cells[int(row), int(column)].item() if inside else 0.0

    want = []
    for row, column in zip(y.tolist(), x.tolist(), strict=True):
        top, left = np.floor(row), np.floor(column)
        below, right = row - top, column - left
        want.append(
            (1 - below) * ((1 - right) * cell(top, left) + right * cell(top, left + 1))
            + below * ((1 - right) * cell(top + 1, left) + right * cell(top + 1, left + 1))
        )
    points = torch.stack((x, y)).view(1, 2, 1, 1, 1, -1)
    out = KERNELS[name](cells.view(1, -1, 1, 1), [(height, width)], points, torch.ones(1, 1, 1, 1, len(x)))
    close(out.flatten(), torch.tensor(want, dtype=torch.float32), atol=1e-5)


@pytest.mark.parametrize("name", ["embedding_bag", "grid_sample"])  # in C there is no float64
def test_gradients_are_those_of_the_function(name):
    value, sizes, points, weights = (
        x.double().requires_grad_() if torch.is_tensor(x) else x
        for x in random_case([(2, 3), (3, 2)], batch=2, num_heads=2, num_points=2, num_queries=3, spread=1.5)
    )
    assert torch.autograd.gradcheck(lambda v, p, w: KERNELS[name](v, sizes, p, w), (value, points, weights))


def test_kernels_have_equal_gradients_in_every_input():
    gradients = []
    for name in NAMES:
        value, sizes, points, weights = random_case()
        inputs = [value.requires_grad_(), points.requires_grad_(), weights.requires_grad_()]
        out = KERNELS[name](value, sizes, points, weights)
        gradients.append(torch.autograd.grad((out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum(), inputs))
    for first, *others in zip(*gradients, strict=True):
        for other in others:
            torch.testing.assert_close(first, other, rtol=1e-4, atol=1e-4)


def test_queries_in_chunks_give_the_same(monkeypatch):
    case = random_case()
    want = sample_by_bags(*case)
    monkeypatch.setattr(deform_attn, "QUERY_CHUNK", 7)
    close(sample_by_bags(*case), want, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_a_value_that_is_not_a_number_spoils_its_own_query_only(name):
    value, sizes, points, weights = random_case()
    clean = KERNELS[name](value, sizes, points, weights)
    weights[0, :, :, :, 3] = float("nan")
    points[0, :, :, :, :, 3] = float("nan")
    out = KERNELS[name](value, sizes, points, weights)
    assert out[0, 3].isnan().all()
    keep = torch.ones(out.shape[:2], dtype=torch.bool)
    keep[0, 3] = False
    close(out[keep], clean[keep], atol=1e-6)


@pytest.mark.parametrize("name", [None, *NAMES])
@pytest.mark.parametrize("dtype, atol", [(torch.float64, 1e-4), (torch.bfloat16, 0.15), (torch.float16, 0.02)])
def test_other_precisions_stay_close_and_keep_their_type(golden, name, dtype, atol):
    if (name, dtype) == ("compiled", torch.float64):
        return  # refused
    module = fill_(MSDeformAttn(32, 3, 4, 4, kernel=name)).to(dtype)
    inputs = [golden[f"msda/{key}"].to(dtype) for key in ("query", "ref", "value")]
    with torch.no_grad():
        out = module(*inputs, SIZES)
    assert out.dtype == dtype
    close(out.float(), golden["msda/out"], atol=atol)


@pytest.mark.parametrize("name", NAMES)
def test_an_image_gives_the_same_alone_and_in_a_batch(golden, name):
    module = fill_(MSDeformAttn(32, 3, 4, 4, kernel=name))
    query, value, reference = golden["msda/query"], golden["msda/value"], golden["msda/ref"]
    together = module(query, reference[:1], value, SIZES)
    close(module(query[1:], reference[:1], value[1:], SIZES), together[1:], atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_no_query_or_no_image_gives_an_empty_result(name):
    module = MSDeformAttn(32, 3, 4, 4, kernel=name)
    out = module(torch.zeros(2, 0, 32), torch.zeros(2, 0, 3, 2), torch.zeros(2, 126, 32), SIZES)
    assert out.shape == (2, 0, 32)
    assert module(torch.zeros(0, 5, 32), torch.zeros(1, 5, 3, 2), torch.zeros(0, 126, 32), SIZES).shape == (0, 5, 32)


def test_gradients_reach_every_parameter(golden):
    module = fill_(MSDeformAttn(32, 3, 4, 4))
    module(golden["msda/query"], golden["msda/ref"], golden["msda/value"], SIZES).square().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in module.parameters())


def test_a_further_kernel_is_found_by_its_name(monkeypatch, golden):
    monkeypatch.setitem(KERNELS, "doubled", lambda *inputs: 2 * sample_by_grid(*inputs))
    inputs = golden["msda/query"], golden["msda/ref"], golden["msda/value"], SIZES
    close(
        fill_(MSDeformAttn(32, 3, 4, 4, kernel="doubled")).sample(*inputs),
        2 * fill_(MSDeformAttn(32, 3, 4, 4)).sample(*inputs),
    )


def test_wrong_arguments_are_explained():
    with pytest.raises(ValueError, match="embedding_bag"):
        MSDeformAttn(32, 3, 4, 4, kernel="fast")
    with pytest.raises(ValueError, match="multiple of n_heads"):
        MSDeformAttn(30, 3, 4, 4)
    module = MSDeformAttn(32, 3, 4, 4)
    with pytest.raises(ValueError, match="3 maps with 120 cells"):
        module(torch.zeros(1, 5, 32), torch.zeros(1, 5, 3, 2), torch.zeros(1, 120, 32), SIZES)
    with pytest.raises(ValueError, match="2 or 4 numbers"):
        module(torch.zeros(1, 5, 32), torch.zeros(1, 5, 3, 3), torch.zeros(1, 126, 32), SIZES)
