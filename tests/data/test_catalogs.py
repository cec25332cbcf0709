"""Names, metadata and category tables of the data sets."""

from __future__ import annotations

import pytest

from lbvq.data.catalog import DatasetCatalog, Metadata, MetadataCatalog
from lbvq.data.categories import category_table, class_names, coco_to_video, contiguous_ids

PUBLISHED = {  # name: (image folder, annotation file, evaluator type, number of classes)
    "ytvis_2019_train": ("ytvis_2019/train/JPEGImages", "ytvis_2019/train.json", "ytvis", 40),
    "ytvis_2019_val": ("ytvis_2019/valid/JPEGImages", "ytvis_2019/valid.json", "ytvis", 40),
    "ytvis_2019_val_all_frames": (
        "ytvis_2019/valid_all_frames/JPEGImages",
        "ytvis_2019/valid_all_frames.json",
        "ytvis",
        40,
    ),
    "ytvis_2021_test": ("ytvis_2021/test/JPEGImages", "ytvis_2021/test.json", "ytvis", 40),
    "ytvis_2022_val": ("ytvis_2022/valid/JPEGImages", "ytvis_2022/valid.json", "ytvis", 40),
    "ovis_train": ("ovis/train", "ovis/annotations/train.json", "ytvis", 25),
    "ovis_val": ("ovis/valid", "ovis/annotations/valid.json", "ytvis", 25),
    "coco2ytvis2019_train": ("coco/train2017", "coco/annotations/coco2ytvis2019_train.json", "coco", 80),
    "coco2ovis_val": ("coco/val2017", "coco/annotations/coco2ovis_val.json", "coco", 80),
    "coco_2017_val": ("coco/val2017", "coco/annotations/instances_val2017.json", "coco", 80),
    "lvvis_train": ("LVVIS/train/JPEGImages", "LVVIS/train/train_instances_nonovel.json", "lvvis", 1196),
    "lvis_v1_train_norare": ("coco", "lvis/lvis_v1_train_norare.json", "lvis", 1203),
    "burst_val": ("burst/val", "burst/b2y_val.json", "burst", 482),
    "synthetic_val": ("synthetic/val/JPEGImages", "synthetic/val.json", "ytvis", 5),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_names_point_to_their_files(name, monkeypatch, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    images, annotations, evaluator, num_classes = PUBLISHED[name]
    metadata = MetadataCatalog.get(name)
    assert (metadata.image_root, metadata.json_file) == (str(tmp_path / images), str(tmp_path / annotations))
    assert metadata.evaluator_type == evaluator
    assert len(metadata.thing_classes) == num_classes
    ids = metadata.thing_dataset_id_to_contiguous_id
    assert list(ids.values()) == list(range(num_classes)) and list(ids) == sorted(ids)


def test_the_second_path_is_used_when_only_it_exists(monkeypatch, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    other = tmp_path / "ovis" / "annotations" / "annotations_valid.json"
    other.parent.mkdir(parents=True)
    other.touch()
    assert MetadataCatalog.get("ovis_val").json_file == str(other)


def test_the_root_is_the_folder_datasets_by_default(monkeypatch):
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    assert MetadataCatalog.get("ytvis_2019_val").json_file == "datasets/ytvis_2019/valid.json"


@pytest.mark.parametrize(
    "table, index, name", [("ytvis_2019", 20, "motorbike"), ("ytvis_2021", 0, "airplane"), ("ovis", 24, "Vehical")]
)
def test_category_names_stand_in_order_of_their_ids(table, index, name):
    assert class_names(table)[index] == name and contiguous_ids(table)[index + 1] == index


def test_open_vocabulary_splits_have_the_published_sizes():
    novel = {table: len(category_table(table)["novel_ids"]) for table in ("ytvis_2019", "ytvis_2021", "lvvis", "burst")}
    assert novel == {"ytvis_2019": 7, "ytvis_2021": 6, "lvvis": 555, "burst": 96}
    assert len(category_table("lvis_v1")["novel_ids"]) == 337


@pytest.mark.parametrize("table, size", [("ytvis_2019", 21), ("ytvis_2021", 23), ("ovis", 17)])
def test_every_coco_category_that_is_mapped_exists_on_both_sides(table, size):
    mapping = coco_to_video(table)
    assert len(mapping) == size
    assert set(mapping) <= set(contiguous_ids("coco")) and set(mapping.values()) <= set(contiguous_ids(table))


def test_skis_are_taken_for_snowboards():
    target = {category["id"]: category["name"] for category in category_table("ytvis_2019")["categories"]}
    assert target[coco_to_video("ytvis_2019")[35]] == "snowboard"


def test_an_unknown_table_lists_the_known_ones():
    with pytest.raises(KeyError, match="ytvis_2019"):
        coco_to_video("burst")
    with pytest.raises(KeyError, match="ovis"):
        category_table("nonsense")


def test_a_fact_may_be_repeated_but_not_changed():
    metadata = Metadata("mine").set(thing_classes=["a", "b"])
    metadata.thing_classes = ["a", "b"]
    with pytest.raises(AssertionError, match=r"'thing_classes'.*'mine'.*cannot become \['a'\]"):
        metadata.thing_classes = ["a"]


def test_a_missing_fact_lists_what_is_there_and_has_a_default():
    metadata = Metadata("mine").set(json_file="x.json")
    with pytest.raises(AttributeError, match=r"no 'image_root'.*json_file"):
        _ = metadata.image_root
    assert metadata.get("image_root") is None and metadata.get("json_file", "y") == "x.json"


def test_metadata_is_one_object_per_name():
    assert MetadataCatalog.get("something_new") is MetadataCatalog.get("something_new")
    MetadataCatalog.remove("something_new")
    assert "something_new" not in MetadataCatalog.list()


def test_a_name_is_registered_once_and_read_every_time():
    calls = []
    DatasetCatalog.register("counted", lambda: calls.append(1) or [])
    try:
        assert DatasetCatalog.get("counted") == [] and DatasetCatalog.get("counted") == []
        assert len(calls) == 2
        with pytest.raises(ValueError, match="registered already"):
            DatasetCatalog.register("counted", list)
    finally:
        DatasetCatalog.remove("counted")


def test_an_unknown_data_set_suggests_names():
    with pytest.raises(KeyError, match="ytvis_2019_val"):
        DatasetCatalog.get("ytvis_2019_vall")
