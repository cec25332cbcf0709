"""Predictors are made of built parts; names, folders and configurations are ways to build them."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from red_green_model import RedGreenModel
from video_models import load_cfg, small_cfg, small_model

from lbvq import StreamPredictor, VideoPredictor
from lbvq.config import CfgNode, get_cfg
from lbvq.inference.frames import Resize
from lbvq.inference.loading import load_config
from mask2former.registry import META_ARCH_REGISTRY

VIDEO = np.zeros((2, 60, 80, 3), dtype=np.uint8)
PREDICTORS = (VideoPredictor, StreamPredictor)


def config(**changes: Any) -> CfgNode:
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.DEVICE = "RedGreenModel", "cpu"
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 3
    for key, value in changes.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    return cfg


class FillFrame:
    """A refiner that answers every mask with the whole frame."""

    def refine(self, frame: np.ndarray, masks: np.ndarray) -> np.ndarray:
        return np.ones_like(masks)


def test_a_predictor_is_made_of_the_parts_that_are_handed_in():
    model = RedGreenModel(margin=-1.0)
    predictor = VideoPredictor(
        model, resize=Resize(30, 100, "BGR"), names=("a", "b", "c"), refiner=FillFrame(), refine_threshold=0.3
    )
    prediction = predictor(VIDEO)
    assert predictor.model is model and set(model.sizes) == {(30, 40)}
    assert [item.name for item in prediction] == ["b", "a", "c"]
    assert prediction[0].masks.to_dense().all() and predictor.is_trained


def test_masks_below_the_threshold_of_refinement_stay():
    plain = VideoPredictor(RedGreenModel())(VIDEO)
    refined = VideoPredictor(RedGreenModel(), refiner=FillFrame(), refine_threshold=0.5)(VIDEO)
    assert not plain.masks.to_dense().any()
    assert plain == refined  # nothing visible is refined
    red = VIDEO + np.array([200, 0, 0], dtype=np.uint8)
    red[:, :10] = 0
    refined = VideoPredictor(RedGreenModel(), refiner=FillFrame(), refine_threshold=0.5)(red)
    assert [float(item.masks.to_dense().float().mean()) for item in refined] == [1, 0, pytest.approx(5 / 6)]


def test_without_more_frames_are_resized_as_for_youtube_vis():
    model = RedGreenModel()
    VideoPredictor(model)(VIDEO)
    assert set(model.sizes) == {(360, 480)} and VideoPredictor(model).names is None


def test_resizing_and_precision_are_those_of_the_configuration():
    for image_format, half in (("RGB", True), ("BGR", False)):
        sizes = {"INPUT__MIN_SIZE_TEST": 30, "INPUT__MAX_SIZE_TEST": 100, "INPUT__FORMAT": image_format}
        predictor = VideoPredictor.from_config(config(**sizes, TEST__AMP__ENABLED=half), "")
        assert predictor.resize == Resize(30, 100, image_format) and predictor.half is half


def test_parts_of_a_configuration_can_be_replaced():
    predictor = VideoPredictor.from_config(config(), "", resize=Resize(15), names=("a", "b", "c"))
    assert predictor.resize == Resize(15) and predictor.names == ("a", "b", "c") and not predictor.is_trained


def test_a_folder_of_a_model_has_its_configuration_and_weights(tmp_path):
    (tmp_path / "config.yaml").write_text(config(INPUT__MIN_SIZE_TEST=30).dump())
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors or model_best\.pth or model_final\.pth"):
        VideoPredictor.from_pretrained(tmp_path)
    for name, margin in (("model_final.pth", 7.0), ("model_best.pth", 8.0)):
        torch.save({"model": {"margin": torch.tensor(margin)}}, tmp_path / name)
        predictor = VideoPredictor.from_pretrained(tmp_path)
        assert predictor.model.margin.item() == margin and predictor.is_trained and predictor.resize.min_size == 30
    assert VideoPredictor.from_pretrained(tmp_path, tmp_path / "model_final.pth").model.margin.item() == 7
    assert VideoPredictor(tmp_path, opts=["INPUT.MIN_SIZE_TEST", 40]).resize.min_size == 40
    (tmp_path / "config.yaml").unlink()
    with pytest.raises(FileNotFoundError, match=r"no config\.yaml"):
        load_config(tmp_path)


@pytest.mark.parametrize("count, names", [(2, "3 classes, got 2"), (4, "3 classes, got 4")])
def test_names_of_classes_must_be_as_many_as_classes(count, names):
    with pytest.raises(ValueError, match=rf"{names} .* RedGreenModel knows the classes it was trained on"):
        VideoPredictor.from_config(config(), "", ["name"] * count)


@pytest.mark.parametrize("num_classes", [24, 26])
def test_names_of_a_data_set_that_are_not_as_many_as_classes_are_left_out(num_classes, caplog):
    cfg = config(DATASETS__TEST=("ovis_val",), MODEL__SEM_SEG_HEAD__NUM_CLASSES=num_classes)
    with caplog.at_level(logging.WARNING):
        assert VideoPredictor.from_config(cfg, "").names is None
    assert f"has {num_classes} classes but ovis_val names 25" in caplog.text


def test_names_that_came_with_a_model_and_do_not_fit_are_left_out(caplog):
    cfg = config(MODEL__CATEGORIES__NAMES=["person", "bed"])
    with caplog.at_level(logging.WARNING):
        assert VideoPredictor.from_config(cfg, "").names is None
    assert "has 3 classes but MODEL.CATEGORIES names 2" in caplog.text


@pytest.mark.parametrize("predictor", PREDICTORS)
def test_an_image_model_is_refused_before_it_is_built(predictor, monkeypatch):
    monkeypatch.setattr(META_ARCH_REGISTRY.get("MaskFormer"), "from_config", None)
    with pytest.raises(ValueError, match="MaskFormer segments single images, not videos"):
        predictor(small_cfg(MODEL__META_ARCHITECTURE="MaskFormer"))


@pytest.mark.parametrize("name", ["vmt_R18_tiny", "lbvq_R18_tiny"])
def test_an_offline_method_is_refused_before_it_is_built(name, monkeypatch):
    cfg = load_cfg(f"synthetic/{name}.yaml")
    monkeypatch.setattr(META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE), "from_config", None)
    with pytest.raises(ValueError, match="needs all frames of a video before it can decide"):
        StreamPredictor(cfg)


def test_an_offline_method_streams_by_matching_its_frames():
    cfg = small_cfg(TEST__MATCH_FRAMES=True)
    stream = StreamPredictor.from_config(cfg, "", keep_masks=False)
    assert not stream.keep_masks and len(stream.step(VIDEO[0])) > 0


@pytest.mark.parametrize("predictor", PREDICTORS)
def test_classes_are_named_without_a_configuration_by_names(predictor):
    model = small_model("genvis")
    assert predictor(model, names=["a"] * 13).names == ("a",) * 13
    with pytest.raises(ValueError, match="name its classes by `names`"):
        predictor(model, ["a"] * 13)
