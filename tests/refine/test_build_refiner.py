"""From configuration to refiner."""

from __future__ import annotations

import pytest

from lbvq.config import get_cfg
from lbvq.refine import build_refiner, refiner_name


def cfg_with(*options):
    cfg = get_cfg()
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", *options])
    return cfg


def test_refinement_is_off_by_default():
    assert build_refiner(cfg_with()) is None


def test_the_published_flag_alone_means_hq_sam_vit_h_at_iou_0_9():
    cfg = cfg_with("SAM", "True")
    assert refiner_name(cfg) == "hq_sam"
    assert (cfg.REFINE.MODEL_TYPE, cfg.REFINE.IOU_THRESHOLD, cfg.REFINE.PROMPT) == ("vit_h", 0.9, "box")
    assert (cfg.REFINE.CONNECTIVITY, cfg.REFINE.MIN_AREA) == (4, 0)


def test_a_name_wins_over_the_published_flag():
    assert refiner_name(cfg_with("SAM", "True", "REFINE.NAME", "sam2")) == "sam2"


def test_the_published_file_name_is_looked_for_in_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"'sam_hq_vit_tiny\.pth'.*curl"):
        build_refiner(cfg_with("SAM", "True", "REFINE.MODEL_TYPE", "vit_tiny"))


def test_an_unknown_refiner_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"sam, hq_sam, sam2, sam2_video; set REFINE\.NAME"):
        build_refiner(cfg_with("REFINE.NAME", "sam9"))
