"""Every kind of weight file is recognised by its content; nothing in a file is run; addresses become files."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from argparse import Namespace
from collections import OrderedDict
from typing import ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lbvq.engine import weight_files
from lbvq.engine.download import Checksum
from lbvq.engine.weight_files import find_weights, read_weights, split_query

ARRAYS = {
    "stem.conv1.weight": np.random.RandomState(0).randn(4, 3, 7, 7).astype("float32"),
    "stem.conv1.norm.weight": np.ones(4, "float32"),
}
ZOO = {"model": ARRAYS, "__author__": "torchvision", "matching_heuristics": True}


def put(tmp_path, content: bytes, name="weights.pkl"):
    path = tmp_path / name
    path.write_bytes(content)
    return path


def saved(content, *, legacy=False) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


class Python2Pickler(pickle._Pickler):
    """Writes every text and bytes as the 8-bit strings of Python 2."""

    def save_8bit(self, data: bytes):
        head = b"U" + bytes([len(data)]) if len(data) < 256 else b"T" + len(data).to_bytes(4, "little")
        self.write(head + data)

    def save_text(self, text):
        self.save_8bit(text.encode("latin1"))
        self.memoize(text)

    dispatch: ClassVar = {**pickle._Pickler.dispatch, str: save_text, bytes: save_8bit}


def python2_pickle(content) -> bytes:
    file = io.BytesIO()
    Python2Pickler(file, 2).dump(content)
    return file.getvalue().replace(b"numpy._core.", b"numpy.core.")


class Attack:
    """Unpickling an instance calls a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def assert_arrays(file, want=ARRAYS):
    assert list(file.tensors) == list(want)
    for name, value in want.items():
        assert isinstance(file.tensors[name], torch.Tensor)
        np.testing.assert_array_equal(file.tensors[name].numpy(), np.asarray(value))


# -- kinds ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_detectron2_pickle_is_read_in_every_protocol(tmp_path, protocol):
    file = read_weights(put(tmp_path, pickle.dumps(ZOO, protocol)))
    assert_arrays(file)
    assert file.kind == "detectron2 model" and file.suffix_matching


def test_module_names_of_old_numpy_are_understood(tmp_path):
    content = pickle.dumps(ZOO, 2).replace(b"numpy._core.", b"numpy.core.")
    assert b"numpy.core." in content
    assert_arrays(read_weights(put(tmp_path, content)))


def test_a_detectron2_model_without_the_flag_is_taken_by_its_names(tmp_path):
    file = read_weights(put(tmp_path, pickle.dumps({"model": ARRAYS, "__author__": "third party"})))
    assert_arrays(file)
    assert not file.suffix_matching


def test_python_2_caffe2_blobs_are_read_without_momentum(tmp_path):
    blobs = {"conv1_w": ARRAYS["stem.conv1.weight"], "conv1_w_momentum": ARRAYS["stem.conv1.norm.weight"]}
    file = read_weights(put(tmp_path, python2_pickle({"blobs": blobs})))
    assert_arrays(file, {"conv1_w": ARRAYS["stem.conv1.weight"]})
    assert file.caffe2_names and file.suffix_matching


def test_caffe2_names_without_blobs_are_recognised_and_plain_names_are_not(tmp_path):
    assert read_weights(put(tmp_path, pickle.dumps({"conv1_w": ARRAYS["stem.conv1.weight"]}))).caffe2_names
    plain = read_weights(put(tmp_path, pickle.dumps({"norm.running_mean": np.ones(2)})))
    assert not plain.caffe2_names and plain.kind == "pickled dict"


def test_tensors_in_a_plain_pickle_are_read(tmp_path):
    """As conversion scripts of timm and Swin weights write them, with torch's storages nested in the pickle."""
    tensors = {name: torch.as_tensor(value) for name, value in ARRAYS.items()}
    assert_arrays(read_weights(put(tmp_path, pickle.dumps({**ZOO, "model": tensors}))))
    odd = {"half": torch.ones(3).half(), "parameter": nn.Parameter(torch.ones(2)), "bfloat": torch.ones(1).bfloat16()}
    file = read_weights(put(tmp_path, pickle.dumps({"model": odd})))
    assert file.tensors["half"].dtype == torch.float16 and not file.tensors["parameter"].requires_grad


