"""The compiled inner loops: numbers by hand, and the same to the last bit as those in numpy, whatever a mask holds."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_tube_ap import as_files, random_case

import lbvq.evaluation.boundary
import lbvq.evaluation.overlap
import lbvq.masks.runs
from lbvq.evaluation.tube_ap import TubeAP
from lbvq.files import mask_file
from lbvq.masks import compiled, rle
from lbvq.masks.runs import FrameRuns, canonical_counts, decode_masks
from mask2former.compiled import COMPILERS, SWITCH, CSource


@pytest.fixture(scope="module", params=[(), ("-DNO_VECTORS",)], ids=["vectors", "plain"])
def library(request):
    if not any(map(shutil.which, COMPILERS)):
        pytest.skip("needs a C compiler")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(SWITCH, raising=False)
        return compiled.Library(CSource("loops", compiled.SOURCE, (*compiled.FLAGS, *request.param)).load())


@contextlib.contextmanager
def using(library):
    """Let everything decode and compare with a library, or with numpy for None."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (lbvq.masks.runs, lbvq.evaluation.overlap, mask_file):
            patch.setattr(module, "load_compiled", lambda num_bytes=0: library)
        if library is None:
            patch.setattr(lbvq.evaluation.boundary.LOOPS, "load", lambda work=None: None)
        yield


def decode(library, texts, size, offset=0):
    """Lists of start, end, first, areas, or the message of the error."""
    sizes = np.array([size] * len(texts))
    with using(library):
        try:
            runs = decode_masks(texts, sizes, np.full(len(texts), offset), lambda index: f"mask {index}")
        except ValueError as error:
            return str(error)
    return [each.tolist() for each in runs]


@pytest.mark.parametrize("text", [b'"122O"', b"[1, 2, 2, 1]", b"[1,2,2,1]"])
def test_four_runs_have_these_places(library, text):
    # Two pixels from the second on, and the last of six; the fourth number of a string is 1 less than the second.
    assert library.decode([text], np.array([6]), np.array([10]))[0].tolist() == [11, 15]
    assert decode(library, [text, text], (2, 3), offset=10) == [[11, 15] * 2, [13, 16] * 2, [0, 2, 4], [3, 3]]


@pytest.mark.parametrize("text", [b'"123"', b"[1, 2, 3]"])
def test_behind_a_last_background_stands_a_run_of_no_length(library, text):
    assert [each.tolist() for each in library.decode([text], np.array([6]), np.array([0]))] == [
        [1, 6],
        [3, 6],
        [0, 2],
        [2],
    ]


BROKEN = [
    *(b'""', b'"12"', b'"1234"', b'"o"', b'"1oo3"', b'"PPPPPP0"', b'"1\\n23"', b'"1\\\\"', b'"12n"', b'"1"2"', b'"123'),
    *(b'"3N5"', b'"14NO"', b'"VPPPPP0"'),  # runs of -2; a number of seven digits
    *(b"[]", b"[1, 2]", b"[1, 2, 3", b"[1, 2, 3,]", b"[1, 2, , 3]", b"[1, 2, -3]", b"[1, 2, 3 ]", b"[12345678901]"),
    *(b"[1, 2.0, 3]", b"", b"1", b'{"a": 1}', b"[[1, 2, 3]]", b'"\xff"'),
]


@pytest.mark.parametrize("text", BROKEN)
def test_what_is_broken_or_unusual_is_left_to_the_strict_reader(library, text):
    assert library.decode([b"[6]", text], np.array([6, 6]), np.array([0, 0])) is None


@pytest.mark.parametrize("text", [b'"6"', b'"V0"', b'"VP0"', b'"VPPPP0"', b"[6]", b"[000000006]"])
def test_a_number_may_have_digits_too_many(library, text):
    rows = [each.tolist() for each in library.decode([text], np.array([6]), np.array([0]))]
    assert rows == [[6], [6], [0, 1], [0]]


def test_a_backslash_counts_only_if_it_is_written_twice(library):
    assert library.decode([b'"\\\\0"'], np.array([12]), np.array([0]))[0].tolist() == [12]
    assert library.decode([b'"\\0"'], np.array([12]), np.array([0])) is None


