"""Networks as graphs: a folder that ONNX Runtime or OpenVINO runs finds what the model finds that it was made from."""

from __future__ import annotations

import builtins
import copy
import importlib.util
import json
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from golden_fill import fill_
from PIL import Image
from video_models import damp_, load_cfg
from vit_models import PMT, TINY, VIDEOMT, cfg_of
from vit_weights import fill_vit_

from lbvq import StreamPredictor, VideoPredictor
from lbvq.__main__ import main
from lbvq.inference.exported.folder import export_model
from lbvq.inference.exported.listing import GraphList
from lbvq.inference.exported.precision import calibration_videos
from lbvq.modeling.graphs import Graph
from lbvq.zoo import load_config
from mask2former.modeling.deform_attn_compiled import SAMPLING
from mask2former.registry import build_model

NAMES = ("cat", "dog", "sheep", "horse", "cow")
SHORT = {  # the fewest layers in which every kind of layer is
    "MODEL__SEM_SEG_HEAD__TRANSFORMER_ENC_LAYERS": 1,
    "MODEL__MASK_FORMER__DEC_LAYERS": 4,
    "INPUT__MIN_SIZE_TEST": 0,
}
METHODS = {
    "minvis": "minvis_R18_tiny",
    "lbvq": "lbvq_R18_tiny",
    "genvis": "genvis_R18_tiny_online",
    "visage": "visage_R18_tiny",
    "ctvis": "ctvis_R18_tiny",
    "dvis": "dvis_R18_tiny_online",
}
VITS = {"videomt": VIDEOMT, "pmt": PMT}


def model_of(method: str) -> torch.nn.Module:
    torch.manual_seed(0)
    if method in VITS:
        settings = {**VITS[method], **TINY, "INPUT.MIN_SIZE_TEST": 0, "MODEL.BACKBONE.NUM_CLASSES": 5}
        return fill_vit_(build_model(cfg_of(settings))).eval()
    model = fill_(build_model(load_cfg(f"synthetic/{METHODS[method]}.yaml", **SHORT))).eval()
    return damp_(model) if method == "lbvq" else model  # whose sums over frames enlarge what is rounded otherwise


def video(num_frames: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(num_frames).integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)


def same(found: Any, wanted: Any) -> None:
    """Two predictions are the same but for rounding."""
    assert found.labels.tolist() == wanted.labels.tolist()
    np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-4)
    for t in range(wanted.masks.num_frames):
        a, b = (np.asarray(each.masks.frame(t)) for each in (found, wanted))
        assert (a & b).sum() >= 0.999 * (a | b).sum()


@pytest.fixture(scope="module")
def minvis(tmp_path_factory: Any) -> tuple[torch.nn.Module, Path]:
    """A model, and its folder for frames of 64 x 96 pixels."""
    model = model_of("minvis")
    folder = tmp_path_factory.mktemp("exported") / "minvis"
    return model, export_model(model, folder, format="onnx", size=(64, 96), names=NAMES)


def test_an_exported_folder_finds_what_its_model_finds(minvis):
    model, folder = minvis
    exported = VideoPredictor.from_pretrained(folder, bfloat16=False)
    assert exported.names == NAMES and exported.is_trained
    eager = VideoPredictor(model, cfg=model.config, bfloat16=False)
    for num_frames in (1, 2, 3):
        frames = video(num_frames, 64, 96)
        same(exported(frames), eager(frames))


def test_the_outputs_of_a_graph_are_those_of_the_network(minvis, monkeypatch):
    """Sampling in C rounds differently, and a logit beside 0 decides whether a query looks at a cell."""
    monkeypatch.setattr(SAMPLING, "load", lambda work=None: None)
    model, folder = minvis
    images = model.batch_images(list(torch.from_numpy(video(3, 64, 96)).permute(0, 3, 1, 2))).tensor
    with torch.no_grad():
        wanted = model.graphs(images)["frame_network"].module(images)
    exported = VideoPredictor.from_pretrained(folder).model.exported["frame_network"](images=images)
    assert list(exported) == list(wanted)
    for name, tensor in wanted.items():
        torch.testing.assert_close(exported[name], tensor, atol=1e-4, rtol=1e-4)


def test_a_stream_runs_an_exported_folder(minvis):
    model, folder = minvis
    frames = video(3, 64, 96)
    streams = [StreamPredictor.from_pretrained(folder), StreamPredictor(model, cfg=model.config)]
    for stream in streams:
        stream.products = None  # float32, also on CPUs with bfloat16
        assert all(len(step) for step in stream.steps(frames))
    same(*(stream.finish() for stream in streams))


def test_an_exported_folder_is_plain_files_without_the_weights_of_the_graph(minvis):
    _, folder = minvis
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["README.md", "config.yaml", "frame_network.onnx", "graphs.json", "model.safetensors"]
    assert (folder / "model.safetensors").stat().st_size < 10_000 < (folder / "frame_network.onnx").stat().st_size
    assert not any(path.read_bytes().startswith(b"\x80\x02") for path in folder.iterdir())  # no pickle


