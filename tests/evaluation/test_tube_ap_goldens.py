"""Tube AP against arrays recorded from the published evaluators; every number must be equal to 1e-12."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
from helpers import GOLDEN

from lbvq.evaluation.annotations import GroundTruth, read_predictions
from lbvq.evaluation.overlap import TubeRuns, tube_iou
from lbvq.evaluation.tube_ap import TubeAP
from lbvq.evaluation.tube_ap_settings import OCCLUSION_RANGES, TubeApSettings

SETTINGS = {
    "youtubevos": TubeApSettings(),
    "ovis": TubeApSettings(occlusion_ranges=OCCLUSION_RANGES),
    "hq_boundary": TubeApSettings(boundary_ratio=0.02),
    "lvvis": TubeApSettings(crowd_is_ignored=False),
}


@pytest.fixture(scope="module")
def case():
    return json.loads(gzip.decompress((GOLDEN / "vis_eval_case.json.gz").read_bytes()))


@pytest.fixture(scope="module")
def summaries():
    return json.loads((GOLDEN / "vis_eval_summaries.json").read_text())


@pytest.mark.parametrize("name", SETTINGS)
def test_arrays_and_summaries_equal_the_recorded_ones(name, case, summaries):
    """Published numbers, among them a recall above 1 in LV-VIS, which counts crowd tracks any number of times."""
    result = TubeAP(case["gt"], SETTINGS[name]).update(case["dt"]).compute()
    recorded = np.load(GOLDEN / f"vis_eval_{name}.npz")
    for array in ("precision", "recall", "scores"):
        assert getattr(result, array).shape == recorded[array].shape
        np.testing.assert_allclose(getattr(result, array), recorded[array], rtol=0, atol=1e-12)
    np.testing.assert_allclose(result.stats, summaries[name]["stats"], rtol=0, atol=1e-12)
    per_category = [np.nan if value is None else 100 * value for value in summaries[name]["per_category_AP"]]
    np.testing.assert_allclose(list(result.per_category().values()), per_category, rtol=0, atol=1e-10)


def test_hq_mask_ap_is_the_youtube_vis_ap_when_there_are_no_refined_masks(case, summaries):
    ground_truth = GroundTruth(case["gt"], segmentations_key="segmentations_refined")
    stats = TubeAP(ground_truth).update(case["dt"]).compute().stats
    np.testing.assert_allclose(stats, summaries["hq_segm"]["stats"], rtol=0, atol=1e-12)


def test_summary_names_are_the_published_ones_in_the_published_order(case):
    names = " ".join(TubeAP(case["gt"], SETTINGS["ovis"]).compute().summary())
    precisions = "AP AP50 AP75 APs APm APl AP_light AP_medium AP_heavy"
    assert names == f"{precisions} AR1 AR10 AR100 ARs ARm ARl AR_light AR_medium AR_heavy"


def test_every_overlap_equals_the_recorded_one(case):
    """All 953 pairs, also those too small to ever be matched."""
    ground_truth = GroundTruth(case["gt"])
    detections = read_predictions(case["dt"], ground_truth)
    recorded = np.load(GOLDEN / "vis_eval_youtubevos.npz")
    place = 0
    for video, category, num_detections, num_tracks in recorded["iou_blocks"].tolist():
        chosen = [each for each in detections if (each.video_id, each.category_id) == (video, category)]
        chosen = sorted(chosen, key=lambda each: -each.score)[:100]
        tracks = [each for each in ground_truth.tracks if (each.video_id, each.category_id) == (video, category)]
        assert (len(chosen), len(tracks)) == (num_detections, num_tracks)
        size = ground_truth.videos[video].size
        tubes = [TubeRuns([each.masks for each in side], size, lambda *place: str(place)) for side in (chosen, tracks)]
        pairs = np.argwhere(np.ones((num_detections, num_tracks)))
        kept, iou = tube_iou(*tubes, pairs)
        assert len(kept) == len(pairs)
        np.testing.assert_array_equal(iou, recorded["iou_values"][place : place + len(iou)])
        place += len(iou)
    assert place == len(recorded["iou_values"]) == 953


def test_without_limit_and_with_crowd_matched_once_it_equals_trackeval(case, summaries):
    """These are the two differences of trackeval's YouTube-VIS metric; it has no other."""
    settings = TubeApSettings(max_detections=(None,), crowd_takes_many=False)
    result = TubeAP(case["gt"], settings).update(case["dt"]).compute()
    recorded = np.load(GOLDEN / "vis_eval_trackeval.npz")  # (K, S, R, A) and (K, S, A)
    np.testing.assert_allclose(
        result.precision[..., 0].transpose(2, 0, 1, 3), recorded["precision"], rtol=0, atol=1e-12
    )
    np.testing.assert_allclose(result.recall[..., 0].transpose(1, 0, 2), recorded["recall"], rtol=0, atol=1e-12)
    average = summaries["trackeval"]["cls_comb_cls_av"]
    for name, area in {"all": "all", "area_s": "small", "area_m": "medium", "area_l": "large"}.items():
        assert result.average("AP", area=area) == pytest.approx(np.mean(average[f"AP_{name}"]), abs=1e-12)
        assert result.average("AR", area=area) == pytest.approx(np.mean(average[f"AR_{name}"]), abs=1e-12)
