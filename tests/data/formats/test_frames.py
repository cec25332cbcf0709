"""Which image or video frame belongs to which labelled frame, and what is written into a data folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lbvq.data.formats.folder import FrameOptions, check_target, write_data_folder
from lbvq.data.formats.frames import FrameFinder
from lbvq.data.formats.labels import Frame, Labels, Track, Video
from lbvq.files.images import read_image
from lbvq.masks.rle import encode
from lbvq.video.writer import write_video

SIZE = (16, 24)
MASK = encode(np.ones(SIZE, bool))


def picture(path: Path, grey: int = 0, size: tuple[int, int] = SIZE, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), grey, np.uint8)).save(path, **options)
    return path


def video(name: str = "a", numbers: tuple[int, ...] = (), files: tuple[str, ...] = ()) -> Video:
    frames = [Frame("", number) for number in numbers] or [Frame(file) for file in files]
    return Video(name, frames, [Track(1, 1, {0: MASK})], SIZE)


def find(root: Path, wanted: Video, alone: bool = True):
    labels = Labels({1: "cat"}, [wanted] if alone else [wanted, video("other", (0,))])
    return FrameFinder([root], labels).find(wanted)


def names(root: Path, wanted: Video, alone: bool = True) -> list[str]:
    return [str(image.relative_to(root)) for image in find(root, wanted, alone).images]


# ---- finding


def test_an_image_is_found_by_the_last_parts_of_its_path_with_any_suffix(tmp_path):
    for folder in ("a", "b"):
        picture(tmp_path / f"JPEGImages/{folder}/00000.jpg")
    assert names(tmp_path, video("a", files=("a/00000",)), alone=False) == ["JPEGImages/a/00000.jpg"]
    assert names(tmp_path, video("b", files=("00000.png",)), alone=False) == ["JPEGImages/b/00000.jpg"]


def test_an_image_of_another_video_is_not_taken(tmp_path):
    picture(tmp_path / "b/00000.jpg")
    with pytest.raises(FileNotFoundError, match="No frames of the video 'a'"):
        find(tmp_path, video("a", files=("a/00000",)), alone=False)


def test_two_images_that_fit_equally_are_an_error(tmp_path):
    for folder in ("left", "right"):
        picture(tmp_path / f"{folder}/a/0.jpg")
    with pytest.raises(ValueError, match=r"can be left/a/0.jpg or right/a/0.jpg"):
        find(tmp_path, video("a", files=("a/0",)))


def test_numbers_with_other_zeros_in_front_are_the_same_number(tmp_path):
    picture(tmp_path / "a/00007.png")
    assert names(tmp_path, video("a", files=("a/000007",))) == ["a/00007.png"]


def test_images_numbered_from_0_are_taken_by_number_also_when_some_are_missing(tmp_path):
    for number in (0, 5, 10, 15):
        picture(tmp_path / f"a/frame_{number:06d}.png")
    assert names(tmp_path, video("a", (5, 15))) == ["a/frame_000005.png", "a/frame_000015.png"]


def test_images_numbered_from_1_are_counted_and_it_is_said(tmp_path):
    for number in range(1, 5):
        picture(tmp_path / f"a/{number}.png")
    assert names(tmp_path, video("a", (0, 3))) == ["a/1.png", "a/4.png"]
    assert find(tmp_path, video("a", (0, 3))).remark == "frame 0 is 1.png: images are counted from 0"


def test_too_few_images_are_an_error_that_names_the_frame(tmp_path):
    picture(tmp_path / "a/1.png")
    with pytest.raises(ValueError, match="holds 1 images, but the labels speak of frame 7"):
        find(tmp_path, video("a", (7,)))


def test_a_video_file_is_found_by_its_name(tmp_path):
    for name in ("a", "b"):
        write_video(tmp_path / f"{name}.mp4", [np.zeros((*SIZE, 3), np.uint8)] * 3, 10)
    assert find(tmp_path, video("b", (0, 2)), alone=False).file == tmp_path / "b.mp4"


def test_hidden_files_of_macos_are_no_frames(tmp_path):
    picture(tmp_path / "a/0.png")
    (tmp_path / "a/._0.png").write_bytes(b"x")
    assert names(tmp_path, video("a", (0,))) == ["a/0.png"]


# ---- writing


def write(folder: Path, root: Path, wanted: Video, **options: object) -> tuple[Labels, dict]:
    labels = Labels({1: "cat"}, [wanted])
    folder.mkdir()
    written = write_data_folder(labels, folder, FrameFinder([root], labels), FrameOptions(**options))
    return written, json.loads((folder / "annotations.json").read_text())


def test_images_are_copied_byte_by_byte_also_those_of_16_bits(tmp_path):
    path = tmp_path / "in/a/0.png"
    path.parent.mkdir(parents=True)
    Image.fromarray(np.arange(384, dtype=np.uint16).reshape(SIZE) * 170).save(path)
    _, content = write(tmp_path / "out", tmp_path / "in", video("a", files=("a/0.png",)))
    assert content["videos"][0]["file_names"] == ["a/0.png"]
    assert (tmp_path / "out/frames/a/0.png").read_bytes() == path.read_bytes()


def test_frames_of_a_video_file_are_the_ones_with_their_numbers(tmp_path):
    greys = [np.full((*SIZE, 3), 20 * k, np.uint8) for k in range(10)]
    write_video(tmp_path / "a.mp4", greys, 10)
    _, content = write(tmp_path / "out", tmp_path / "a.mp4", video("a", (2, 9)), suffix=".png")
    assert content["videos"][0]["file_names"] == ["a/00002.png", "a/00009.png"]
    assert content["videos"][0]["frame_numbers"] == [2, 9]
    for number in (2, 9):
        pixels = read_image(tmp_path / f"out/frames/a/{number:05d}.png").astype(int)
        assert abs(pixels - 20 * number).max() <= 4


def test_a_video_file_that_is_too_short_is_an_error_that_names_it(tmp_path):
    write_video(tmp_path / "a.mp4", [np.zeros((*SIZE, 3), np.uint8)] * 3, 10)
    with pytest.raises(ValueError, match=r"a.mp4 ends after 3 frames, but the labels speak of frame 7"):
        write(tmp_path / "out", tmp_path / "a.mp4", video("a", (0, 7)))


def test_numbers_on_the_clock_of_the_tool_are_scaled_to_the_file_and_it_is_said(tmp_path):
    write_video(tmp_path / "a.mp4", [np.full((*SIZE, 3), 20 * k, np.uint8) for k in range(12)], 10)
    wanted = video("a", (0, 3))
    wanted.num_source_frames, wanted.scale_numbers = 6, True
    written, content = write(tmp_path / "out", tmp_path / "a.mp4", wanted)
    assert content["videos"][0]["file_names"] == ["a/00000.jpg", "a/00006.jpg"]
    assert any("the labels count 6 frames, the file has 12" in line for line in written.notes.lines())


def test_frames_of_another_size_are_refused_with_both_sizes(tmp_path):
    picture(tmp_path / "in/a/0.png", size=(8, 8))
    with pytest.raises(ValueError, match=r"0.png has 8 x 8 pixels .* made for 16 x 24"):
        write(tmp_path / "out", tmp_path / "in", video("a", files=("a/0.png",)))


def test_missing_frames_are_refused_by_name_or_left_out_when_asked_and_counted(tmp_path):
    picture(tmp_path / "in/a/1.png")
    wanted = video("a", files=("a/0.png", "a/1.png"))
    wanted.tracks = [Track(1, 1, {0: MASK}), Track(2, 1, {0: MASK, 1: MASK})]
    with pytest.raises(FileNotFoundError, match=r"1 of the 2 frames of video 'a' are not there: a/0.png"):
        write(tmp_path / "out", tmp_path / "in", wanted)
    written, content = write(tmp_path / "out2", tmp_path / "in", wanted, skip_missing=True)
    assert [len(each["segmentations"]) for each in content["annotations"]] == [1]
    assert written.notes.lines()[0].startswith("left out: 1 x frames without an image")


def test_images_that_exif_turns_are_said(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(tmp_path / "in/a/0.jpg", size=(24, 16), exif=exif)
    written, _ = write(tmp_path / "out", tmp_path / "in", video("a", files=("a/0.jpg",)))
    assert "EXIF" in written.notes.lines()[0]


def test_pictures_of_several_folders_with_one_name_do_not_replace_each_other(tmp_path):
    for folder, grey in (("x", 10), ("y", 90)):
        picture(tmp_path / f"in/{folder}/0.png", grey)
    write(tmp_path / "out", tmp_path / "in", video("a", files=("x/0.png", "y/0.png")))
    assert read_image(tmp_path / "out/frames/a/00001_0.png").max() == 90


def test_links_instead_of_copies_when_asked(tmp_path):
    path = picture(tmp_path / "in/a/0.png")
    write(tmp_path / "out", tmp_path / "in", video("a", files=("a/0.png",)), symlink=True)
    assert (tmp_path / "out/frames/a/0.png").resolve() == path


def test_only_the_folder_of_an_earlier_conversion_is_replaced(tmp_path):
    check_target(tmp_path / "new", overwrite=False)
    (tmp_path / "annotations.json").write_text("{}")
    with pytest.raises(FileExistsError, match="--overwrite"):
        check_target(tmp_path, overwrite=False)
    with pytest.raises(FileExistsError, match="no folder of an earlier conversion"):
        check_target(tmp_path, overwrite=True)
    (tmp_path / "conversion.json").write_text("{}")
    check_target(tmp_path, overwrite=True)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"notes.txt"):
        check_target(tmp_path, overwrite=True)
