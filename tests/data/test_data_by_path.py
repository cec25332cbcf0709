"""Data sets by path: `--data name=annotations.json:frames` and DATASETS.REGISTER."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml

from lbvq.config import get_cfg
from lbvq.data import MetadataCatalog, by_path
from lbvq.data.by_path import apply_own_data
from lbvq.data.catalog import DatasetCatalog
from lbvq.files.data_entries import data_options, parse_entry
from lbvq.inference.loading import class_names_of
from lbvq.masks.rle import to_rle
from lbvq.zoo import load_config

MASK = to_rle([[0, 0, 2, 0, 2, 2, 0, 2]], 4, 6)


@pytest.fixture(autouse=True)
def forget():
    yield
    for name in list(by_path._registered):
        by_path.unregister(name)


def video_file(folder: Path, names: tuple[str, ...] = ("cat", "dog", "owl")) -> Path:
    video = {"id": 1, "height": 4, "width": 6, "length": 1, "file_names": ["a/0.png"]}
    annotation = {"id": 1, "video_id": 1, "category_id": 7, "segmentations": [MASK], "iscrowd": 0}
    categories = [{"id": 7 + k, "name": name} for k, name in enumerate(names)]
    path = folder / "annotations.json"
    path.write_text(json.dumps({"videos": [video], "annotations": [annotation], "categories": categories}))
    return path


@pytest.mark.parametrize(
    ("text", "file", "frames"),
    [
        ("pets=x/ann.json:x/img", "x/ann.json", "x/img"),
        ("pets=x/ann.json", "x/ann.json", "x/frames"),
        ("pets=/abs/ann.json:/abs/img", "/abs/ann.json", "/abs/img"),
    ],
)
def test_an_entry_names_a_file_and_a_folder_and_paths_become_absolute(tmp_path, monkeypatch, text, file, frames):
    monkeypatch.chdir(tmp_path)
    entry = parse_entry(text)
    assert (entry.json_file, entry.image_root) == (tmp_path / file, tmp_path / frames)
    assert parse_entry(str(entry)) == entry


def test_a_data_folder_is_enough(tmp_path):
    video_file(tmp_path)
    entry = parse_entry(f"pets={tmp_path}")
    assert (entry.json_file, entry.image_root) == (tmp_path / "annotations.json", tmp_path / "frames")


@pytest.mark.parametrize("text", ["pets", "=x.json", "a b=x.json", "pets=a:b:c"])
def test_what_is_no_entry_is_refused_with_the_form(text):
    with pytest.raises(ValueError, match=r"NAME=ANNOTATIONS.json:FRAMES"):
        parse_entry(text)


def test_classes_and_their_number_come_from_the_file(tmp_path):
    file = video_file(tmp_path)
    cfg = load_config("synthetic/minvis_R18_tiny", data_options([f"pets={file}"]))
    assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 3 and class_names_of(cfg) == ("cat", "dog", "owl")
    assert (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST) == (("pets",), ("pets",))
    (record,) = DatasetCatalog.get("pets")
    assert record["file_names"] == [str(tmp_path / "frames/a/0.png")]
    assert record["annotations"][0][0]["category_id"] == 0
    assert MetadataCatalog.get("pets").evaluator_type == "ytvis" and MetadataCatalog.get("pets").kind == "video"


def test_the_first_is_trained_on_the_last_is_tested_on_and_settings_win(tmp_path):
    file = video_file(tmp_path)
    options = data_options([f"a={file}", f"b={file}"])
    cfg = load_config("synthetic/minvis_R18_tiny", options)
    assert (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST) == (("a",), ("b",))
    cfg = load_config("synthetic/minvis_R18_tiny", [*options, "DATASETS.TEST", "('a', 'b')"])
    assert (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST) == (("a",), ("a", "b"))


def test_a_saved_configuration_registers_the_data_again(tmp_path):
    cfg = load_config("synthetic/minvis_R18_tiny", data_options([f"pets={video_file(tmp_path)}"]))
    (tmp_path / "config.yaml").write_text(cfg.dump())
    by_path.unregister("pets")
    again = load_config(tmp_path / "config.yaml")
    assert class_names_of(again) == ("cat", "dog", "owl")
    assert yaml.safe_load(again.dump())["DATASETS"]["REGISTER"] == [str(parse_entry(f"pets={tmp_path}"))]


def test_a_number_of_classes_that_is_given_must_be_that_of_the_file(tmp_path):
    options = data_options([f"pets={video_file(tmp_path)}"])
    with pytest.raises(ValueError, match=r"NUM_CLASSES is set to 40, but .*annotations.json has 3 categories"):
        load_config("synthetic/minvis_R18_tiny", [*options, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "40"])


def test_files_that_are_gone_are_named_when_they_are_needed_and_not_before(tmp_path):
    file = video_file(tmp_path)
    options = data_options([f"pets={file}"])
    file.unlink()
    cfg = load_config("synthetic/minvis_R18_tiny", options)
    with pytest.raises(FileNotFoundError, match=r"No annotation file .*annotations.json of the data set 'pets'"):
        DatasetCatalog.get(cfg.DATASETS.TRAIN[0])


def test_a_name_that_is_taken_is_refused_and_the_same_entry_is_no_second_one(tmp_path):
    file = video_file(tmp_path)
    by_path.register([f"pets={file}"])
    by_path.register([f"pets={file}"])
    with pytest.raises(ValueError, match=r"'pets' is taken by pets=.*annotations.json"):
        by_path.register([f"pets={tmp_path}/other.json"])
    with pytest.raises(ValueError, match="'ovis_val' is taken by a built-in data set"):
        by_path.register([f"ovis_val={file}"])


def test_coco_files_are_image_data_sets(tmp_path):
    image = {"id": 1, "file_name": "0.png", "height": 4, "width": 6}
    content = {"images": [image], "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
    (tmp_path / "coco.json").write_text(json.dumps(content))
    by_path.register([f"stills={tmp_path}/coco.json:{tmp_path}"])
    assert MetadataCatalog.get("stills").kind == "image" and len(DatasetCatalog.get("stills")) == 1
    assert MetadataCatalog.get("stills").evaluator_type == "coco"


def test_a_file_that_changes_is_read_again(tmp_path):
    by_path.register([f"pets={video_file(tmp_path)}"])
    assert len(MetadataCatalog.get("pets").thing_classes) == 3
    os.utime(video_file(tmp_path, ("cat",)), (1, 1))
    assert MetadataCatalog.get("pets").thing_classes == ["cat"]


def test_nothing_happens_without_own_data():
    cfg = get_cfg()
    apply_own_data(cfg)
    assert cfg.dump() == get_cfg().dump()
