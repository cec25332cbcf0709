from __future__ import annotations

import numpy as np
import pycocotools.mask as coco_mask
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lbvq.masks import rle

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # inside pycocotools

small_masks = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=24).flatmap(
    lambda shape: hnp.arrays(bool, shape, elements=st.booleans(), fill=st.booleans())
)
# Long runs need several digits and large negative differences.
wide_runs = st.lists(st.integers(0, 40_000), min_size=1, max_size=12)


def coco_encode(mask: np.ndarray) -> dict:
    coded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": coded["size"], "counts": coded["counts"].decode("ascii")}


@settings(max_examples=300, deadline=None)
@given(small_masks)
def test_encode_writes_the_string_of_pycocotools_and_decodes_to_the_same_pixels(mask):
    coded = rle.encode(mask)
    assert coded == coco_encode(mask)
    rle.validate_rle(coded, mask.shape)
    assert np.array_equal(rle.decode(coded), mask)
    assert rle.area(coded) == int(mask.sum())
    assert rle.to_bbox(coded) == coco_mask.toBbox(coco_encode(mask)).tolist()


@settings(max_examples=200, deadline=None)
@given(wide_runs)
def test_long_runs_are_read_as_pycocotools_reads_them(runs):
    total = max(sum(runs), 1)
    runs = [*runs, 0] if sum(runs) else [1]
    coded = coco_mask.frPyObjects({"size": [1, total], "counts": runs}, 1, total)
    want = coco_mask.decode(coded).astype(bool)
    assert np.array_equal(rle.decode({"size": [1, total], "counts": coded["counts"]}), want)
    assert np.array_equal(rle.decode(rle.to_rle({"size": [1, total], "counts": runs}, 1, total)), want)
    assert rle.to_rle({"size": [1, total], "counts": runs}, 1, total) == coco_encode(want)


@settings(max_examples=400, deadline=None)
@given(st.one_of(st.text(max_size=20), st.text(alphabet="0123456789:;<=>?@PQRSTXYZ`abcmno", max_size=30)))
def test_any_string_is_either_refused_or_fills_the_image_exactly(counts):
    size = [6, 7]
    try:
        mask = rle.decode({"size": size, "counts": counts})
    except ValueError:
        return
    assert np.array_equal(coco_mask.decode({"size": size, "counts": counts.encode()}), mask)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=14).filter(lambda runs: sum(runs) > 0))
def test_to_rle_joins_zero_runs_so_that_merging_is_safe(runs):
    coded = rle.to_rle({"size": [1, sum(runs)], "counts": runs}, 1, sum(runs))
    rle.validate_rle(coded)
    want = np.repeat(np.arange(len(runs)) % 2 == 1, runs)[None]
    assert np.array_equal(rle.decode(coded), want)
    assert coded == coco_encode(want)


def test_zero_run_that_breaks_merging_is_refused_and_named():
    size = [4, 5]
    coded = coco_mask.frPyObjects({"size": size, "counts": [5, 0, 3, 12]}, *size)
    with pytest.raises(ValueError, match=r"frame 3: run 1 has length 0.*to_rle"):
        rle.validate_rle(coded, where="frame 3")


@pytest.mark.parametrize(
    "bad, reason",
    [
        (None, "must be a dict"),
        ({"size": [4, 5]}, "'size' and 'counts'"),
        ({"size": [4, 5], "counts": ""}, "empty"),
        ({"size": [4, 5], "counts": 7}, "must be a string, got int"),
        ({"size": [4, 5], "counts": [20]}, "to_rle"),
        ({"size": [4, 5], "counts": "é"}, "outside ASCII"),
        ({"size": [4, 5], "counts": "d 0"}, "character ' ' at 1"),
        ({"size": [4, 5], "counts": "p"}, "allowed"),
        ({"size": [4, 5], "counts": "d0d"}, "cut off"),
        ({"size": [4, 5], "counts": "oooooooo0"}, "digits"),
        ({"size": [4, 5], "counts": "c0"}, "add up to 19"),
        ({"size": [4, 5], "counts": "e0"}, "add up to 21"),
        ({"size": [4, 5], "counts": "O"}, "run 0 of 'counts' is negative"),
        ({"size": [4, 5], "counts": "d0" + "P`Po0" * 9}, "add up|negative"),
        ({"size": [4, 5, 3], "counts": "d0"}, "two integers"),
        ({"size": [4.0, 5], "counts": "d0"}, "two integers"),
        ({"size": [True, 5], "counts": "d0"}, "two integers"),
        ({"size": "45", "counts": "d0"}, "two integers"),
        ({"size": [-4, -5], "counts": "d0"}, "positive"),
        ({"size": [0, 5], "counts": "0"}, "positive"),
        ({"size": [10**6, 10**6], "counts": "d0"}, "limit"),
        ({"size": [2**40, 2**40], "counts": "d0"}, "limit"),
    ],
)
def test_broken_masks_are_refused_with_the_reason(bad, reason):
    with pytest.raises(ValueError, match=reason):
        rle.validate_rle(bad)
    with pytest.raises(ValueError, match=reason):
        rle.decode(bad)


