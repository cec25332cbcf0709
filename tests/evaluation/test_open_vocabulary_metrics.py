"""LV-VIS, BURST and LVIS against numbers recorded from the published evaluators, and their corrected defaults."""

from __future__ import annotations

import gzip
import json
import math

import pytest
from helpers import GOLDEN

from lbvq.data.categories import category_table
from lbvq.evaluation.burst import score_burst
from lbvq.evaluation.lvis import LvisScorer
from lbvq.evaluation.tables import format_results
from lbvq.evaluation.video_metrics import VideoScorer
from lbvq.masks.rle import to_rle

GROUPS = {"all": "", "base": "b", "novel": "n", "common": "c", "uncommon": "u"}
TOLERANCE = 1e-12


def load(name):
    return json.loads(gzip.decompress((GOLDEN / "eval" / f"{name}.json.gz").read_bytes()))


def path(name):
    return GOLDEN / "eval" / f"{name}.json.gz"


def assert_equals(table, recorded):
    """Compare {line: {group: value}} of the published evaluators; -1 there is nan here."""
    for line, row in recorded.items():
        if line == "per_category_AP":
            continue
        for group, value in row.items():
            ours = table[line + GROUPS[group]] / 100
            assert math.isnan(ours) if value == -1 else ours == pytest.approx(value, abs=TOLERANCE), (line, group)


@pytest.mark.parametrize(
    "metric, reference, golden, key",
    [
        ("lvvis", True, "lvvis_eval", "lvviseval"),
        ("lvvis", False, "lvvis_eval", "ytvoseval"),
        ("burst", True, "burst_eval", "bursteval"),
        ("burst", False, "burst_eval", "corrected"),
    ],
)
def test_open_vocabulary_tables_equal_the_recorded_ones(metric, reference, golden, key):
    """With `reference` the published numbers; without it those of the corrected evaluator, which were recorded too."""
    files = ("lvvis_eval_gt", "lvvis_eval_results") if metric == "lvvis" else ("burst_b2y_val", "burst_results")
    scores = VideoScorer(metric, path(files[0]), reference=reference).update(path(files[1])).compute()
    recorded = load(golden)[key]
    assert_equals(scores.tables["segm"], recorded)
    for ours, value in zip(
        scores.results["segm"].per_category().values(), recorded["per_category_AP"].values(), strict=True
    ):
        assert math.isnan(ours) if value == -1 else ours == pytest.approx(100 * value, abs=1e-10)


def test_groups_of_categories_are_the_published_ones():
    lvvis, burst = load("lvvis_eval"), load("burst_eval")["groups"]
    assert VideoScorer("lvvis", path("lvvis_eval_gt")).groups == {"b": lvvis["base_ids"], "n": lvvis["novel_ids"]}
    assert VideoScorer("burst", path("burst_b2y_val")).groups == {GROUPS[name]: ids for name, ids in burst.items()}


@pytest.mark.parametrize(
    "year, table, novel",
    [("2019", "ytvis_2019", [6, 7, 9, 11, 23, 24, 39]), ("2021", "ytvis_2021", [11, 14, 15, 20, 30, 39])],
)
def test_youtube_vis_is_split_into_base_and_novel_by_its_category_names(year, table, novel):
    categories = [{"id": each["id"], "name": each["name"]} for each in category_table(table)["categories"]]
    ground_truth = {"videos": [], "categories": categories, "annotations": []}
    scorer = VideoScorer("ytvis", ground_truth, base_novel=True)
    assert scorer.groups["n"] == novel
    assert sorted(scorer.groups["b"] + novel) == list(range(1, 41))
    assert {"APb", "APn", "AP"} <= set(scorer.compute().tables["segm"])
    assert "APb" not in VideoScorer("ytvis", ground_truth).compute().tables["segm"]


@pytest.mark.parametrize("metric", ["lvvis", "burst"])
def test_files_that_do_not_say_what_is_novel_are_split_by_the_category_table(metric):
    table = category_table(metric)
    categories = [{"id": each["id"], "name": each["name"]} for each in table["categories"]]
    scorer = VideoScorer(metric, {"videos": [], "categories": categories, "annotations": []})
    assert scorer.groups["n"] == sorted(table["novel_ids"])


def test_classes_that_are_not_in_the_data_are_not_printed():
    text = format_results({"segm": {"AP": 12.5, "AP-cat": 12.5, "AP-yeti": math.nan}})
    assert "cat" in text and "yeti" not in text and "1 of 2 categories" in text


def test_base_and_novel_of_unknown_categories_is_refused():
    with pytest.raises(ValueError, match="no base and novel categories known"):
        VideoScorer("ytvis", {"videos": [], "categories": [{"id": 1, "name": "x"}], "annotations": []}, base_novel=True)


def test_lvis_equals_the_recorded_numbers():
    """Federated: categories neither present nor listed as absent do not count; at most 300 detections per image."""
    table = LvisScorer(path("lvis_eval_gt")).update(path("lvis_eval_results")).compute()
    recorded = load("lvis_eval")
    for name, value in recorded["results"].items():
        assert table[name] == pytest.approx(100 * value, abs=1e-10), name
    for category, value in recorded["per_category_AP"].items():
        ours = table[f"AP-cat{category}"]
        assert math.isnan(ours) if value == -1 else ours == pytest.approx(100 * value, abs=1e-10)


