"""Every method can be scored on images, which it sees as videos of one frame; masks of image models are not refined."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import pytest
from golden_fill import fill_
from ovformer_models import CLIP, FRAME, IMAGE, write_features, write_text
from PIL import Image
from video_models import load_cfg, small_cfg

from lbvq.cli import training
from lbvq.cli.training import Trainer
from lbvq.data.coco import register_coco_instances

NUM_CLASSES = 6
CONFIGS = {
    "Lbvq": lambda: small_cfg("lbvq"),
    "Vita": lambda: small_cfg("vita"),
    "Genvis": lambda: small_cfg("genvis"),
    "VideoMaskFormer_frame": lambda: load_cfg("synthetic/minvis_R18_tiny.yaml"),
    "VISAGE": lambda: load_cfg("synthetic/visage_R18_tiny.yaml"),
    "VMT": lambda: load_cfg("synthetic/vmt_R18_tiny.yaml"),
    "matched Lbvq": lambda: small_cfg("lbvq", TEST__MATCH_FRAMES=True),
    "MaskFormer": lambda: small_cfg("lbvq", MODEL__META_ARCHITECTURE="MaskFormer"),
    "OVFormer": lambda: load_cfg(IMAGE),
    "OVFormerVideo": lambda: load_cfg(FRAME),
    "VideoOVFormer": lambda: load_cfg(CLIP),
}


@pytest.fixture
def images(tmp_path: Path) -> str:
    """A registered data set of two images, one object in each."""
    entries = []
    for number in (1, 2):
        picture = np.random.RandomState(number).randint(0, 255, (40, 60, 3), np.uint8)
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
        entries.append({"id": number, "height": 40, "width": 60, "file_name": f"{number}.png"})
    square = [5, 5, 25, 5, 25, 25, 5, 25]
    objects = [
        {"id": n, "image_id": n, "category_id": n, "iscrowd": 0, "segmentation": [square], "bbox": [5, 5, 20, 20]}
        | {"area": 400}
        for n in (1, 2)
    ]
    categories = [{"id": n, "name": f"class {n}"} for n in range(1, NUM_CLASSES + 1)]
    path = tmp_path / "images.json"
    path.write_text(json.dumps({"images": entries, "annotations": objects, "categories": categories}))
    name = f"images_of_{tmp_path.name}"
    register_coco_instances(name, {}, path, tmp_path)
    return name


def configured(method: str, images: str, folder: Path, **changes: Any) -> Any:
    cfg = CONFIGS[method]()
    options = {"DATASETS.TEST": (images,), "OUTPUT_DIR": str(folder / "out"), "DATALOADER.NUM_WORKERS": 0}
    options |= {"MODEL.SEM_SEG_HEAD.NUM_CLASSES": NUM_CLASSES, "INPUT.MIN_SIZE_TEST": 32, **changes}
    if "OVFormer" in method:
        keys = [key for number in (1, 2) for key in (number, f"{folder.name}/{number}.png")]
        options["MODEL.MASK_FORMER.CLIP_TEXT_PATH"] = write_text(folder, "tiny", NUM_CLASSES)
        options["MODEL.MASK_FORMER.CLIP_IMAGE_PATH"] = write_features(folder / "features.pkl", keys)
        options |= {"MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 5, "MODEL.TIMM.BASE_NAME": "resnet18"}
    cfg.merge_from_list([part for pair in options.items() for part in pair])
    return cfg


@pytest.mark.parametrize("method", CONFIGS)
def test_every_method_is_scored_on_an_image_data_set(method, images, tmp_path):
    cfg = configured(method, images, tmp_path)
    results = Trainer.test(cfg, fill_(Trainer.build_model(cfg)).eval())
    assert "AP" in results["segm"]
    entries = json.loads((tmp_path / "out" / "inference" / "results.json").read_text())
    assert {entry["image_id"] for entry in entries} == {1, 2}
    assert all(entry["segmentation"]["size"] == [40, 60] for entry in entries)


class Fill:
    """A refiner that answers every mask with the whole frame."""

    def refine(self, frame: np.ndarray, masks: np.ndarray) -> np.ndarray:
        assert frame.shape == (40, 60, 3)
        return np.ones_like(masks)


def test_the_masks_of_a_video_model_are_refined_on_images(images, tmp_path, monkeypatch):
    cfg = configured("VideoMaskFormer_frame", images, tmp_path)
    monkeypatch.setattr(training, "build_refiner", lambda cfg: Fill())
    Trainer.test(cfg, fill_(Trainer.build_model(cfg)).eval())
    entries = json.loads((tmp_path / "out" / "inference" / "results.json").read_text())
    areas = {int(mask_util.area(entry["segmentation"])) for entry in entries}
    assert areas <= {0, 40 * 60} and 40 * 60 in areas


def test_results_of_an_image_model_are_refused_by_a_refiner(images, tmp_path, monkeypatch):
    cfg = configured("MaskFormer", images, tmp_path)
    monkeypatch.setattr(training, "build_refiner", lambda cfg: Fill())
    model = Trainer.build_model(cfg).eval()
    with pytest.raises(ValueError, match=r"this model are results of single images, and only those of videos"):
        Trainer.test(cfg, model)


def test_refinement_for_an_image_model_is_refused_before_it_is_built(images, tmp_path):
    with pytest.raises(ValueError, match=r"masks of MaskFormer are results of single images"):
        Trainer.build_model(configured("MaskFormer", images, tmp_path, SAM=True))


def test_an_image_model_is_not_tested_on_videos(images, tmp_path):
    cfg = configured("MaskFormer", "ytvis_2019_val", tmp_path)
    with pytest.raises(ValueError, match="MaskFormer segments single images, not videos"):
        Trainer.build_model(cfg)
