"""Write a model as a folder of graphs that `VideoPredictor.from_pretrained` and `StreamPredictor` run.

The folder holds `config.yaml` with the names of the classes, the graphs and their list `graphs.json`, and the rest of
the weights, `model.safetensors`. Nothing in it is ever unpickled.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lbvq.files.writing import atomic_path
from lbvq.inference.exported.graph_files import as_openvino, check_extras, write_onnx
from lbvq.inference.exported.listing import FORMATS, LIST_FILE, PRECISIONS, GraphList
from lbvq.inference.exported.precision import halve, quantize, recorded_inputs
from lbvq.modeling.base import VideoModel
from lbvq.modeling.pretrained import configuration_of
from mask2former.abilities import require

EXAMPLE_SIDE = 4  # cells per side of the example for graphs of any size, in units of the coarsest map


def export_model(
    model: VideoModel,
    folder: str | os.PathLike,
    *,
    format: str,
    size: tuple[int, int] | None = None,
    precision: str = "float32",
    calibrate: str | os.PathLike | None = None,
    names: Sequence[str] | None = None,
    category_ids: Sequence[int] | None = None,
) -> Path:
    """Write a model as a folder of graphs; it must not exist.

    Args:
        model: as `build_model` made it, with weights.
        folder: is made.
        format: "onnx" or "openvino".
        size: (height, width) of frames as the network gets them, before padding; None leaves it open.
        precision: of weights and products: "float32", "half" or "int8".
        calibrate: videos to find the ranges of int8 with, see `recorded_inputs`.
        names, category_ids: of the classes, as of `save_pretrained`.

    Raises:
        FileExistsError: there is something at `folder`.
        ValueError: the method cannot be exported, there is no such format or precision, or nothing to calibrate with.
        ImportError: an extra is missing.
    """
    folder = Path(folder)
    for name, value, valid in (("format", format, FORMATS), ("precision", precision, PRECISIONS)):
        if value not in valid:
            raise ValueError(f"{name} must be one of {valid}, got {value!r}.")
    if (precision == "int8") != (calibrate is not None):
        raise ValueError("int8, and nothing else, needs videos to find its ranges with: --int8 --calibrate DATA.")
    if folder.exists():
        raise FileExistsError(f"{folder} exists already; choose another folder.")
    require(model, "export")
    if model.exported:
        raise ValueError("this model runs exported graphs already; export the model that they were made from.")
    check_extras(format, precision)
    with atomic_path(folder) as part:
        part.mkdir()
        listed = _write_float32(model, part, size)
        _save_rest(model, part, names=names, category_ids=category_ids, card_name=folder.name)
        if calibrate is not None:
            inputs = recorded_inputs(part, Path(calibrate))
            for name, file in listed.files.items():
                quantize(part / file, inputs[name])
        if format == "openvino":
            listed = as_openvino(part, listed, half=precision == "half")
        elif precision == "half":
            for file in listed.files.values():
                halve(part / file)
        replace(listed, precision=precision).write(part)
    return folder


def _write_float32(model: VideoModel, folder: Path, size: tuple[int, int] | None) -> GraphList:
    """Write the graphs as ONNX files, and their list."""
    images = _example(model, size)
    with torch.no_grad():
        graphs = model.eval().graphs(images)
    padded = None if size is None else (images.shape[-2], images.shape[-1])
    listed = GraphList("onnx", "float32", padded, {name: f"{name}.onnx" for name in graphs})
    for name, graph in graphs.items():
        write_onnx(graph, folder / listed.files[name], any_size=size is None)
    listed.write(folder)
    return listed


def _example(model: VideoModel, size: tuple[int, int] | None) -> torch.Tensor:
    """Two frames of a size, or of one that stands for all; normalised and padded."""
    side = EXAMPLE_SIDE * max(model.divisibility, 32)
    height, width = size or (side, 2 * side)
    generator = torch.Generator().manual_seed(0)
    frames = [torch.randint(0, 256, (len(model.pixel_mean), height, width), generator=generator) for _ in range(2)]
    return model.batch_images(frames).tensor


def _save_rest(model: VideoModel, folder: Path, **saved: Any) -> None:
    """Write configuration and weights but for those of the graphs."""
    cfg = configuration_of(model)
    cfg.defrost()
    cfg.MODEL.GRAPHS = LIST_FILE
    rest = copy.deepcopy(model)
    rest.run_exported({})
    rest.save_pretrained(folder, cfg=cfg, **saved)
