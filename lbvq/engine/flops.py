"""Count the floating point operations of a model while it runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

aten = torch.ops.aten
CHECKED = ("aten", "prim", "prims")  # namespaces without a product that is not counted, see `_OTHER_PRODUCTS`
NO_PRODUCT = (
    "mask2former::deform_attn",
    "mask2former::deform_attn_compiled",
    "mask2former::deform_attn_projected",
    "torchvision::nms",
    "torchvision::roi_align",
)


def flops_by_part(model: nn.Module, run: Callable[[], Any], depth: int) -> tuple[list[tuple[str, int]], Counter[str]]:
    """Count matrix products, convolutions and attention; one multiply-add is 2 FLOPs.

    Args:
        model: its parts are told apart by the names of modules; a part holds what runs in its `forward`.
        run: one inference; it runs as without `torch.compile` and without gradients.
        depth: levels of names.

    Returns:
        (part, FLOPs), the whole model first and then the largest parts; and how often operators ran that may hold
        products which nobody can count here.
    """
    uncounted: Counter[str] = Counter()
    counter = FlopCounterMode(display=False, custom_mapping=_products())
    with _without_gradients(model), _only_known_operators(), _Unknown(counter.flop_registry, uncounted), counter:
        run()
    counts = {name: sum(by_operator.values()) for name, by_operator in counter.get_flop_counts().items()}
    root = type(model).__name__
    parts = []
    for name, count in counts.items():
        part = name.removeprefix(f"{root}.")
        if name not in ("Global", root) and part.count(".") < depth and count:
            parts.append((part, count))
    return [(root, counts.get("Global", 0)), *sorted(parts, key=lambda row: -row[1])], uncounted


# -- formulas that torch lacks; they are given shapes in the place of tensors


def _linear_flop(x: Sequence[int], *others: Any, out_shape: Sequence[int], **settings: Any) -> int:
    """x (..., C_in) -> (..., C_out)."""
    return 2 * x[-1] * _product(out_shape)


def _matrix_vector_flop(matrix: Sequence[int], *others: Any, **settings: Any) -> int:
    return 2 * _product(matrix)


def _added_matrix_vector_flop(start: Sequence[int], matrix: Sequence[int], *others: Any, **settings: Any) -> int:
    return 2 * _product(matrix)


def _attention_flop(queries: Sequence[int], keys: Sequence[int], values: Sequence[int], *others: Any, **s: Any) -> int:
    """Queries (B, heads, L, E), keys (B, heads, S, E), values (B, heads, S, V)."""
    return 2 * _product(queries[:-1]) * keys[-2] * (queries[-1] + values[-1])


_OTHER_PRODUCTS: dict[str, Callable[..., int]] = {
    "_scaled_dot_product_flash_attention_for_cpu": _attention_flop,  # later than PyTorch 2.6 torch has it, too
    "mv": _matrix_vector_flop,
    "dot": _matrix_vector_flop,
    "addmv": _added_matrix_vector_flop,
}


def _products() -> dict[Any, Callable[..., int]]:
    formulas: dict[Any, Callable[..., int]] = {getattr(aten, name): form for name, form in _OTHER_PRODUCTS.items()}
    if hasattr(torch.ops.mkldnn, "_linear_pointwise"):  # what mask2former.linear calls
        formulas[torch.ops.mkldnn._linear_pointwise] = _linear_flop
    return formulas


def _product(shape: Sequence[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


# -- what makes every product visible


@contextmanager
def _without_gradients(model: nn.Module) -> Iterator[None]:
    """No parameter asks for gradients: torch's counter fails on one that is an argument while there are none."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        with torch.no_grad():
            yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


@contextmanager
def _only_known_operators() -> Iterator[None]:
    """Neither compiled code nor the fused encoder layers of `torch.nn`, which hide their products."""
    was_fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was_fast)


class _Unknown(TorchDispatchMode):
    """Notes operators of other libraries that are run and have no formula."""

    def __init__(self, formulas: Any, uncounted: Counter[str]) -> None:
        super().__init__()
        self.formulas, self.uncounted = formulas, uncounted

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().partition(".")[0]
        is_checked = name.partition("::")[0] in CHECKED or name in NO_PRODUCT
        if not is_checked and func._overloadpacket not in self.formulas:
            self.uncounted[name] += 1
        return func(*args, **(kwargs or {}))