def test_mask_of_another_size_is_refused_with_both_sizes():
    coded = rle.encode(np.ones((4, 5), bool))
    with pytest.raises(ValueError, match=r"video 7: mask size must be 5 x 4 .*got 4 x 5"):
        rle.validate_rle(coded, (5, 4), where="video 7")


def test_encode_many_of_noise_blobs_and_nothing_equals_one_by_one():
    generator = np.random.default_rng(3)
    masks = np.stack([generator.random((37, 53)) > 0.5, np.zeros((37, 53), bool), np.ones((37, 53), bool)])
    assert rle.encode_many(masks) == [coco_encode(mask) for mask in masks]
    assert rle.encode_many(torch.from_numpy(masks)) == rle.encode_many(masks)
    assert rle.encode_many(masks.astype(np.uint8) * 255) == rle.encode_many(masks)
    assert rle.encode_many(masks[:0]) == []
    assert np.array_equal(rle.decode_many([*rle.encode_many(masks), None], (37, 53))[:3], masks)


def test_the_form_of_encoding_for_other_devices_writes_the_same_strings():
    masks = np.random.default_rng(4).random((3, 17, 23)) > 0.5
    masks[1] = False
    assert rle._encode_chunk(torch.from_numpy(masks)) == rle._encode_chunk(masks)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_masks_on_a_gpu_are_encoded_like_those_on_the_cpu():
    masks = torch.from_numpy(np.random.default_rng(4).random((3, 17, 23)) > 0.5)
    assert rle.encode_many(masks.to("cuda")) == rle.encode_many(masks)


def test_encode_many_does_not_depend_on_its_chunks(monkeypatch):
    masks = np.random.default_rng(0).random((5, 9, 8)) > 0.4
    whole = rle.encode_many(masks)
    monkeypatch.setattr(rle, "_CHUNK_PIXELS", 1)
    assert rle.encode_many(masks) == whole


def test_encode_reads_transposed_and_strided_masks():
    mask = np.random.default_rng(1).random((12, 20)) > 0.5
    assert rle.encode(mask.T) == coco_encode(mask.T)
    assert rle.encode(mask[::2, ::-3]) == coco_encode(mask[::2, ::-3])
    assert rle.encode(torch.from_numpy(mask).t()) == coco_encode(mask.T)


@pytest.mark.parametrize("mask", [np.zeros((2, 2)), torch.zeros(2, 2)])
def test_float_masks_are_refused(mask):
    with pytest.raises(ValueError, match="threshold"):
        rle.encode(mask)


def test_polygons_give_the_union_pycocotools_draws():
    polygons = [[2, 2, 10, 2, 10, 9, 2, 9], [12.5, 1.25, 19, 5, 13, 11.5]]
    want = coco_mask.merge(coco_mask.frPyObjects(polygons, 15, 20))
    assert rle.to_rle(polygons, 15, 20)["counts"] == want["counts"].decode()
    assert rle.to_rle([np.asarray(polygon) for polygon in polygons], 15, 20)["counts"] == want["counts"].decode()
    assert rle.area(rle.to_rle([], 15, 20)) == 0


@pytest.mark.parametrize(
    "polygons, reason",
    [
        ([[1, 2, 3, 4]], "at least 3 points"),
        ([[1, 2, 3, 4, 5, 6, 7]], "at least 3 points"),
        ([[0, 0, 1, float("nan"), 3, 3]], "not finite"),
        ([[0, 0, 1, float("inf"), 3, 3]], "not finite"),
        ([[0, 0, 1e12, 0, 3, 3]], "pixels long"),
        ([[0, 0, "1", 0, 3, 3]], "numbers only"),
        ([1, 2, 3, 4, 5, 6], "polygon 0 must be a list"),
        (None, "list of polygons"),
        ("abc", "list of polygons"),
        ({"size": [15, 20], "counts": [301]}, "add up to 301"),
        ({"size": [15, 20], "counts": [301, -1]}, "negative"),
        ({"size": [15, 20], "counts": [1.5, 298.5]}, "list of integers"),
        ({"size": [15, 20], "counts": []}, "non-empty"),
        ({"size": [15, 20], "counts": [10**30]}, "integers up to"),
        ({"size": [20, 15], "counts": [300]}, "must be 15 x 20"),
        ({"counts": [300]}, "needs 'size'"),
    ],
)
def test_broken_segmentations_are_refused_with_the_reason(polygons, reason):
    with pytest.raises(ValueError, match=reason):
        rle.to_rle(polygons, 15, 20)


def test_a_coordinate_of_hundreds_of_digits_is_refused_by_name():
    with pytest.raises(ValueError, match=r"here.*polygon 0 has a coordinate too large"):
        rle.to_rle([[0, 0, 10**400, 0, 4, 4]], 8, 8, "here")