def digits_of(number, num_extra):
    """Digits of a signed number in base 32, least first, `num_extra` of them too many."""
    digits = [number & 31]
    while not -16 <= number <= 15:
        number >>= 5
        digits.append(number & 31)
    digits += [31 if number < 0 else 0] * num_extra
    return bytes(48 + digit + 32 * (place < len(digits) - 1) for place, digit in enumerate(digits))


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_long_masks_are_read_in_every_mixture_of_digits(library, data):
    """Numbers of one and two digits are read eight digits at a time, wherever a longer one or a backslash stands."""
    lengths = data.draw(st.lists(st.sampled_from([1, 1, 1, 5, 12, 28, 40, 600, 1029, 20000]), min_size=1, max_size=40))
    extra = data.draw(st.lists(st.sampled_from([0, 0, 0, 0, 0, 0, 0, 1]), min_size=len(lengths), max_size=len(lengths)))
    size = (sum(lengths), 1)
    differences = [length - (lengths[i - 2] if i > 2 else 0) for i, length in enumerate(lengths)]
    counts = b"".join(map(digits_of, differences, extra))
    text = b'"%s"' % counts.replace(b"\\", b"\\\\")
    for texts in ([text], [text, b'"%s"' % digits_of(size[0], 0), text]):
        assert decode(library, texts, size, 7) == decode(None, texts, size, 7)
    assert library.find_canonical([text], size[0]).tolist() == [not any(extra)]
    place = data.draw(st.integers(1, len(text) - 2))
    for broken in (
        text[:place] + text[place + 1 :],
        text[:place] + b'"' + text[place:],
        text[:place] + b"]" + text[place:],
    ):
        assert decode(library, [broken, text], size) == decode(None, [broken, text], size)


@pytest.mark.parametrize(
    ("text", "is_canonical"),
    [
        (b'"6"', True),
        (b'"06"', True),
        (b'"123"', True),
        (b'"V0"', False),  # a digit too many
        (b'"1o23"', False),
        (b'"105"', False),  # runs of length zero
        (b'"150"', False),
        (b"[1, 2, 3]", False),  # a list
    ],
)
def test_masks_are_told_from_those_that_are_written_in_another_way(library, text, is_canonical):
    found = library.find_canonical([text, b'"6"'], 6)
    assert found is None if text == b'"1o23"' else found.tolist() == [is_canonical, True]


@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_mask_is_neither(library, text):
    assert library.find_canonical([b'"6"', text], 6) is None


@given(st.lists(st.text(alphabet=[chr(code) for code in (34, *range(47, 113))], max_size=9), min_size=1, max_size=3))
@settings(max_examples=300, deadline=None)
def test_any_strings_are_decoded_or_refused_as_in_numpy(library, counts):
    texts = [json.dumps(each).encode() for each in counts]
    assert decode(library, texts, (5, 7)) == decode(None, texts, (5, 7))


@given(st.lists(st.integers(0, 2000), min_size=1, max_size=9), st.sampled_from([(",", ":"), (", ", ": ")]))
@settings(max_examples=100, deadline=None)
def test_any_runs_are_decoded_as_in_numpy(library, runs, separators):
    size = (max(1, sum(runs)), 1)
    string = rle.to_rle({"size": list(size), "counts": runs}, *size)["counts"] if sum(runs) else "1"
    for texts in ([json.dumps(runs, separators=separators).encode()] * 2, [json.dumps(string).encode()] * 2):
        assert decode(library, texts, size, 7) == decode(None, texts, size, 7)
    with using(library):
        masks = [{"size": list(size), "counts": string}, json.dumps(string).encode()]
        masks.append(json.dumps(runs).encode() if sum(runs) else b"[1]")
        assert canonical_counts(masks, size, str) == [string] * 3


def test_runs_are_cut_at_the_ends_of_columns(library):
    # Columns of three pixels; the second tube begins at pixel 0 again.
    start, end = np.array([1, 8, 9, 24, 2], np.int32), np.array([7, 9, 9, 26, 3], np.int32)
    pieces = library.cut_at_columns(start, end, np.array([0, 4, 5]), 3)
    assert [each.tolist() for each in pieces] == [
        [1, 3, 6, 8, 9, 24, 2],
        [3, 6, 7, 9, 9, 26, 3],
        [0, 1, 2, 2, 3, 8, 0],
        [0, 6, 7],
    ]


def tubes(*runs, areas):
    """Of N lists of runs (start, end), and areas in frames."""
    rows = np.array([run for tube in runs for run in tube], np.int32)
    first = np.cumsum([0, *map(len, runs)])
    return FrameRuns(rows[:, 0].copy(), rows[:, 1].copy(), first, np.array(areas))


def test_shared_pixels_of_two_frames_of_ten_pixels(library):
    one = tubes([(1, 3), (4, 6), (12, 15)], [(7, 9)], areas=[[4, 3], [2, 0]])
    other = tubes([(2, 5), (13, 14), (20, 20)], [(8, 10), (10, 20)], [(12, 13)], areas=[[3, 1], [2, 10], [0, 1]])
    pairs = np.array([[0, 0], [0, 1], [1, 0], [1, 1], [0, 2]])
    assert library.count_shared(one, other, 10, pairs, np.zeros(5)).tolist() == [3, 3, 0, 1, 1]
    assert library.count_shared(one, other, 10, pairs, np.array([3, 3, 9, 1, 1])).tolist() == [3, 3, 0, 1, 1]
    # At most 4 are possible at first, and after the first frame 2 + 1.
    assert library.count_shared(one, other, 10, pairs[[0, 0, 1]], np.array([4, 5, 6])).tolist() == [0, 0, 0]


