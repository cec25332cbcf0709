"""Loading weights: names, shapes, what may be missing, and the report; against recorded cases of the published code."""

from __future__ import annotations

import gzip
import json
import logging
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from helpers import GOLDEN
from torch import nn
from weight_models import Model, filled, model_of

from lbvq.engine.checkpoint import load_weights
from lbvq.engine.name_matching import (
    caffe2_to_ours,
    group_names,
    match_suffixes,
    rename_for_model,
    timm_swin_to_ours,
    torchvision_to_ours,
)

with gzip.open(GOLDEN / "ckpt.json.gz", "rt") as golden_file:
    RECORDED = json.load(golden_file)


# -- names ------------------------------------------------------------------------------------------------------------


def test_caffe2_names_are_renamed_as_recorded():
    assert {name: caffe2_to_ours(name) for name in RECORDED["caffe2"]} == RECORDED["caffe2"]


def test_torchvision_names_are_renamed_as_recorded():
    assert {name: torchvision_to_ours(name) for name in RECORDED["torchvision"]} == RECORDED["torchvision"]


@pytest.mark.parametrize("case", sorted(RECORDED["match"]))
def test_endings_match_as_recorded(case):
    recorded = RECORDED["match"][case]
    want = recorded["result"]
    if "error" in want:
        with pytest.raises(ValueError, match="fits both"):
            match_suffixes(recorded["model"], recorded["ckpt"])
        return
    match = match_suffixes(recorded["model"], recorded["ckpt"])
    assert match.chosen == want["loaded"] and sorted(match.unused) == sorted(want["unused"])


def test_nothing_matches_nothing():
    match = match_suffixes({}, {"a": (1,)})
    assert (match.chosen, match.mismatched, match.unused) == ({}, {}, ["a"])
    assert match_suffixes({"a": (1,)}, {}).unused == []


def test_a_backbone_is_renamed_only_for_a_model_that_needs_it():
    names = list(RECORDED["torchvision"])
    renamed, kind = rename_for_model(names, ["backbone.stem.conv1.weight"])
    assert renamed == RECORDED["torchvision"] and kind == "torchvision ResNet"
    own = [f"detr.backbone.0.body.{name}" for name in names]
    assert rename_for_model(names, own) == ({name: name for name in names}, "")
    assert rename_for_model([], own) == ({}, "")


def test_recent_timm_swin_names_move_the_merging_one_stage_down():
    assert timm_swin_to_ours("layers.1.downsample.norm.weight") == "layers.0.downsample.norm.weight"
    assert timm_swin_to_ours("layers.1.blocks.0.norm1.weight") == "layers.1.blocks.0.norm1.weight"
    timm = [f"layers.{i}.downsample.reduction.weight" for i in (1, 2, 3)]
    ours = [f"backbone.layers.{i}.downsample.reduction.weight" for i in (0, 1, 2)]
    renamed, kind = rename_for_model(timm, ours)
    assert [f"backbone.{name}" for name in renamed.values()] == ours and kind == "timm Swin"
    original = [f"layers.{i}.downsample.reduction.weight" for i in (0, 1, 2)]
    assert rename_for_model(original, ours)[1] == ""


def test_names_are_grouped_by_parent():
    names = ["a.conv.weight", "a.conv.bias", "b", "a.norm.weight"]
    assert group_names(names) == ["a.conv.{weight, bias}", "b", "a.norm.weight"]
    assert group_names([]) == []


def test_a_module_that_is_absent_as_a_whole_takes_one_line():
    names = ["a.b.c.weight", "a.b.c.bias", "a.b.d.weight", "e.f.weight", "e.f.bias"]
    assert group_names(names, ["a.x.weight"]) == ["a.b.* (3 tensors)", "e.f.{weight, bias}"]
    assert group_names(names, ["a.b.z", "e.f.z"]) == ["a.b.c.{weight, bias}", "a.b.d.weight", "e.f.{weight, bias}"]
    assert group_names(names, [])[0] == "a.* (3 tensors)"


# -- loading ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def save(tmp_path):
    def save_file(content, name="file.pth"):
        path = tmp_path / name
        torch.save(content, path)
        return path

    return save_file


def backbone_state(model):
    """Tensors of the backbone without the output norm, as an ImageNet file has them."""
    return {name.removeprefix("backbone."): t for name, t in model.state_dict().items() if "stem" in name}


def test_a_complete_file_is_loaded_without_a_warning(save, caplog):
    source, model = filled(), Model()
    report = load_weights(model, save({"model": source.state_dict()}))
    assert report.complete and len(report.matched) == len(model.state_dict())
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, source.state_dict()[name]), name


def test_names_of_data_parallel_and_compiled_models_are_understood(save):
    state = {f"module.{name}": tensor for name, tensor in filled().state_dict().items()}
    assert load_weights(nn.DataParallel(Model()), save(state)).complete
    state = {f"_orig_mod.{name}": tensor for name, tensor in filled().state_dict().items()}
    assert load_weights(Model(), save(state)).complete


