"""The fast decoder of masks against the strict reader: the same pixels, and the same refusals."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbvq.masks import rle
from lbvq.masks.runs import canonical_counts, decode_masks


def decode(texts, size):
    sizes = np.array([size] * len(texts)).reshape(-1, 2)
    return decode_masks(texts, sizes, np.zeros(len(texts), np.int64), lambda index: f"mask {index}")


def painted(runs, index, size):
    flat = np.zeros(size[0] * size[1], bool)
    for row in range(runs.first[index], runs.first[index + 1]):
        flat[runs.start[row] : runs.end[row]] = True
    return flat.reshape(size[1], size[0]).T


@given(st.lists(st.text(alphabet=[chr(code) for code in range(48, 112)], max_size=12), min_size=1, max_size=4))
@settings(max_examples=150, deadline=None)
def test_any_string_is_decoded_like_the_strict_reader_or_refused_like_it(counts):
    size = (5, 7)
    texts = [json.dumps(each).encode() for each in counts]
    expected = []
    for each in counts:
        try:
            expected.append(rle.decode(rle.to_rle({"size": list(size), "counts": each}, *size)))
        except ValueError:
            expected.append(None)
    if any(mask is None for mask in expected):
        with pytest.raises(ValueError, match="mask"):
            decode(texts, size)
    else:
        runs = decode(texts, size)
        for index, mask in enumerate(expected):
            np.testing.assert_array_equal(painted(runs, index, size), mask)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=12), st.booleans())
@settings(max_examples=100, deadline=None)
def test_any_list_of_runs_that_fills_the_frame_is_decoded(runs, as_string):
    total = sum(runs)
    if total == 0:
        runs, total = [*runs, 6], 6
    size = (total, 1)
    content = rle.to_rle({"size": list(size), "counts": runs}, *size)["counts"] if as_string else runs
    decoded = decode([json.dumps(content).encode()] * 2, size)
    expected = np.repeat(np.arange(len(runs)) % 2 == 1, runs)[:, None]
    for index in range(2):
        np.testing.assert_array_equal(painted(decoded, index, size), expected)
    assert decoded.areas.tolist() == [int(expected.sum())] * 2


@given(st.integers(0, 2**31 - 1), st.sampled_from([(1, 1), (3, 200), (300, 2), (64, 64), (719, 1281)]))
@settings(max_examples=10, deadline=None)
def test_decoding_inverts_encoding_for_frames_of_any_size(seed, size):
    rng = np.random.RandomState(seed)
    masks = [rng.rand(*size) < p for p in (0, 1, 0.001, 0.5)]
    masks.append(
        np.repeat(np.repeat(rng.rand(4, 4) < 0.5, -(-size[0] // 4), 0), -(-size[1] // 4), 1)[: size[0], : size[1]]
    )
    decoded = decode([json.dumps(rle.encode(mask)["counts"]).encode() for mask in masks], size)
    for index, mask in enumerate(masks):
        np.testing.assert_array_equal(painted(decoded, index, size), mask)


def test_tubes_longer_than_32_bits_are_decoded_with_64():
    """30 frames of 2**27 pixels; positions go up to 2**32."""
    size, frames = (2**14, 2**13), 33
    texts = [json.dumps([2**27 - 1, 1]).encode()] * frames
    offsets = np.arange(frames) * 2**27
    runs = decode_masks(texts, np.array([size] * frames), offsets, str)
    np.testing.assert_array_equal(runs.end, offsets + 2**27)
    assert runs.areas.tolist() == [1] * frames


@pytest.mark.parametrize("frames", [2, 33], ids=["32 bits", "64 bits"])
def test_runs_of_six_digits_are_decoded(frames):
    """A background of 2**27 - 1 pixels, whose number has the most digits that are read without the slow way."""
    size, offsets = (2**14, 2**13), np.arange(frames) * 2**27
    counts = rle.to_rle({"size": list(size), "counts": [2**27 - 1, 1]}, *size, "mask")["counts"]
    runs = decode_masks([json.dumps(counts).encode()] * frames, np.array([size] * frames), offsets, str)
    assert counts == "ooooo31"
    np.testing.assert_array_equal(runs.start, offsets + 2**27 - 1)
    assert runs.areas.tolist() == [1] * frames


def expected_counts(masks, size):
    """What the strict reader makes of every mask, or what it says of the first broken one."""
    try:
        return [rle.to_rle(mask, *size, f"mask {index}")["counts"] for index, mask in enumerate(masks)]
    except ValueError as error:
        return str(error)


def packed(masks, size):
    try:
        return canonical_counts(masks, size, lambda index: f"mask {index}")
    except ValueError as error:
        return str(error)


@given(st.lists(st.text(alphabet=[*map(chr, range(48, 112)), '"', "é"], max_size=9), min_size=1, max_size=4))
@settings(max_examples=200, deadline=None)
def test_many_strings_become_what_each_becomes_alone_and_the_first_broken_one_is_named(counts):
    good = {"size": [5, 7], "counts": [3, 4, 28]}
    masks = [good, *({"size": [5, 7], "counts": each} for each in counts)]
    assert packed(masks, (5, 7)) == expected_counts(masks, (5, 7))


def base_32(number, extra):
    """The signed digits of a number, and `extra` ones that only repeat its sign."""
    places = 1
    while not -(16 * 32 ** (places - 1)) <= number < 16 * 32 ** (places - 1):
        places += 1
    digits = [number >> 5 * place & 31 for place in range(places + extra)]
    return "".join(chr(48 + digit + 32 * (place < len(digits) - 1)) for place, digit in enumerate(digits))


@given(st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=9), min_size=1, max_size=4), st.data())
@settings(max_examples=150, deadline=None)
def test_runs_of_no_length_and_digits_too_many_go(runs, data):
    """5 may be written as 32 + 5 and 0, and -5 as 32 + 27 and 31."""
    size = (1, 1 + max(map(sum, runs)))
    masks = []
    for each in runs:
        each = [*each, size[1] - sum(each), *data.draw(st.sampled_from([[], [0], [0, 0]]))]
        numbers = [each[i] - (each[i - 2] if i > 2 else 0) for i in range(len(each))]
        extra = data.draw(st.integers(0, 2))
        text = "".join(base_32(number, extra) for number in numbers)
        masks.append({"size": list(size), "counts": data.draw(st.sampled_from([text, text.encode(), each]))})
    found = packed(masks, size)
    assert found == expected_counts(masks, size)
    assert all(isinstance(each, str) for each in found)


@pytest.mark.parametrize(
    "broken",
    [None, {"size": [2, 3.0], "counts": "06"}, {"size": [3, 2], "counts": "6"}, {"size": [2, True], "counts": "2"}],
)
def test_masks_of_another_form_or_size_are_refused_like_alone(broken):
    masks = [{"size": [2, 3], "counts": "6"}, broken, {"size": [2, 3], "counts": "7"}]
    assert packed(masks, (2, 3)) == expected_counts(masks, (2, 3))
    assert packed(masks, (2, 3)).startswith("mask 1: ")
