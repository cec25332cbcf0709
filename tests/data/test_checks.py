"""What can be known about data before the first step: classes, files, masks, and how many objects there are."""

from __future__ import annotations

import copy
import json
import logging
import os
import shutil
import tempfile
from pathlib import Path

import data_workers
import numpy as np
import pytest
from data_cases import small_cfg, square, write_video_file
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lbvq.data import checks
from lbvq.data.build import build_test_loader, build_train_loader
from lbvq.data.catalog import DatasetCatalog, MetadataCatalog
from lbvq.data.coco import register_coco_instances
from lbvq.data.ytvis import load_ytvis_json, register_ytvis_instances
from lbvq.engine import comm
from lbvq.engine.launch import launch
from lbvq.evaluation import build_evaluator
from lbvq.evaluation.tube_ap import TubeAP
from lbvq.modeling.targets import fewest_queries
from lbvq.zoo import load_config

OBJECT = {"id": 3, "video_id": 1, "category_id": 1, "iscrowd": 0, "segmentations": [square(), square()]}


@pytest.fixture
def registered():
    """Register a file of videos under a name that is free again after the test."""
    names = []

    def register(name, path, **metadata):
        names.append(name)
        register_ytvis_instances(name, metadata, path, Path(path).parent)
        return name

    yield register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def checked_cfg(*options):
    return small_cfg("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 1, *options)


# ---- classes


@pytest.mark.parametrize("num_classes", [0, 2, 40])
def test_more_and_fewer_classes_than_the_data_has_are_refused_by_name(num_classes, tmp_path, registered):
    name = registered("counted", write_video_file(tmp_path, [OBJECT]))
    with pytest.raises(ValueError, match=r"'counted' has 1 categories \(thing\), but MODEL.SEM_SEG_HEAD.NUM_CLASSES"):
        checks.check_test_set(checked_cfg("MODEL.SEM_SEG_HEAD.NUM_CLASSES", num_classes), name)
    checks.check_test_set(checked_cfg(), name)


def test_published_configurations_fit_their_test_sets():
    """But for one, which is trained on images and published with a video set that it cannot be scored on."""
    misfits = set()
    for path in sorted(Path(__file__).parents[2].glob("configs/*/*.yaml")):
        cfg = load_config(str(path), [])
        for name in cfg.DATASETS.TEST:
            try:
                checks.check_class_count(cfg, name)
            except ValueError:
                misfits.add(path.name)
    assert misfits == {"coco_video_maskformer2_R50_bs32_8ep_frame.yaml"}


# ---- files


def test_the_first_missing_frame_is_named_before_anything_else_is_read(tmp_path, registered):
    name = registered("lacking", write_video_file(tmp_path, [OBJECT]))
    checks.check_test_set(checked_cfg(), name)
    (tmp_path / "a" / "1.png").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"1 of the 2 files that data set 'lacking' lists are missing.*a/1\.png"
    ):
        checks.check_test_set(checked_cfg(), name)
    with pytest.raises(FileNotFoundError, match="'lacking' lists are missing"):
        build_train_loader(checked_cfg("DATASETS.TRAIN", (name,)))
    checks.check_test_set(checked_cfg("DATALOADER.CHECK_FILES", False), name)
    shutil.rmtree(tmp_path / "a")
    with pytest.raises(FileNotFoundError, match="2 of the 2 files"):
        checks.check_test_set(checked_cfg(), name)


def test_images_are_looked_for_too_and_a_folder_is_listed_once(tmp_path, monkeypatch):
    for number in range(5):
        (tmp_path / f"{number}.jpg").touch()
    listed = []
    scandir = os.scandir
    monkeypatch.setattr(checks.os, "scandir", lambda folder: listed.append(folder) or scandir(folder))
    records = [{"file_name": str(tmp_path / f"{number}.jpg")} for number in range(5)]
    checks.check_files("images", records)
    assert listed == [str(tmp_path)]
    with pytest.raises(FileNotFoundError, match=r"1 of the 6 files .*9\.jpg"):
        checks.check_files("images", [*records, {"file_name": str(tmp_path / "9.jpg")}])


def test_a_folder_that_may_not_be_listed_is_asked_for_each_file(tmp_path, monkeypatch):
    (tmp_path / "0.jpg").touch()
    monkeypatch.setattr(checks, "_listed", lambda folder: set())
    checks.check_files("hidden", [{"file_name": str(tmp_path / "0.jpg")}])


# ---- masks


BROKEN = [{"size": [8, 10], "counts": "04"}, {"size": [8, 10], "counts": "!"}, [[1.0, 1, 4, 1, 4, "x"]]]


