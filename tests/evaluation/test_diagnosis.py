"""Where AP is lost: constructed cases whose numbers are known, and what must hold for any predictions."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from helpers import run_tool
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_tube_ap import as_files, random_case

from lbvq.evaluation.annotations import GroundTruth
from lbvq.evaluation.diagnosis import joining
from lbvq.evaluation.diagnosis.diagnosis import Diagnosis
from lbvq.evaluation.diagnosis.frames import FramePixels
from lbvq.evaluation.diagnosis.kinds import KINDS, MISSED
from lbvq.evaluation.diagnosis.mending import error_costs, mended_precision
from lbvq.evaluation.diagnosis.outcomes import mean_precision
from lbvq.evaluation.tube_ap import TubeAP
from lbvq.evaluation.tube_ap_settings import TubeApSettings
from lbvq.files.mask_file import MaskFile
from lbvq.masks import rle

seeds = st.integers(0, 2**31 - 1)
HALF = (51 + 0 * 50) / 101 * 100  # recall 0.5 at precision 1: 51 of 101 recall thresholds are reached


def box(x, y=0, width=4, height=4):
    mask = np.zeros((12, 40), bool)
    mask[y : y + height, x : x + width] = True
    return mask


def diagnose(tracks, detections, categories=(1, 2), **changes):
    """Tracks (category, masks) and detections (category, score, masks) of one video -> diagnosis."""
    case = {"videos": {7: (12, 40, len(tracks[0][1]) if tracks else 1)}, "categories": list(categories)}
    case["tracks"] = [{"video": 7, "category": c, "masks": masks, "crowd": False} for c, masks in tracks]
    case["detections"] = [{"video": 7, "category": c, "score": s, "masks": masks} for c, s, masks in detections]
    truth, results = as_files(case, rle.encode)
    return Diagnosis(GroundTruth(truth), MaskFile.of(results, "predictions"), TubeApSettings(**changes))


def costs(diagnosis):
    """Kinds that occur -> number of errors at IoU 0.5 and cost."""
    return {name: (row["count"], row["cost"]) for name, row in diagnosis.kinds().items() if row["mean_count"]}


LEFT, RIGHT = [box(0)] * 6, [box(20)] * 6


def test_perfect_predictions_lose_nothing():
    diagnosis = diagnose([(1, LEFT), (2, RIGHT)], [(1, 0.9, LEFT), (2, 0.8, RIGHT)])
    content = diagnosis.to_dict()
    assert content["AP"] == pytest.approx(100)
    assert set(np.round(list(content["oracles"].values()), 9)) == {100}
    assert content["errors"] == [] and costs(diagnosis) == {}


def test_wrong_classes_cost_all_and_only_right_classes_bring_it_back():
    diagnosis = diagnose([(1, LEFT), (2, RIGHT)], [(2, 0.9, LEFT), (1, 0.8, RIGHT)])
    oracles = diagnosis.oracles()
    assert oracles.pop("classes") == pytest.approx(100)
    assert set(oracles.values()) == {0}
    assert costs(diagnosis) == {"class": (2, pytest.approx(100))}
    first = diagnosis.list_errors()[0]
    assert first["kind"] == "class" and first["cost"] == pytest.approx(50) and len(first["thresholds"]) == 10
    assert {first["class"], first["annotation_class"]} == {"class 1", "class 2"}


def test_identities_that_switch_are_mended_by_joining():
    swapped = [(1, 0.9, LEFT[:3] + RIGHT[3:]), (1, 0.8, RIGHT[:3] + LEFT[3:])]
    diagnosis = diagnose([(1, LEFT), (1, RIGHT)], swapped)
    oracles = diagnosis.oracles()
    assert diagnosis.to_dict()["AP"] == 0 and oracles["identities"] == pytest.approx(100)
    assert costs(diagnosis)["switch"] == (2, pytest.approx(HALF))  # both are meant for one of the two tracks
    assert oracles["classes"] == oracles["duplicates_background"] == 0
    joined = diagnosis.to_dict()["identities"]
    assert joined["exact"] and [each["predictions"] for each in joined["joined"]] == [[0, 1], [0, 1]]
    assert joined["joined"][0]["iou"] == 1 and joined["joined"][0]["iou_before"] == pytest.approx(1 / 3)


def test_fragments_are_joined_to_one_track():
    parts = [[LEFT[t] if t // 2 == part else None for t in range(6)] for part in range(3)]
    diagnosis = diagnose([(1, LEFT)], [(1, 0.9 - part / 10, masks) for part, masks in enumerate(parts)])
    assert diagnosis.to_dict()["AP"] == 0
    assert diagnosis.oracles()["identities"] == diagnosis.oracles()["masks"] == pytest.approx(100)
    assert costs(diagnosis) == {"fragment": (3, pytest.approx(100))}


def test_a_track_that_was_split_wrongly_gets_two_scores():
    """One prediction covers an object and then another: joining makes two tracks of it."""
    diagnosis = diagnose(
        [(1, [box(0)] * 3 + [None] * 3), (1, [None] * 3 + [box(20)] * 3)], [(1, 0.9, LEFT[:3] + RIGHT[3:])]
    )
    assert diagnosis.to_dict()["AP"] == pytest.approx(HALF / 10)  # its overlap with either is 0.5
    assert diagnosis.oracles()["identities"] == pytest.approx(100)


def test_a_track_that_drifts_away_from_its_object_has_switched_to_nothing():
    diagnosis = diagnose([(1, LEFT)], [(1, 0.9, LEFT[:3] + RIGHT[3:])])
    assert costs(diagnosis) == {"localisation": (1, pytest.approx(100))}


def test_a_mask_that_is_pushed_out_goes_where_the_other_one_came_from():
    """In the last frame two tracks have changed places; a mask left at score 0.9 would come before the other object."""
    nowhere = [box(30)] * 6
    found = [(1, 0.9, LEFT[:5] + nowhere[5:]), (1, 0.3, nowhere[:5] + LEFT[5:]), (1, 0.5, RIGHT)]
    diagnosis = diagnose([(1, LEFT), (1, RIGHT)], found)
    assert diagnosis.to_dict()["AP"] < 90 and diagnosis.oracles()["identities"] == pytest.approx(100)


def test_masks_that_are_too_small_cost_what_right_masks_bring():
    diagnosis = diagnose([(1, LEFT)], [(1, 0.9, [box(0, height=2, width=3)] * 6)])  # 6 of 16 pixels
    oracles = diagnosis.oracles()
    assert oracles.pop("masks") == pytest.approx(100) and set(oracles.values()) == {0}
    assert costs(diagnosis) == {"localisation": (1, pytest.approx(100))}


def test_wrong_class_and_mask_is_an_error_of_its_own_kind_and_the_track_is_missed():
    diagnosis = diagnose([(1, LEFT), (2, RIGHT)], [(2, 0.9, [box(0, height=2)] * 6), (2, 0.8, RIGHT)])
    found = costs(diagnosis)
    assert found["both"] == (0, pytest.approx(100 * 0.5 * 0.5 * 0.9))  # IoU 0.5: at 0.5 alone the class was the error
    assert found["class"] == (1, pytest.approx((100 - 25) / 10))
    assert found["missed"] == (0, pytest.approx(50 * 0.9))


def test_missed_objects_leave_the_number_of_tracks():
    diagnosis = diagnose([(1, LEFT), (1, RIGHT)], [(1, 0.9, LEFT)])
    assert diagnosis.to_dict()["AP"] == pytest.approx(HALF)
    assert diagnosis.oracles()["missed"] == pytest.approx(100)
    error = diagnosis.list_errors()[0]
    assert (error["kind"], error["video_id"], error["prediction"], error["annotation"]) == ("missed", 7, None, 2)
    assert error["cost"] == pytest.approx(100 - HALF)


def test_without_predictions_all_is_missed():
    diagnosis = diagnose([(1, LEFT), (2, RIGHT)], [])
    assert diagnosis.to_dict()["AP"] == 0 and diagnosis.oracles()["missed"] == 100
    assert diagnosis.oracles()["identities"] == 0


def test_without_tracks_there_is_nothing_to_lose():
    diagnosis = diagnose([], [(1, 0.9, [box(0)])])
    content = diagnosis.to_dict()
    assert np.isnan(content["AP"]) and np.isnan(list(content["oracles"].values())).all()
    assert "no track" in diagnosis.summary()


def test_duplicates_and_background_cost_precision():
    tracks = [(1, LEFT), (1, RIGHT)]
    found = [(1, 0.9, LEFT), (1, 0.8, LEFT), (1, 0.7, [box(30)] * 6), (1, 0.6, RIGHT)]
    diagnosis = diagnose(tracks, found)
    oracles = diagnosis.oracles()
    assert diagnosis.to_dict()["AP"] == pytest.approx(HALF + 50 * 2 / 4 / 101 * 100)
    assert oracles["duplicates"] == oracles["background"] == pytest.approx(HALF + 50 * 2 / 3 / 101 * 100)
    assert oracles["duplicates_background"] == pytest.approx(100)
    assert oracles["identities"] == pytest.approx(diagnosis.to_dict()["AP"])  # a whole duplicate stays one
    errors = {each["kind"]: each for each in diagnosis.list_errors()}
    assert errors["duplicate"]["prediction"] == 1 and errors["duplicate"]["annotation"] == 1
    assert errors["background"]["annotation"] is None


def random_diagnosis(seed, **changes):
    truth, results = as_files(random_case(seed, num_videos=4), rle.encode)
    own = TubeApSettings(**changes)
    ap = TubeAP(truth, own).update(results).compute().average()
    return Diagnosis(GroundTruth(truth), MaskFile.of(results, "predictions"), own), ap


@given(
    seeds, st.sampled_from([{}, {"max_detections": (1, 2, 3)}, {"use_categories": False}, {"crowd_is_ignored": False}])
)
@settings(max_examples=40, deadline=None)
def test_no_oracle_is_below_ap_and_all_together_are_perfect(seed, changes):
    diagnosis, ap = random_diagnosis(seed, **changes)
    base = diagnosis.precision["AP"]
    assert mean_precision(base) == ap
    for name, precision in diagnosis.precision.items():
        assert (precision.mean(1) >= base.mean(1) - 1e-12).all(), name  # of every class, at every threshold
    if ap >= 0:
        assert min(diagnosis.oracles().values()) >= 100 * ap
        everything = mended_precision(diagnosis.judged, diagnosis.errors, range(len(KINDS)), base)
        assert mean_precision(everything) == pytest.approx(1)


@given(seeds)
@settings(max_examples=10, deadline=None)
def test_the_cost_of_one_error_is_what_mending_it_alone_brings(seed):
    diagnosis, ap = random_diagnosis(seed)
    judged, errors, base = diagnosis.judged, diagnosis.errors, diagnosis.precision["AP"]
    single, missed = error_costs(judged, errors)
    for table, cost in ((errors.kind, single), (errors.missed, missed)):
        for place in np.argwhere(table >= 0 if table is errors.kind else table)[:40].tolist():
            none = replace(errors, kind=np.full_like(errors.kind, -1), missed=np.zeros_like(errors.missed))
            own = none.kind if table is errors.kind else none.missed
            own[tuple(place)] = table[tuple(place)]
            alone = mean_precision(mended_precision(judged, none, range(len(KINDS)), base))
            assert cost[tuple(place)] == pytest.approx(alone - ap, abs=1e-12)
    listed = sum(each["cost"] for each in diagnosis.list_errors())
    assert listed == pytest.approx(100 * (single.sum() + missed.sum()))
    assert sum(each["cost"] for each in diagnosis.per_video(diagnosis.list_errors())) == pytest.approx(listed)
    assert MISSED not in errors.kind


# ---- joining


def crowded_group(seed, frames=3):
    """Random masks of one row of pixels that several tracks want -> pixels, judged as if all tracks count."""
    rng = np.random.RandomState(seed)
    tracks, masks = (rng.rand(count, frames, 8) < 0.5 for count in (2, 3))
    shared = np.einsum("dtp,gtp->dgt", masks.astype(int), tracks.astype(int))
    return FramePixels(1, 0, np.arange(3), np.arange(2), masks.sum(2), tracks.sum(2), shared)


def num_reached(part, choice, thresholds):
    total = 0
    for g, masks in enumerate(choice):
        frame = np.flatnonzero(masks >= 0)
        inside = part.shared[masks[frame], g, frame].sum()
        union = part.wanted[g].sum() + part.found[masks[frame], frame].sum() - inside
        total += np.count_nonzero(inside >= thresholds * union) if inside else 0
    return total


@pytest.mark.parametrize("seed", range(12))
def test_tracks_that_want_the_same_masks_are_joined_as_well_as_any_trial_finds(seed):
    part, thresholds = crowded_group(seed), np.linspace(0.3, 0.9, 7)
    judged = diagnose([(1, LEFT), (1, RIGHT)], []).judged
    choice, exact = joining._Group(part, np.arange(3), judged).assign(thresholds)
    assert exact
    for t in range(3):
        used = choice[:, t][choice[:, t] >= 0]
        assert len(used) == len(set(used))
    per_frame = [pair for pair in product(range(-1, 3), repeat=2) if pair[0] != pair[1] or pair[0] < 0]
    trials = (np.array(each).T for each in product(per_frame, repeat=3))
    assert num_reached(part, choice, thresholds) == max(num_reached(part, each, thresholds) for each in trials)


def test_a_joining_that_is_too_large_for_a_program_is_told(monkeypatch):
    monkeypatch.setattr(joining, "MAX_CHOICES", 0)
    judged = diagnose([(1, LEFT), (1, RIGHT)], []).judged
    group = joining._Group(crowded_group(0), np.arange(3), judged)
    choice, exact = group.assign(np.linspace(0.3, 0.9, 7))
    assert not exact
    assert all(len(set(own)) == len(own) for own in (each[each >= 0].tolist() for each in choice.T))


# ---- the command


def test_eval_json_prints_where_ap_is_lost_and_writes_every_error(tmp_path, capsys):
    truth, results = as_files(random_case(3, num_videos=4), rle.encode)
    for name, content in (("gt", truth), ("dt", results)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    options = ("--metric", "ytvis", "--analysis", tmp_path / "analysis.json", "--json", tmp_path / "scores.json")
    assert run_tool("eval_json", tmp_path / "dt.json", "--gt", tmp_path / "gt.json", *options) == 0
    written = json.loads((tmp_path / "analysis.json").read_text())
    assert written["interval"][0] <= written["AP"] <= written["interval"][1]
    assert written["AP"] == pytest.approx(json.loads((tmp_path / "scores.json").read_text())["segm"]["AP"])
    assert f"Where AP is lost ({written['AP']:.3f};" in capsys.readouterr().out
