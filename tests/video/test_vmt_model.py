"""Behaviour of the whole VMT model that does not need recorded numbers, on a small configuration."""

from __future__ import annotations

import copy
import gzip
import json

import pytest
import torch
from golden_fill import fill_, frames
from helpers import GOLDEN
from video_models import LazyFrames, load_cfg

from lbvq.engine.weights import load_weights
from lbvq.masks.tubes import MaskTubes
from mask2former.registry import build_model

VIDEO = frames(4, 50, 70, seed=1)


def small_model(**changes):
    tiny = {
        "MODEL__VMT__ENC_LAYERS": 1,
        "MODEL__VMT__DEC_LAYERS": 2,
        "MODEL__VMT__NUM_OBJECT_QUERIES": 12,
        "TEST__DETECTIONS_PER_IMAGE": 10,
    }
    return fill_(build_model(load_cfg("synthetic/vmt_R18_tiny.yaml", **{**tiny, **changes}))).eval()


def predict(model, video=VIDEO, **sample):
    return model([{"image": list(video), **sample}])


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def reference(model):
    return predict(model)


def test_the_output_is_the_published_dictionary(reference):
    assert reference.keys() == {"image_size", "pred_scores", "pred_labels", "pred_masks"}
    count = len(reference["pred_scores"])
    assert 0 < count <= 10
    assert reference["pred_masks"].shape == (count, 4, 50, 70)
    assert reference["pred_masks"].dtype == torch.bool and reference["pred_masks"].device.type == "cpu"
    assert reference["pred_masks"].flatten(1).any(dim=1).all()
    assert reference["pred_scores"] == sorted(reference["pred_scores"], reverse=True)
    assert all(0 <= label < 5 for label in reference["pred_labels"])


@pytest.mark.parametrize("chunk", [2, 3, 8])
def test_results_do_not_depend_on_how_many_frames_are_handled_at_once(model, reference, monkeypatch, chunk):
    monkeypatch.setattr(type(model), "frames_per_run", chunk)
    output = predict(model)
    assert output["pred_labels"] == reference["pred_labels"]
    assert output["pred_scores"] == pytest.approx(reference["pred_scores"], rel=1e-4)
    assert (output["pred_masks"] != reference["pred_masks"]).float().mean() < 1e-3


@pytest.mark.parametrize("budget", [0, 0.2])
def test_results_do_not_depend_on_the_memory_budget(reference, budget):
    model = small_model()
    model.feature_budget_mib = budget
    output = predict(model)
    assert output["pred_scores"] == reference["pred_scores"]
    assert torch.equal(output["pred_masks"], reference["pred_masks"])


def test_tubes_hold_the_masks_of_the_dense_output(model, reference):
    output = predict(model, dense_masks=False)
    assert isinstance(output["pred_masks"], MaskTubes)
    assert torch.equal(output["pred_masks"].to_dense(), reference["pred_masks"])


def test_frames_are_read_once_and_may_be_decoded_when_indexed(model, reference):
    video = LazyFrames(VIDEO)
    assert torch.equal(model([{"image": video}])["pred_masks"], reference["pred_masks"])
    assert video.reads == [1] * 4


@pytest.mark.parametrize("size", [(20, 25), (1, 1), (33, 97)])
def test_any_frame_size_and_a_single_frame_work(model, size):
    output = predict(model, frames(1, *size, seed=2), height=2 * size[0], width=size[1])
    assert output["image_size"] == (2 * size[0], size[1])
    assert output["pred_masks"].shape[1:] == (1, 2 * size[0], size[1])


@pytest.mark.parametrize("kind", ["coarse", "second"])
def test_earlier_masks_can_be_reported(reference, kind):
    output = predict(small_model(MODEL__VMT__OUTPUT=kind))
    assert output["pred_masks"].shape[1:] == (4, 50, 70)
    assert not torch.equal(output["pred_masks"], reference["pred_masks"])


