"""Text embeddings of class names, the vocabulary of a predictor, and the tool that writes files; with a tiny CLIP."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("open_clip")

from golden_fill import fill_, frames
from helpers import ROOT, run_as_command
from tiny_clip import WIDTH, tiny_towers
from video_models import load_cfg

from lbvq.cli.predict import add_arguments, run
from lbvq.data.builtin import MetadataCatalog
from lbvq.data.synthetic import write_dataset
from lbvq.inference import vocabulary
from lbvq.inference.predictor import VideoPredictor
from lbvq.inference.vocabulary import (
    check_classes,
    embed_names,
    embeddings_for,
    parse_classes,
    plain_name,
    with_classes,
)
from lbvq.modeling.ovformer.image_features import ImageFeatures, read_image_features
from lbvq.modeling.ovformer.towers import ClipTowers
from lbvq.modeling.ovformer.zero_shot import read_text_embeddings
from lbvq.video.writer import write_video

FRAME = "lvvis/ovformer_R50_bs8.yaml"
CLIP = "lvvis/video_ovformer_R50_bs8.yaml"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """An empty cache, and a working directory without published files."""
    monkeypatch.setenv("VIS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def loads(monkeypatch) -> list:
    """The tiny CLIP in place of every other; notes how often it was loaded."""
    calls = []

    def load(model: str, weights: str) -> ClipTowers:
        calls.append((model, weights))
        return tiny_towers()

    monkeypatch.setattr(ClipTowers, "load", load)
    return calls


def embed(names: list[str], model: str = "tiny", prompts: str = "photo", loads: list | None = None) -> torch.Tensor:
    def load() -> ClipTowers:
        (loads if loads is not None else []).append(model)
        return tiny_towers()

    return embed_names(names, load, model=model, prompts=prompts)


# ---- names


def test_classes_are_read_from_a_list_with_commas():
    assert parse_classes("cat, skateboard ,potted plant") == ["cat", "skateboard", "potted plant"]


@pytest.mark.parametrize("names", [[], ["cat", ""], ["cat", "dog", "cat"], "cat", ["()"]])
def test_classes_that_cannot_be_told_apart_are_an_error(names):
    with pytest.raises(ValueError, match=r"^classes must|^every class may"):
        check_classes(names)


def test_a_name_stands_in_a_prompt_as_for_the_published_files():
    assert plain_name("bow_(weapon)") == "bow weapon"


# ---- embeddings on disk


def test_embeddings_have_length_one_and_depend_on_the_name_alone():
    both, one = embed(["cat", "potted plant"]), embed(["potted plant"], model="again")
    torch.testing.assert_close(both.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(both[1:], one, atol=1e-5, rtol=0)


def test_one_prompt_is_the_text_tower_of_clip():
    want = torch.nn.functional.normalize(tiny_towers().encode_texts(["a photo of a cat."]), dim=1)
    torch.testing.assert_close(embed(["cat"]), want, atol=1e-5, rtol=0)


def test_what_is_on_disk_needs_no_clip():
    loads: list = []
    first = embed(["cat", "dog"], loads=loads)
    second = embed(["dog", "cat"], loads=loads)
    assert len(loads) == 1 and torch.equal(first, second.flip(0))
    embed(["dog", "bird"], loads=loads)
    assert len(loads) == 2


def test_another_model_or_prompt_set_is_computed_anew():
    loads: list = []
    photo, video = embed(["cat"], loads=loads), embed(["cat"], prompts="video", loads=loads)
    embed(["cat"], model="other", loads=loads)
    assert len(loads) == 3 and not torch.allclose(photo, video)


def test_a_damaged_file_is_made_again(folder):
    first = embed(["cat"])
    (path,) = (folder / "cache" / "text_embeddings").glob("*.npy")
    path.write_bytes(b"no array")
    assert torch.equal(embed(["cat"]), first)


def test_an_unknown_prompt_set_is_an_error():
    with pytest.raises(ValueError, match="CLIP_PROMPTS"):
        embed(["cat"], prompts="poem")


def test_rows_of_a_published_file_are_taken_when_it_has_all_names(loads):
    np.save("text.npy", np.eye(3, 8, dtype=np.float32) * 4)
    cfg = load_cfg(FRAME, MODEL__MASK_FORMER__CLIP_TEXT_PATH="text.npy")
    known = ["cat", "bow_(weapon)", "dog"]
    taken = embeddings_for(cfg, ["dog", "bow weapon"], known_names=known)
    assert taken.tolist() == np.eye(3, 8)[[2, 1]].tolist() and not loads
    assert embeddings_for(cfg, ["dog", "unicorn"], known_names=known).shape == (2, WIDTH)
    assert loads == [("ViT-B-32-quickgelu", "openai")]


def test_a_configuration_gets_the_classes(loads):
    cfg = load_cfg(FRAME)
    changed = with_classes(cfg, ["cat", "dog"])
    assert changed.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 2 and cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 1196
    assert read_text_embeddings(changed.MODEL.MASK_FORMER.CLIP_TEXT_PATH, 2).shape == (2, WIDTH)


# ---- predictor


def small(config: str) -> object:
    return load_cfg(config, INPUT__MIN_SIZE_TEST=64, MODEL__MASK_FORMER__NUM_OBJECT_QUERIES=5, MODEL__WEIGHTS="")


@pytest.mark.parametrize("config", [FRAME, CLIP])
def test_a_predictor_finds_the_classes_that_are_named(config, loads):
    predictor = VideoPredictor(small(config), ["cat", "skateboard", "potted plant"])
    prediction = predictor(list(frames(3, 64, 96).permute(0, 2, 3, 1).numpy()))
    assert predictor.names == ("cat", "skateboard", "potted plant")
    assert len(prediction) == 15 and {int(label) for label in prediction.labels} == {0, 1, 2}
    assert prediction[0].name in predictor.names


def test_a_model_that_is_built_gets_another_vocabulary(loads):
    cfg = small(FRAME)
    model = VideoPredictor(cfg, ["cat", "dog"]).model
    predictor = VideoPredictor(model, ["bird", "fish", "tree"], cfg=cfg)
    assert predictor.model is model and model.sem_seg_head.num_classes == 3
    assert model.sem_seg_head.predictor.class_embed.zs_weight.shape == (WIDTH, 4)


@pytest.mark.slow
def test_the_same_classes_in_another_order_give_the_same_objects(loads):
    video = list(frames(2, 64, 96).permute(0, 2, 3, 1).numpy())
    names = ["cat", "dog", "bird"]
    results = []
    for classes in (names, names[::-1]):
        predictor = VideoPredictor(small(FRAME), classes)
        text = read_text_embeddings(with_classes(small(FRAME), classes).MODEL.MASK_FORMER.CLIP_TEXT_PATH)
        fill_(predictor.model).set_vocabulary(text)
        results.append([(item.name, round(float(item.score), 5)) for item in predictor(video)])
    assert sorted(results[0]) == sorted(results[1])


def test_without_open_clip_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ImportError, match=r"lbvq\[open-vocab\]"):
        VideoPredictor(small(FRAME), ["cat"])


def demo(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    options = ["INPUT.MIN_SIZE_TEST", "64", "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", "5", "MODEL.DEVICE", "cpu"]
    return run(parser.parse_args(["--config-file", f"configs/{FRAME}", *arguments, "--opts", *options]))


def test_the_demo_finds_the_classes_that_are_named(loads):
    write_video("frames", list(frames(2, 64, 96).permute(0, 2, 3, 1).numpy()), frame_suffix=".png")
    files = ("--input", "frames", "--output", "found.json", "--weights", "")
    assert demo("--classes", "cat, potted plant", *files) == 0
    found = json.loads(Path("found.json").read_text())
    assert found and {entry["category_name"] for entry in found} <= {"cat", "potted plant"}


def test_the_demo_without_classes_and_without_the_published_file_says_what_to_do(loads, capsys):
    write_video("frames", list(frames(2, 64, 96).permute(0, 2, 3, 1).numpy()), frame_suffix=".png")
    assert demo("--input", "frames", "--output", "found.json", "--weights", "") == 2
    assert "save_clip_features.py text" in capsys.readouterr().err


# ---- image features


def test_image_features_are_the_image_tower_of_clip():
    towers = tiny_towers()
    source = ImageFeatures("", lambda: towers, setting="X")
    video = frames(2, 40, 60)
    found = source.find(None, list(video), torch.device("cpu"))
    assert found.shape == (2, WIDTH)
    torch.testing.assert_close(found[1:], towers.encode_images([video[1].float()]), atol=1e-5, rtol=0)


def test_image_features_of_a_file_are_found_by_id_or_path_below_the_data_root(folder):
    table = {139: 1.0, "datasets/LVVIS/val/JPEGImages/0/1.jpg": 2.0, "datasets/LVVIS/train/JPEGImages/0/1.jpg": 3.0}
    torch.save({key: torch.full((1, 4), value).half() for key, value in table.items()}, folder / "f.pkl")
    source = ImageFeatures(folder / "f.pkl", tiny_towers, setting="X")
    keys = [139, "/data/LVVIS/val/JPEGImages/0/1.jpg", "datasets/LVVIS/train/JPEGImages/0/1.jpg"]
    found = source.find(keys, [], torch.device("cpu"))
    assert found.dtype == torch.float32 and found[:, 0].tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match=r"no CLIP feature of '/data/LVVIS/test/JPEGImages/0/1\.jpg'"):
        source.find(["/data/LVVIS/test/JPEGImages/0/1.jpg"], [], torch.device("cpu"))


def test_a_missing_feature_file_says_how_to_make_it(folder):
    source = ImageFeatures("absent.pkl", tiny_towers, setting="MODEL.MASK_FORMER.CLIP_IMAGE_PATH")
    with pytest.raises(FileNotFoundError, match=r"save_clip_features\.py images .*CLIP_IMAGE_PATH to ''"):
        source.find([1], [], torch.device("cpu"))


@pytest.mark.parametrize("content", [[1, 2], {}, {1: torch.zeros(4), 2: torch.zeros(5)}, {1: "a"}])
def test_a_wrong_feature_file_is_an_error(folder, content):
    torch.save(content, "f.pkl")
    with pytest.raises(ValueError, match=r"f\.pkl"):
        read_image_features("f.pkl")


def test_a_feature_file_runs_no_code(folder):
    torch.save({1: Path("x")}, "f.pkl")  # a class that is not on torch's list
    with pytest.raises(ValueError, match="no file of CLIP image features"):
        read_image_features("f.pkl")


# ---- tool


def run_tool(monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["save_clip_features.py", *arguments])
    run_as_command(ROOT / "tools" / "save_clip_features.py")


def test_the_tool_writes_text_of_a_data_set_in_class_order(monkeypatch, loads):
    run_tool(monkeypatch, "text", "--dataset", "ytvis_2019_val", "--output", "out/text.npy", "--device", "cpu")
    names = MetadataCatalog.get("ytvis_2019_val").thing_classes
    torch.testing.assert_close(read_text_embeddings("out/text.npy", 40)[3:4], embed([names[3]]), atol=1e-5, rtol=0)


def test_the_tool_keeps_files_that_exist(monkeypatch, loads):
    Path("text.npy").write_text("mine")
    with pytest.raises(SystemExit, match="2"):
        run_tool(monkeypatch, "text", "--classes", "cat", "--output", "text.npy", "--device", "cpu")
    assert Path("text.npy").read_text() == "mine" and not loads


def test_the_tool_writes_the_features_that_a_model_looks_up(monkeypatch, loads, folder):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(folder / "data"))
    write_dataset(folder / "data", num_train=0, num_val=1)
    run_tool(monkeypatch, "images", "--dataset", "synthetic_val", "--output", "f.pkl", "--device", "cpu")
    table = torch.load("f.pkl", weights_only=True)
    key = sorted(table)[0]
    assert key.startswith("datasets/synthetic/val/JPEGImages/") and table[key].shape == (1, WIDTH)
    source = ImageFeatures("f.pkl", tiny_towers, setting="X")
    file = folder / "data" / key.removeprefix("datasets/")
    found = source.find([str(file)], [], torch.device("cpu"))
    torch.testing.assert_close(found, table[key])


class TowersOfTwoTemplates:
    """One template gives a long embedding that points east, the other a short one that points north."""

    def encode_texts(self, texts):
        return torch.tensor([[9.0, 0.0] if "photo" in text else [0.0, 0.1] for text in texts])


def test_every_template_has_the_same_say_whatever_the_length_of_its_embedding(tmp_path, monkeypatch):
    monkeypatch.setitem(vocabulary.PROMPT_SETS, "two", ("a photo of a {}.", "a {} in motion."))
    found = vocabulary.embed_names(["cat"], TowersOfTwoTemplates, model="m", prompts="two", folder=tmp_path)
    torch.testing.assert_close(found, torch.full((1, 2), 0.5**0.5))