def test_the_model_itself_stays_as_it_was(minvis):
    model, _ = minvis
    assert not model.exported and model.backbone is not None
    assert all(getattr(part, "kernel", None) is None for part in model.modules())


def test_a_graph_of_one_size_refuses_another(minvis):
    _, folder = minvis
    with pytest.raises(ValueError, match=r"exported for frames of 96 x 64 pixels .*, got 96 x 96; export"):
        VideoPredictor.from_pretrained(folder)(video(1, 96, 96))


def test_an_exported_network_is_neither_trained_nor_saved_again(minvis, tmp_path):
    _, folder = minvis
    model = VideoPredictor.from_pretrained(folder).model
    with pytest.raises(ValueError, match="copy the folder"):
        model.save_pretrained(tmp_path / "again")
    with pytest.raises(ValueError, match="runs exported graphs already"):
        export_model(model, tmp_path / "again", format="onnx")
    with pytest.raises(ValueError, match="cannot be trained"):
        model.train()([{}])


@pytest.mark.parametrize("package", ["onnxruntime", "openvino"])
def test_a_missing_runtime_is_named_with_its_extra(minvis, package, tmp_path, monkeypatch):
    _, folder = minvis
    extra = {"onnxruntime": "onnx", "openvino": "openvino"}[package]
    listed = json.loads((folder / "graphs.json").read_text())
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "graphs.json").unlink()
    (tmp_path / "graphs.json").write_text(json.dumps({**listed, "format": extra}))
    original = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == package:
            raise ImportError(f"No module named {name!r}")
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=rf'pip install "lbvq\[{extra}\]"'):
        VideoPredictor.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"format": "tflite"}, "format 'tflite'"),
        ({"version": 2}, "version 2"),
        ({"files": {"frame_network": "../other.onnx"}}, "not a file beside it"),
        ({"files": None}, "no list of exported graphs"),
        ({"size": [64]}, "no list of exported graphs"),
    ],
)
def test_a_list_of_graphs_that_is_not_ours_is_refused(change, message, tmp_path):
    whole = {"version": 1, "format": "onnx", "precision": "float32", "size": None, "files": {"frame_network": "a.onnx"}}
    path = tmp_path / "graphs.json"
    path.write_text(json.dumps({**whole, **change}))
    with pytest.raises(ValueError, match=message):
        GraphList.read(path)


