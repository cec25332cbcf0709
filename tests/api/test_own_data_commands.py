"""lbvq extract-frames, split and export, as a user calls them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from label_cases import classes, dense, read
from PIL import Image

from lbvq.__main__ import main
from lbvq.cli.extract_frames import chooser, parse_numbers
from lbvq.files.images import read_image
from lbvq.masks.rle import encode
from lbvq.video.writer import write_video


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


# ---- extract-frames


@pytest.fixture
def clip(tmp_path) -> Path:
    """12 frames, 20 grey levels apart; the clock stops for half a second after frame 5."""
    frames = [np.full((16, 24, 3), 20 * t, np.uint8) for t in range(12)]
    write_video(tmp_path / "clip.mp4", frames, timestamps=[t / 10 + (t > 5) * 0.5 for t in range(12)])
    return tmp_path / "clip.mp4"


def rows(folder: Path) -> list[tuple[int, float, str]]:
    with open(folder / "frames.csv") as file:
        return [(int(row["number"]), float(row["seconds"]), row["file"]) for row in csv.DictReader(file)]


def test_frames_are_written_with_their_numbers_and_the_times_of_the_file(clip, tmp_path):
    assert run("extract-frames", clip, "--out", tmp_path / "out", "--numbers", "0,4-6,11", "--format", "png") == 0
    found = rows(tmp_path / "out/clip")
    assert [row[0] for row in found] == [0, 4, 5, 6, 11]
    assert np.allclose([row[1] for row in found], [0, 0.4, 0.5, 1.1, 1.6], atol=1e-3)
    for number, _, name in found:
        assert name == f"{number:05d}.png"
        assert abs(read_image(tmp_path / "out/clip" / name).astype(int) - 20 * number).max() <= 4


def test_a_rate_follows_the_clock_and_not_the_count(clip, tmp_path):
    assert run("extract-frames", clip, "--out", tmp_path / "out", "--rate", 5) == 0
    assert [row[0] for row in rows(tmp_path / "out/clip")] == [0, 2, 4, 6, 7, 9, 11]
    seconds = [row[1] for row in rows(tmp_path / "out/clip")]
    assert np.allclose(seconds, [0, 0.2, 0.4, 1.1, 1.2, 1.4, 1.6], atol=1e-3)  # the first of every 0.2 seconds


def test_every_nth_frame():
    assert chooser(3, None, None)(np.arange(8.0)) == [0, 3, 6]


@pytest.mark.parametrize(("text", "numbers"), [("0", [0]), ("5,1-3,2", [1, 2, 3, 5])])
def test_lists_of_numbers(text, numbers):
    assert parse_numbers(text) == numbers


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--numbers", "3-1"], "--numbers is a list such as"),
        (["--numbers", "12"], "Frame 12 does not exist: the video has 12 frames, from 0 to 11"),
        (["--every", "0"], "--every must be at least 1"),
        (["--rate", "0"], "--rate must be positive"),
    ],
)
def test_what_cannot_be_extracted_is_said_and_nothing_is_written(clip, tmp_path, capsys, options, words):
    assert run("extract-frames", clip, "--out", tmp_path / "out", *options) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "out/clip").exists()


def test_frames_that_exist_are_not_replaced(clip, tmp_path, capsys):
    (tmp_path / "out/clip").mkdir(parents=True)
    assert run("extract-frames", clip, "--out", tmp_path / "out") == 2
    assert "exists already" in capsys.readouterr().err


# ---- split


def data_folder(folder: Path, num_videos: int = 5) -> Path:
    """Videos 11, 12, ... of two frames; video k shows class 1, and class 2 when k is even."""
    mask = encode(np.eye(4, 6, dtype=bool))
    videos, annotations = [], []
    for k in range(num_videos):
        number = 11 + k
        names = [f"v{k}/{t}.png" for t in range(2)]
        videos.append({"id": number, "name": f"v{k}", "height": 4, "width": 6, "length": 2, "file_names": names})
        for category in (1, 2) if k % 2 == 0 else (1,):
            annotation = {"id": len(annotations) + 1, "video_id": number, "category_id": category, "iscrowd": 0}
            annotations.append({**annotation, "segmentations": [mask, None]})
        for name in names:
            (folder / "frames" / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(folder / "frames" / name)
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    content = {"videos": videos, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder


def test_split_puts_whole_videos_aside_and_leaves_the_labels_alone(tmp_path, capsys):
    before = (data_folder(tmp_path) / "annotations.json").read_bytes()
    assert run("split", tmp_path, "--dev", 0.4) == 0
    parts = [json.loads((tmp_path / f"{part}.json").read_text()) for part in ("train", "dev")]
    ids = [{video["id"] for video in part["videos"]} for part in parts]
    assert ids[0] | ids[1] == set(range(11, 16)) and not ids[0] & ids[1] and len(ids[1]) == 2
    assert all({each["video_id"] for each in part["annotations"]} <= own for part, own in zip(parts, ids, strict=True))
    assert (tmp_path / "annotations.json").read_bytes() == before and "dog" in capsys.readouterr().out


def test_an_earlier_split_is_replaced_only_when_asked(tmp_path, capsys):
    data_folder(tmp_path)
    assert run("split", tmp_path) == 0 and run("split", tmp_path) == 2
    assert "exist already" in capsys.readouterr().err
    assert run("split", tmp_path, "--overwrite", "--seed", 1) == 0


# ---- export


def results(path: Path, **more: object) -> Path:
    """Three objects of video 12: the second repeats the masks of the first, the third has a low score."""
    full, empty = encode(np.ones((4, 6), bool)), encode(np.zeros((4, 6), bool))
    entry = {"video_id": 12, "category_id": 2, "segmentations": [full, empty]}
    entries = [{**entry, "score": 0.9}, {**entry, "score": 0.5, "category_id": 1}, {**entry, "score": 0.1}]
    path.write_text(json.dumps([{**each, **more} for each in entries]))
    return path


@pytest.mark.parametrize("name", ["cvat", "mots", "mots_text", "labelme", "coco", "ytvis"])
def test_predictions_go_back_into_every_tool_with_the_names_of_the_data(tmp_path, capsys, name):
    data = data_folder(tmp_path / "data")
    file = results(tmp_path / "results.json")
    assert run("export", file, "--to", name, "--data", data, "--out", tmp_path / "out") == 0
    labels = read(tmp_path / "out", name)
    assert labels.videos[0].name == "v1" and list(classes(labels).values()) == ["dog"]
    assert dense(labels.videos[0], 1)[0].all()
    out = capsys.readouterr().out
    assert "1 x objects with a score below 0.3" in out and "masks of a better one" in out


def test_predictions_of_lbvq_predict_need_no_data(tmp_path):
    more = {"file_name": "videos/run.mp4", "category_id": 2, "category_name": "owl", "object_id": 7}
    assert run("export", results(tmp_path / "found.json", **more), "--to", "coco") == 0
    labels = read(tmp_path / "found_coco", "coco")
    assert labels.videos[0].name == "run" and classes(labels) == {7: "owl"}


def test_labelme_files_point_to_the_frames(tmp_path):
    data = data_folder(tmp_path / "data")
    assert (
        run("export", results(tmp_path / "r.json"), "--to", "labelme", "--data", data, "--out", tmp_path / "out") == 0
    )
    content = json.loads((tmp_path / "out/v1/0.json").read_text())
    assert (tmp_path / "out/v1" / content["imagePath"]).resolve() == data / "frames/v1/0.png"


def test_a_data_folder_is_exported_too(tmp_path):
    assert run("export", data_folder(tmp_path / "data"), "--to", "cvat", "--out", tmp_path / "out") == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"v{k}.xml" for k in range(5)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"video_id": 99}, "there is no video 99"),
        ({"category_id": 99}, "there is no category 99"),
        ({"score": None}, "'score' must be a finite number"),
        ({"segmentations": []}, "0 segmentations for the 2 frames"),
    ],
)
def test_broken_results_are_refused_with_their_entry(tmp_path, capsys, change, words):
    data = data_folder(tmp_path / "data")
    assert run("export", results(tmp_path / "r.json", **change), "--to", "coco", "--data", data) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "r_coco").exists()


def test_an_export_replaces_nothing(tmp_path, capsys):
    assert run("export", results(tmp_path / "r.json"), "--to", "coco") == 0
    assert run("export", results(tmp_path / "r.json"), "--to", "coco") == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["convert", "doctor", "extract-frames", "split", "train", "eval", "export"])
def test_help_shows_examples(command, capsys):
    with pytest.raises(SystemExit) as ended:
        run(command, "--help")
    assert ended.value.code == 0
    assert f"lbvq {command} " in capsys.readouterr().out.partition("examples:")[2]
