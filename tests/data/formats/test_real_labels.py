"""Real labels: a colony of bacteria that divide, in 16 bits; masklets of SA-V; a street of BDD100K (tests/real)."""

from __future__ import annotations

import json
import lzma
import shutil
from pathlib import Path

import numpy as np
import pycocotools.mask as coco_mask
import pytest
from helpers import ROOT
from label_cases import dense, note, read
from PIL import Image

from lbvq.__main__ import main
from lbvq.data.formats import ReadOptions, choose_format, read_labels
from lbvq.data.formats.frames import FrameFinder
from lbvq.data.formats.source import open_source

REAL = ROOT / "tests" / "real"


def unpacked(name: str, folder: Path) -> Path:
    path = folder / name
    path.write_bytes(lzma.decompress((REAL / f"{name}.xz").read_bytes()))
    return path


def test_masks_of_bacteria_are_the_numbers_of_their_pixels():
    (video,) = read(REAL / "bacteria_16bit", "davis").videos
    for t in range(12):
        pixels = np.asarray(Image.open(REAL / f"bacteria_16bit/Annotations/bacteria/{t:05d}.png"))
        here = {track.id for track in video.tracks if t in track.masks}
        assert here == set(np.unique(pixels).tolist()) - {0}
    assert all(np.array_equal(mask, np.asarray(pixels) == 40) for t, mask in dense(video, 40).items() if t == 11)
    births = [min(track.masks) for track in video.tracks]
    assert len(births) == 48 and sum(t > 0 for t in births) == 48 - births.count(0) > 30  # they divide


def test_masklets_of_sa_v_are_read_as_pycocotools_reads_them(tmp_path):
    path = unpacked("sav_000001_manual.json", tmp_path)
    labels = read(path, "sav")
    (video,) = labels.videos
    masklet = json.loads(path.read_text())["masklet"]
    assert (len(video.frames), video.frames[120].number, video.num_source_frames) == (121, 480, 483)
    assert note(labels, "without a pixel") == 125
    for t, track_id in ((0, 0), (60, 1), (115, 3)):
        assert np.array_equal(dense(video, track_id)[t], coco_mask.decode(masklet[t][track_id]).astype(bool))


def test_a_street_of_bdd100k_keeps_ids_classes_and_masks(tmp_path):
    path = unpacked("bdd100k_seg_track_20_frames.json", tmp_path)
    labels = read(path, "scalabel")
    (video,) = labels.videos
    frames = json.loads(path.read_text())
    for t, frame in enumerate(frames):
        for label in frame["labels"]:
            (track,) = [track for track in video.tracks if track.id == int(label["id"])]
            assert labels.categories[track.category_id] == label["category"]
            assert coco_mask.area(track.masks[t]) == coco_mask.area(label["rle"])
    assert len(video.tracks) == 33 and len(labels.categories) == 8


def test_convert_writes_a_data_folder_and_leaves_the_source_alone(tmp_path, capsys):
    shutil.copytree(REAL / "bacteria_16bit", tmp_path / "in")
    before = {path: path.read_bytes() for path in (tmp_path / "in").rglob("*.png")}
    assert main(["convert", str(tmp_path / "in"), "--classes", "cell", "--out", str(tmp_path / "out")]) == 0
    assert "bacteria: 12 frames, 48 objects" in capsys.readouterr().out
    assert before == {path: path.read_bytes() for path in (tmp_path / "in").rglob("*.png")}
    content = json.loads((tmp_path / "out/annotations.json").read_text())
    assert content["categories"] == [{"id": 1, "name": "cell"}] and len(content["annotations"]) == 48
    frames = sorted((tmp_path / "out/frames/bacteria").iterdir())
    assert [frame.read_bytes() for frame in frames] == [
        (REAL / f"bacteria_16bit/JPEGImages/bacteria/{t:05d}.png").read_bytes() for t in range(12)
    ]


def test_a_wrong_format_says_what_it_looks_like(tmp_path):
    path = unpacked("sav_000001_manual.json", tmp_path)
    words = r"does not look like labelme .* looks like sav \(a JSON file with 'masklet'\)"
    with open_source(path) as source, pytest.raises(ValueError, match=words):
        choose_format(source, "labelme")


def test_labels_without_frames_say_where_they_were_looked_for(tmp_path):
    path = unpacked("sav_000001_manual.json", tmp_path)
    with open_source(path) as source:
        _, labels = read_labels(source, None, ReadOptions())
    with pytest.raises(FileNotFoundError, match=r"No frames of the video 'sav_000001'.*--frames"):
        FrameFinder([tmp_path], labels).find(labels.videos[0])
