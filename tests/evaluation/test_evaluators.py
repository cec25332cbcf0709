"""Evaluators: what they write, what they compute, alone and with several processes."""

from __future__ import annotations

import itertools
import json
import logging
import re
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.multiprocessing
from helpers import GOLDEN

from lbvq.config import get_cfg
from lbvq.data.builtin import MetadataCatalog, rows
from lbvq.data.coco import register_coco_instances
from lbvq.data.ytvis import register_ytvis_instances
from lbvq.evaluation import DatasetEvaluator, DatasetEvaluators, VideoInstanceEvaluator, build_evaluator
from lbvq.evaluation.image_evaluator import ImageInstanceEvaluator
from lbvq.evaluation.result_files import ResultParts
from lbvq.files.writing import remove_leftovers
from lbvq.masks import rle
from lbvq.masks.tubes import MaskTubes
from mask2former.structures import Boxes, Instances

CATEGORIES = [{"id": 7, "name": "seven"}, {"id": 1, "name": "one"}, {"id": 3, "name": "three"}]
numbers = itertools.count()


def squares(seed=0, num_objects=3, num_frames=4, size=(20, 30)):
    """(N, T, H, W) bool masks of moving rectangles."""
    rng = np.random.RandomState(seed)
    masks = torch.zeros(num_objects, num_frames, *size, dtype=torch.bool)
    for n in range(num_objects):
        y, x = rng.randint(0, 8), rng.randint(0, 12)
        for t in range(num_frames):
            masks[n, t, y : y + 6 + n, x + t : x + t + 9] = True
    return masks


def annotations_of(masks, labels, video_id, first_id=1):
    tubes = MaskTubes.from_dense(masks)
    areas = tubes.areas().tolist()
    return [
        {
            "id": first_id + n,
            "video_id": video_id,
            "category_id": sorted(each["id"] for each in CATEGORIES)[label],
            "iscrowd": 0,
            "segmentations": tubes.rles(n),
            "areas": areas[n],
            "occlusion": ["no_occlusion"] * masks.shape[1],
        }
        for n, label in enumerate(labels)
    ]


def register(folder, annotations, size=(20, 30), num_frames=4, **facts):
    """Register videos 2, 5, 9 under a new name."""
    videos = [
        {"id": each, "height": size[0], "width": size[1], "length": num_frames, "file_names": ["0.jpg"] * num_frames}
        for each in (5, 2, 9)
    ]
    name = f"evaluated_{next(numbers)}"
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"videos": videos, "categories": CATEGORIES, "annotations": annotations}))
    ids = sorted(each["id"] for each in CATEGORIES)
    mapping = {each: index for index, each in enumerate(ids)}
    register_ytvis_instances(name, {"thing_dataset_id_to_contiguous_id": mapping, **facts}, path, folder)
    return name


def output(masks, scores, labels):
    return {"image_size": masks.shape[2:], "pred_scores": scores, "pred_labels": labels, "pred_masks": masks}


def run(evaluator, predictions):
    evaluator.reset()
    for video_id, prediction in predictions.items():
        evaluator.process([{"video_id": video_id}], prediction)
    return evaluator.evaluate()


def test_results_file_equals_the_recorded_one(tmp_path):
    """Entries in the order of the model, category ids of the data set, a mask for every frame, empty or not."""
    golden = json.loads((GOLDEN / "vis_data.json").read_text())
    packed = np.load(GOLDEN / "vis_data.npz")["eval/masks"]
    masks = torch.from_numpy(np.unpackbits(packed)[: 3 * 6 * 60 * 90].reshape(3, 6, 60, 90)).bool()
    name = register(tmp_path, None, size=(60, 90), num_frames=6)
    predictions = {5: output(masks, [0.9, 0.25, 0.125], [2, 0, 1]), 2: output(masks[:0], [], [])}
    assert run(VideoInstanceEvaluator(name, tmp_path / "out"), predictions) == golden["eval_returned"] == {}
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == golden["results_json"]
    assert sorted(each.name for each in (tmp_path / "out").iterdir()) == ["results.json", "results.zip"]
    with zipfile.ZipFile(tmp_path / "out" / "results.zip") as archive:
        assert archive.namelist() == ["results.json"]
        assert json.loads(archive.read("results.json")) == golden["results_json"]


