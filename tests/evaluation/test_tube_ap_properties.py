"""Properties that tube AP must have on any input, checked on random small worlds."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_tube_ap import as_files, boundary, evaluate, random_case, sparse_case, tube_iou

import lbvq.evaluation.boundary
import lbvq.evaluation.overlap
import lbvq.evaluation.tube_ap
import lbvq.masks.runs
from lbvq.evaluation.annotations import GroundTruth, read_predictions
from lbvq.evaluation.boundary import BoundaryTubes, boundary_iou
from lbvq.evaluation.overlap import TubeRuns
from lbvq.evaluation.overlap import tube_iou as fast_tube_iou
from lbvq.evaluation.tube_ap import TubeAP
from lbvq.masks import compiled, rle

seeds = st.integers(0, 2**31 - 1)
# Ranges in which small masks differ, so that areas matter.
SMALL_RANGES = {"all": (0, 1e10), "small": (0, 9), "medium": (9, 25), "large": (25, 1e10)}


def compressed(mask):
    return rle.encode(mask)


def listed(mask):
    """Run lengths as a list, the form of the published annotation files."""
    flat = mask.ravel(order="F")
    cuts = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate(([0], cuts, [flat.size]))).tolist()
    return {"size": list(mask.shape), "counts": ([0] if flat[0] else []) + runs}


def compute(files, predictions=None, **changes):
    ground_truth, results = files
    return TubeAP(ground_truth, **changes).update(results if predictions is None else predictions).compute()


def assert_same(a, b):
    for array in ("precision", "recall", "scores"):
        np.testing.assert_array_equal(getattr(a, array), getattr(b, array))


@pytest.fixture(scope="module", params=["numpy", "C"])
def loops(request):
    """What the inner loops are written in."""
    with pytest.MonkeyPatch.context() as patch:
        for source in (compiled.LOOPS, lbvq.evaluation.boundary.LOOPS):
            if request.param == "numpy":
                patch.setattr(source, "load", lambda work=None: None)
            elif source.load() is None:
                pytest.skip("needs a C compiler")
        yield request.param


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_it_equals_the_plain_evaluation(loops, seed):
    case = random_case(seed)
    result = compute(as_files(case, compressed), area_ranges=SMALL_RANGES)
    precision, recall = evaluate(case, area_ranges=list(SMALL_RANGES.values()))
    np.testing.assert_array_equal(result.precision, precision)
    np.testing.assert_array_equal(result.recall, recall)


@given(seeds, st.sampled_from([None, 0.02]))
@settings(max_examples=20, deadline=None)
def test_objects_that_do_not_meet_change_nothing(loops, seed, boundary_ratio):
    """Most pairs share no column, many frames are empty or absent, and one class has no track."""
    case = sparse_case(seed)
    result = compute(as_files(case, compressed), boundary_ratio=boundary_ratio)
    precision, recall = evaluate(case, boundary_ratio=boundary_ratio)
    np.testing.assert_array_equal(result.precision, precision)
    np.testing.assert_array_equal(result.recall, recall)
    assert (precision > -1).any()


@given(seeds)
@settings(max_examples=10, deadline=None)
def test_with_boundaries_it_equals_the_plain_evaluation(loops, seed):
    case = random_case(seed)
    result = compute(as_files(case, compressed), boundary_ratio=0.1, area_ranges=SMALL_RANGES)
    precision, recall = evaluate(case, boundary_ratio=0.1, area_ranges=list(SMALL_RANGES.values()))
    np.testing.assert_array_equal(result.precision, precision)
    np.testing.assert_array_equal(result.recall, recall)


@given(seeds)
@settings(max_examples=10, deadline=None)
def test_counted_crowds_and_limits_equal_the_plain_evaluation(seed):
    case = random_case(seed)
    result = compute(as_files(case, compressed), crowd_is_ignored=False, max_detections=(1, 2, 100))
    precision, recall = evaluate(case, crowd_is_ignored=False, max_detections=(1, 2, 100))
    np.testing.assert_array_equal(result.precision, precision)
    np.testing.assert_array_equal(result.recall, recall)


@given(seeds)
@settings(max_examples=10, deadline=None)
def test_how_masks_are_written_does_not_matter(seed):
    case = random_case(seed)
    rng = np.random.RandomState(seed)
    either = lambda mask: (compressed if rng.rand() < 0.5 else listed)(mask)  # noqa: E731
    results = [compute(as_files(case, encode)) for encode in (compressed, listed, either)]
    assert_same(results[0], results[1])
    assert_same(results[0], results[2])


@given(seed=seeds)
@settings(max_examples=10, deadline=None)
def test_files_and_lists_give_the_same(seed, tmp_path_factory):
    files = as_files(random_case(seed), compressed if seed % 2 else listed)
    folder = tmp_path_factory.mktemp("files")
    separators = (", ", ": ") if seed % 3 else (",", ":")
    for name, content in zip(("gt", "dt"), files, strict=True):
        (folder / f"{name}.json").write_text(json.dumps(content, separators=separators, indent=seed % 5 or None))
    assert_same(compute(files), TubeAP(folder / "gt.json").update(folder / "dt.json").compute())


@given(seeds)
@settings(max_examples=10, deadline=None)
def test_the_order_of_a_file_matters_only_for_equal_scores(seed):
    case = random_case(seed)
    rng = np.random.RandomState(seed)
    for index, detection in enumerate(rng.permutation(case["detections"])):
        detection["score"] = index / 1000
    shuffled = {**case, "detections": rng.permutation(case["detections"]).tolist()}
    shuffled["videos"] = {each: case["videos"][each] for each in rng.permutation(list(case["videos"])).tolist()}
    assert_same(compute(as_files(case, compressed)), compute(as_files(shuffled, compressed)))


@given(seeds)
@settings(max_examples=10, deadline=None)
def test_perfect_predictions_score_1(seed):
    case = random_case(seed)
    shown = [each for each in case["tracks"] if not each["crowd"]]
    shown = [each for each in shown if any(mask is not None and mask.any() for mask in each["masks"])]
    case["tracks"] = shown
    case["detections"] = [{**each, "score": 1.0} for each in shown]
    result = compute(as_files(case, compressed), boundary_ratio=0.02)
    measured = result.precision[..., 0, -1]
    assert np.isin(measured[measured > -1].round(12), 1.0).all()
    assert (measured > -1).any() == bool(shown)


@given(seeds, st.integers(1, 4))
@settings(max_examples=10, deadline=None)
def test_parts_that_saw_different_videos_merge_into_the_whole(seed, num_parts):
    ground_truth, results = as_files(random_case(seed, num_videos=5), compressed)
    parts = [TubeAP(ground_truth) for _ in range(num_parts)]
    for part_index, part in enumerate(parts):
        for video in [each["id"] for each in ground_truth["videos"]][part_index::num_parts]:
            part.update([each for each in results if each["video_id"] == video])
    merged = TubeAP(ground_truth)
    for part in parts:
        merged.merge(part.state())
    assert_same(merged.compute(), compute((ground_truth, results)))


@given(seeds)
@settings(max_examples=10, deadline=None)
def test_updates_may_come_in_pieces_and_reset_forgets_them(seed):
    ground_truth, results = as_files(random_case(seed), compressed)
    ap = TubeAP(ground_truth).update(results)
    ap.reset()
    for entry in results:
        ap.update([entry])
    assert_same(ap.compute(), compute((ground_truth, results)))
    ap.reset()
    assert_same(ap.compute(), compute((ground_truth, [])))


def _tubes(seed):
    """Two tubes per video with all frames, dense, and decoded."""
    rng = np.random.RandomState(seed)
    height, width, length = rng.randint(1, 150), rng.randint(1, 40), rng.randint(1, 4)
    dense = [[rng.rand(height, width) < p for _ in range(length)] for p in rng.rand(4)]
    text = lambda mask: json.dumps(compressed(mask)["counts"]).encode()  # noqa: E731
    masks = [[text(mask) if rng.rand() < 0.9 else None for mask in tube] for tube in dense]
    dense = [
        [mask if own else None for mask, own in zip(tube, texts, strict=True)]
        for tube, texts in zip(dense, masks, strict=True)
    ]
    return dense, TubeRuns(masks, (height, width), lambda *where: str(where))


PAIRS = np.argwhere(np.ones((4, 4)))


@given(seeds, st.integers(1, 4))
@settings(max_examples=20, deadline=None)
def test_overlap_is_symmetric_exact_and_1_with_itself(loops, seed, tubes_at_once):
    dense, tubes = _tubes(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lbvq.evaluation.overlap, "_TUBES_AT_ONCE", tubes_at_once)
        kept, iou = fast_tube_iou(tubes, tubes, PAIRS)
    assert kept.tolist() == list(range(16))
    iou = iou.reshape(4, 4)
    np.testing.assert_array_equal(iou, iou.T)
    np.testing.assert_array_equal(iou, [[tube_iou(a, b) for b in dense] for a in dense])
    np.testing.assert_array_equal(np.diag(iou), [float(tube_iou(a, a) > 0) for a in dense])


@given(seeds, st.floats(0, 1))
@settings(max_examples=20, deadline=None)
def test_leaving_out_small_overlaps_loses_none_of_the_others(loops, seed, at_least):
    _, tubes = _tubes(seed)
    _, iou = fast_tube_iou(tubes, tubes, PAIRS)
    kept, own = fast_tube_iou(tubes, tubes, PAIRS, at_least=at_least)
    np.testing.assert_array_equal(kept, np.flatnonzero(iou >= at_least))
    np.testing.assert_array_equal(own, iou[kept])


@given(seeds, st.floats(0.001, 0.2))
@settings(max_examples=20, deadline=None)
def test_boundary_overlap_equals_erosion_by_a_square(loops, seed, ratio):
    dense, tubes = _tubes(seed)
    for tube in dense:  # fill, so that something is left after erosion
        for mask in tube:
            if mask is not None:
                mask |= np.random.RandomState(seed).rand(*mask.shape) < 0.9
    text = lambda mask: None if mask is None else json.dumps(compressed(mask)["counts"]).encode()  # noqa: E731
    tubes = TubeRuns([[text(mask) for mask in tube] for tube in dense], tubes.size_hw, lambda *where: str(where))
    edges = [[None if mask is None else boundary(mask, ratio) for mask in tube] for tube in dense]
    own = BoundaryTubes(tubes, np.arange(4), ratio)
    areas = [[0 if mask is None else int(mask.sum()) for mask in tube] for tube in edges]
    np.testing.assert_array_equal(own.areas, areas)
    iou = boundary_iou(own, own, PAIRS, np.full(len(PAIRS), len(dense[0])))
    np.testing.assert_array_equal(iou.reshape(4, 4), [[tube_iou(a, b) for b in edges] for a in edges])


def test_there_is_no_boundary_where_a_file_cuts_a_run(loops):
    """A picture of 20 x 9 pixels, all of them foreground, has 18 x 7 inner ones; the run is cut inside a column."""
    tubes = TubeRuns(
        [[b"[0, 180]"], [b"[0, 90, 0, 90]"], [b"[0, 90, 0, 0, 0, 90, 0]"]], (20, 9), lambda *where: str(where)
    )
    assert BoundaryTubes(tubes, np.arange(3), 0.02).areas.tolist() == [[54]] * 3


@pytest.mark.parametrize("use_categories", [True, False])
def test_without_categories_every_prediction_may_match_every_track(use_categories):
    ground_truth, results = as_files(random_case(3, num_videos=6), compressed)
    for entry in results:
        entry["category_id"] = 3 - entry["category_id"]
    with_wrong_classes = compute((ground_truth, results), use_categories=use_categories)
    for entry in results:
        entry["category_id"] = 3 - entry["category_id"]
    right = compute((ground_truth, results), use_categories=use_categories)
    assert (with_wrong_classes.average() == pytest.approx(right.average(), abs=0.05)) != use_categories


def test_long_videos_are_cut_into_portions_without_a_trace(monkeypatch):
    files = as_files(random_case(11, num_videos=8), compressed)
    whole = compute(files, boundary_ratio=0.05)
    monkeypatch.setattr(lbvq.evaluation.tube_ap, "_FRAMES_AT_ONCE", 1)
    monkeypatch.setattr(lbvq.evaluation.tube_ap, "_BOUNDARIES_AT_ONCE", 1)
    monkeypatch.setattr(lbvq.masks.runs, "_PORTION_BYTES", 10)
    monkeypatch.setattr(lbvq.evaluation.boundary, "_MAX_GATHERED_WORDS", 1)
    assert_same(whole, compute(files, boundary_ratio=0.05))


def test_readers_accept_what_they_have_read():
    ground_truth, results = as_files(random_case(5), compressed)
    truth = GroundTruth(ground_truth)
    assert len(read_predictions(results, truth)) == len(results)