@pytest.mark.parametrize("legacy", [False, True])
def test_torch_checkpoints_are_read_whatever_their_name(tmp_path, legacy):
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    content = {"model": model.state_dict(), "iteration": 7, "trainer": {"x": [1, (2.0, None)]}}
    file = read_weights(put(tmp_path, saved(content, legacy=legacy), "named_wrongly.pkl"))
    assert_arrays(file, {name: value.numpy() for name, value in model.state_dict().items()})
    assert file.tensors._metadata[""] == {"version": 1} and file.tensors._metadata["1"]["version"] == 2
    assert file.rest == {"iteration": 7, "trainer": {"x": [1, (2.0, None)]}}


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", None])
def test_other_places_of_the_tensors_are_known(tmp_path, key):
    state = {"w": torch.ones(2)}
    file = read_weights(put(tmp_path, saved(state if key is None else {key: state, "epoch": 3})))
    assert_arrays(file, {"w": np.ones(2)})


def test_numpy_values_in_torch_files_are_read(tmp_path):
    content = {"model": {"w": np.ones(2, "float32")}, "iteration": np.int64(3), "best": np.float64(0.5)}
    file = read_weights(put(tmp_path, saved(content)))
    assert_arrays(file, {"w": np.ones(2)})
    assert file.rest["iteration"] == 3


def test_big_endian_arrays_are_converted(tmp_path):
    file = read_weights(put(tmp_path, pickle.dumps({"model": {"w": np.arange(3, dtype=">f4")}})))
    assert file.tensors["w"].tolist() == [0, 1, 2]


def test_safetensors_are_read_whatever_their_name(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    path = tmp_path / "weights.bin"
    safetensors.save_file({"b.w": torch.ones(2), "a.w": torch.zeros(1)}, path)
    file = read_weights(path)
    assert file.kind == "safetensors file" and file.tensors["b.w"].tolist() == [1, 1]


def test_an_empty_model_is_read(tmp_path):
    assert read_weights(put(tmp_path, saved({"model": OrderedDict()}))).tensors == {}


# -- refused ----------------------------------------------------------------------------------------------------------


def nested_attack(flag):
    return Attack(torch.storage._load_from_bytes, saved({"x": Attack(os.system, f"touch {flag}")}, legacy=True))


@pytest.mark.parametrize("place", ["pickle", "torch", "old torch"])
@pytest.mark.parametrize("kind", ["system", "eval", "getattr", "nested", "codec", "partial"])
def test_code_in_a_file_is_refused_by_name_and_never_run(tmp_path, place, kind):
    flag = tmp_path / "flag"
    attack = {
        "system": Attack(os.system, f"touch {flag}"),
        "eval": Attack(eval, f"open({str(flag)!r}, 'w')"),
        "getattr": Attack(getattr, "x", "upper"),
        "nested": nested_attack(flag),
        "codec": Attack(__import__("_codecs").encode, "x", "rot13"),
        "partial": Attack(__import__("functools").partial, os.system, f"touch {flag}"),
    }[kind]
    content = {"model": {"w": attack}}
    data = pickle.dumps(content) if place == "pickle" else saved(content, legacy=place == "old torch")
    with pytest.raises(ValueError, match=r"not loaded|not allowed|damaged|not a tensor"):
        read_weights(put(tmp_path, data))
    assert not flag.exists()


def test_the_refused_name_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"argparse\.Namespace"):
        read_weights(put(tmp_path, saved({"model": {}, "args": Namespace(a=1)})))
    with pytest.raises(ValueError, match="system is not allowed"):
        read_weights(put(tmp_path, pickle.dumps({"model": Attack(os.system, "true")})))


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "empty"),
        (b"\n<!DOCTYPE html><html>virus scan warning</html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "LFS"),
        (b"just some text", "not loaded|damaged"),
        (pickle.dumps([1, 2]), "must hold a dict"),
        (pickle.dumps({"model": {"w": np.array(["a"])}}), "not of numbers"),
        (pickle.dumps({"model": {"w": np.array([None])}}), "not of numbers"),
        (pickle.dumps({"model": {"w": 3}}), "w is a int, not a tensor"),
        (pickle.dumps({"epoch": 3, "net": {"w": 1.5}}), "epoch is a int"),
        (pickle.dumps({"a": {"w": np.ones(1)}, "b": {"w": np.ones(1)}}), r"choose one .*a \(1 tensors\), b"),
        (pickle.dumps({"blobs": [1]}), "blobs"),
        (pickle.dumps(ZOO)[:-200], "damaged|not loaded"),
        (saved({"model": {"w": torch.ones(1000)}})[:-600], "damaged"),
        (saved({"model": {"w": torch.ones(1000)}}, legacy=True)[:-600], "damaged"),
        (saved([torch.ones(1)]), "must hold a dict"),
    ],
)
def test_a_file_that_is_no_weight_file_says_what_it_is(tmp_path, data, message):
    with pytest.raises(ValueError, match=message):
        read_weights(put(tmp_path, data))


def test_any_zip_is_not_a_torch_file(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(ValueError, match="no torch file"):
        read_weights(tmp_path / "a.zip")


# -- finding ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def weights_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("VIS_WEIGHTS_DIR", str(tmp_path / "weights"))
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "fvcore"))
    (tmp_path / "weights").mkdir()
    return tmp_path / "weights"