def test_frames_that_only_one_of_two_tubes_has_do_not_count(library):
    one = tubes([(1, 3), (12, 15)], areas=[[2, 3]])
    other = tubes([(0, 10)], areas=[[10]])
    for pair in ((one, other), (other, one)):
        assert library.count_shared(*pair, 10, np.array([[0, 0]]), np.array([2])).tolist() == [2]


def split(library, text, pattern):
    """The text without masks, its end, the masks, and their sizes."""
    texts, sizes = [], []
    with using(library):
        return *mask_file._split(text, pattern, texts, sizes), texts, sizes


MASK = b'{"size": [2, 3], "counts": "123"}'
OTHER = b'{"counts":[1,5],"size":[2, 3]}'
WORDS = [
    *(
        MASK,
        OTHER,
        MASK.replace(b"3]", b"4]"),
        MASK.replace(b"[2", b"[" + 44 * b" " + b"2"),
        b"[" + 45 * b" " + b"2, 3]",
    ),
    *(b'{"size": [2, 3], "counts": "123" }', b'{"size":  [2, 3], "counts": "1"}', b'{"size": [2, 3],\n"counts": "1"}'),
    *(
        b'{"size": ',
        b'{"counts":',
        b'"size":',
        b'"counts": ',
        b"[2, 3]",
        b'"12"',
        b", ",
        b",",
        b" ",
        b"}",
        b"{",
        b"[",
        b"]",
    ),
    *(b'"', b"NaN", b"x", b"\\"),
]


def test_masks_are_taken_out_of_a_text(library):
    text = b"[" + MASK + b", null, " + MASK + b", " + MASK.replace(b"3]", b"4]") + b', {"size": [2'
    before = b"[NaN, null, NaN, NaN"
    assert split(library, text, mask_file._SIZE_FIRST) == (
        *(before, b', {"size": [2'),
        *([b'"123"'] * 3, [b"[2, 3]", b"[2, 3]", b"[2, 4]"]),
    )
    assert split(library, text, mask_file._COUNTS_FIRST) == (b"", text, [], [])
    inside = b'{"size": [2, 3], "counts": "x' + MASK  # what looks like a mask ends in the middle of one
    assert split(library, inside, mask_file._SIZE_FIRST)[2] == [b'"123"']
    assert split(library, b"[" + OTHER + b"]", mask_file._COUNTS_FIRST) == (b"[NaN", b"]", [b"[1,5]"], [b"[2, 3]"])


@given(st.lists(st.sampled_from(WORDS), max_size=12).map(b"".join), st.booleans())
@settings(max_examples=1000, deadline=None)
def test_masks_are_found_as_by_the_regular_expressions(library, text, size_first):
    pattern = mask_file._SIZE_FIRST if size_first else mask_file._COUNTS_FIRST
    assert split(library, text, pattern) == split(None, text, pattern)


@given(st.integers(0, 2**31 - 1), st.sampled_from([None, 0.05]))
@settings(max_examples=25, deadline=None)
def test_scores_are_the_same_to_the_last_bit(library, seed, boundary_ratio):
    truth, results = as_files(random_case(seed), rle.encode)
    found = []
    for each in (library, None):
        with using(each):
            found.append(TubeAP(truth, boundary_ratio=boundary_ratio).update(results))
    for name, values in found[0].collected().items():
        np.testing.assert_array_equal(values, found[1].collected()[name])
    np.testing.assert_array_equal(found[0].compute().precision, found[1].compute().precision)


def test_loops_are_compiled_when_there_is_enough_to_read(library, monkeypatch, tmp_path):
    monkeypatch.setenv("VIS_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("LBVQ_COMPILE", raising=False)
    monkeypatch.setattr(compiled, "LOOPS", CSource("loops", compiled.SOURCE, compiled.FLAGS, worth=40))
    text = b'"06"'
    for num_masks, is_compiled in ((3, False), (6, False), (1, True), (1, True)):
        runs = decode_masks([text] * num_masks, np.array([[2, 3]] * num_masks), np.zeros(num_masks, np.int64), str)
        assert runs.areas.tolist() == [6] * num_masks
        assert (compiled.load_compiled() is not None) == is_compiled


def test_without_a_compiler_numpy_is_used(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(compiled, "LOOPS", CSource("loops", compiled.SOURCE, compiled.FLAGS))
    assert decode_masks([b'"06"'], np.array([[2, 3]]), np.zeros(1, np.int64), str).areas.tolist() == [6]
    assert compiled.load_compiled() is None


@pytest.mark.parametrize("path", [os.environ["PATH"], ""])
def test_the_command_says_whether_it_compiled(path):
    environment = {**os.environ, "PATH": path, SWITCH: "1"}
    done = subprocess.run(
        [sys.executable, "-m", "lbvq.masks.compiled"], capture_output=True, text=True, env=environment, check=False
    )
    if path and any(map(shutil.which, COMPILERS)):
        assert (done.returncode, done.stdout) == (0, "loops of masks: in C\n")
    else:
        assert done.returncode == 1 and "not in C: there is no C compiler" in done.stderr
