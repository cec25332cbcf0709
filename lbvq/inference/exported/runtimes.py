"""Run exported graphs by ONNX Runtime or OpenVINO, in place of the parts of a model that they were made of."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lbvq.inference.exported.listing import GraphList
from mask2former.bfloat16 import cpu_computes_in_bfloat16

if TYPE_CHECKING:
    from lbvq.modeling.base import VideoModel
    from mask2former.cfg import Cfg


def run_graphs(model: Any, cfg: Cfg) -> None:
    """Let a model run the graphs that MODEL.GRAPHS lists, if it lists any."""
    if cfg.MODEL.GRAPHS:
        use_graphs(model, Path(cfg.MODEL.GRAPHS))


def use_graphs(model: VideoModel, path: Path) -> None:
    """Let a model run the graphs of a list; their runtime is an extra."""
    listed = GraphList.read(path)
    missing = [file for file in listed.files.values() if not (path.parent / file).is_file()]
    if missing:
        raise FileNotFoundError(f"{path} lists {missing[0]}, which is not in {path.parent}; export the model again.")
    kind: type[OnnxGraph | OpenVinoGraph] = OnnxGraph if listed.format == "onnx" else OpenVinoGraph
    model.run_exported({name: kind(path.parent / file, listed) for name, file in listed.files.items()})


class OnnxGraph:
    """A graph run by ONNX Runtime on the CPU, with as many threads as PyTorch has; inputs and outputs by name."""

    def __init__(self, path: Path, listed: GraphList) -> None:
        onnxruntime = _onnxruntime(path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # warnings about its own optimiser are nobody's business
        self.path, self.size = path, listed.size
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._names = [output.name for output in self._session.get_outputs()]

    def __call__(self, **inputs: Tensor) -> dict[str, Tensor]:
        check_size(self.path, self.size, inputs)
        arrays = {name: tensor.float().contiguous().cpu().numpy() for name, tensor in inputs.items()}
        device = next(iter(inputs.values())).device
        found = self._session.run(self._names, arrays)
        return {name: torch.from_numpy(array).to(device) for name, array in zip(self._names, found, strict=True)}


class OpenVinoGraph:
    """A graph run by OpenVINO on the CPU, with as many threads as PyTorch has; inputs and outputs by name."""

    def __init__(self, path: Path, listed: GraphList) -> None:
        openvino = _openvino(path)
        precision = "bf16" if listed.precision == "half" and cpu_computes_in_bfloat16() else "f32"
        settings = {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        self.path, self.size = path, listed.size
        self._graph = openvino.Core().compile_model(str(path), "CPU", settings)
        self._names = [output.get_any_name() for output in self._graph.outputs]
        self._request = self._graph.create_infer_request()

    def __call__(self, **inputs: Tensor) -> dict[str, Tensor]:
        check_size(self.path, self.size, inputs)
        arrays = {name: tensor.float().contiguous().cpu().numpy() for name, tensor in inputs.items()}
        device = next(iter(inputs.values())).device
        found = self._request.infer(arrays, share_inputs=True)
        return {
            name: torch.from_numpy(found[number].copy()).to(device)  # the runtime writes over its arrays next time
            for number, name in enumerate(self._names)
        }


def check_size(path: Path, size: tuple[int, int] | None, inputs: dict[str, Tensor]) -> None:
    """Refuse frames of another size than a graph was made for."""
    images = inputs.get("images")
    if images is not None and size is not None and tuple(images.shape[-2:]) != size:
        height, width = images.shape[-2:]
        raise ValueError(
            f"{path} was exported for frames of {size[1]} x {size[0]} pixels (width x height, with padding), got "
            f"{width} x {height}; export the model again, without --size for any size, or change INPUT.MIN_SIZE_TEST."
        )


def _onnxruntime(path: Path) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(f'{path} is run by onnxruntime: pip install "lbvq[onnx]".') from error
    return onnxruntime


def _openvino(path: Path) -> Any:
    try:
        import openvino
    except ImportError as error:
        raise ImportError(f'{path} is run by openvino: pip install "lbvq[openvino]".') from error
    return openvino