@pytest.fixture
def downloads(monkeypatch):
    """Replace downloading by writing the address into the file; returns what was asked for."""
    asked = []

    def download(address, target, *, checksum=None):
        asked.append((address, checksum))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(address)

    monkeypatch.setattr(weight_files, "download", download)
    return asked


def test_a_path_is_taken_as_it_is_and_then_in_the_weights_folder(weights_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (weights_dir / "a.pkl").write_bytes(b"x")
    assert find_weights("a.pkl") == (weights_dir / "a.pkl", False)
    assert find_weights("models/a.pkl")[0] == weights_dir / "a.pkl"
    (tmp_path / "a.pkl").write_bytes(b"y")
    assert find_weights("a.pkl")[0].resolve() == tmp_path / "a.pkl"
    assert find_weights(tmp_path / "a.pkl")[0] == tmp_path / "a.pkl"
    assert find_weights(f"{tmp_path}/a.pkl?matching_heuristics=True") == (tmp_path / "a.pkl", True)


def test_a_missing_file_tells_where_it_was_looked_for(weights_dir, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=str(weights_dir)):
        find_weights("nowhere.pth")
    monkeypatch.delenv("VIS_WEIGHTS_DIR")
    with pytest.raises(FileNotFoundError, match="VIS_WEIGHTS_DIR"):
        find_weights("nowhere.pth")
    with pytest.raises(IsADirectoryError, match="folder"):
        find_weights(tmp_path)


def test_detectron2_addresses_are_downloaded_once(weights_dir, downloads):
    address = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
    path, _ = find_weights(address)
    assert path == weights_dir / "dl.fbaipublicfiles.com/detectron2/ImageNetPretrained/torchvision/R-50.pkl"
    assert find_weights(address)[0] == path
    assert downloads == [("https://dl.fbaipublicfiles.com/detectron2/ImageNetPretrained/torchvision/R-50.pkl", None)]


def test_files_put_into_the_weights_folder_or_cached_by_detectron2_are_not_downloaded(weights_dir, tmp_path, downloads):
    (weights_dir / "R-50.pkl").write_bytes(b"x")
    assert find_weights("detectron2://ImageNetPretrained/torchvision/R-50.pkl")[0] == weights_dir / "R-50.pkl"
    cached = tmp_path / "fvcore" / "detectron2" / "R-101.pkl"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"x")
    assert find_weights("detectron2://R-101.pkl")[0] == cached
    assert downloads == []


def test_published_files_are_found_by_name(weights_dir, downloads):
    path, _ = find_weights("model_final_3c8ec9.pkl")
    assert path.is_relative_to(weights_dir) and path.name == "model_final_3c8ec9.pkl"
    assert downloads[0][0].startswith("https://dl.fbaipublicfiles.com/maskformer/")
    with pytest.raises(FileNotFoundError, match=r"gdown \S+ -O lbvq_r50_ytvis21\.pth"):
        find_weights("lbvq_r50_ytvis21.pth")
    with pytest.raises(FileNotFoundError):
        find_weights("/nowhere/model_final_3c8ec9.pkl")  # who gives a full path means that file
    assert len(downloads) == 1


def test_checksums_are_passed_on(weights_dir, downloads):
    find_weights("https://download.pytorch.org/models/resnet50-0676ba61.pth")
    find_weights("https://example.org/a-12345678.pth#sha256=ABCDEF0123")
    find_weights("https://example.org/b-12345678.pth")
    find_weights("model_final_3c8ec9.pkl")
    sha256 = [Checksum("sha256", digits) for digits in ("0676ba61", "abcdef0123")]
    assert [checksum for _, checksum in downloads] == [*sha256, None, Checksum("md5", "3c8ec9")]
    assert downloads[1][0] == "https://example.org/a-12345678.pth"


@pytest.mark.parametrize(
    "address, message",
    [
        ("http://example.org/a.pth", "https"),
        ("ftp://example.org/a.pth", "known addresses"),
        ("catalog://ImageNetPretrained/MSRA/R-50", "known addresses"),
        ("https://example.org/a.pth?download=1", "matching_heuristics"),
        ("https://example.org/", "name a file"),
        ("https://example.org/../../a.pth", "name a file"),
        ("https://example.org/a.pth#md5=1", "sha256"),
        ("", "MODEL.WEIGHTS"),
    ],
)
def test_addresses_that_are_not_accepted(weights_dir, downloads, address, message):
    with pytest.raises(ValueError, match=message):
        find_weights(address)
    assert downloads == []


