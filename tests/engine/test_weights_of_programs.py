"""What other programs put around a model in a file: prefixes, averages beside the weights; and its categories."""

from __future__ import annotations

import gzip
import json
from collections import OrderedDict

import pytest
import torch
from helpers import GOLDEN
from torch import nn
from weight_models import Model, filled, model_of

from lbvq.engine.weights import load_weights
from lbvq.files.class_list import ClassList

with gzip.open(GOLDEN / "ckpt.json.gz", "rt") as golden_file:
    RECORDED = json.load(golden_file)


@pytest.fixture
def save(tmp_path):
    def save_file(content, name="file.pth"):
        path = tmp_path / name
        torch.save(content, path)
        return path

    return save_file


# -- what other programs put around a model ---------------------------------------------------------------------------


def prefixed(prefix, state):
    return OrderedDict((f"{prefix}{name}", tensor) for name, tensor in state.items())


@pytest.mark.parametrize("prefix", ["model.", "module.", "_orig_mod.", "module._orig_mod.", "net.model.module.", "x."])
def test_any_prefix_that_all_names_have_is_taken_off(save, prefix):
    report = load_weights(Model(), save({"state_dict": prefixed(prefix, filled().state_dict())}), allow_missing="none")
    assert report.complete


def test_wrappers_inside_of_names_are_taken_off(save):
    state = filled().state_dict()
    state = OrderedDict(
        (name.replace("stem.", "stem._orig_mod.").replace("head.", "head.module."), state[name]) for name in state
    )
    assert load_weights(Model(), save(state), allow_missing="none").complete


def test_what_stands_beside_a_prefixed_model_is_reported(save):
    """As in a checkpoint of Lightning whose module has losses and metrics of its own."""
    state = prefixed("model.", filled().state_dict()) | {"loss.weight": torch.ones(3), "n_averaged": torch.tensor(3)}
    report = load_weights(Model(), save({"state_dict": state}), allow_missing="none")
    assert report.unexpected == ["loss.weight", "n_averaged"] and not report.missing


def test_a_prefix_that_the_model_has_itself_stays(save):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = Model()

    source = Wrapped()
    assert load_weights(Wrapped(), save(source.state_dict()), allow_missing="none").complete
    assert load_weights(Wrapped(), save(prefixed("module.", source.state_dict())), allow_missing="none").complete
    backbone = Model().backbone  # a part of a whole model
    assert not load_weights(backbone, save(filled().state_dict()), allow_missing="none").missing


def test_a_foreign_backbone_in_a_prefix_is_recognised(save):
    names = {name for name in RECORDED["torchvision"].values() if "fc" not in name and "num_batches" not in name}
    model = model_of({f"backbone.{name}": () for name in names})
    values = {f"model.{name}": torch.tensor(1.0) for name in RECORDED["torchvision"]}
    report = load_weights(model, save({"state_dict": values}), allow_missing="none")
    assert "torchvision ResNet" in report.kind and report.missing == []


RAW, AVERAGE = 1.0, 2.0


def constant(value):
    return OrderedDict((name, torch.full_like(tensor, value)) for name, tensor in Model().state_dict().items())


TWO_SETS = {  # how programs keep weights beside their average: content, key of the average
    "two keys": ({"model": constant(RAW), "model_ema": constant(AVERAGE)}, "model_ema"),
    "timm": ({"state_dict": constant(RAW), "state_dict_ema": constant(AVERAGE)}, "state_dict_ema"),
    "nested": ({"ema": {"module": constant(AVERAGE), "updates": 3}, "model": constant(RAW)}, "ema.module"),
    "prefixes": (
        {"state_dict": prefixed("ema_model.", constant(AVERAGE)) | prefixed("model.", constant(RAW))},
        "ema_model",
    ),
    "bare and prefix": (constant(RAW) | prefixed("ema.", constant(AVERAGE)), "ema"),
    "mmcv": (
        {"state_dict": constant(RAW) | {f"ema_{name.replace('.', '_')}": t for name, t in constant(AVERAGE).items()}},
        "ema",
    ),
}


@pytest.mark.parametrize("case", TWO_SETS)
def test_the_average_beside_the_weights_is_named_and_can_be_chosen(save, case, caplog):
    content, key = TWO_SETS[case]
    path, model = save(content), Model()
    report = load_weights(model, path, allow_missing="none")
    assert model.clip_module.weight.unique().item() == RAW
    assert report.others == [key] and not report.unexpected and f"file.pth?key={key}" in caplog.text
    report = load_weights(model, f"{path}?key={key}", allow_missing="none")
    assert model.clip_module.weight.unique().item() == AVERAGE and not report.missing


@pytest.mark.parametrize(
    "content", [{"model_ema": constant(AVERAGE)}, {"ema": {"module": constant(AVERAGE)}, "epoch": 3}]
)
def test_an_average_alone_is_taken(save, content):
    model = Model()
    report = load_weights(model, save(content), allow_missing="none")
    assert model.clip_module.weight.unique().item() == AVERAGE and "ema" in report.kind and not report.others


def test_a_key_that_is_not_there_is_refused_with_those_that_are(save):
    path = save({"model": constant(RAW), "model_ema": constant(AVERAGE)})
    with pytest.raises(ValueError, match="nothing under key=gone; it has model, model_ema"):
        load_weights(Model(), f"{path}?key=gone")


def test_other_weights_in_a_checkpoint_are_no_second_model(save):
    content = {"model": constant(RAW), "generator": {"a.weight": torch.ones(1)}, "trainer": {"x": torch.ones(2)}}
    assert load_weights(Model(), save(content), allow_missing="none").others == []


# -- categories -------------------------------------------------------------------------------------------------------


def test_categories_come_with_the_weights(save):
    categories = {"names": ["cat", "dog"], "ids": [3, 7]}
    report = load_weights(Model(), save({"model": filled().state_dict(), "categories": categories}))
    assert report.classes == ClassList(("cat", "dog"), (3, 7)) and report.classes.to_plain() == categories
    assert load_weights(Model(), save(filled().state_dict())).classes is None


@pytest.mark.parametrize(
    "categories",
    [
        [1],
        {"names": "cat", "ids": [1]},
        {"names": ["a"], "ids": []},
        {"names": ["a", "b"], "ids": [1, 1]},
        {"names": [1], "ids": [1]},
        {"names": ["a"], "ids": [1.5]},
        {"names": ["a" * 9999], "ids": [1]},
    ],
)
def test_damaged_categories_are_refused_by_name(save, categories):
    path = save({"model": filled().state_dict(), "categories": categories})
    with pytest.raises(ValueError, match=r"file\.pth: its categories"):
        load_weights(Model(), path)