@pytest.mark.parametrize("mask", BROKEN, ids=["short", "garbage", "text"])
def test_a_broken_mask_is_named_before_training(mask, tmp_path, registered):
    path = write_video_file(tmp_path, [{**OBJECT, "segmentations": [None, mask]}])
    with pytest.raises(ValueError, match=r"videos\.json: video 1, frame 1, annotation 3: "):
        build_train_loader(checked_cfg("DATASETS.TRAIN", (registered("broken", path),)))


def test_masks_of_another_size_than_their_frames_are_refused_when_the_file_is_read(tmp_path):
    path = write_video_file(tmp_path, [{**OBJECT, "segmentations": [None, {"size": [10, 8], "counts": "P2"}]}])
    with pytest.raises(ValueError, match=r"annotation 3, frame 1: mask size \(10, 8\) .* the frame's \(8, 10\)"):
        load_ytvis_json(path, tmp_path)
    assert load_ytvis_json(path, tmp_path, size_from_image=True)[0]["annotations"][1]


def test_masks_are_sampled_all_over_a_large_set(monkeypatch):
    looked_at = []
    monkeypatch.setattr(checks, "decode", lambda mask, size, where: looked_at.append(where))
    mask = {"size": [8, 10], "counts": "P2"}
    records = [
        {"image_id": each, "height": 8, "width": 10, "annotations": [{"segmentation": mask}]} for each in range(2300)
    ]
    checks.check_masks("many", records)
    assert len(looked_at) == 575 and looked_at[-1] == "many: image 2296, annotation at position 0"


# ---- objects


def objects(*ids, crowds=()):
    return [{"id": each, "iscrowd": int(each in crowds)} for each in ids]


def test_objects_are_counted_per_record_and_per_frame_without_crowds():
    records = [
        {"annotations": [objects(1, 2, 9, crowds=[9]), objects(3), []]},
        {"annotations": objects(4, 5)},
        {"annotations": [{"iscrowd": 0}, {}]},  # images have no ids
        {"annotations": []},
        {},
    ]
    counts = checks.count_objects("x", records)
    assert counts.in_record.tolist() == [3, 2, 2, 0, 0] and counts.in_frame.tolist() == [2, 2, 2, 0, 0]


def test_more_objects_than_queries_are_said_before_training(caplog):
    counts = checks.ObjectCounts("crowded", np.array([3, 25, 21]), np.array([3, 22, 10]))
    checks.warn_of_many_objects([counts], 25)
    checks.warn_of_many_objects([counts], None)
    assert caplog.text == ""
    checks.warn_of_many_objects([counts], 20)
    assert (
        "crowded: 2 of 3 records have more objects than the model has object queries (20): up to 25, and up to 22"
        in (caplog.text)
    )


def test_the_fewest_queries_of_a_model_limit_what_it_learns():
    model = nn.ModuleDict({"frame": nn.ModuleDict({"query_feat": nn.Embedding(100, 4)}), "q": nn.Embedding(20, 4)})
    model["level_embed"] = nn.Embedding(3, 4)
    assert fewest_queries(model) == 20
    assert fewest_queries(nn.Linear(2, 2)) is None


def test_the_loader_knows_how_many_objects_there_are(tmp_path, registered):
    name = registered("known", write_video_file(tmp_path, [OBJECT, {**OBJECT, "id": 4}]))
    loader = build_train_loader(checked_cfg("DATASETS.TRAIN", (name,), "SOLVER.IMS_PER_BATCH", 1))
    assert [each.in_frame.tolist() for each in loader.object_counts] == [[2]]


# ---- annotation files of test sets


BREAKS = {
    "text ids": lambda content: content["videos"][0].update(id="vid_1"),
    "text sizes": lambda content: content["videos"][0].update(width="10"),
    "masks outnumber frames": lambda content: content["videos"][0].update(length=1),
    "a broken mask": lambda content: content["annotations"][0].update(segmentations=[None, BROKEN[0]]),
    "a flat polygon": lambda content: content["annotations"][0].update(segmentations=[None, [[1, 1, 2, 2]]]),
    "areas": lambda content: content["annotations"][0].update(areas=["x", None]),
}


@pytest.mark.parametrize("change", BREAKS)
def test_what_scoring_would_refuse_is_refused_before_training(change, tmp_path, registered):
    path = write_video_file(tmp_path, [OBJECT])
    content = json.loads(path.read_text())
    BREAKS[change](content)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"videos\.json: "):
        build_evaluator(checked_cfg(), registered("scored", path), tmp_path / "out").check()


def test_a_right_test_set_passes_the_check_with_and_without_annotations(tmp_path, registered):
    for number, tracks in enumerate(([OBJECT], [], None)):
        (tmp_path / str(number)).mkdir()
        path = write_video_file(tmp_path / str(number), tracks)
        build_evaluator(checked_cfg(), registered(f"right{number}", path), tmp_path / "out").check()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("metric", ["coco", "lvis"])