def test_a_failed_download_says_where_to_put_the_file(weights_dir, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(OSError, match=r"HF_HUB_OFFLINE is set\. Put the file a\.pth from \S+ into .*example\.org"):
        find_weights("https://example.org/a.pth")


def test_a_mirror_of_the_hub_is_asked_and_the_licence_is_said(weights_dir, downloads, monkeypatch, caplog):
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example.org/")
    path, _ = find_weights("mask2former_swin_tiny_coco.safetensors")
    assert path.is_relative_to(weights_dir / "huggingface.co" / "facebook")
    start = "https://mirror.example.org/facebook/mask2former-swin-tiny-coco-instance/"
    assert downloads[0][0] == f"{start}resolve/main/model.safetensors"
    assert caplog.text.count("non-commercial") == 1
    find_weights("mask2former_swin_tiny_coco.safetensors")
    assert caplog.text.count("non-commercial") == 1 and len(downloads) == 1


# -- folders and weights in several files -----------------------------------------------------------------------------

SHARDS = {"model-00001-of-00002.safetensors": ["a.w"], "model-00002-of-00002.safetensors": ["b.w", "c.w"]}


@pytest.fixture
def sharded(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for number, (file_name, names) in enumerate(SHARDS.items()):
        save_file({name: torch.full((2,), float(number)) for name in names}, folder / file_name)
    places = {name: file_name for file_name, names in SHARDS.items() for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def test_weights_in_several_files_are_read_by_their_index(sharded):
    path, _ = find_weights(sharded)
    assert path.name == "model.safetensors.index.json"
    file = read_weights(path)
    assert {name: tensor[0].item() for name, tensor in file.tensors.items()} == {"a.w": 0, "b.w": 1, "c.w": 1}
    assert file.kind == "2 weight files"


def test_one_of_several_files_says_that_it_is_a_part(sharded):
    with pytest.raises(ValueError, match="one of 2 files that hold a model together"):
        read_weights(sharded / "model-00001-of-00002.safetensors")


@pytest.mark.parametrize(
    "index, message",
    [
        ({"weight_map": {"a.w": "model-00001-of-00002.safetensors", "z": "model-00001-of-00002.safetensors"}}, "lacks"),
        ({"weight_map": {"a.w": "gone.safetensors"}}, r"names gone\.safetensors, not there"),
        ({"weight_map": {"a.w": "../secret.safetensors"}}, "no file beside it"),
        ({"weight_map": {"a.w": "/etc/hostname"}}, "no file beside it"),
        ({"weight_map": {"a.w": "model.safetensors.index.json"}}, "no file beside it"),
        ({"weight_map": {"a.w": 3}}, "no file beside it"),
        ({"weight_map": [1]}, "no index of weight files"),
        ({}, "no index of weight files"),
        ([], "no index of weight files"),
    ],
)
def test_a_damaged_index_is_refused(sharded, index, message):
    path = sharded / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    with pytest.raises((ValueError, OSError), match=message) as info:
        read_weights(path)
    assert str(sharded) in str(info.value)
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match="no index of weight files"):
        read_weights(path)


@pytest.mark.parametrize(
    "names, chosen",
    [
        (["model.safetensors", "pytorch_model.bin", "other.pth"], "model.safetensors"),
        (["pytorch_model.bin", "training_args.bin"], "pytorch_model.bin"),
        (["model_0000009.pth", "model_final.pth"], "model_final.pth"),
        (["mine.pth", "config.yaml"], "mine.pth"),
    ],
)
def test_the_weights_of_a_folder_are_found(tmp_path, names, chosen):
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    assert find_weights(tmp_path)[0] == tmp_path / chosen


def test_a_folder_with_several_weight_files_names_them(tmp_path):
    for name in ("a.pth", "b.pth"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(IsADirectoryError, match=r"name the weight file in it: a\.pth, b\.pth"):
        find_weights(tmp_path)


@pytest.mark.parametrize(
    "name, parts",
    [
        ("a.pth", ("a.pth", False, "")),
        ("a.pth?matching_heuristics=True", ("a.pth", True, "")),
        ("https://x.org/a.pth?key=ema.module", ("https://x.org/a.pth", False, "ema.module")),
        ("a.pth?key=ema&matching_heuristics=True", ("a.pth", True, "ema")),
        ("what?.pth", ("what?.pth", False, "")),
    ],
)
def test_what_follows_the_name_of_a_file_is_split_off(name, parts):
    assert split_query(name) == parts


def test_a_file_of_the_hub_is_not_taken_for_another_of_the_same_name(weights_dir, downloads):
    """Nearly every model of the Hub calls its file model.safetensors."""
    (weights_dir / "model.safetensors").write_bytes(b"of some other model")
    path, _ = find_weights("mask2former_swin_tiny_coco.safetensors")
    assert path != weights_dir / "model.safetensors" and len(downloads) == 1
