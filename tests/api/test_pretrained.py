"""A model goes out as a folder, on disk and on the Hub, and comes back; a local server stands in for the Hub."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import ROOT
from hub_server import hub_server

from lbvq import VideoPredictor, get_cfg
from lbvq.files.hub import is_repo_id
from lbvq.zoo import load_config

SMALL = "synthetic/minvis_R18_tiny.yaml"
NAMES = ("cat", "dog", "sheep", "horse", "cow")


@pytest.fixture(scope="module")
def predictor() -> VideoPredictor:
    torch.manual_seed(0)
    return VideoPredictor.from_pretrained(SMALL, weights="", classes=NAMES)


def video() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 48, 64, 3), dtype=np.uint8)


def test_a_saved_model_finds_the_same_under_the_same_names(predictor, tmp_path):
    folder = predictor.save_pretrained(tmp_path / "mine", category_ids=[3, 5, 7, 9, 11], score="AP 1.5", licence="mit")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.yaml", "model.safetensors"]
    loaded = VideoPredictor.from_pretrained(folder)
    assert loaded.names == NAMES and loaded.is_trained
    assert load_config(folder).MODEL.CATEGORIES.IDS == [3, 5, 7, 9, 11]
    assert loaded(video()) == predictor(video())
    card = (folder / "README.md").read_text()
    assert "license: mit" in card and "AP 1.5" in card and "cat, dog, sheep" in card and "lbvq predict" in card


def test_the_names_come_along_when_a_loaded_model_is_saved_again(predictor, tmp_path):
    predictor.save_pretrained(tmp_path / "one", category_ids=[3, 5, 7, 9, 11])
    model = VideoPredictor.from_pretrained(tmp_path / "one").model
    model.save_pretrained(tmp_path / "two")
    assert load_config(tmp_path / "two").MODEL.CATEGORIES == load_config(tmp_path / "one").MODEL.CATEGORIES


def test_nothing_is_written_over_unless_wanted(predictor, tmp_path):
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(FileExistsError, match=r"README\.md; choose another folder"):
        predictor.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"
    predictor.save_pretrained(tmp_path, overwrite=True)
    assert (tmp_path / "README.md").read_text() != "mine"


def test_ids_that_do_not_fit_the_names_are_refused(predictor, tmp_path):
    with pytest.raises(ValueError, match="5 names and 2 category ids"):
        predictor.save_pretrained(tmp_path / "mine", category_ids=[1, 2])
    assert not (tmp_path / "mine").exists()


def test_a_model_that_is_run_by_matching_frames_is_saved_as_itself(tmp_path):
    matched = VideoPredictor.from_pretrained("synthetic/lbvq_R18_tiny.yaml", "", NAMES, ["TEST.MATCH_FRAMES", True])
    matched.save_pretrained(tmp_path)
    again = VideoPredictor.from_pretrained(tmp_path)
    assert type(again.model) is type(matched.model) and again(video()) == matched(video())


def test_a_model_without_configuration_says_what_to_pass(tmp_path):
    from lbvq.modeling.pretrained import save_pretrained

    with pytest.raises(ValueError, match="as `cfg`"):
        save_pretrained(torch.nn.Linear(2, 2), tmp_path)
    save_pretrained(torch.nn.Linear(2, 2), tmp_path, cfg=get_cfg())


@pytest.mark.parametrize("name", ["me/model", "facebook/mask2former-swin-tiny"])
def test_names_of_the_hub(name):
    assert is_repo_id(name)


@pytest.mark.parametrize("name", ["model", "a/b/c", "configs/x.yaml", "../model", "/tmp/model", "a//b", "a/ b"])
def test_what_is_no_name_of_the_hub(name):
    assert not is_repo_id(name)


def test_a_misspelt_file_of_ours_is_not_asked_of_the_hub():
    with pytest.raises(FileNotFoundError, match="no published model"):
        load_config("youtubevis_2019/lbvq_R5O_bs8")


def run(code: str, **environment: str) -> subprocess.CompletedProcess:
    """Run code in a process of its own: the package of the Hub reads its settings when it is imported."""
    settings = {"PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1", **environment}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True, timeout=300)


def test_a_model_goes_to_the_hub_and_comes_back(tmp_path):
    code = f"""
import torch
from lbvq import VideoPredictor
mine = VideoPredictor.from_pretrained({SMALL!r}, weights="", classes={NAMES})
print(mine.push_to_hub("me/tiny"))
yours = VideoPredictor.from_pretrained("me/tiny")
state = yours.model.state_dict()
print(yours.names == {NAMES} and all(torch.equal(state[k], v) for k, v in mine.model.state_dict().items()))
"""
    with hub_server() as hub:
        done = run(code, HF_ENDPOINT=hub.endpoint, HF_HOME=str(tmp_path), HF_TOKEN="hf_secret")
        assert done.stdout.split() == [f"{hub.endpoint}/me/tiny", "True"], done.stderr
    assert "# me/tiny" in hub.repositories["me/tiny"]["README.md"].decode()
    assert "Bearer hf_secret" in hub.tokens and "hf_secret" not in done.stdout + done.stderr


def test_a_model_that_the_hub_does_not_have_and_no_network_are_one_sentence_each(tmp_path):
    code = "from lbvq.zoo import load_config\nload_config('me/nothing')"
    with hub_server() as hub:
        missing = run(code, HF_ENDPOINT=hub.endpoint, HF_HOME=str(tmp_path))
    offline = run(code, HF_ENDPOINT=hub.endpoint, HF_HOME=str(tmp_path))
    for done in (missing, offline):
        last = done.stderr.strip().splitlines()[-1]
        assert last.startswith("FileNotFoundError: me/nothing is no file and no published model here")


@pytest.mark.slow
def test_the_first_command_of_a_newcomer_ends_in_a_drawn_video(tmp_path):
    """`lbvq predict` of a COCO model whose weights come from the Hub: random ones, as transformers writes them."""
    import transformers

    from lbvq.video.writer import write_video

    stages = ["stage1", "stage2", "stage3", "stage4"]
    swin = transformers.SwinConfig(depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24], out_features=stages)
    config = transformers.Mask2FormerConfig(backbone_config=swin, num_labels=80)
    transformers.Mask2FormerForUniversalSegmentation(config).save_pretrained(tmp_path / "theirs")
    write_video(tmp_path / "video.mp4", np.repeat(video(), 2, axis=0).repeat(2, axis=1).repeat(2, axis=2), 10)
    arguments = ["predict", "--config-file", "mask2former_swin_tiny_coco", "--input", str(tmp_path / "video.mp4")]
    arguments += ["--output", str(tmp_path / "out.mp4"), "--score-threshold", "0", "--opts", "INPUT.MIN_SIZE_TEST=96"]
    code = f"from lbvq.__main__ import main\nraise SystemExit(main({arguments}))"
    with hub_server() as hub:
        weights = (tmp_path / "theirs" / "model.safetensors").read_bytes()
        hub.repositories["facebook/mask2former-swin-tiny-coco-instance"] = {"model.safetensors": weights}
        done = run(code, HF_ENDPOINT=hub.endpoint, VIS_WEIGHTS_DIR=str(tmp_path / "weights"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.mp4").stat().st_size > 0
    assert "non-commercial" in done.stderr
    offline = run(code.replace("out.mp4", "again.mp4"), VIS_WEIGHTS_DIR=str(tmp_path / "weights"), HF_HUB_OFFLINE="1")
    assert offline.returncode == 0, offline.stderr  # fetched once