def test_a_folder_without_its_graph_says_so(minvis, tmp_path):
    _, folder = minvis
    for name in ("config.yaml", "model.safetensors", "graphs.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(FileNotFoundError, match=r"lists frame_network\.onnx, which is not in"):
        VideoPredictor.from_pretrained(tmp_path)


def test_a_method_without_a_frame_network_is_refused_before_anything_is_written(tmp_path, capsys):
    arguments = [
        "--model",
        "synthetic/vmt_R18_tiny",
        "--weights",
        "",
        "--format",
        "onnx",
        "--output",
        str(tmp_path / "x"),
    ]
    assert main(["export", *arguments]) == 2
    assert "has no network of single frames" in capsys.readouterr().err and not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["results.json", "--to", "cvat", "--model", "m"], "SOURCE, --to belong to the export of labels, --model to"),
        (["results.json"], "--to FORMAT is missing"),
        (["--to", "cvat"], "SOURCE, a results file or data folder is missing"),
        ([], "for a network give --model"),
        (["--model", "m", "--format", "onnx"], "--output FOLDER is missing"),
        (["--model", "m", "--output", "x"], "--format onnx|openvino is missing"),
        (["--format", "onnx", "--output", "x"], "--model NAME is missing"),
    ],
)
def test_both_meanings_of_the_command_are_told_apart(arguments, message, capsys):
    assert main(["export", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_help_shows_both_meanings_with_examples(capsys):
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    text = capsys.readouterr().out
    assert "lbvq export results.json --to cvat" in text
    assert "lbvq export --model minvis_r50_ytvis19 --format onnx --output minvis_onnx" in text


@pytest.mark.parametrize("method", [*METHODS, *VITS])
def test_a_method_needs_nothing_of_its_frame_network_but_what_the_graphs_return(method):
    model = model_of(method)
    frames = list(torch.from_numpy(video(3, 64, 96)).permute(0, 3, 1, 2))
    rest = copy.deepcopy(model)
    graphs = model.graphs(model.batch_images(frames).tensor)
    rest.run_exported({name: graph.module for name, graph in graphs.items()})
    assert len(rest.state_dict()) < len(model.state_dict())
    found, wanted = (VideoPredictor(each, bfloat16=False)(np.stack(frames)) for each in (rest, model))
    assert found == wanted and len(wanted)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lbvq", "ctvis", *VITS])
def test_a_graph_of_any_size_finds_what_the_model_finds(method, tmp_path):
    model = model_of(method)
    folder = export_model(model, tmp_path / method, format="onnx")
    exported = VideoPredictor.from_pretrained(folder, bfloat16=False)
    eager = VideoPredictor(model, cfg=model.config, bfloat16=False)
    for num_frames, height, width in ((1, 64, 96), (3, 64, 96), (2, 128, 100)):
        frames = video(num_frames, height, width)
        same(exported(frames), eager(frames))


@pytest.mark.slow
def test_the_command_writes_what_openvino_runs(minvis, tmp_path):
    model, _ = minvis
    model.save_pretrained(tmp_path / "model", names=NAMES)
    arguments = ["--model", str(tmp_path / "model"), "--format", "openvino", "--size", "64", "96"]
    assert main(["export", *arguments, "--output", str(tmp_path / "out")]) == 0
    assert load_config(tmp_path / "out").MODEL.CATEGORIES.NAMES == list(NAMES)
    frames = video(2, 64, 96)
    exported = VideoPredictor.from_pretrained(tmp_path / "out", bfloat16=False)
    same(exported(frames), VideoPredictor(model, cfg=model.config, bfloat16=False)(frames))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["onnx half", "onnx int8", "openvino half", "openvino int8"])
def test_a_smaller_folder_finds_nearly_the_same(minvis, form, tmp_path):
    model, whole = minvis
    format, precision = form.split()
    frames = video(4, 64, 96)
    calibrate = None
    if precision == "int8":
        calibrate = tmp_path / "data" / "frames" / "one"
        calibrate.mkdir(parents=True)
        for t, frame in enumerate(frames):
            Image.fromarray(frame).save(calibrate / f"{t}.png")
    small = export_model(
        model, tmp_path / "small", format=format, size=(64, 96), precision=precision, calibrate=calibrate
    )
    assert GraphList.read(small / "graphs.json").precision == precision
    weights = max(file.stat().st_size for file in small.iterdir())
    assert weights < (0.55 if precision == "half" else 0.45) * (whole / "frame_network.onnx").stat().st_size
    images = model.batch_images(list(torch.from_numpy(frames[:2]).permute(0, 3, 1, 2))).tensor
    found, wanted = (
        VideoPredictor.from_pretrained(folder).model.exported["frame_network"](images=images)["finest_map"]
        for folder in (small, whole)
    )
    assert found.dtype == torch.float32
    assert (found - wanted).square().mean() < 0.1**2 * wanted.square().mean()


@pytest.mark.parametrize(
    "settings, error, message",
    [
        ({"format": "tflite"}, ValueError, "format must be one of"),
        ({"precision": "int4"}, ValueError, "precision must be one of"),
        ({"precision": "int8"}, ValueError, "--int8 --calibrate DATA"),
        ({"calibrate": "videos"}, ValueError, "--int8 --calibrate DATA"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_anything_is_written(minvis, settings, error, message, tmp_path):
    with pytest.raises(error, match=message):
        export_model(minvis[0], tmp_path / "new", **{"format": "onnx", **settings})
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("package, extra", [("onnxscript", "onnx"), ("openvino", "onnx,openvino")])
def test_a_package_that_writes_graphs_is_named_with_its_extra(minvis, package, extra, tmp_path, monkeypatch):
    original = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == package else original(name, *a))
    with pytest.raises(ImportError, match=rf'written by {package}: pip install "lbvq\[{extra}\]"'):
        export_model(minvis[0], tmp_path / "new", format=extra.rpartition(",")[2])


@pytest.mark.parametrize("error", [torch.onnx.OnnxExporterError("no mean\nand more"), ModuleNotFoundError("no mean")])
def test_packages_that_do_not_fit_each_other_are_named_with_their_versions(minvis, error, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.onnx, "export", Mock(side_effect=error))
    with pytest.raises(ValueError, match=r"torch \d\S+, onnxscript \d\S+, onnx-ir \d.* It said: no mean$"):
        export_model(minvis[0], tmp_path / "new", format="onnx")
    assert not (tmp_path / "new").exists()


def test_an_export_replaces_nothing(minvis):
    model, folder = minvis
    with pytest.raises(FileExistsError, match="choose another folder"):
        export_model(model, folder, format="onnx")


def test_videos_to_calibrate_with_are_found_wherever_they_are(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "data" / "frames" / name).mkdir(parents=True)
        for t in range(6):
            Image.fromarray(video(1, 8, 8)[0]).save(tmp_path / "data" / "frames" / name / f"{t}.png")
    assert [len(each) for each in calibration_videos(tmp_path / "data")] == [4, 4]
    assert [len(each) for each in calibration_videos(tmp_path / "data" / "frames" / "a")] == [4]
    with pytest.raises(FileNotFoundError, match="there is no"):
        calibration_videos(tmp_path / "other")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no images"):
        calibration_videos(tmp_path / "empty")


def test_a_graph_has_an_example_of_every_input(minvis):
    model, _ = minvis
    graph = model.graphs(torch.zeros(1, 3, 64, 96))["frame_network"]
    assert isinstance(graph, Graph) and list(graph.inputs) == ["images"] and graph.axes["images"][0] == "frames"
