"""Write a model as a folder of graphs that `VideoPredictor.from_pretrained` and `StreamPredictor` run.

The folder holds `config.yaml` with the names of the classes, the graphs and their list `graphs.json`, and the rest of
the weights, `model.safetensors`. Nothing in it is ever unpickled.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lbvq.files.writing import atomic_path
from lbvq.inference.exported.graph_files import write_onnx, write_openvino
from lbvq.inference.exported.listing import FORMATS, LIST_FILE, GraphList
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
    names: Sequence[str] | None = None,
    category_ids: Sequence[int] | None = None,
) -> Path:
    """Write a model as a folder of graphs; it must not exist.

    Args:
        model: as `build_model` made it, with weights.
        folder: is made.
        format: "onnx" or "openvino".
        size: (height, width) of frames as the network gets them, before padding; None leaves it open.
        names, category_ids: of the classes, as of `save_pretrained`.

    Raises:
        FileExistsError: there is something at `folder`.
        ValueError: the method cannot be exported, or there is no such format.
        ImportError: an extra is missing.
    """
    folder = Path(folder)
    if format not in FORMATS:
        raise ValueError(f"format must be one of {FORMATS}, got {format!r}.")
    if folder.exists():
        raise FileExistsError(f"{folder} exists already; choose another folder.")
    require(model, "export")
    images = _example(model, size)
    with torch.no_grad():
        graphs = model.eval().graphs(images)
    write, suffix = {"onnx": (write_onnx, "onnx"), "openvino": (write_openvino, "xml")}[format]
    files = {name: f"{name}.{suffix}" for name in graphs}
    listed = GraphList(format, "float32", None if size is None else _height_and_width(images), files)
    with atomic_path(folder) as part:
        part.mkdir()
        for name, graph in graphs.items():
            write(graph, part / listed.files[name], any_size=size is None)
        listed.write(part)
        _save_rest(model, part, names=names, category_ids=category_ids, card_name=folder.name)
    return folder


def _example(model: VideoModel, size: tuple[int, int] | None) -> torch.Tensor:
    """Two frames of a size, or of one that stands for all; normalised and padded."""
    side = EXAMPLE_SIDE * max(model.divisibility, 32)
    height, width = size or (side, 2 * side)
    generator = torch.Generator().manual_seed(0)
    frames = [torch.randint(0, 256, (len(model.pixel_mean), height, width), generator=generator) for _ in range(2)]
    return model.batch_images(frames).tensor


def _height_and_width(images: torch.Tensor) -> tuple[int, int]:
    return (images.shape[-2], images.shape[-1])


def _save_rest(model: VideoModel, folder: Path, **saved: Any) -> None:
    """Write configuration and weights but for those of the graphs."""
    cfg = configuration_of(model)
    cfg.defrost()
    cfg.MODEL.GRAPHS = LIST_FILE
    rest = copy.deepcopy(model)
    rest.run_exported({})
    rest.save_pretrained(folder, cfg=cfg, **saved)