def test_lvis_keeps_the_best_300_detections_of_an_image():
    image = {"id": 1, "height": 4, "width": 4, "neg_category_ids": [1, 2], "not_exhaustive_category_ids": []}
    mask = {"size": [4, 4], "counts": [0, 16]}
    truth = {
        "images": [image],
        "categories": [{"id": 1, "name": "a", "frequency": "f"}, {"id": 2, "name": "b", "frequency": "r"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": mask, "area": 16}],
    }
    right = {"image_id": 1, "category_id": 1, "score": 0.1, "segmentation": mask}
    others = [{**right, "category_id": 2, "score": 0.9} for _ in range(300)]
    assert LvisScorer(truth).update([*others[1:], right]).compute()["AP"] == pytest.approx(100)
    assert LvisScorer(truth).update([*others, right]).compute()["AP"] == 0


@pytest.fixture(scope="module")
def burst_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("burst")
    for name in ("all_classes", "common_classes", "uncommon_classes", "predictions_burst", "predictions_exemplar"):
        (folder / f"{name}.json").write_text(json.dumps(load(f"burst_{name}")))
    return folder


@pytest.mark.parametrize("task", ["class_guided", "exemplar_guided", "open_world"])
def test_official_burst_numbers_equal_the_recorded_ones(task, burst_folder):
    """HOTA, DetA, AssA and AP (OWTA in the open world) of the benchmark's own code, which compares boxes in HOTA."""
    name = "predictions_exemplar" if task == "exemplar_guided" else "predictions_burst"
    ours = score_burst(burst_folder, burst_folder / f"{name}.json", task, reference=True)
    recorded = load("burst_eval_official")[task]
    per_class = recorded.pop("per_class", {})
    for metric, row in recorded.items():
        assert ours[metric] == pytest.approx(row, abs=1e-10), metric
    for category, row in per_class.items():
        for metric in () if category.startswith("cls_comb") else ("HOTA", "DetA", "AssA", "AP"):
            expected = 100 * row["AP_all" if metric == "AP" else metric]
            assert ours["per_class"][category][metric] == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("reference", [False, True])
def test_burst_scores_a_results_file_like_the_same_predictions_in_its_own_format(reference, burst_folder):
    own = score_burst(burst_folder, burst_folder / "predictions_burst.json", reference=reference)
    assert score_burst(burst_folder, path("burst_results"), reference=reference) == own


def score_one_frame(folder, truth, prediction, reference=False):
    """Official BURST scores of one 3 x 3 frame with one airplane, given as run lengths."""
    files = []
    for name, runs in (("all_classes", truth), ("predictions", prediction)):
        rle = to_rle({"size": [3, 3], "counts": runs}, 3, 3)["counts"]
        sequence = {
            "id": 1,
            "seq_name": "s",
            "dataset": "d",
            "width": 3,
            "height": 3,
            "annotated_image_paths": ["0.jpg"],
        }
        sequence |= {"track_category_ids": {"1": 4}, "segmentations": [{"1": {"rle": rle}}]}
        files.append(folder / f"{name}.json")
        files[-1].write_text(json.dumps({"sequences": [sequence], "categories": [{"id": 4, "name": "airplane"}]}))
    return score_burst(*files, reference=reference)


def test_burst_compares_masks_unless_asked_for_the_published_boxes(tmp_path):
    """An L against its mirror image: the same box, but only 3 of 7 pixels in common, enough for 8 of 19 thresholds."""
    letter, mirrored = [0, 3, 2, 1, 2, 1], [2, 1, 2, 4]
    assert score_one_frame(tmp_path, letter, mirrored, reference=True)["DetA"]["all"] == pytest.approx(100)
    assert score_one_frame(tmp_path, letter, mirrored)["DetA"]["all"] == pytest.approx(100 * 8 / 19)


def test_perfect_burst_predictions_score_100_and_groups_without_a_class_are_nan(tmp_path):
    table = score_one_frame(tmp_path, [0, 9], [0, 9])
    for metric in ("HOTA", "DetA", "AssA", "AP"):
        assert table[metric]["all"] == table[metric]["common"] == pytest.approx(100)
        assert math.isnan(table[metric]["uncommon"])


def test_a_burst_prediction_on_an_unknown_sequence_is_refused_by_name(burst_folder, tmp_path):
    predictions = load("burst_predictions_burst")
    predictions["sequences"][0]["seq_name"] = "elsewhere"
    (tmp_path / "p.json").write_text(json.dumps(predictions))
    with pytest.raises(ValueError, match=r"p\.json: sequence LaSOT/elsewhere: the ground truth has no such sequence"):
        score_burst(burst_folder, tmp_path / "p.json")


def test_a_broken_burst_mask_is_refused_by_sequence_frame_and_track(burst_folder, tmp_path):
    predictions = load("burst_predictions_burst")
    predictions["sequences"][0]["segmentations"][1]["2"]["rle"] = "!"
    (tmp_path / "p.json").write_text(json.dumps(predictions))
    with pytest.raises(ValueError, match=r"sequence LaSOT/seq00, frame frame000030\.jpg, track 2: .*'!'"):
        score_burst(burst_folder, tmp_path / "p.json")
