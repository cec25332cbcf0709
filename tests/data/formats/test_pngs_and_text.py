"""Folders of masks (DAVIS and its relatives), MOTS images and MOTS text, by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from label_cases import classes, dense, note, read
from PIL import Image

from lbvq.masks.rle import encode


def save(path: Path, numbers: list[list], mode: str = "P") -> None:
    """Write a PNG of numbers: with a palette, grey of 8 or 16 bits, or in colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dtype = np.uint16 if mode == "I;16" else np.uint8
    image = Image.fromarray(np.array(numbers, dtype=dtype))
    if mode == "P":
        image.putpalette([k * 7 % 256 for k in range(768)])
    image.save(path)


def ids(labels, name: str) -> list[int]:
    (video,) = [video for video in labels.videos if video.name == name]
    return [track.id for track in video.tracks]


def test_davis_folders_are_videos_and_numbers_are_objects(tmp_path):
    save(tmp_path / "Annotations/480p/bear/00000.png", [[0, 1], [2, 2]])
    save(tmp_path / "Annotations/480p/bear/00001.png", [[2, 1], [0, 0]])
    save(tmp_path / "Annotations/480p/cows/00000.png", [[5, 255], [0, 0]])
    labels = read(tmp_path, "davis")
    assert ids(labels, "bear") == [1, 2] and ids(labels, "cows") == [5] and labels.categories == {1: "object"}
    assert dense(labels.videos[0], 2)[1].tolist() == [[True, False], [False, False]]
    assert [frame.name for frame in labels.videos[0].frames] == ["bear/00000", "bear/00001"]
    assert note(labels, "undecided regions") == 1


def test_classes_come_from_youtube_vos_meta_json_or_the_command_line(tmp_path):
    save(tmp_path / "train/Annotations/ab12/00005.png", [[1, 3]])
    meta = {"videos": {"ab12": {"objects": {"1": {"category": "zebra"}, "3": {"category": "ape"}}}}}
    (tmp_path / "train/meta.json").write_text(json.dumps(meta))
    labels = read(tmp_path, "davis")
    assert classes(labels) == {1: "zebra", 3: "ape"} and labels.categories == {1: "ape", 2: "zebra"}
    (tmp_path / "train/meta.json").unlink()
    assert classes(read(tmp_path, "davis", classes=["cell"])) == {1: "cell", 3: "cell"}
    with pytest.raises(ValueError, match="do not tell classes apart"):
        read(tmp_path, "davis", classes=["cell", "dirt"])


def test_255_alone_is_an_object_and_every_colour_is_one(tmp_path):
    save(tmp_path / "masks/one/0.png", [[0, 255]], "L")
    save(tmp_path / "masks/two/0.png", [[[0, 0, 0], [255, 0, 0], [0, 0, 9]]], "RGB")
    labels = read(tmp_path, "davis")
    assert ids(labels, "masks/one") == [1] and ids(labels, "masks/two") == [1, 2]
    assert note(labels, "whose only value is 255") == note(labels, "every colour") == 1
    assert dense(labels.videos[1], 2)[0].tolist() == [[False, True, False]]  # red is the larger number


def test_one_folder_per_object_as_the_test_sets_of_sa_v(tmp_path):
    for item, pixels in (("000", [[255, 0]]), ("007", [[0, 255]])):
        save(tmp_path / f"Annotations_6fps/sav_1/{item}/00000.png", pixels, "L")
    save(tmp_path / "Annotations_6fps/sav_1/007/00004.png", [[255, 255]], "L")
    labels = read(tmp_path, "davis")
    assert ids(labels, "sav_1") == [0, 7]
    assert [frame.name for frame in labels.videos[0].frames] == ["sav_1/00000", "sav_1/00004"]
    assert list(dense(labels.videos[0], 7)) == [0, 1]


