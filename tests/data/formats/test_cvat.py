"""CVAT's XML, by hand: keyframes, hidden stretches, sparse tasks, projects, shapes without pixels, broken files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from label_cases import classes, dense, note, read

META = """<meta><task><name>t</name><size>{size}</size><start_frame>{start}</start_frame><stop_frame>{stop}</stop_frame>
<frame_filter>{filter}</frame_filter><labels><label><name>cat</name></label><label><name>dog</name></label></labels>
<original_size><width>20</width><height>10</height></original_size><source>clip.mp4</source></task></meta>"""


def box(frame: int, left: float, **more: object) -> str:
    """A box of 4 x 4 pixels, the upper left at (left, 2)."""
    keys = {"frame": frame, "outside": 0, "keyframe": 1, "xtl": left, "ytl": 2, "xbr": left + 4, "ybr": 6, **more}
    return "<box " + " ".join(f'{key}="{value}"' for key, value in keys.items()) + "/>"


def write(folder: Path, *tracks: str, size: int = 10, start: int = 0, step: int = 1, meta: str | None = None) -> Path:
    text = meta or META.format(
        size=size, start=start, stop=start + (size - 1) * step, filter=f"step={step}" if step > 1 else ""
    )
    body = "".join(
        track if track.startswith("<image") else f'<track id="{index}" label="cat">{track}</track>'
        for index, track in enumerate(tracks)
    )
    path = folder / "annotations.xml"
    path.write_text(f'<?xml version="1.0"?><annotations><version>1.1</version>{text}{body}</annotations>')
    return path


def lefts(masks: dict[int, np.ndarray]) -> dict[int, int]:
    """Position of the frame -> first column of the mask."""
    return {t: int(np.flatnonzero(mask.any(axis=0))[0]) for t, mask in masks.items()}


def numbers(labels) -> list[int]:
    return [frame.number for frame in labels.videos[0].frames]


def test_a_box_moves_linearly_between_keyframes_and_the_whole_box_is_the_mask(tmp_path):
    labels = read(write(tmp_path, box(1, 0) + box(5, 8) + box(6, 8, outside=1)), "cvat")
    assert lefts(dense(labels.videos[0], 0)) == {0: 0, 1: 2, 2: 4, 3: 6, 4: 8}
    assert dense(labels.videos[0], 0)[2].sum() == 16 and labels.videos[0].name == "clip"
    assert numbers(labels) == [1, 2, 3, 4, 5, 6] and note(labels, "boxes") == 5 and note(labels, "interpolated") == 3


def test_an_object_is_hidden_from_outside_to_the_next_keyframe(tmp_path):
    labels = read(write(tmp_path, box(0, 0) + box(2, 2, outside=1) + box(5, 6) + box(7, 6, outside=1)), "cvat")
    assert lefts(dense(labels.videos[0], 0)) == {0: 0, 1: 1, 5: 6, 6: 6}


def test_the_last_keyframe_stays_to_the_end_of_the_task_and_it_is_said(tmp_path):
    labels = read(write(tmp_path, box(7, 3)), "cvat")
    assert numbers(labels) == [7, 8, 9] and note(labels, "stays to the end") == 2


def test_frames_that_cvat_has_interpolated_are_taken_as_they_are(tmp_path):
    labels = read(write(tmp_path, box(0, 0) + box(1, 9, keyframe=0) + box(2, 4)), "cvat")
    assert lefts(dense(labels.videos[0], 0)) == {0: 0, 1: 9, 2: 4}  # and it ends there
    assert not note(labels, "interpolated") and not note(labels, "stays")


def test_a_shape_without_a_track_just_before_the_end_is_not_held(tmp_path):
    """CVAT writes such shapes as tracks, and forgets to hide them when only the last frame is left."""
    assert list(dense(read(write(tmp_path, box(0, 0) + box(1, 0, outside=1), box(8, 3)), "cvat").videos[0], 1)) == [8]


def test_only_frames_of_the_filter_belong_to_the_task(tmp_path):
    labels = read(write(tmp_path, box(10, 0) + box(25, 6) + box(30, 6, outside=1), start=5, step=5), "cvat")
    assert numbers(labels) == [10, 15, 20, 25, 30]
    assert lefts(dense(labels.videos[0], 0)) == {0: 0, 1: 2, 2: 4, 3: 6}
    assert labels.videos[0].num_source_frames == 10


def test_a_polygon_with_other_corners_moves_along_its_outline(tmp_path):
    start = '<polygon frame="0" keyframe="1" outside="0" points="0,0;8,0;8,8;0,8"/>'
    end = '<polygon frame="4" keyframe="1" outside="0" points="12,0;16,0;20,0;20,8;12,8"/>'
    hidden = end.replace('frame="4"', 'frame="5"').replace('outside="0"', 'outside="1"')
    masks = dense(read(write(tmp_path, start + end + hidden), "cvat").videos[0], 0)
    assert lefts(masks) == {0: 0, 1: 3, 2: 6, 3: 9, 4: 12} and {int(mask.sum()) for mask in masks.values()} == {64}


def test_turned_boxes_and_ellipses_have_the_right_area_and_place(tmp_path):
    ellipse = '<ellipse frame="0" keyframe="0" outside="0" cx="10" cy="5" rx="8" ry="3" rotation="0"/>'
    turned = '<box frame="0" keyframe="0" outside="0" xtl="8" ytl="1" xbr="12" ybr="9" rotation="90"/>'
    video = read(write(tmp_path, ellipse, turned), "cvat").videos[0]
    assert abs(dense(video, 0)[0].sum() - np.pi * 24) < 4
    (found,) = dense(video, 1).values()
    assert found.sum() == 32 and found[3:7, 6:14].all()


def test_masks_are_rows_of_a_window_and_group_ids_join_them(tmp_path):
    mask = '<mask frame="{0}" outside="0" keyframe="1" rle="1, 2, 1, 2" left="{0}" top="4" width="3" height="2"/>'
    hidden = '<mask frame="{0}" outside="1" keyframe="1" rle="0, 6" left="0" top="0" width="3" height="2"/>'
    body = "".join(
        f'<track id="{t}" label="dog" group_id="5">{mask.format(t)}{hidden.format(t + 1)}</track>' for t in range(3)
    )
    labels = read(write(tmp_path, meta=META.format(size=9, start=0, stop=8, filter="") + body), "cvat")
    masks = dense(labels.videos[0], 0)
    assert classes(labels) == {0: "dog"} and lefts(masks) == {0: 1, 1: 2, 2: 3}
    assert masks[0][4:6, :3].tolist() == [[False, True, True], [False, True, True]]


def test_masks_without_a_group_are_objects_of_one_frame_and_it_is_said(tmp_path):
    mask = '<mask frame="3" outside="0" keyframe="1" rle="0, 6" left="0" top="4" width="3" height="2"/>'
    labels = read(write(tmp_path, mask, mask.replace('"3"', '"4"', 1)), "cvat")
    assert len(labels.videos[0].tracks) == 2 and note(labels, "do not say whose") == 2


def test_what_encloses_no_pixels_is_counted_with_its_first_place(tmp_path):
    others = '<points frame="0" points="1,1"/><polyline frame="1" points="1,1;2,2"/><points frame="2" points="1,1"/>'
    labels = read(write(tmp_path, box(0, 0) + box(1, 0, outside=1), others), "cvat")
    assert note(labels, "<points>") == 2 and note(labels, "<polyline>") == 1 and note(labels, "without a visible") == 1
    assert any("track 1, frame 0" in line for line in labels.notes.lines())


def test_shapes_outside_the_image_are_cut_and_those_without_a_pixel_are_counted(tmp_path):
    labels = read(write(tmp_path, box(0, 18) + box(1, 30) + box(2, 30, outside=1)), "cvat")
    assert dense(labels.videos[0], 0)[0].sum() == 8 and note(labels, "without a pixel") == 1


def test_the_tasks_of_a_project_are_videos_of_their_own(tmp_path):
    task = "<task><id>{0}</id><name>{1}</name><size>3</size><start_frame>0</start_frame><stop_frame>2</stop_frame>"
    task += "<original_size><width>20</width><height>10</height></original_size><source>{1}.mp4</source></task>"
    meta = f"<meta><project><tasks>{task.format(7, 'a')}{task.format(8, 'b')}</tasks><labels><label><name>cat</name>"
    meta += "</label></labels></project></meta>"
    body = "".join(
        f'<track id="{n}" task_id="{task_id}" label="cat">{box(0, n)}{box(1, n, outside=1)}</track>'
        for n, task_id in enumerate((8, 7, 8))
    )
    labels = read(write(tmp_path, meta=meta + body), "cvat")
    assert {video.name: [track.id for track in video.tracks] for video in labels.videos} == {"b": [0, 2], "a": [1]}


def test_images_with_group_ids_are_a_video_of_their_folder(tmp_path):
    image = '<image id="{0}" name="pets/{0}.png" width="20" height="10"><box label="dog" group_id="3" {1}/>{2}</image>'
    sides = 'xtl="0" ytl="0" xbr="4" ybr="4"'
    extra = '<points label="dog" points="1,1"/><tag label="dog"/>'
    labels = read(write(tmp_path, image.format(0, sides, extra), image.format(1, sides, "")), "cvat")
    (video,) = labels.videos
    assert video.name == "pets" and [frame.name for frame in video.frames] == ["pets/0.png", "pets/1.png"]
    assert list(dense(video, 3)) == [0, 1] and note(labels, "<points>") == note(labels, "<tag>") == 1


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ('<box frame="0" xtl="a" ytl="0" xbr="1" ybr="1"/>', "needs a number 'xtl', got 'a'"),
        ('<box frame="0" xtl="nan" ytl="0" xbr="1" ybr="1"/>', "needs a number 'xtl', got 'nan'"),
        ('<polygon frame="0" points="1,1;2,2"/>', "at least three points"),
        ('<mask frame="0" rle="1,2" left="0" top="0" width="2" height="2"/>', "add up to its window of 2 x 2"),
        ('<mask frame="0" rle="x" left="0" top="0" width="2" height="2"/>', "list of whole numbers, got 'x'"),
    ],
)
def test_a_broken_shape_is_refused_with_file_track_and_frame(tmp_path, body, words):
    with pytest.raises(ValueError, match=f"annotations.xml: clip, track 0, frame 0.*{words}"):
        read(write(tmp_path, body), "cvat")


def test_entities_are_refused(tmp_path):
    from lbvq.data.formats.cvat.document import parse

    path = tmp_path / "bomb.xml"
    path.write_text('<!DOCTYPE a [<!ENTITY b "c">]><annotations>&b;</annotations>')
    with pytest.raises(ValueError, match=r"bomb.xml declares a document type"):
        parse(path, "bomb.xml")
