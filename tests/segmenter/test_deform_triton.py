"""The Triton kernel of deformable attention: right on the interpreter, compiles for GPUs, and stays away elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import ROOT

from mask2former.modeling import deform_attn
from mask2former.modeling.deform_attn import choose_kernel, sample_by_triton


def run_python(*arguments: str, **environment: str) -> str:
    """Output of a Python process of its own; AssertionError with it all when that fails."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_on_the_interpreter_it_gives_the_sums_and_gradients_of_grid_sample():
    pytest.importorskip("triton")
    said = run_python("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/triton_cases.py", TRITON_INTERPRET="1")
    assert " passed" in said
    assert "skipped" not in said


INTERPRETED = """
import torch
from mask2former.modeling.deform_attn import sample_by_grid, sample_by_triton
value, sizes = torch.linspace(-1, 1, 90).view(1, 15, 2, 3), [(3, 5)]
points, weights = torch.linspace(-2, 6, 32).view(1, 2, 2, 1, 2, 4), torch.linspace(0, 1, 16).view(1, 2, 1, 2, 4)
results = []
for kernel in (sample_by_triton, sample_by_grid):
    inputs = [tensor.clone().requires_grad_() for tensor in (value, points, weights)]
    out = kernel(inputs[0], sizes, *inputs[1:])
    results.append([out, *torch.autograd.grad(out.square().sum(), inputs)])
for ours, theirs in zip(*results):
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
"""


def test_a_small_case_on_the_interpreter():
    pytest.importorskip("triton")
    run_python("-c", INTERPRETED, TRITON_INTERPRET="1")


def test_on_a_cpu_it_is_neither_chosen_nor_imported():
    said = run_python(
        "-c",
        "import sys, torch\n"
        "from mask2former.modeling.deform_attn import MSDeformAttn, choose_kernel\n"
        "MSDeformAttn(32, 1, 4, 2)(torch.ones(1, 9, 32), torch.ones(1, 9, 1, 2), torch.ones(1, 9, 32), [(3, 3)])\n"
        "print(choose_kernel(torch.ones(1, 9, 4, 8), 1, 2), *(name for name in sys.modules if 'attn_triton' in name))",
        LBVQ_COMPILE="0",
    )
    assert said.split() == ["embedding_bag"]


def test_asked_for_on_a_cpu_it_is_refused():
    with pytest.raises(ValueError, match=r"needs a GPU, the values are on cpu|not installed"):
        sample_by_triton(torch.ones(1, 1, 1, 1), [(1, 1)], torch.zeros(1, 2, 1, 1, 1, 1), torch.ones(1, 1, 1, 1, 1))


@pytest.mark.parametrize(
    "dtype, agrees, deterministic, want",
    [
        (torch.float32, True, False, "triton"),
        (torch.bfloat16, True, False, "triton"),
        (torch.float16, True, False, "triton"),
        (torch.float32, False, False, "grid_sample"),
        (torch.float64, True, False, "grid_sample"),
        (torch.float32, True, True, "grid_sample"),
    ],
)
def test_on_a_gpu_it_is_chosen_where_it_agrees_and_sums_may_be_in_any_order(
    monkeypatch, dtype, agrees, deterministic, want
):
    asked = []
    monkeypatch.setattr(deform_attn, "triton_agrees", lambda *layout: asked.append(layout) or agrees)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: deterministic)
    device = torch.device("cuda")
    value: Any = SimpleNamespace(device=device, dtype=dtype, shape=(2, 9, 8, 32))
    assert choose_kernel(value, 3, 4) == want
    if want == "triton":
        assert asked == [(device, dtype, 3, 4, 8, 32)]


@pytest.mark.parametrize("missing", ["triton", "capability"])
def test_without_triton_or_on_an_old_gpu_the_answer_is_no(monkeypatch, missing):
    deform_attn._triton_agrees.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
    if missing == "triton":
        monkeypatch.setattr(deform_attn.importlib.util, "find_spec", lambda name: None)
    assert not deform_attn.triton_agrees(torch.device("cuda"), torch.float32, 3, 4, 8, 32)
    deform_attn._triton_agrees.cache_clear()


COMPILED = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from mask2former.modeling import deform_attn_triton as kernels

types = dict.fromkeys(["points", "weights", "grad_value", "grad_points", "grad_weights"], "*fp32")
types |= dict.fromkeys(["value", "out", "grad_out"], "*bf16")
constants = {"M": 2, "L": 2, "P": 1, "D": 20, "BLOCK_Q": 64, "BLOCK_D": 32}
for kernel in (kernels._sum_points, kernels._spread_gradient):
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in kernel.arg_names}
    source = ASTSource(kernel, signature, {(kernel.arg_names.index(name),): each for name, each in constants.items()})
    print(len(triton.compile(source, target=GPUTarget("cuda", 80, 32)).asm["cubin"]))
"""


@pytest.mark.slow
def test_both_directions_compile_to_machine_code_of_gpus(tmp_path):
    pytest.importorskip("triton")
    sizes = run_python("-c", COMPILED, TRITON_CACHE_DIR=str(tmp_path)).split()
    assert len(sizes) == 2
    assert min(map(int, sizes)) > 0