def test_other_numbers_of_classes_are_refused_where_a_model_is_run(save):
    categories = {"names": [f"c{i}" for i in range(80)], "ids": list(range(80))}
    path = save({"model": filled(classes=80).state_dict(), "categories": categories})
    for allow in ({}, {"allow_missing": "none"}):
        with pytest.raises(ValueError, match=r"file\.pth was trained on another list of classes: .*81 outputs of 80 "):
            load_weights(Model(classes=40), path, **allow)
    state = filled().state_dict()
    del state["sem_seg_head.class_embed.weight"], state["sem_seg_head.class_embed.bias"]
    with pytest.raises(ValueError, match="the file has none"):
        load_weights(Model(), save(state))


def test_training_may_start_a_new_classifier_and_says_so(save, caplog):
    model = Model(classes=40)
    before = model.sem_seg_head.class_embed.weight.clone()
    report = load_weights(model, save(filled(classes=80).state_dict()), allow_missing="new_modules")
    assert "The classifier starts anew, with random values: that of the file has 81 outputs, this one 41" in caplog.text
    assert report.new_classifier == report.missing
    names = ["sem_seg_head.class_embed.bias", "sem_seg_head.class_embed.weight"]
    assert report.missing == names and report.unexpected == []
    assert sorted(report.mismatched) == [(names[0], (81,), (41,)), (names[1], (81, 4), (41, 4))]
    assert torch.equal(model.sem_seg_head.class_embed.weight, before)
    assert "sem_seg_head.class_embed.weight: (81, 4) in the file, (41, 4) in the model" in caplog.text


def test_another_number_of_queries_is_refused_unless_allowed(save):
    path = save(filled(queries=7).state_dict())
    for allow in ("none", "losses", "classifier", "new_modules"):
        with pytest.raises(ValueError, match=r"query_feat\.weight: \(7, 4\) in the file, \(5, 4\) in the model"):
            load_weights(Model(), path, allow_missing=allow)
    assert load_weights(Model(), path, allow_missing="all").missing == ["sem_seg_head.query_feat.weight"]
    assert load_weights(Model(), path, allow_missing=lambda name: "query_feat" in name).mismatched


def test_a_new_module_is_for_training_only(save):
    path = save(filled(clip=False).state_dict())
    with pytest.raises(ValueError, match=r"clip_module\.\{bias, weight\}"):
        load_weights(Model(), path)
    report = load_weights(Model(), path, allow_missing="new_modules")
    assert report.missing == ["clip_module.bias", "clip_module.weight"]


def test_a_part_of_a_module_is_not_a_new_module(save):
    state = filled().state_dict()
    del state["sem_seg_head.pixel_decoder.bias"]
    with pytest.raises(ValueError, match=r"pixel_decoder\.bias"):
        load_weights(Model(), save(state), allow_missing="new_modules")


def test_a_backbone_file_is_refused_as_a_model_and_named(save):
    path = save({"model": backbone_state(filled())})
    with pytest.raises(ValueError, match=r"holds only a backbone .*clip_module, sem_seg_head.*new_modules"):
        load_weights(Model(), path)


def test_training_starts_from_a_backbone_file(save):
    source, model = filled(), Model()
    report = load_weights(model, save({"model": backbone_state(source)}), allow_missing="new_modules")
    assert torch.equal(model.backbone.stem.conv1.weight, source.backbone.stem.conv1.weight)
    assert "backbone.norm0.weight" in report.missing and "endings" in report.kind


def test_a_file_in_which_nothing_fits_is_refused_even_if_all_may_be_missing(save):
    with pytest.raises(ValueError, match=r"Nothing in .*the file has other\.weight"):
        load_weights(Model(), save({"other.weight": torch.ones(2)}), allow_missing="all")
    with pytest.raises(ValueError, match=r"Nothing in .*the file has no tensors"):
        load_weights(Model(), save({"model": {}}), allow_missing="all")


def test_names_the_model_lacks_are_reported_in_groups(save, caplog):
    state = filled().state_dict() | {
        "extra.b.weight": torch.ones(1),
        "extra.b.bias": torch.ones(1),
        "proposal_generator.anchor_generator.cell_anchors.0": torch.ones(1),
    }
    report = load_weights(Model(), save(state))
    assert report.unexpected == ["extra.b.weight", "extra.b.bias"]
    assert "Not in the model:\n  extra.b.{weight, bias}" in caplog.text


def test_constants_and_shared_tensors_are_never_missing(save):
    model = Model()
    model.again = model.clip_module
    model.backbone.register_buffer("relative_position_index", torch.zeros(2))
    state = filled().state_dict()
    del state["pixel_mean"], state["backbone.stem.conv1.norm.num_batches_tracked"]
    report = load_weights(model, save(state), allow_missing="none")
    assert report.missing == [] and report.unexpected == []