@pytest.mark.parametrize("metric", ["ytvis", "hq_ytvis"])
def test_what_the_score_lacks_is_told_beside_it(metric, tmp_path, caplog):
    masks = squares()
    name = register(tmp_path, annotations_of(masks, [0, 1, 1], 5), evaluator_type=metric)
    cfg = get_cfg()
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = len(CATEGORIES)
    evaluator = build_evaluator(cfg, name, tmp_path / "out", analysis=cfg.TEST.ANALYSIS)
    with caplog.at_level("INFO"):
        results = run(evaluator, {5: output(masks, [0.9, 0.8, 0.7], [1, 0, 0])})
    written = json.loads((tmp_path / "out" / "analysis.json").read_text())
    assert written["AP"] == pytest.approx(results["segm"]["AP"]) and written["AP"] < 100
    assert written["oracles"]["classes"] == pytest.approx(100)
    assert f"Where AP is lost ({written['AP']:.3f};" in caplog.text


@pytest.mark.parametrize("metric", ["ytvis", "hq_ytvis"])
def test_an_evaluation_writes_a_report_where_one_is_wanted(metric, tmp_path):
    masks = squares()
    name = register(tmp_path, annotations_of(masks, [0, 1, 1], 5), evaluator_type=metric)
    cfg = get_cfg()
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = len(CATEGORIES)
    evaluator = build_evaluator(cfg, name, tmp_path / "out", report=tmp_path / "report")
    results = run(evaluator, {5: output(masks, [0.9, 0.8, 0.7], [1, 0, 0])})
    written = json.loads((tmp_path / "report" / "analysis.json").read_text())
    assert written["AP"] == pytest.approx(results["segm"]["AP"])
    assert "Evaluation report" in (tmp_path / "report" / "index.html").read_text()


@pytest.mark.parametrize("as_tubes", [False, True])
@pytest.mark.parametrize("metric", ["ytvis", "ovis", "hq_ytvis"])
def test_predictions_equal_to_the_annotations_score_100(metric, as_tubes, tmp_path):
    masks = squares()
    name = register(tmp_path, annotations_of(masks, [0, 1, 1], 5))
    pred = MaskTubes.from_dense(masks) if as_tubes else masks
    results = run(
        VideoInstanceEvaluator(name, tmp_path / "out", metric=metric), {5: output(pred, [0.9, 0.8, 0.7], [0, 1, 1])}
    )
    for task in ("segm", "boundary") if metric == "hq_ytvis" else ("segm",):
        assert (results[task]["AP"], results[task]["AP-one"]) == (pytest.approx(100), pytest.approx(100))
        assert np.isnan(results[task]["AP-seven"])


def test_without_annotations_the_submission_is_written_and_the_log_says_so(tmp_path, caplog):
    name = register(tmp_path, None)
    with caplog.at_level(logging.INFO, logger="lbvq"):
        assert run(VideoInstanceEvaluator(name, tmp_path / "out"), {5: output(squares(), [0.9] * 3, [0, 1, 2])}) == {}
    assert "Annotations are not available for evaluation" in caplog.text
    assert "packed for submission" in caplog.text
    assert len(json.loads((tmp_path / "out" / "results.json").read_text())) == 3


def test_no_prediction_at_all_scores_0_and_writes_an_empty_list(tmp_path):
    name = register(tmp_path, annotations_of(squares(), [0, 1, 1], 5))
    results = run(VideoInstanceEvaluator(name, tmp_path / "out"), {5: output(squares()[:0], [], [])})
    assert results["segm"]["AP"] == 0
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == []


def test_a_second_prediction_for_a_video_is_ignored_with_a_warning(tmp_path, caplog):
    masks = squares()
    name = register(tmp_path, annotations_of(masks, [0, 1, 1], 5))
    evaluator = VideoInstanceEvaluator(name, tmp_path / "out")
    evaluator.reset()
    for score in (0.9, 0.1):
        evaluator.process([{"video_id": 5}], output(masks, [score] * 3, [0, 1, 1]))
    assert evaluator.evaluate()["segm"]["AP"] == pytest.approx(100)
    assert "Video 5 was predicted twice" in caplog.text


def test_reset_forgets_earlier_predictions(tmp_path):
    masks = squares()
    name = register(tmp_path, annotations_of(masks, [0, 1, 1], 5))
    evaluator = VideoInstanceEvaluator(name, tmp_path / "out")
    assert run(evaluator, {5: output(masks, [0.9] * 3, [0, 1, 1])})["segm"]["AP"] == pytest.approx(100)
    assert run(evaluator, {5: output(masks, [0.9] * 3, [2, 2, 2])})["segm"]["AP"] == 0


def test_runs_that_share_a_folder_do_not_mix_their_results(tmp_path, caplog):
    first, second = ResultParts(tmp_path), ResultParts(tmp_path)
    first.reset()
    first.add([{"video_id": 1}] * 3)
    second.reset()
    first.add([{"video_id": 2}])
    second.add([{"video_id": 3}])
    assert [each["video_id"] for each in json.loads(first.finish().read_text())] == [1, 1, 1, 2]
    assert caplog.text == ""
    assert json.loads(second.finish().read_text()) == [{"video_id": 3}]
    assert "results.json was written by another run meanwhile" in caplog.text
    assert sorted(each.name for each in tmp_path.iterdir()) == ["results.json", "results.zip"]


