"""Cases of the Triton kernel of deformable attention on its interpreter, run by `segmenter/test_deform_triton.py`.

They need a process of their own: TRITON_INTERPRET=1 must be set before Triton is imported.
"""

from __future__ import annotations

import logging
import re

import pytest
import torch
from golden_fill import fill_
from sampling_cases import THREE, random_case, sums_and_gradients

from mask2former.modeling import deform_attn, deform_attn_triton
from mask2former.modeling.deform_attn import MSDeformAttn, sample_by_grid, sample_by_triton, triton_agrees

CPU = torch.device("cpu")


def assert_equal_results(case, atol=1e-4):
    for got, want in zip(
        *(sums_and_gradients(kernel, case) for kernel in (sample_by_triton, sample_by_grid)), strict=True
    ):
        torch.testing.assert_close(got.float(), want.float(), rtol=atol, atol=atol)


@pytest.mark.parametrize("sizes", [[(1, 1)], [(1, 7), (5, 1)], THREE, [*THREE, (3, 3)]])
def test_one_to_four_maps_of_any_size_with_points_inside_and_outside(sizes):
    assert_equal_results(random_case(sizes))


@pytest.mark.parametrize("spread", [0.5, 1e12])
def test_points_close_to_the_middle_and_far_away(spread):
    assert_equal_results(random_case([(4, 6)], spread=spread))


def test_several_images_heads_and_points():
    assert_equal_results(random_case([(2, 3), (4, 6)], batch=2, num_heads=3, num_points=2))


@pytest.mark.parametrize("num_heads, head_dim", [(1, 1), (2, 5), (1, 48), (1, 256)])
def test_any_number_of_heads_and_channels(num_heads, head_dim):
    assert_equal_results(random_case([(3, 5)], num_heads=num_heads, head_dim=head_dim))


@pytest.mark.parametrize("num_queries", [1, 130])
def test_any_number_of_queries_in_one_or_several_blocks(num_queries):
    assert_equal_results(random_case([(3, 5)], num_queries=num_queries))


def test_a_block_may_hold_fewer_queries_than_there_are(monkeypatch):
    monkeypatch.setattr(deform_attn_triton, "TILE", 8)  # two queries of four channels
    assert_equal_results(random_case([(3, 5)], num_queries=7))


@pytest.mark.parametrize("dtype, atol", [(torch.bfloat16, 0.02), (torch.float16, 0.003)])
def test_half_precision_values_are_summed_in_float32(dtype, atol):
    value, sizes, points, weights = random_case([(4, 6)], head_dim=32)
    case = value.to(dtype), sizes, points, weights
    got = sums_and_gradients(sample_by_triton, case)
    assert [tensor.dtype for tensor in got] == [dtype, dtype, torch.float32, torch.float32]
    # 256 and then 8 times 0.5, each of which would be lost when added to 256 in bfloat16
    weights = torch.tensor([4096.0] + [0.5] * 8).view(1, 1, 1, 9, 1)
    out = sample_by_triton(torch.ones(1, 1, 1, 1, dtype=dtype), [(1, 1)], torch.zeros(1, 2, 1, 1, 9, 1), weights)
    assert out.item() == torch.tensor(4100.0).to(dtype).item()
    assert_equal_results(case, atol)


def test_gradients_are_those_of_the_function():
    shape = {"batch": 1, "num_heads": 1, "head_dim": 2, "num_points": 1, "num_queries": 2}
    value, sizes, points, weights = random_case([(2, 2), (1, 2)], **shape, spread=1.0)
    inputs = [tensor.double().requires_grad_() for tensor in (value, points, weights)]
    assert torch.autograd.gradcheck(lambda v, p, w: sample_by_triton(v, sizes, p, w), inputs)


def test_a_point_between_four_cells_reads_their_mean_and_half_outside_half_of_it():
    value = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 4, 1, 1)
    x, y = torch.tensor([0.5, -0.5, 1.0, 5.0]), torch.tensor([0.5, 0.0, 1.0, 0.0])
    out = sample_by_triton(value, [(2, 2)], torch.stack((x, y)).view(1, 2, 1, 1, 1, 4), torch.ones(1, 1, 1, 1, 4))
    assert out.flatten().tolist() == [2.5, 0.5, 4.0, 0.0]