def test_a_caffe2_backbone_fits_by_its_endings(tmp_path):
    blobs = {"conv1_w": np.full((4, 3, 7, 7), 2, "float32"), "res_conv1_bn_s": np.full(4, 3, "float32")}
    blobs["fc1000_w"] = np.ones((2, 2), "float32")
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps({"blobs": blobs}))
    model = Model()
    report = load_weights(model, tmp_path / "R-50.pkl", allow_missing="all")
    assert model.backbone.stem.conv1.weight.unique().item() == 2
    assert model.backbone.stem.conv1.norm.weight.unique().item() == 3
    assert report.unexpected == ["fc1000.weight"]


def test_a_torchvision_backbone_fits_without_conversion(save):
    names = {name for name in RECORDED["torchvision"].values() if "fc" not in name and "num_batches" not in name}
    model = model_of({f"backbone.{name}": () for name in names})
    values = {name: torch.tensor(float(i)) for i, name in enumerate(RECORDED["torchvision"])}
    report = load_weights(model, save(values), allow_missing="none")
    assert "torchvision ResNet" in report.kind and report.missing == []
    assert all("fc." in name or "num_batches" in name for name in report.unexpected)
    got = model.state_dict()
    for i, ours in enumerate(RECORDED["torchvision"].values()):
        if f"backbone.{ours}" in got:
            assert got[f"backbone.{ours}"].item() == i


@pytest.mark.parametrize("case, absent", [("vita_r50", set()), ("vita_swin", {f"backbone.norm{i}" for i in range(4)})])
def test_published_training_starts_from_an_imagenet_backbone(save, case, absent):
    """Names and shapes of a published model and of the ImageNet files that its training starts from."""
    recorded = RECORDED["match"][case]
    model = model_of(recorded["model"])
    path = save({"model": {name: torch.ones(shape) for name, shape in recorded["ckpt"].items()}})
    report = load_weights(model, path, allow_missing="new_modules")
    state = model.state_dict()
    loaded = {name for name in state if state[name].float().eq(1).all() and state[name].numel()}
    assert loaded == set(recorded["result"]["loaded"])
    assert report.mismatched == []
    assert {name.rpartition(".")[0] for name in report.missing if name.startswith("backbone.")} == absent
    with pytest.raises(ValueError, match="holds only a backbone"):
        load_weights(model, path)


def test_module_versions_reach_the_modules(save):
    """Some heads rename old tensors, depending on the version that the file gives for them."""

    class Versioned(nn.Linear):
        _version = 2

        def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
            self.seen = local_metadata.get("version")
            if self.seen is None or self.seen < 2:
                state_dict[f"{prefix}weight"] = state_dict.pop(f"{prefix}old")
            super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    model = nn.Sequential(Versioned(2, 2, bias=False))
    assert load_weights(model, save(model.state_dict())).complete and model[0].seen == 2
    report = load_weights(model, save(OrderedDict([("0.old", torch.full((2, 2), 5.0))])), allow_missing="none")
    assert model[0].seen is None and report.complete and model[0].weight[0, 0] == 5
    with pytest.raises(ValueError, match="does not fit the model"):
        load_weights(model, save(OrderedDict([("0.old", torch.ones(3, 3)), ("0.weight", torch.ones(2, 2))])))


def test_half_precision_files_fill_full_precision_models(save):
    source = filled()
    model = Model()
    load_weights(
        model, save({name: t.half() if t.is_floating_point() else t for name, t in source.state_dict().items()})
    )
    assert model.clip_module.weight.dtype == torch.float32
    assert torch.allclose(model.clip_module.weight, source.clip_module.weight, atol=1e-3)


def test_a_wrong_rule_for_missing_names_is_refused_before_anything_is_read():
    with pytest.raises(ValueError, match="allow_missing must be one of"):
        load_weights(Model(), "nowhere.pth", allow_missing="some")


def test_the_report_reads_well(save):
    state = filled(classes=80).state_dict() | {"extra.weight": torch.ones(1)}
    del state["clip_module.bias"]
    report = load_weights(Model(), save(state), allow_missing="all")
    assert str(report).splitlines()[1:] == [
        "Left out because of their shape:",
        "  sem_seg_head.class_embed.weight: (81, 4) in the file, (41, 4) in the model",
        "  sem_seg_head.class_embed.bias: (81,) in the file, (41,) in the model",
        "Not in the file:",
        "  clip_module.bias",
        "Not in the model:",
        "  extra.weight",
    ]


def test_buffers_of_losses_may_be_absent_where_a_model_is_run(save):
    model = Model()
    model.criterion = nn.Linear(2, 2)
    model.sem_seg_head.register_buffer("empty_weight", torch.zeros(3))
    report = load_weights(model, save(filled().state_dict()))
    assert report.missing == ["criterion.bias", "criterion.weight", "sem_seg_head.empty_weight"]
