"""The scripts that prepare BURST, and the class counts of LV-VIS."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
from helpers import GOLDEN, ROOT, run_as_command

from lbvq.data.ytvis import load_ytvis_json
from lbvq.modeling.ovformer.criterion import class_frequencies

BURST = GOLDEN / "burst_eval"


@pytest.fixture
def run_script(monkeypatch, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def run(script, *arguments):
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        run_as_command(ROOT / "datasets" / script)

    return run


@pytest.fixture
def burst(tmp_path, run_script):
    """The recorded annotations in their place; converts them."""
    folder = tmp_path / "burst" / "annotations"
    (folder / "val").mkdir(parents=True)
    (folder / "info").mkdir()
    shutil.copyfile(BURST / "all_classes.json", folder / "val" / "all_classes.json")
    shutil.copyfile(BURST / "class_split.json", folder / "info" / "class_split.json")
    return lambda *arguments: run_script("prepare_burst.py", *arguments)


def test_burst_becomes_what_the_published_converter_makes(burst, tmp_path):
    burst()
    got = json.loads((tmp_path / "burst" / "b2y_val.json").read_text())
    want = json.loads((BURST / "b2y_val.json").read_text())
    assert got["videos"] == want["videos"]
    assert [{key: each[key] for key in want["categories"][0]} for each in got["categories"]] == want["categories"]
    assert len(got["annotations"]) == len(want["annotations"])
    for ours, published in zip(got["annotations"], want["annotations"], strict=True):
        assert ours["id"] == published["id"] + 1  # an id of 0 would be taken for no match
        assert {**ours, **published} == {**ours, "id": published["id"]}


def test_the_result_can_be_read(burst, tmp_path):
    burst()
    records = load_ytvis_json(tmp_path / "burst" / "b2y_val.json", tmp_path / "burst" / "val", needs_boxes=False)
    assert len(records) == 12
    assert sum(len(frame) for record in records for frame in record["annotations"]) > 100


def test_a_result_that_exists_is_kept(burst, tmp_path, capsys):
    (tmp_path / "burst" / "b2y_val.json").write_text("mine")
    burst()
    assert (tmp_path / "burst" / "b2y_val.json").read_text() == "mine" and "kept" in capsys.readouterr().out


def test_a_broken_mask_is_named(burst, tmp_path):
    path = tmp_path / "burst" / "annotations" / "val" / "all_classes.json"
    content = json.loads(path.read_text())
    next(iter(content["sequences"][0]["segmentations"][0].values()))["rle"] = "1"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="sequence seq00, track"):
        burst()
    assert not (tmp_path / "burst" / "b2y_val.json").exists()


def test_counts_of_lv_vis_are_frames_of_the_videos_that_show_a_class(run_script, tmp_path):
    source = tmp_path / "LVVIS" / "train" / "train_instances_nonovel.json"
    source.parent.mkdir(parents=True)
    pairs = [(10, 1), (10, 1), (11, 1), (11, 3)]  # (video, category)
    content = {
        "videos": [{"id": 10, "length": 5}, {"id": 11, "length": 4}],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}, {"id": 3, "name": "c"}],
        "annotations": [
            {"id": n, "video_id": video, "category_id": category, "length": 2}
            for n, (video, category) in enumerate(pairs)
        ],
    }
    source.write_text(json.dumps(content))
    run_script("prepare_open_vocabulary.py", "lvvis_counts")
    path = tmp_path / "datasets" / "metadata" / "lvvis_train_cat_info.json"
    found = json.loads(path.read_text())
    assert [(each["image_count"], each["instance_count"], each["frequency"]) for each in found] == [
        (9, 6, "b"),
        (0, 0, "n"),
        (4, 2, "b"),
    ]
    assert class_frequencies(path, 3).tolist() == [3, 0, 2]
