"""Deformable attention in C: sums and gradients of `grid_sample`, the same bit by bit for any number of threads."""

from __future__ import annotations

from functools import partial

import pytest
import sampling_cases
import torch
from golden_fill import fill_
from sampling_cases import THREE, sums_and_gradients

from lbvq.engine.flops import flops_by_part
from mask2former.compiled import SWITCH, CSource
from mask2former.modeling import deform_attn_compiled
from mask2former.modeling.deform_attn import KERNELS, MSDeformAttn, choose_kernel, sample_by_grid, sample_compiled
from mask2former.modeling.deform_attn_compiled import MAX_POINTS, SAMPLING

random_case = partial(sampling_cases.random_case, head_dim=32)  # as networks have
needs_compiler = pytest.mark.skipif(SAMPLING.load() is None, reason="needs a C compiler")


def assert_results_of_grid_sample(case, tolerance=2e-5):
    """Sums and gradients are those of `grid_sample` in float64, up to the rounding of float32."""
    value, sizes, points, weights = case
    exact = sums_and_gradients(sample_by_grid, (value.double(), sizes, points.double(), weights.double()))
    for got, want in zip(sums_and_gradients(sample_compiled, case), exact, strict=True):
        scale = want.abs().max().item()
        torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance * max(scale, 1e-6))


@needs_compiler
def test_sums_and_gradients_by_hand():
    value = torch.tensor([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0], [4.0, 40.0]]).view(1, 4, 1, 2).requires_grad_()
    points = torch.tensor([0.25, 0.5]).view(1, 2, 1, 1, 1, 1).requires_grad_()  # x, y among (1 2; 3 4)
    weights = torch.tensor(2.0).view(1, 1, 1, 1, 1).requires_grad_()
    out = sample_compiled(value, [(2, 2)], points, weights)
    assert out.flatten().tolist() == [4.5, 45.0]
    (out * torch.tensor([1.0, 0.1])).sum().backward()
    assert value.grad[..., 0].flatten().tolist() == [0.75, 0.25, 0.75, 0.25]
    torch.testing.assert_close(value.grad[..., 1], value.grad[..., 0] * 0.1)
    assert points.grad.flatten().tolist() == [4.0, 8.0]  # 2 * (1 + 1) to the right, 2 * (2 + 2) down
    assert weights.grad.item() == 4.5


@needs_compiler
@pytest.mark.parametrize("sizes", [[(1, 1)], [(1, 7), (5, 1)], THREE, [*THREE, (3, 3)]])
@pytest.mark.parametrize("spread", [0.5, 4.0, 1e12])
def test_one_to_four_maps_of_any_size_with_points_inside_and_outside(sizes, spread):
    assert_results_of_grid_sample(random_case(sizes, spread=spread))


@needs_compiler
@pytest.mark.parametrize("head_dim", [1, 5, 16, 20, 48, 64])
def test_any_number_of_channels(head_dim):
    assert_results_of_grid_sample(random_case([(3, 5)], head_dim=head_dim, num_heads=2))


@needs_compiler
@pytest.mark.parametrize("num_queries", [1, 63, 64, 130])
def test_several_images_heads_and_points_and_any_number_of_queries(num_queries):
    sizes = [(2, 3), (4, 6)]
    assert_results_of_grid_sample(random_case(sizes, batch=2, num_heads=3, num_points=2, num_queries=num_queries))


