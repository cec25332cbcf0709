"""The names and ids of a model's classes come with its weights, and win over those of any data set."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import yaml
from red_green_model import RedGreenModel  # registers itself

from lbvq.config import get_cfg
from lbvq.inference.predictor import VideoPredictor
from lbvq.zoo import load_config

FRAMES = np.zeros((2, 40, 60, 3), np.uint8)
FRAMES[:, 5:25, 5:25] = (220, 20, 20)
OWN = {"names": ["bed", "lamp", "owl"], "ids": [11, 7, 4]}


def config(**changes):
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.DEVICE = RedGreenModel.__name__, "cpu"
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, cfg.INPUT.MIN_SIZE_TEST = 3, 40
    cfg.DATASETS.TEST = ("ytvis_2019_val",)
    for key, value in changes.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    return cfg


@pytest.fixture
def weights(tmp_path):
    torch.save({"model": RedGreenModel().state_dict(), "categories": OWN}, tmp_path / "own.pth")
    return tmp_path / "own.pth"


def test_names_of_a_data_set_of_another_number_are_not_used(caplog):
    """Three classes of one's own were drawn with the first three names of YouTube-VIS."""
    predictor = VideoPredictor(config())
    assert predictor.names is None and "3 classes but ytvis_2019_val names 40" in caplog.text
    caplog.clear()
    assert VideoPredictor(config(MODEL__SEM_SEG_HEAD__NUM_CLASSES=80)).names is None
    assert "80 classes but ytvis_2019_val names 40" in caplog.text


def test_names_and_ids_of_the_weights_are_drawn_and_written(weights):
    prediction = VideoPredictor(config(), weights=weights)(FRAMES)
    assert prediction[0].name == "lamp"  # the model says class 1 of what is red
    assert prediction.to_json(5)[0]["category_id"] == 7
    assert prediction.keep(0.5)[:1].distinct().to_json(5)[0]["category_id"] == 7
    assert prediction.to_json(5, category_ids=[1, 2, 3])[0]["category_id"] == 2


def test_names_that_are_given_win(weights):
    prediction = VideoPredictor(config(), ["a", "b", "c"], weights=weights)(FRAMES)
    assert prediction[0].name == "b" and prediction.to_json(5)[0]["category_id"] == 2


def test_names_of_a_data_set_bring_its_ids():
    predictor = VideoPredictor(config(MODEL__SEM_SEG_HEAD__NUM_CLASSES=80, DATASETS__TEST=("coco_2017_val",)))
    assert predictor.names[11] == "stop sign" and predictor.category_ids[11] == 13


def test_names_of_a_saved_configuration_win_over_its_data_set(tmp_path):
    cfg = config(MODEL__CATEGORIES__NAMES=OWN["names"], MODEL__CATEGORIES__IDS=OWN["ids"])
    (tmp_path / "config.yaml").write_text(cfg.dump())
    assert yaml.safe_load(cfg.dump())["MODEL"]["CATEGORIES"] == {"NAMES": OWN["names"], "IDS": OWN["ids"]}
    torch.save({"model": RedGreenModel().state_dict()}, tmp_path / "model_final.pth")
    predictor = VideoPredictor.from_pretrained(tmp_path)
    assert predictor.names == tuple(OWN["names"]) and predictor.category_ids == tuple(OWN["ids"])


def test_names_of_the_weights_win_over_those_of_the_configuration(weights):
    cfg = config(MODEL__CATEGORIES__NAMES=["x", "y", "z"])
    assert VideoPredictor(cfg, weights=weights).names == tuple(OWN["names"])


def test_names_that_do_not_fit_in_number_are_left_out_with_a_word(weights, caplog):
    predictor = VideoPredictor(config(MODEL__SEM_SEG_HEAD__NUM_CLASSES=4), weights=weights)
    assert predictor.names is None and "4 classes but MODEL.CATEGORIES names 3" in caplog.text


def test_an_exported_folder_carries_names_and_ids(weights, tmp_path):
    from lbvq.modeling.pretrained import save_pretrained

    predictor = VideoPredictor(config(), weights=weights)
    folder = save_pretrained(predictor.model, tmp_path / "folder")
    assert load_config(folder).MODEL.CATEGORIES.NAMES == OWN["names"]
    again = VideoPredictor.from_pretrained(folder)
    assert again(FRAMES)[0].name == "lamp" and again(FRAMES).to_json(1)[0]["category_id"] == 7


def test_results_are_plain_json(weights):
    json.dumps(VideoPredictor(config(), weights=weights)(FRAMES).to_json(1))