def test_parts_of_a_living_run_stay_and_those_of_a_killed_one_go(tmp_path):
    parts = ResultParts(tmp_path)
    parts.reset()
    parts.add([{"video_id": 1}])
    (own,) = tmp_path.iterdir()
    killed = own.with_name(re.sub(r"-\d+-", f"-{2**22 + 1}-", own.name))  # no system has so many processes
    killed.write_text('{"video_id": 9}\n')
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == [own]
    assert json.loads(parts.finish().read_text()) == [{"video_id": 1}]


def test_entries_before_a_reset_are_an_error(tmp_path):
    with pytest.raises(RuntimeError, match=r"reset\(\) comes before the first entries of .*results\.json"):
        ResultParts(tmp_path).add([])


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_a_score_that_is_no_number_is_refused_and_never_written(score, tmp_path):
    masks = squares()
    evaluator = VideoInstanceEvaluator(register(tmp_path, None), tmp_path / "out")
    evaluator.reset()
    with pytest.raises(ValueError, match="prediction 1 for video 5 has a score that is no number"):
        evaluator.process([{"video_id": 5}], output(masks, [0.5, score, 0.5], [0, 1, 1]))


def test_a_class_that_the_data_set_does_not_have_is_refused(tmp_path):
    name = register(tmp_path, None)
    with pytest.raises(ValueError, match="class index 3 is not among the 3 of evaluated_"):
        run(VideoInstanceEvaluator(name, tmp_path / "out"), {5: output(squares(), [0.9] * 3, [0, 1, 3])})


def test_masks_of_another_size_than_the_video_are_refused(tmp_path):
    masks = squares()
    name = register(tmp_path, annotations_of(masks, [0, 1, 1], 5))
    with pytest.raises(ValueError, match=r"predictions for video 5: detection 0 .*\(10, 30\).*\(20, 30\)"):
        run(VideoInstanceEvaluator(name, tmp_path / "out"), {5: output(masks[:, :, :10], [0.9] * 3, [0, 1, 1])})


def _evaluate_in_process(rank, world_size, folder, address, queue):
    torch.distributed.init_process_group("gloo", address, rank=rank, world_size=world_size)
    name = register(folder / f"rank{rank}", _two_videos())
    videos = {5: 1, 2: 2}
    mine = {each: seed for each, seed in videos.items() if (each == 5) == (rank == 0)}
    predictions = {each: output(squares(seed), [0.9, 0.5, 0.4], [0, 1, 2]) for each, seed in mine.items()}
    queue.put((rank, run(VideoInstanceEvaluator(name, folder / "out"), predictions)))
    torch.distributed.destroy_process_group()


def _two_videos():
    return annotations_of(squares(1), [0, 1, 1], 5) + annotations_of(squares(3), [2, 1, 0], 2, first_id=4)


@pytest.mark.slow
def test_two_processes_that_share_the_videos_give_what_one_gives(tmp_path):
    name = register(tmp_path, _two_videos())
    predictions = {each: output(squares(seed), [0.9, 0.5, 0.4], [0, 1, 2]) for each, seed in ((5, 1), (2, 2))}
    alone = run(VideoInstanceEvaluator(name, tmp_path / "alone"), predictions)
    context = torch.multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    for rank in range(2):
        (tmp_path / f"rank{rank}").mkdir()
    arguments = (2, tmp_path, f"file://{tmp_path}/rendezvous", queue)
    torch.multiprocessing.spawn(_evaluate_in_process, arguments, nprocs=2)
    results = dict(queue.get() for _ in range(2))
    assert results[1] == {}
    np.testing.assert_equal(results[0], alone)
    together = (tmp_path / "out" / "results.json").read_text()
    assert together == (tmp_path / "alone" / "results.json").read_text()
    assert sorted(each.name for each in (tmp_path / "out").iterdir()) == ["results.json", "results.zip"]


def configuration(folder):
    return SimpleNamespace(OUTPUT_DIR=str(folder))


def test_the_evaluator_is_chosen_by_the_data_set(tmp_path):
    masks = squares()
    predictions = {5: output(masks, [0.9] * 3, [0, 1, 1])}
    tables = {}
    for name, facts in {
        "ytvis": {},
        "ovis": {"category_table": "ovis"},
        "long": {"long_videos": 2},
        "hq": {"evaluator_type": "hq_ytvis"},
    }.items():
        dataset = register(tmp_path, annotations_of(masks, [0, 1, 1], 5), **facts)
        tables[name] = run(build_evaluator(configuration(tmp_path), dataset), predictions)
    assert (tmp_path / "inference" / "results.json").exists()
    assert "AP_heavy" in tables["ovis"]["segm"] and "AP_heavy" not in tables["ytvis"]["segm"]
    assert set(tables["hq"]) == {"segm", "boundary"} and set(tables["ytvis"]) == {"segm"}
    assert "AP_long" in tables["long"]["segm"] and "AP_long" not in tables["ytvis"]["segm"]