@needs_compiler
def test_as_many_points_as_it_takes_and_no_more():
    assert_results_of_grid_sample(random_case([(4, 6)] * 2, num_points=MAX_POINTS // 2))
    with pytest.raises(ValueError, match="up to 64 points per query and head, got 65"):
        sample_compiled(*random_case([(4, 6)], num_points=MAX_POINTS + 1))


@needs_compiler
@pytest.mark.parametrize("head_dim", [5, 32])
@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 0.01), (torch.float16, 0.002)])
def test_half_precision_values_are_summed_in_float32(head_dim, dtype, tolerance):
    value, sizes, points, weights = random_case([(4, 6)], head_dim=head_dim, num_heads=2)
    case = value.to(dtype), sizes, points, weights
    got = sums_and_gradients(sample_compiled, case)
    assert [tensor.dtype for tensor in got] == [dtype, dtype, torch.float32, torch.float32]
    assert_results_of_grid_sample(case, tolerance)
    # 4096 and then 8 times 0.5, each of which would be lost when added to it in half precision
    weights = torch.tensor([4096.0] + [0.5] * 8).view(1, 1, 1, 9, 1)
    out = sample_compiled(torch.ones(1, 1, 1, 1, dtype=dtype), [(1, 1)], torch.zeros(1, 2, 1, 1, 9, 1), weights)
    assert out.item() == torch.tensor(4100.0).to(dtype).item()


@needs_compiler
@pytest.mark.parametrize("num_threads", [2, 7])
def test_results_do_not_depend_on_the_number_of_threads(monkeypatch, num_threads):
    case = random_case(THREE, batch=2, num_heads=5, num_points=3, num_queries=300)
    results = []
    for count in (1, num_threads):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=count: count)
        results.append(sums_and_gradients(sample_compiled, case))
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


@needs_compiler
def test_an_image_gives_the_same_alone_and_without_gradients():
    value, sizes, points, weights = case = random_case(THREE, batch=3, num_heads=2, num_queries=70)
    want = sample_compiled(*case)
    with torch.inference_mode():
        assert torch.equal(sample_compiled(*case), want)
    assert torch.equal(sample_compiled(value[1:2], sizes, points[1:2], weights[1:2]), want[1:2])


@needs_compiler
@pytest.mark.parametrize("broken", ["points", "weights"])
def test_a_place_or_weight_that_is_not_a_number_spoils_its_own_query_only(broken):
    value, sizes, points, weights = random_case([(4, 6), (2, 3)])
    clean = sample_compiled(value, sizes, points, weights)
    (points if broken == "points" else weights)[0, ..., 0, 3] = float("nan")
    out = sample_compiled(value, sizes, points, weights)
    assert out[0, 3].isnan().all()
    out[0, 3] = clean[0, 3]
    assert torch.equal(out, clean)


@needs_compiler
def test_a_cell_that_is_not_a_number_is_read_only_by_those_who_look_at_it():
    value = torch.zeros(1, 9, 1, 1)
    value[0, 0] = value[0, 8] = float("nan")  # the corners left above and right below of 3 x 3
    x, y = torch.tensor([0.5, 0.0, -1.5, 1.5, 3.5, 1.0]), torch.tensor([0.5, 1.5, -1.5, 1.5, 3.5, 0.0])
    out = sample_compiled(value, [(3, 3)], torch.stack((x, y)).view(1, 2, 1, 1, 1, 6), torch.ones(1, 1, 1, 1, 6))
    assert out.flatten().isnan().tolist() == [True, False, False, True, False, False]


@needs_compiler
def test_no_query_and_no_image_give_empty_results_with_gradients_of_zero():
    for change in ({"num_queries": 0}, {"batch": 0}):
        case = random_case([(2, 3)], **change)
        out, *grads = sums_and_gradients(sample_compiled, case)
        assert out.numel() == 0
        assert [grad.shape for grad in grads] == [case[0].shape, case[2].shape, case[3].shape]
        assert not any(grad.any() for grad in grads)


@needs_compiler
def test_inputs_that_are_not_contiguous_are_read_rightly():
    value, sizes, points, weights = random_case([(4, 6), (2, 3)], num_heads=2)
    scattered = [tensor.transpose(0, -1).contiguous().transpose(0, -1) for tensor in (value, points, weights)]
    assert not any(tensor.is_contiguous() for tensor in scattered)
    assert_results_of_grid_sample((scattered[0], sizes, scattered[1], scattered[2]))