@pytest.mark.parametrize("broken", ["points", "weights"])
def test_a_value_that_is_not_a_number_spoils_its_own_query_only(broken):
    value, sizes, points, weights = random_case([(4, 6), (2, 3)])
    clean = sample_by_triton(value, sizes, points, weights)
    (points if broken == "points" else weights)[0, ..., 3] = float("nan")
    out = sample_by_triton(value, sizes, points, weights)
    assert out[0, 3].isnan().all()
    keep = torch.ones(out.shape[:2], dtype=torch.bool)
    keep[0, 3] = False
    assert torch.equal(out[keep], clean[keep])


def test_no_query_and_no_image_give_empty_results_with_gradients_of_zero():
    for change in ({"num_queries": 0}, {"batch": 0}):
        case = random_case([(2, 3)], **change)
        out, *grads = sums_and_gradients(sample_by_triton, case)
        assert out.numel() == 0
        assert [grad.shape for grad in grads] == [case[0].shape, case[2].shape, case[3].shape]
        assert not any(grad.any() for grad in grads)


def test_inputs_that_are_not_contiguous_are_read_rightly():
    value, sizes, points, weights = random_case([(4, 6), (2, 3)])
    scattered = [tensor.transpose(0, -1).contiguous().transpose(0, -1) for tensor in (value, points, weights)]
    assert not any(tensor.is_contiguous() for tensor in scattered)
    assert_equal_results((scattered[0], sizes, scattered[1], scattered[2]))


def test_without_gradients_the_result_is_the_same():
    case = random_case([(4, 6)])
    with torch.inference_mode():
        inside = sample_by_triton(*case)
    assert torch.equal(inside, sample_by_triton(*case))


def test_more_maps_or_channels_than_the_kernel_takes_are_refused():
    with pytest.raises(ValueError, match="4 maps and 256 channels per head, got 5 and 4"):
        sample_by_triton(*random_case([(1, 2)] * 5))
    with pytest.raises(ValueError, match="got 1 and 257"):
        sample_by_triton(*random_case([(1, 2)], head_dim=257))
    assert not triton_agrees(CPU, torch.float32, 5, 4, 8, 32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_trial_before_the_first_use_agrees_and_touches_no_random_numbers(dtype):
    state = torch.get_rng_state()
    with torch.inference_mode():  # as at a first frame
        assert triton_agrees(CPU, dtype, 2, 1, 1, 8)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "wrong, said",
    [
        (lambda *case: sample_by_triton(*case) * 1.02, r"off by 2.\de-02"),
        (
            lambda value, *case: sample_by_triton(value + (value - value.detach()) * 0.1, *case),
            r"off by [19].\de-0[12]",
        ),
        (lambda *case: sample_by_triton(*case) * float("nan"), "off by nan"),
        (lambda *case: (_ for _ in ()).throw(RuntimeError("no compiler")), "failed, RuntimeError"),
    ],
)
def test_a_kernel_that_fails_or_is_wrong_is_not_used_and_said(monkeypatch, caplog, wrong, said):
    deform_attn._triton_agrees.cache_clear()
    monkeypatch.setattr(deform_attn, "sample_by_triton", wrong)
    with caplog.at_level(logging.WARNING):
        assert not triton_agrees(CPU, torch.bfloat16, 1, 1, 1, 4)
    deform_attn._triton_agrees.cache_clear()
    assert [record.getMessage().startswith("Deformable attention by grid_sample") for record in caplog.records] == [
        True
    ]
    assert re.search(said, caplog.records[0].getMessage())


def test_a_compiled_module_keeps_the_kernel_as_one_operator(monkeypatch):
    monkeypatch.setattr(
        deform_attn,
        "choose_kernel",
        lambda value, levels, points: (
            "triton" if triton_agrees(value.device, value.dtype, levels, points, *value.shape[2:]) else "none"
        ),
    )
    module = fill_(MSDeformAttn(16, 2, 2, 1))
    query, value = torch.randn(1, 20, 16), torch.randn(1, 20, 16)
    places, sizes = torch.rand(1, 20, 2, 2), [(4, 4), (2, 2)]
    results = []
    for form in (
        fill_(MSDeformAttn(16, 2, 2, 1, kernel="grid_sample")),
        torch.compile(module, backend="aot_eager", fullgraph=True),
    ):
        inputs = [query.clone().requires_grad_(), value.clone().requires_grad_()]
        out = form(inputs[0], places, inputs[1], sizes)
        results.append([out, *torch.autograd.grad(out.square().sum(), inputs)])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
