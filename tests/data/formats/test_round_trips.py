"""Out and in again gives the same masks, ids and classes, for every format that is written."""

from __future__ import annotations

from pathlib import Path

import label_cases
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from label_cases import note, round_trip

from lbvq.data.formats import FORMATS, WriteOptions
from lbvq.data.formats.labels import Frame, Labels, Track, Video
from lbvq.data.formats.outline import outline
from lbvq.masks.rle import area, decode, encode, to_rle

WRITTEN = [name for name, each in FORMATS.items() if each.write is not None]
DISJOINT = ("mots", "mots_text")  # a pixel belongs to one object


def plain(labels: Labels) -> dict:
    """Video -> its classes by name, and its objects: id, class and masks."""
    return {
        video.name: {
            track.id: (labels.categories[track.category_id], track.masks, track.is_crowd) for track in video.tracks
        }
        for video in labels.videos
    }


@pytest.mark.parametrize("name", WRITTEN)
def test_a_written_file_is_read_as_it_was(name):
    case = label_cases.labels(overlap=name not in DISJOINT, max_id=999 if name in DISJOINT else 5000)

    @settings(max_examples=25, deadline=None)
    @given(case)
    def check(labels):
        found, notes = round_trip(name, labels)
        assert plain(found) == plain(labels)
        assert {v.name: len(v.frames) for v in found.videos} == {v.name: len(v.frames) for v in labels.videos}
        assert not notes

    check()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 14), st.integers(1, 14), st.integers(0, 2**32 - 1), st.floats(0.05, 0.95))
def test_a_mask_of_parts_and_holes_is_one_polygon_and_comes_back_exactly(height, width, seed, share):
    mask = np.random.default_rng(seed).random((height, width)) < share
    mask[0, 0] = True
    assert to_rle([outline(mask).reshape(-1).tolist()], height, width) == encode(mask)


def test_an_outline_with_a_tolerance_has_fewer_corners_and_nearly_the_same_pixels():
    rows, columns = np.mgrid[:80, :80]
    mask = (rows - 40) ** 2 + (columns - 40) ** 2 < 900
    few = outline(mask, tolerance=1.0)
    again = decode(to_rle([few.reshape(-1).tolist()], 80, 80))
    assert len(few) * 3 < len(outline(mask)) and (again & mask).sum() / (again | mask).sum() > 0.95


def two_objects(first: int = 1, second: int = 2) -> Labels:
    """One frame of 2 x 3 pixels; the second object covers half of the first."""
    a, b = np.zeros((2, 3), bool), np.zeros((2, 3), bool)
    a[0], b[:, 1] = True, True
    tracks = [Track(first, 1, {0: encode(a)}), Track(second, 1, {0: encode(b)})]
    return Labels({1: "cat"}, [Video("v", [Frame("v/0", 0)], tracks, (2, 3))])


@pytest.mark.parametrize("name", DISJOINT)
def test_overlapping_masks_are_cut_for_formats_without_overlap_and_it_is_said(name):
    found, notes = round_trip(name, two_objects())
    assert note(notes, "pixels covered") == 1
    assert [area(track.masks[0]) for track in found.videos[0].tracks] == [2, 2]


def test_ids_above_999_are_numbered_anew_in_mots_and_it_is_said():
    found, notes = round_trip("mots", two_objects(5, 123456))
    assert sorted(track.id for track in found.videos[0].tracks) == [0, 1] and note(notes, "track ids above 999") == 2


def test_crowds_and_scores_survive_where_the_format_has_them():
    labels = two_objects()
    labels.videos[0].tracks[0].is_crowd = True
    for name, kept in (("ytvis", True), ("labelme", True), ("cvat", False), ("mots", False)):
        found, notes = round_trip(name, labels)
        assert [track.is_crowd for track in found.videos[0].tracks] == [kept, False]
        assert note(notes, "crowds") == int(not kept)


def test_frame_numbers_survive_in_cvat_also_with_a_step():
    mask = encode(np.ones((2, 2), bool))
    frames = [Frame("", number) for number in (10, 15, 20)]
    labels = Labels({1: "cat"}, [Video("v", frames, [Track(3, 1, {1: mask})], (2, 2))])
    found, notes = round_trip("cvat", labels)
    assert [frame.number for frame in found.videos[0].frames] == [10, 15, 20]
    assert list(found.videos[0].tracks[0].masks) == [1] and not notes


def test_irregular_frame_numbers_become_positions_in_cvat_and_it_is_said():
    mask = encode(np.ones((2, 2), bool))
    frames = [Frame("", number) for number in (0, 7, 8)]
    labels = Labels({1: "cat"}, [Video("v", frames, [Track(3, 1, {0: mask, 2: mask})], (2, 2))])
    found, notes = round_trip("cvat", labels)
    assert [frame.number for frame in found.videos[0].frames] == [0, 1, 2] and note(notes, "not regular") == 1


@pytest.mark.parametrize("name", WRITTEN)
def test_two_videos_of_one_name_are_refused_by_every_writer(name, tmp_path):
    labels = two_objects()
    labels.videos *= 2
    with pytest.raises(ValueError, match="two videos are called 'v'"):
        FORMATS[name].write(labels, tmp_path, WriteOptions())


def test_names_that_are_one_file_on_some_systems_get_files_of_their_own(tmp_path):
    labels = two_objects()
    other = two_objects().videos[0]
    labels.videos[0].name, other.name = "a/b", "A_B"
    labels.videos.append(other)
    FORMATS["cvat"].write(labels, tmp_path, WriteOptions())
    assert sorted(path.name for path in Path(tmp_path).iterdir()) == ["A_B_2.xml", "a_b.xml"]