def module_case(num_levels, *, batch=1, num_points=2, num_queries=70, as_boxes=False, width=32, scale=1.0):
    """A module whose heads look around, and its arguments."""
    generator = torch.Generator().manual_seed(1)
    module = fill_(MSDeformAttn(width, num_levels, 4, num_points))
    for parameter in (*module.sampling_offsets.parameters(), *module.attention_weights.parameters()):
        parameter.data.normal_(std=scale, generator=generator)
    sizes = [(level + 2, 3 * level + 1) for level in range(num_levels)]
    query = torch.randn(batch, num_queries, width, generator=generator)
    value = torch.randn(batch, sum(h * w for h, w in sizes), width, generator=generator)
    places = torch.rand(batch, num_queries, num_levels, 4 if as_boxes else 2, generator=generator)
    return module, (query, places, value, sizes)


def samples(case):
    """What `compiled` and what `grid_sample` gives without gradients."""
    module, inputs = case
    found = []
    for name in ("compiled", "grid_sample"):
        module.kernel = name
        with torch.no_grad():
            found.append(module.sample(*inputs))
    return found


@needs_compiler
@pytest.mark.parametrize("num_levels", [1, 2, 3, 4])
@pytest.mark.parametrize(
    "change", [{}, {"as_boxes": True}, {"batch": 2, "num_points": 3}, {"width": 20}, {"scale": 9.0}]
)
def test_points_made_in_c_are_those_of_torch(num_levels, change):
    got, want = samples(module_case(num_levels, **change))
    torch.testing.assert_close(got, want, rtol=2e-5, atol=2e-5)


@needs_compiler
def test_references_of_one_image_serve_all():
    module, (query, places, value, sizes) = module_case(2, batch=3)
    got, want = samples((module, (query, places[1:2], value, sizes)))
    torch.testing.assert_close(got, want, rtol=2e-5, atol=2e-5)


@needs_compiler
@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"), reason="needs AVX2")
@pytest.mark.parametrize("change", [{}, {"as_boxes": True}, {"width": 128, "num_points": 4, "num_queries": 300}])
def test_recorded_numbers_stay_sums_are_those_of_embedding_bag_to_the_last_bit(change):
    case = random_case(THREE, num_heads=2, num_points=3, num_queries=200)
    assert torch.equal(sample_compiled(*case), KERNELS["embedding_bag"](*case))
    module, inputs = module_case(3, **change)
    results = []
    for name in ("compiled", "embedding_bag"):
        module.kernel = name
        with torch.no_grad():
            results.append(module.sample(*inputs))
    assert torch.equal(*results)


@needs_compiler
def test_sums_are_rounded_to_the_nearest_bfloat16():
    step = 2.0**-7  # from 1 to the next number
    weights = torch.tensor(
        [1 + step / 2, 1 + 1.5 * step, 1 + step / 2 + 2**-20, -1 - step * 0.75, torch.inf, torch.nan]
    )
    ones, points = torch.ones(1, 1, 1, 1, dtype=torch.bfloat16), torch.zeros(1, 2, 1, 1, 1, 6)
    out = sample_compiled(ones, [(1, 1)], points, weights.view(1, 1, 1, 1, 6)).flatten()
    assert out[:4].tolist() == [1.0, 1 + 2 * step, 1 + step, -1 - step] and out[5].isnan()
    module, (query, places, value, sizes) = module_case(2)
    got, want = samples((module.bfloat16(), (query.bfloat16(), places, value.bfloat16(), sizes)))
    assert got.dtype == want.dtype == torch.bfloat16
    torch.testing.assert_close(got, want, rtol=0.02, atol=0.02)


@needs_compiler
def test_made_in_c_they_do_not_depend_on_threads_nor_on_other_images(monkeypatch):
    module, (query, places, value, sizes) = module_case(3, batch=2, num_queries=300)
    module.kernel = "compiled"
    with torch.no_grad():
        want = module.sample(query, places, value, sizes)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
        assert torch.equal(module.sample(query, places, value, sizes), want)
        alone = module.sample(query[1:], places[1:], value[1:], sizes)
    torch.testing.assert_close(alone, want[1:], rtol=1e-5, atol=1e-5)  # products are of other sizes


