"""The table of published models, and finding configuration files by name."""

from __future__ import annotations

import pytest
from helpers import CONFIGS

from lbvq.config import get_cfg
from lbvq.engine.known_weights import ADDRESSES, DRIVE_IDS, how_to_get
from lbvq.zoo import MODELS, _by_last_parts, find_config, list_configs, load_config


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_published_model_has_a_configuration_and_a_source(name):
    model = MODELS[name]
    cfg = get_cfg()
    cfg.merge_from_file(str(find_config(name)))
    assert model.dataset in cfg.DATASETS.TEST
    assert model.source
    assert all(0 < score < 100 for score in model.scores.values())


def test_the_scores_are_the_published_ones():
    assert MODELS["lbvq_r50_ytvis19"].scores == {"AP": 52.2, "AP50": 74.8, "AP75": 57.7, "AR1": 49.9, "AR10": 59.8}
    assert MODELS["genvis_swin_semi_online_ovis"].scores["AP"] == 45.4
    assert MODELS["minvis_swin_large_r1_ytvis21"].scores == {"AP": 52.6}
    assert MODELS["vmt_swin_hq_ytvis"].scores["AP_B"] == 44.8


@pytest.mark.parametrize(
    "name",
    [
        "lbvq_r50_ytvis19",
        "youtubevis_2019/lbvq_R50_bs8.yaml",
        "youtubevis_2019/lbvq_R50_bs8",
        "configs/youtubevis_2019/lbvq_R50_bs8.yaml",
        str(CONFIGS / "youtubevis_2019" / "lbvq_R50_bs8.yaml"),
    ],
)
def test_a_configuration_is_found_by_several_names(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config(name).resolve() == CONFIGS / "youtubevis_2019" / "lbvq_R50_bs8.yaml"


@pytest.mark.parametrize("name", ["youtubevis_2019/lbvq_R5O_bs8", "/nowhere/a.yaml", "../pyproject", ""])
def test_an_unknown_configuration_is_refused(name):
    with pytest.raises(FileNotFoundError, match="no published model"):
        find_config(name)


def test_configurations_are_listed_without_bases():
    names = list_configs()
    assert "ovis/lbvq_R50_bs8.yaml" in names and not any(name.startswith("_base_/") for name in names)


def test_every_known_weight_file_is_named_by_a_configuration_or_a_model():
    named = {model.weights for model in MODELS.values()}
    for name in list_configs():
        cfg = get_cfg()
        cfg.merge_from_file(str(find_config(name)))
        named.add(cfg.MODEL.WEIGHTS.rpartition("/")[2])
    assert {*ADDRESSES, *DRIVE_IDS} <= named
    assert not set(ADDRESSES) & set(DRIVE_IDS)
    assert how_to_get("anything_else.pth") == ""


@pytest.mark.parametrize(
    "published, ours",
    [
        ("configs/genvis/ovis/genvis_R50_bs8_online.yaml", "ovis/genvis_R50_bs8_online.yaml"),
        ("configs/genvis/ytvis19/genvis_R50_bs8_semi_online.yaml", "youtubevis_2019/genvis_R50_bs8_semi_online.yaml"),
        ("configs/vita/youtubevis_2021/vita_SWIN_bs8.yaml", "youtubevis_2021/vita_SWIN_bs8.yaml"),
        ("projects/GenVIS/configs/vita/ytvis_2019/vita_R50_bs8.yaml", "youtubevis_2019/vita_R50_bs8.yaml"),
        ("/home/me/repo/configs/lvvis/video_ovformer_R50_bs8.yaml", "lvvis/video_ovformer_R50_bs8.yaml"),
    ],
)
def test_a_path_of_a_published_command_is_found_by_its_last_parts_and_that_is_said(published, ours, caplog):
    _by_last_parts.cache_clear()
    assert find_config(published) == CONFIGS / ours
    assert published in caplog.text and ours in caplog.text


@pytest.mark.parametrize("name", ["mine/lbvq_R101_bs8.yaml", "configs/mine/vita_R50_bs8.yaml", "vita_R50_bs8.yaml"])
def test_a_name_alone_does_not_choose_the_data(name):
    with pytest.raises(FileNotFoundError, match="Near it"):
        find_config(name)


def test_a_configuration_of_a_published_model_brings_its_weights():
    cfg = load_config("lbvq_r50_ytvis21", ["SOLVER.MAX_ITER=3"])
    assert cfg.MODEL.WEIGHTS == "lbvq_r50_ytvis21.pth" and cfg.SOLVER.MAX_ITER == 3
    assert load_config("lbvq_r50_ytvis21", ["MODEL.WEIGHTS", "x.pth"]).MODEL.WEIGHTS == "x.pth"
    assert load_config("").MODEL.WEIGHTS == ""