def test_image_sets_are_checked_by_their_own_metric(metric, tmp_path):
    image = {"id": 7, "file_name": "7.jpg", "height": 8, "width": 10}
    content = {"images": [image], "categories": [{"id": 1, "name": "a"}]}
    for number, mask in enumerate((square(), BROKEN[0], None)):
        entry = {"id": 1, "image_id": 7, "category_id": 1, "segmentation": mask, "area": 16}
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps({**content, "annotations": [entry] if mask else None}))
        register_coco_instances(f"{metric}{number}", {"evaluator_type": metric}, path, tmp_path)
        try:
            evaluator = build_evaluator(checked_cfg(), f"{metric}{number}", tmp_path / "out")
            if number == 1:
                with pytest.raises(ValueError, match=r"1\.json: image 7, annotation 1"):
                    evaluator.check()
            else:
                evaluator.check()
        finally:
            DatasetCatalog.remove(f"{metric}{number}")
            MetadataCatalog.remove(f"{metric}{number}")


HEADS = [
    *((key,) for key in ("videos", "annotations", "categories")),
    *(("videos", 0, key) for key in ("id", "height", "width", "length", "file_names", "neg_category_ids")),
    *(("annotations", 0, key) for key in ("id", "video_id", "category_id", "iscrowd", "segmentations")),
    *(("categories", 0, key) for key in ("id", "name")),
]
VALUES = st.one_of(
    *(st.none(), st.booleans(), st.integers(-3, 12), st.floats(-2, 12), st.text(max_size=3)),
    *(st.lists(st.integers(0, 3), max_size=3), st.just({}), st.just(...), st.just([None]), st.just([None, None])),
    st.sampled_from([2**53, 2**63, 10**30, 10**400, 1e300, "../x", ["a", "b"], ["/a", "b"], ["a"]]),
)
LOADER_NEEDS = {"height", "width", "file_names", "name", "categories"}  # scoring does without


@given(st.lists(st.tuples(st.sampled_from(HEADS), VALUES), min_size=1, max_size=2))
@settings(max_examples=150, deadline=None)
def test_loader_and_evaluator_accept_and_refuse_the_same_files(changes):
    """But for what only a loader needs. Every refusal is a ValueError that begins with the name of the file."""
    video = {"id": 1, "height": 8, "width": 10, "length": 2, "file_names": ["a/0.png", "a/1.png"]}
    content = {"videos": [video], "categories": [{"id": 1, "name": "thing"}], "annotations": [OBJECT]}
    content = copy.deepcopy(content)
    for (*parents, last), value in changes:
        target = content
        for step in parents:
            usable = isinstance(target, dict) or (isinstance(target, list) and len(target) > 0)
            target = (target.get(step) if isinstance(target, dict) else target[0]) if usable else None
        if isinstance(target, dict):
            target.pop(last, None)
            if value is not ...:
                target[last] = copy.deepcopy(value)
    outcomes = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "videos.json"
        path.write_text(json.dumps(content))
        for read in (lambda: load_ytvis_json(path, folder), lambda: TubeAP(path)):
            try:
                read()
                outcomes.append(True)
            except ValueError as error:
                assert str(error).startswith(str(path)), error
                outcomes.append(False)
    loader, evaluator = outcomes
    assert evaluator or not loader
    if {last for (*_, last), _ in changes}.isdisjoint(LOADER_NEEDS):
        assert loader == evaluator


# ---- several processes


def test_a_function_runs_once_per_machine_and_its_error_is_raised():
    assert comm.once_per_machine(lambda: 7) == 7
    with pytest.raises(ValueError, match="broken"):
        comm.once_per_machine(data_workers.fail_to_read)


@pytest.mark.slow
def test_all_processes_know_the_classes_of_a_test_set_that_one_of_them_has_read(tmp_path):
    path = write_video_file(tmp_path, [OBJECT])
    launch(data_workers.check_own_test_set, 2, args=(str(path), str(tmp_path)))
    assert sorted(each.read_text() for each in tmp_path.glob("rank*.txt")) == ["['thing'] 1 ['thing']"] * 2


def test_a_test_loader_alone_tells_the_classes_too(tmp_path, registered):
    name = registered("alone", write_video_file(tmp_path, [OBJECT]))
    assert "thing_classes" not in MetadataCatalog.get(name)
    build_test_loader(checked_cfg(), name)
    assert MetadataCatalog.get(name).thing_classes == ["thing"]


def test_the_check_of_files_says_when_it_is_done(tmp_path, registered, caplog):
    caplog.set_level(logging.INFO, logger="lbvq")
    checks.check_test_set(checked_cfg(), registered("counted_files", write_video_file(tmp_path, [OBJECT])))
    assert "counted_files: all 2 files are there." in caplog.text