def test_masks_are_squeezed_into_the_frame_as_published_or_cut(model):
    video = frames(1, 45, 61, seed=3)
    squeezed = predict(model, video)["pred_masks"]
    cut = predict(small_model(MODEL__VMT__CROP_MASKS=True), video)["pred_masks"]
    assert squeezed.shape[1:] == cut.shape[1:] == (1, 45, 61)


def test_pairs_with_a_tiny_score_are_not_reported():
    output = predict(small_model(MODEL__VMT__SCORE_THRESHOLD=1.1))
    assert output["pred_scores"] == [] and output["pred_masks"].shape == (0, 4, 50, 70)
    assert len(predict(small_model(MODEL__VMT__SCORE_THRESHOLD=1.1), dense_masks=False)["pred_masks"]) == 0


def test_classes_that_the_data_set_lacks_are_reported_on_request_only():
    model = small_model(MODEL__VMT__KEEP_UNUSED_CLASSES=True)
    with torch.no_grad():
        model.detr.class_embed[-1].bias[0] += 100
    assert set(predict(model)["pred_labels"]) == {-1}
    model.keep_unused_classes = False
    assert predict(model)["pred_labels"] == []


def test_bad_settings_and_videos_are_refused(model):
    with pytest.raises(ValueError, match=r"MODEL.VMT.OUTPUT must be one of refined, second, coarse, got 'best'"):
        small_model(MODEL__VMT__OUTPUT="best")
    with pytest.raises(ValueError, match="9 classes from output 1 on do not fit into 7"):
        small_model(MODEL__SEM_SEG_HEAD__NUM_CLASSES=9)
    with pytest.raises(ValueError, match="no frames"):
        predict(model, [])
    with pytest.raises(ValueError, match=r"frame 0 has \(3, 50, 70\), frame 2 has \(3, 50, 60\)"):
        predict(model, [*VIDEO[:2], torch.zeros(3, 50, 60)])
    with pytest.raises(ValueError, match="one video at a time"):
        model([{"image": list(VIDEO)}] * 2)


def test_weights_survive_saving_loading_and_copying(model, reference):
    state = model.state_dict()
    assert "detr.backbone.0.body.layer1.0.bn1.weight" in state and not any("res2" in name for name in state)
    other = small_model()
    for parameter in other.parameters():
        torch.nn.init.zeros_(parameter)
    other.load_state_dict(state, strict=True)
    assert torch.equal(predict(other)["pred_masks"], reference["pred_masks"])
    assert copy.deepcopy(model).state_dict().keys() == state.keys()


def test_a_published_checkpoint_loads_completely(tmp_path):
    with gzip.open(GOLDEN / "keys.json.gz", "rt") as file:
        shapes = json.load(file)["lists"]["vmt_r50"]
    file = tmp_path / "checkpoint_r50_final.pth"
    torch.save({"model": {name: torch.full(shape, 0.5) for name, shape in shapes.items()}}, file)
    model = build_model(load_cfg("hq_ytvis/vmt_R50.yaml"))
    assert load_weights(model, file, allow_missing="none").complete
    assert float(model.detr.backbone[0].body.res3[0].conv1.norm.weight[0]) == 0.5


def test_training_starts_from_a_seqformer_checkpoint(tmp_path):
    with gzip.open(GOLDEN / "keys.json.gz", "rt") as file:
        shapes = json.load(file)["lists"]["vmt_r50"]
    kept = {k: v for k, v in shapes.items() if k.split(".")[0] in ("detr", "controller", "mask_head")}
    kept = {name: [91, *shape[1:]] if "class_embed" in name else shape for name, shape in kept.items()}
    torch.save({"model": {name: torch.zeros(shape) for name, shape in kept.items()}}, tmp_path / "seqformer.pth")
    model = build_model(load_cfg("hq_ytvis/vmt_R50.yaml"))
    report = load_weights(model, tmp_path / "seqformer.pth", allow_missing="new_modules")
    assert {name.split(".")[1] for name, *_ in report.mismatched} == {"class_embed"}
