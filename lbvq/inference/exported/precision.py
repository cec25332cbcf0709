"""Graphs of ONNX in float16 and in int8, by ONNX Runtime's own tools."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from lbvq.files.images import IMAGE_SUFFIXES
from lbvq.inference.frames import open_frames
from lbvq.inference.predictor import VideoPredictor
from lbvq.modeling.base import VideoModel
from lbvq.modeling.graphs import GraphFunction

CALIBRATION_VIDEOS = 16  # at most, evenly chosen
CALIBRATION_FRAMES = 4  # of each, from its start
INT8_OPERATORS = ("Conv", "Gemm", "MatMul")  # and of products only those with weights

Arrays = dict[str, np.ndarray]


def halve(path: Path) -> None:
    """Bring the weights and products of an ONNX file to float16; inputs and outputs stay float32."""
    import onnx
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    sampling = ["GridSample", "Resize", "Range", "Softmax", "LayerNormalization"]  # places and sums want float32
    half = convert_float_to_float16(
        onnx.load(path), keep_io_types=True, op_block_list=[*DEFAULT_OP_BLOCK_LIST, *sampling]
    )
    onnx.save(half, path)


def quantize(path: Path, inputs: Iterable[Arrays]) -> None:
    """Bring the products with weights of an ONNX file to int8, by the ranges that inputs of it lead to."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    logger = logging.getLogger()  # the tool advises to optimise graphs before, which the exporter has done
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        quantize_static(
            path,
            path,
            _Reader(inputs),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(INT8_OPERATORS),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={"MatMulConstBOnly": True},
        )
    finally:
        logger.setLevel(level)


class _Reader:
    """What the tool asks for its examples."""

    def __init__(self, inputs: Iterable[Arrays]) -> None:
        self._inputs = iter(inputs)

    def get_next(self) -> Arrays | None:
        return next(self._inputs, None)


def recorded_inputs(folder: Path, data: Path) -> dict[str, list[Arrays]]:
    """Run the graphs of a folder over the first frames of some videos: graph -> what it was called with.

    Args:
        folder: an exported one.
        data: a video, a folder of frames, or a folder that has such folders somewhere in it, as a data folder.
    """
    predictor = VideoPredictor.from_pretrained(folder, bfloat16=False)
    with _recording(getattr(predictor.model, "segmenter", predictor.model)) as calls:
        for video in calibration_videos(data):
            predictor(video)
    return calls


@contextmanager
def _recording(model: VideoModel) -> Iterator[dict[str, list[Arrays]]]:
    """Note what the graphs of a model are called with inside."""
    functions = model.exported
    calls: dict[str, list[Arrays]] = {name: [] for name in functions}

    def recorder(name: str, function: GraphFunction) -> Callable[..., dict[str, Tensor]]:
        def run(**inputs: Tensor) -> dict[str, Tensor]:
            calls[name].append({key: tensor.float().cpu().numpy().copy(order="C") for key, tensor in inputs.items()})
            return function(**inputs)

        return run

    model.exported = {name: recorder(name, function) for name, function in functions.items()}
    try:
        yield calls
    finally:
        model.exported = functions


def calibration_videos(data: Path) -> list[Any]:
    """The first frames of some videos, see `recorded_inputs`; ValueError when there is none."""
    if not data.exists():
        raise FileNotFoundError(f"--calibrate: there is no {data}.")
    sources = [data]
    if data.is_dir():
        images = {path.parent for path in data.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES}
        sources = sorted(images)
    if not sources:
        raise ValueError(f"--calibrate: {data} has no images; give a video, a folder of frames, or a data folder.")
    step = max(1, len(sources) // CALIBRATION_VIDEOS)
    return [open_frames(source)[:CALIBRATION_FRAMES] for source in sources[::step][:CALIBRATION_VIDEOS]]
