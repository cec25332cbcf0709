"""Write functions of tensors as ONNX and OpenVINO files.

PyTorch's exporter on `torch.export` (`dynamo=True`) reads the program; the older one, which traces, is not used.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lbvq.inference.exported.listing import GraphList
from lbvq.modeling.graphs import Graph
from mask2former.modeling.deform_attn import MSDeformAttn

OPSET = 18
MAX_FRAMES = 4096  # in a batch; an upper limit is all that the exporter wants to know
LARGE_GRAPH = 1_900_000_000  # bytes of weights; a file of ONNX holds 2 GB, weights of larger graphs lie beside it


def check_extras(format: str, precision: str) -> None:
    """Raise ImportError, which names the extra, when a package is missing that writes such graphs."""
    wanted = ["onnx", "onnxscript", *["openvino"] * (format == "openvino")]
    wanted += ["onnxruntime"] * (precision == "int8" or (format, precision) == ("onnx", "half"))
    missing = [name for name in wanted if importlib.util.find_spec(name) is None]
    if missing:
        extras = "onnx,openvino" if format == "openvino" else "onnx"
        raise ImportError(f'these graphs are written by {" and ".join(missing)}: pip install "lbvq[{extras}]".')


def as_openvino(folder: Path, listed: GraphList, *, half: bool) -> GraphList:
    """Turn the ONNX files of a folder into OpenVINO's .xml files, each with a .bin file of weights, half or not."""
    import openvino

    files = {}
    for name, file in listed.files.items():
        files[name] = f"{name}.xml"
        openvino.save_model(openvino.convert_model(folder / file), folder / files[name], compress_to_fp16=half)
        for written in folder.glob(f"{file}*"):  # weights of large graphs lie beside it
            written.unlink()
    return replace(listed, format="openvino", files=files)


def write_onnx(graph: Graph, path: Path, *, any_size: bool) -> None:
    """Write a graph as an ONNX file of standard operators.

    Args:
        graph: what to write.
        path: of the file.
        any_size: leave height and width open, besides the number of frames.
    """
    names, examples = list(graph.inputs), tuple(graph.inputs.values())
    with torch.no_grad(), _exportable(graph.module), _quiet():
        outputs = list(graph.module(*examples))
        program = torch.export.export(graph.module, examples, dynamic_shapes=_shapes(graph, any_size), strict=False)
        with _fitting_packages():
            written = torch.onnx.export(
                program, input_names=names, output_names=outputs, opset_version=OPSET, dynamo=True, verbose=False
            )
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in graph.module.state_dict().values())
    assert written is not None  # without a path it returns the program
    written.save(str(path), external_data=num_bytes > LARGE_GRAPH)


def _shapes(graph: Graph, any_size: bool) -> tuple[dict[int, Any], ...]:
    """For every input what `torch.export` wants to know: axis -> length that is open."""
    frames = torch.export.Dim("frames", min=1, max=MAX_FRAMES)
    shapes: list[dict[int, Any]] = []
    for name in graph.inputs:
        axes = graph.axes.get(name, {})
        opened: dict[int, Any] = {axis: frames for axis, length in axes.items() if length == "frames"}
        if any_size:
            opened |= {axis: torch.export.Dim.DYNAMIC for axis, length in axes.items() if length != "frames"}
        shapes.append(opened)
    return tuple(shapes)


@contextmanager
def _exportable(module: nn.Module) -> Iterator[None]:
    """Let deformable attention be made of standard operators inside."""
    attentions = [each for each in module.modules() if isinstance(each, MSDeformAttn)]
    kernels = [attention.kernel for attention in attentions]
    try:
        for attention in attentions:
            attention.kernel = "grid_sample"
        yield
    finally:
        for attention, kernel in zip(attentions, kernels, strict=True):
            attention.kernel = kernel


@contextmanager
def _fitting_packages() -> Iterator[None]:
    """Say so where the exporter fails: onnxscript, which has its operators, knows some releases of PyTorch only."""
    try:
        yield
    except (torch.onnx.OnnxExporterError, ModuleNotFoundError) as error:
        have = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "onnxscript", "onnx-ir"))
        raise ValueError(
            f"PyTorch's exporter failed with {have}, which may not fit each other: pip install -U torch onnxscript "
            f"onnx-ir, or see docs/export.md. It said: {str(error).strip().splitlines()[0]}"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep notes of the exporter about itself from the user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(torch|onnxscript|copyreg)\b")
            yield
    finally:
        logger.setLevel(level)