@needs_compiler
def test_it_is_chosen_on_cpus_for_what_it_takes():
    value = torch.ones(1, 9, 4, 8)
    assert choose_kernel(value, 3, 4) == choose_kernel(value.bfloat16(), 3, 4) == "compiled"
    assert choose_kernel(value.double(), 3, 4) == choose_kernel(value, 3, 22) == "embedding_bag"
    assert choose_kernel(value.to("meta"), 3, 4) == "grid_sample"
    with pytest.raises(ValueError, match=r"points of float32, got torch\.float64 and torch\.float64"):
        case = random_case([(1, 2)])
        sample_compiled(case[0].double(), case[1], case[2].double(), case[3].double())


@pytest.mark.parametrize("variable, setting", [("PATH", ""), (SWITCH, "0")])
def test_without_a_compiler_or_switched_off_the_former_kernel_is_used(monkeypatch, variable, setting):
    monkeypatch.setenv(variable, setting)
    monkeypatch.setattr(deform_attn_compiled, "SAMPLING", CSource(SAMPLING.name, SAMPLING._path))
    module = fill_(MSDeformAttn(32, 3, 4, 4))
    inputs = torch.randn(1, 9, 32), torch.rand(1, 9, 3, 2), torch.randn(1, 126, 32), THREE
    got = module(*inputs)
    module.kernel = "embedding_bag"
    assert torch.equal(got, module(*inputs))
    with pytest.raises(ValueError, match=r"not in C: .*choose another kernel"):
        sample_compiled(*random_case([(1, 2)]))


class OfOneSize(MSDeformAttn):
    def forward(self, query, reference_points, value):
        return super().forward(query, reference_points, value, [(4, 4)])


@needs_compiler
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_graphs_are_made_of_the_former_kernel(monkeypatch):
    module = fill_(OfOneSize(16, 1, 2, 1)).eval()
    inputs = torch.randn(1, 20, 16), torch.rand(1, 20, 1, 2), torch.randn(1, 16, 16)
    want = module(*inputs)
    monkeypatch.setitem(KERNELS, "compiled", None)  # nobody may call it
    graph = torch.jit.trace(module, inputs, check_trace=False)
    torch.testing.assert_close(graph(*inputs), want, rtol=1e-5, atol=1e-5)
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*inputs), want, rtol=1e-5, atol=1e-5)


@needs_compiler
def test_asked_for_a_compiled_network_keeps_it_as_one_operator():
    places, sizes = torch.rand(1, 20, 2, 2), [(4, 4), (2, 2)]
    query, value = torch.randn(1, 20, 16), torch.randn(1, 20, 16)
    module = fill_(MSDeformAttn(16, 2, 2, 1, kernel="compiled"))
    results = []
    for form in (module, torch.compile(module, backend="aot_eager", fullgraph=True)):
        inputs = [query.clone().requires_grad_(), value.clone().requires_grad_()]
        out = form(inputs[0], places, inputs[1], sizes)
        results.append([out, *torch.autograd.grad(out.square().sum(), inputs)])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@needs_compiler
def test_it_holds_no_product_that_would_have_to_be_counted():
    inputs = torch.randn(1, 9, 32), torch.rand(1, 9, 3, 2), torch.randn(1, 126, 32), THREE
    counts = []
    for kernel in ("compiled", "embedding_bag"):
        module = fill_(MSDeformAttn(32, 3, 4, 4, kernel=kernel))
        parts, uncounted = flops_by_part(module, lambda module=module: module(*inputs), 1)
        assert not uncounted
        counts.append(parts)
    assert counts[0] == counts[1] and counts[0][0][1] > 0


@needs_compiler
@pytest.mark.parametrize("sizes, num_points", [([(0, 3)], 2), ([(2, 3)], 0)])
def test_where_nothing_is_read_sums_are_zero(sizes, num_points):
    for _ in range(3):  # memory that was in use before
        torch.full((1, 50, 32), 7.0)
        assert not sample_compiled(*random_case(sizes, num_points=num_points, num_queries=50)).any()
