"""Samples of single images, and copy-paste of pseudo clips."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from data_cases import small_cfg, square
from PIL import Image

from lbvq.data.build import build_test_loader, build_train_loader
from lbvq.data.catalog import DatasetCatalog, MetadataCatalog
from lbvq.data.copy_paste import paste_objects
from lbvq.data.image_mapper import ImageMapper, ImageTestMapper
from lbvq.data.objects import make_instances
from lbvq.data.pseudo_mapper import PseudoClipMapper


@pytest.fixture
def record(tmp_path):
    pixels = np.random.RandomState(0).randint(0, 256, (40, 60, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "0.png")
    objects = [
        {"iscrowd": 0, "bbox": [1, 1, 20, 20], "bbox_mode": 1, "category_id": 2, "segmentation": square(20)},
        {"iscrowd": 1, "bbox": [1, 1, 20, 20], "bbox_mode": 1, "category_id": 1, "segmentation": square(20)},
        {"iscrowd": 0, "category_id": 0, "segmentation": square(10)},
    ]
    return {"file_name": str(tmp_path / "0.png"), "height": 40, "width": 60, "image_id": 5, "annotations": objects}


def lsj_cfg():
    cfg = small_cfg("INPUT.DATASET_MAPPER_NAME", "coco_instance_lsj", "INPUT.IMAGE_SIZE", 64)
    cfg.MODEL.META_ARCHITECTURE = "MaskFormer"
    return cfg


def test_large_scale_jitter_gives_squares_and_keeps_visible_objects_only(record):
    mapper = ImageMapper.from_config(lsj_cfg())
    np.random.seed(0)
    kept = set()
    for _ in range(30):
        sample = mapper(record)
        objects = sample["instances"]
        assert tuple(sample["image"].shape) == (3, 64, 64) and objects.image_size == (64, 64)
        assert sorted(objects.get_fields()) == ["gt_boxes", "gt_classes", "gt_masks"]
        assert objects.gt_masks.nonempty().all() and set(objects.gt_classes.tolist()) <= {0, 2}
        kept.add(len(objects))
    assert kept == {0, 1, 2} or kept == {1, 2} or kept == {0, 2}
    assert sample["image_id"] == 5 and "annotations" not in sample


def test_filling_is_grey_and_belongs_to_no_object(record):
    cfg = lsj_cfg()
    cfg.INPUT.MIN_SCALE = cfg.INPUT.MAX_SCALE = 0.5
    sample = ImageMapper.from_config(cfg)(record)  # 21 x 32 pixels and filling
    assert (sample["image"][:, 40:, :] == 128).all() and not sample["instances"].gt_masks.tensor[:, 40:].any()


def test_a_test_image_is_resized_and_keeps_its_original_size(record):
    sample = ImageTestMapper.from_config(small_cfg())(record)
    assert tuple(sample["image"].shape) == (3, 48, 72) and (sample["height"], sample["width"]) == (40, 60)
    assert "instances" not in sample and "annotations" not in sample


def test_image_models_get_images_from_the_loaders(record):
    DatasetCatalog.register("five_images", lambda: [record] * 5)
    MetadataCatalog.get("five_images").set(kind="image", thing_classes=["a", "b", "c"])
    try:
        cfg = lsj_cfg()
        cfg.merge_from_list(["DATASETS.TRAIN", ("five_images",), "SOLVER.IMS_PER_BATCH", 2])
        assert [tuple(sample["image"].shape) for sample in next(iter(build_train_loader(cfg)))] == [(3, 64, 64)] * 2
        assert [batch[0]["image"].dim() for batch in build_test_loader(cfg, "five_images")] == [3] * 5
        cfg.MODEL.META_ARCHITECTURE = "Lbvq"
        assert [len(batch[0]["image"]) for batch in build_test_loader(cfg, "five_images")] == [3] * 5
    finally:
        DatasetCatalog.remove("five_images")
        MetadataCatalog.remove("five_images")


# -- copy-paste


def frame_with_box(value, top, left, bottom, right, track_id=0, size=(20, 30)):
    mask = np.zeros(size, bool)
    mask[top:bottom, left:right] = True
    objects = make_instances(size, [1], [track_id], [np.array([left, top, right, bottom], float)], [mask])
    return np.full((*size, 3), value, np.uint8), objects


def test_pasted_objects_cover_what_is_below():
    below, below_objects = frame_with_box(10, 0, 0, 20, 30)
    above, above_objects = frame_with_box(200, 2, 2, 10, 12)
    np.random.seed(0)
    frame, objects = paste_objects(below, below_objects, above, above_objects)
    assert objects.gt_ids.tolist() == [0, 1] and objects.gt_classes.tolist() == [1, 1]
    lower, upper = objects.gt_masks.tensor
    assert upper.any() and not (lower & upper).any() and (lower | upper).all()
    assert np.array_equal(frame[..., 0] == 200, upper.numpy())
    assert (below == 10).all()  # the original is left alone


def test_what_would_hide_half_of_an_object_is_not_pasted():
    below, below_objects = frame_with_box(10, 8, 12, 12, 16)
    above, above_objects = frame_with_box(200, 0, 0, 20, 30)  # covers the middle wherever it lands
    np.random.seed(1)
    frame, objects = paste_objects(below, below_objects, above, above_objects)
    assert objects.gt_ids.tolist() == [0, -1] and (frame == 10).all()
    assert torch.equal(objects.gt_masks.tensor[0], below_objects.gt_masks.tensor[0])


def test_absent_objects_are_not_pasted():
    below, below_objects = frame_with_box(10, 0, 0, 20, 30)
    above, above_objects = frame_with_box(200, 2, 2, 10, 12, track_id=-1)
    frame, objects = paste_objects(below, below_objects, above, above_objects)
    assert objects.gt_ids.tolist() == [0, -1] and (frame == 10).all()


def test_pasting_from_and_onto_frames_without_objects():
    below, below_objects = frame_with_box(10, 0, 0, 5, 5)
    above = np.full((6, 8, 3), 200, np.uint8)
    nothing = make_instances((6, 8), [], [], [], [])
    assert len(paste_objects(below, below_objects, above, nothing)[1]) == 1
    assert len(paste_objects(above, nothing, below, below_objects)[1]) == 1


def test_pseudo_clips_paste_when_asked(record):
    mapper = PseudoClipMapper.from_config(small_cfg("INPUT.PSEUDO.COPY_PASTE", True))
    assert mapper.needs_partner
    sample = mapper(record, lambda: record)
    assert [len(objects) for objects in sample["instances"]] == [4] * 3
    assert len({tuple(image.shape) for image in sample["image"]}) == 1