def test_every_registered_data_set_gets_an_evaluator(tmp_path):
    for row in rows():
        assert isinstance(build_evaluator(configuration(tmp_path), row.name), DatasetEvaluator)
    longest = {name: MetadataCatalog.get(name).get("long_videos") for name in ("ytvis_2021_val", "ytvis_2022_val")}
    assert longest == {"ytvis_2021_val": None, "ytvis_2022_val": 36}


def test_an_unknown_evaluator_type_is_refused_with_the_known_ones(tmp_path):
    name = register(tmp_path, None, evaluator_type="keypoints")
    with pytest.raises(ValueError, match="has the evaluator_type 'keypoints'; there are burst, coco"):
        build_evaluator(configuration(tmp_path), name)


class Fixed(DatasetEvaluator):
    def __init__(self, results):
        self.results = results

    def reset(self):
        pass

    def process(self, inputs, outputs):
        pass

    def evaluate(self):
        return self.results


def test_evaluators_are_combined_and_must_not_report_the_same_task():
    both = DatasetEvaluators([Fixed({"segm": {"AP": 1.0}}), Fixed({"bbox": {"AP": 2.0}}), Fixed({})])
    assert both.evaluate() == {"segm": {"AP": 1.0}, "bbox": {"AP": 2.0}}
    with pytest.raises(ValueError, match=r"several evaluators report \['segm'\]"):
        DatasetEvaluators([Fixed({"segm": {}}), Fixed({"segm": {}})]).evaluate()


def image_results(form, masks):
    """What a model returns for images 8, which shows everything, and 4: an image model, or a video model twice."""
    labels, scores = [1, 1, 1], [0.9, 0.8, 0.7]
    if form == "image":
        corners = [[x, y, x + w, y + h] for x, y, w, h in map(rle.to_bbox, rle.encode_many(masks))]
        found = Instances(
            (20, 30),
            scores=torch.tensor(scores),
            pred_classes=torch.tensor(labels),
            pred_masks=masks.float(),
            pred_boxes=Boxes(torch.tensor(corners)),
        )
        return [([{"image_id": 8}, {"image_id": 4}], [{"instances": found}, {"instances": found[:0]}])]
    tubes = torch.stack((masks, ~masks), dim=1)  # only the first frame counts
    tubes = MaskTubes.from_dense(tubes) if form == "tubes" else tubes
    found = {"image_size": (20, 30), "pred_scores": scores, "pred_labels": labels, "pred_masks": tubes}
    nothing = {"image_size": (20, 30), "pred_scores": [], "pred_labels": [], "pred_masks": tubes[:0]}
    return [([{"image_id": 8}], found), ([{"image_id": 4}], nothing)]


@pytest.mark.parametrize("form", ["image", "video", "tubes"])
@pytest.mark.parametrize("metric", ["coco", "lvis"])
def test_image_predictions_equal_to_the_annotations_score_100(metric, form, tmp_path):
    masks = squares()[:, 0]
    codes = rle.encode_many(masks)
    images = [
        {"id": each, "height": 20, "width": 30, "file_name": "x.jpg", "neg_category_ids": []}
        | {"not_exhaustive_category_ids": []}
        for each in (4, 8)
    ]
    annotations = [
        {"id": n, "image_id": 8, "category_id": 3, "iscrowd": 0, "segmentation": code, "area": rle.area(code)}
        | {"bbox": rle.to_bbox(code)}
        for n, code in enumerate(codes, start=1)
    ]
    categories = [{**each, "frequency": "f"} for each in CATEGORIES]
    path = tmp_path / "images.json"
    path.write_text(json.dumps({"images": images, "categories": categories, "annotations": annotations}))
    name = f"evaluated_images_{metric}_{form}"
    register_coco_instances(name, {"thing_dataset_id_to_contiguous_id": {1: 0, 3: 1, 7: 2}}, path, tmp_path)
    evaluator = ImageInstanceEvaluator(name, tmp_path / "out", metric=metric)
    evaluator.reset()
    for inputs, outputs in image_results(form, masks):
        evaluator.process(inputs, outputs)
    results = evaluator.evaluate()
    assert results.keys() == ({"bbox", "segm"} if metric == "coco" and form == "image" else {"segm"})
    for task in results:
        assert (results[task]["AP"], results[task]["AP-three"]) == (pytest.approx(100), pytest.approx(100))
