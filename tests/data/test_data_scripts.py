"""The scripts around the data: preparing annotation files, writing the synthetic set, drawing and timing."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from data_cases import square
from helpers import ROOT, run_as_command
from PIL import Image

from lbvq.data import DatasetCatalog, MetadataCatalog
from lbvq.data.categories import category_table
from lbvq.data.coco import load_coco_json, load_lvis_json
from lbvq.data.synthetic import SyntheticSettings, write_dataset

BY_PATH = "shapes"  # a data set that a command registers


@pytest.fixture
def run_script(monkeypatch, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))

    def run(script, *arguments):
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        run_as_command(ROOT / script)

    return run


def write_coco(folder, categories, labels, name):
    """An annotation file with one image and one annotation per label."""
    annotations = [
        {"id": n + 1, "image_id": 1, "category_id": label, "bbox": [1, 1, 4, 4], "segmentation": square()}
        for n, label in enumerate(labels)
    ]
    content = {
        "info": {"kept": True},
        "images": [{"id": 1, "file_name": "1.jpg", "height": 8, "width": 8}],
        "categories": [{"id": each["id"], "name": each["name"]} for each in categories],
        "annotations": annotations,
    }
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return content


def test_coco_files_for_joint_training_keep_the_shared_categories(run_script, tmp_path, capsys):
    source = write_coco(
        tmp_path, category_table("coco")["categories"], [1, 44, 35, 6, 16], "coco/annotations/instances_train2017.json"
    )
    run_script("datasets/prepare_coco2ytvis.py", "--splits", "train")
    kept = {"coco2ytvis2019_train": [1, 35], "coco2ytvis2021_train": [1, 35, 16], "coco2ovis_train": [1, 6]}
    for name, labels in kept.items():
        path = tmp_path / "coco" / "annotations" / f"{name}.json"
        result = json.loads(path.read_text())
        assert [each["category_id"] for each in result["annotations"]] == labels
        assert {**result, "annotations": source["annotations"]} == source  # nothing else has changed
        assert len(load_coco_json(path, MetadataCatalog.get(name).image_root, name)[0]["annotations"]) == len(labels)
    assert "2 of 5 items converted" in capsys.readouterr().out


def test_prepared_files_are_not_overwritten_unless_asked(run_script, tmp_path, capsys):
    write_coco(tmp_path, category_table("coco")["categories"], [1], "coco/annotations/instances_val2017.json")
    result = tmp_path / "coco" / "annotations" / "coco2ovis_val.json"
    result.write_text("mine")
    run_script("datasets/prepare_coco2ytvis.py", "--splits", "val")
    assert result.read_text() == "mine" and "is kept" in capsys.readouterr().out
    run_script("datasets/prepare_coco2ytvis.py", "--splits", "val", "--overwrite")
    assert len(json.loads(result.read_text())["annotations"]) == 1


def test_a_missing_coco_file_is_named(run_script):
    with pytest.raises(FileNotFoundError, match=r"instances_train2017\.json"):
        run_script("datasets/prepare_coco2ytvis.py")


def test_novel_categories_are_dropped_for_open_vocabulary_training(run_script, tmp_path):
    categories = category_table("lvis_v1")["categories"]
    rare = next(each["id"] for each in categories if each["frequency"] == "r")
    common = next(each["id"] for each in categories if each["frequency"] == "c")
    write_coco(tmp_path, categories, [rare, common], "lvis/lvis_v1_train.json")
    run_script("datasets/prepare_open_vocabulary.py", "lvis")
    records = load_lvis_json(tmp_path / "lvis/lvis_v1_train_norare.json", "coco", "lvis_v1_train_norare")
    assert [each["category_id"] for each in records[0]["annotations"]] == [common - 1]


def test_the_synthetic_data_set_is_written_where_it_is_registered(run_script, capsys):
    sizes = ["--num-train", 1, "--num-val", 1, "--num-frames", 2, "--height", 48, "--width", 64]
    run_script("datasets/make_synthetic.py", *sizes)
    out = capsys.readouterr().out
    for split in ("train", "val"):
        assert f"synthetic_{split}: {MetadataCatalog.get(f'synthetic_{split}').json_file}" in out
    assert len(DatasetCatalog.get("synthetic_val")[0]["file_names"]) == 2


@pytest.fixture
def synthetic(tmp_path):
    settings = SyntheticSettings.scaled(0.5, height=48, width=64, num_frames=3)
    write_dataset(tmp_path, num_train=2, num_val=0, settings=settings)
    yield
    if BY_PATH in DatasetCatalog:
        DatasetCatalog.remove(BY_PATH)
        MetadataCatalog.remove(BY_PATH)


@pytest.mark.parametrize("by_path", [False, True])
def test_what_the_loader_yields_is_drawn(run_script, synthetic, tmp_path, capsys, by_path):
    options = ["INPUT.MIN_SIZE_TRAIN", "(48,)", "DATALOADER.NUM_WORKERS", "0", "INPUT.RANDOM_FLIP", "none"]
    output = tmp_path / "pictures"
    files = MetadataCatalog.get("synthetic_train")
    data = (
        ["--data", f"{BY_PATH}={files.json_file}:{files.image_root}"] if by_path else ["--dataset", "synthetic_train"]
    )
    arguments = [*data, "--num", 3, "--output", output]
    run_script("tools/view_dataset.py", *arguments, *options)
    pictures = sorted(output.glob("*.png"))
    assert len(pictures) == 3 and "video" in pictures[0].name
    assert len(np.unique(np.asarray(Image.open(pictures[0])).reshape(-1, 3), axis=0)) > 100
    out = capsys.readouterr().out
    assert out.count("(48, 64) pixels") == 3 and any(
        name in out for name in ("disc", "square", "triangle", "star", "cross")
    )


def test_the_loader_benchmark_prints_every_stage(run_script, synthetic, capsys):
    run_script("tools/benchmark.py", "loader", "--dataset", "synthetic_train", "--clips", 2, "--workers", 0)
    out = capsys.readouterr().out
    for stage in ("record", "decoding", "augmenting", "masks", "loader, 0 workers"):
        assert stage in out