def test_16_bit_masks_are_numbers_too(tmp_path):
    save(tmp_path / "masks/v/0.png", [[0, 300], [65535, 300]], "I;16")
    assert ids(read(tmp_path, "davis"), "masks/v") == [300, 65535]


def test_masks_of_other_sizes_in_one_video_are_refused_by_name(tmp_path):
    save(tmp_path / "masks/v/0.png", [[1, 1]])
    save(tmp_path / "masks/v/1.png", [[1], [1]])
    with pytest.raises(ValueError, match=r"masks/v/1.png has \(2, 1\) pixels"):
        read(tmp_path, "davis")


def test_truncated_masks_are_refused_by_name(tmp_path):
    save(tmp_path / "masks/v/0.png", np.random.default_rng(0).integers(0, 3, (50, 50)).tolist())
    save(tmp_path / "masks/v/1.png", np.random.default_rng(1).integers(0, 3, (50, 50)).tolist())
    path = tmp_path / "masks/v/1.png"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"masks/v/1.png cannot be read as a PNG of masks"):
        read(tmp_path, "davis")


# ---- MOTS


def test_mots_images_of_kitti_have_its_classes_and_regions_to_be_ignored(tmp_path):
    save(tmp_path / "instances/0002/000000.png", [[1000, 2003], [10000, 0]], "I;16")
    save(tmp_path / "instances/0002/000001.png", [[0, 2003], [0, 0]], "I;16")
    labels = read(tmp_path, "mots")
    assert classes(labels) == {0: "car", 3: "pedestrian"} and note(labels, "to be ignored") == 1
    assert labels.videos[0].name == "0002" and list(dense(labels.videos[0], 3)) == [0, 1]


def test_objects_of_two_classes_with_one_number_stay_two(tmp_path):
    save(tmp_path / "a/instances/f.png", [[1001, 2001]], "I;16")
    labels = read(tmp_path, "mots", classes=["x", "y"])
    assert sorted(classes(labels).values()) == ["x", "y"] and labels.videos[0].name == "a"


def test_a_class_without_a_name_is_refused(tmp_path):
    save(tmp_path / "instances/f.png", [[5001]], "I;16")
    with pytest.raises(ValueError, match="value 5001 means class 5"):
        read(tmp_path, "mots")


def line(frame: int, item: int, mask: list[list[int]]) -> str:
    coded = encode(np.array(mask, bool))
    return f"{frame} {item} {item // 1000} {coded['size'][0]} {coded['size'][1]} {coded['counts']}\n"


def test_mots_text_counts_frames_as_the_names_of_images_do(tmp_path):
    text = line(3, 2001, [[1, 0]]) + line(5, 2001, [[1, 1]]) + line(5, 10000, [[0, 1]])
    (tmp_path / "0009.txt").write_text(text)
    labels = read(tmp_path / "0009.txt", "mots_text")
    (video,) = labels.videos
    assert [frame.name for frame in video.frames] == ["0009/000003", "0009/000004", "0009/000005"]
    assert classes(labels) == {1: "pedestrian"} and list(dense(video, 1)) == [0, 2]
    assert note(labels, "to be ignored") == 1


def test_mots_challenge_names_the_video_by_its_folder(tmp_path):
    (tmp_path / "MOTS20-02/gt").mkdir(parents=True)
    (tmp_path / "MOTS20-02/gt/gt.txt").write_text(line(1, 2001, [[1]]))
    assert read(tmp_path, "mots_text").videos[0].name == "MOTS20-02"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0 1001 1 2 2 04\nnonsense\n", "line 2: expected 'frame object class"),
        ("0 1001 1 2 2 44\n", "frame 0, object 1001"),
        ("0 1001 1 2 2 04\n1 1001 1 3 2 06\n", "mask size must be 2 x 2"),
        ("0 9001 9 2 2 04\n", "there is no class 9"),
    ],
)
def test_broken_mots_text_is_refused_with_its_place(tmp_path, text, words):
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(ValueError, match=words):
        read(tmp_path, "mots_text")
