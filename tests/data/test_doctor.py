"""lbvq doctor: every kind of fault is found, named with its place, and nothing is found where nothing is wrong."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lbvq.__main__ import main
from lbvq.cli.doctor import note_crowded
from lbvq.data.doctor import KINDS, Report, VideoFacts, examine
from lbvq.files.images import read_image
from lbvq.masks.rle import area, encode, to_bbox, to_rle

SIZE = (40, 60)


def mask(top: int, left: int, height: int = 10, width: int = 12) -> dict[str, Any]:
    pixels = np.zeros(SIZE, bool)
    pixels[top : top + height, left : left + width] = True
    return encode(pixels)


def annotation(number: int, video: int, category: int, masks: list) -> dict[str, Any]:
    boxes = [to_bbox(each) if each else None for each in masks]
    areas = [area(each) if each else None for each in masks]
    facts = {"id": number, "video_id": video, "category_id": category, "iscrowd": 0}
    return {**facts, "segmentations": masks, "bboxes": boxes, "areas": areas}


@pytest.fixture(scope="module")
def healthy(tmp_path_factory) -> Path:
    """Two videos of three frames; in each a cat moves to the right above a dog that moves to the left."""
    folder = tmp_path_factory.mktemp("healthy") / "data"
    videos, annotations = [], []
    rng = np.random.default_rng(0)
    for video in (1, 2):
        names = [f"v{video}/{t}.png" for t in range(3)]
        videos.append({"id": video, "height": 40, "width": 60, "length": 3, "file_names": names})
        for category, row, step in ((1, 2, 4), (2, 25, -4)):
            masks = [mask(row, 20 + step * t) for t in range(3)]
            annotations.append(annotation(len(annotations) + 1, video, category, masks))
        for name in names:
            (folder / "frames" / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (*SIZE, 3)).astype(np.uint8)).save(folder / "frames" / name)
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    content = {"videos": videos, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def folder(healthy, tmp_path) -> Path:
    return Path(shutil.copytree(healthy, tmp_path / "data"))


def content_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "annotations.json").read_text())


def change(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    content = content_of(folder)
    edit(content)
    (folder / "annotations.json").write_text(json.dumps(content))


def counts(folder: Path) -> dict[str, int]:
    return dict(examine(folder / "annotations.json", folder / "frames", jobs=1).counts)


def test_nothing_is_found_where_nothing_is_wrong(healthy):
    report = examine(healthy / "annotations.json", healthy / "frames", jobs=1)
    assert report.counts == {} and not report.has_errors and report.classes == {"cat": 2, "dog": 2}
    (line,) = report.lines()
    assert "2 videos, 6 frames, 2 classes, 4 objects, 12 masks, at most 2 objects in a frame" in line


def set_masks(number: int, *masks: Any) -> Callable[[dict], None]:
    """Replace the masks of an object, and leave its boxes out."""

    def edit(content: dict) -> None:
        content["annotations"][number - 1] |= {"segmentations": list(masks), "bboxes": None}

    return edit


def swap(content: dict) -> None:
    """Objects 1 and 2 change their masks in the last frame, in which they lie where they lay before."""
    a, b = content["annotations"][:2]
    for key in ("segmentations", "bboxes"):
        a[key][2], b[key][2] = b[key][2], a[key][2]


M = mask(2, 20)
FILE_FAULTS: list[tuple[str, Callable[[dict], Any]]] = [
    ("entry", lambda c: c["videos"].append({"id": "x"})),
    ("entry", lambda c: c["videos"][0].update(file_names=["../up.png"] * 3)),
    ("entry", lambda c: c["videos"][0].update(length=9)),
    ("entry", lambda c: c["annotations"][0].update(segmentations=[M])),
    ("entry", lambda c: c["annotations"].append("x")),
    ("entry", lambda c: c.update(categories=[])),
    ("id_twice", lambda c: c["annotations"].append(copy.deepcopy(c["annotations"][0]))),
    ("id_twice", lambda c: c["videos"].append(copy.deepcopy(c["videos"][0]))),
    ("id_twice", lambda c: c["categories"].append({"id": 1, "name": "owl"})),
    ("no_parent", lambda c: c["annotations"][0].update(video_id=77)),
    ("no_parent", lambda c: c["annotations"][0].update(category_id=77)),
    ("name_twice", lambda c: c["categories"].append({"id": 3, "name": "dog"})),
    ("file_twice", lambda c: c["videos"][0].update(file_names=["v1/0.png", "v1/0.png", "v1/2.png"])),
    ("no_objects", lambda c: c.update(annotations=None)),
    ("class_unused", lambda c: c["categories"].append({"id": 3, "name": "owl"})),
    ("class_rare", lambda c: c["annotations"].pop()),
    ("video_empty", lambda c: c.update(annotations=c["annotations"][:2])),
    ("id_gaps", lambda c: [c["categories"][1].update(id=9), [a.update(category_id=9) for a in c["annotations"][1::2]]]),
    ("mask_broken", set_masks(1, M, {"size": [40, 60], "counts": "zz"}, M)),
    ("mask_broken", set_masks(1, M, [[1, 1, "x", 2, 3, 3]], M)),
    ("mask_size", set_masks(1, M, {"size": [60, 40], "counts": M["counts"]}, M)),
    ("mask_outside", set_masks(1, M, [[50, 2, 90, 2, 90, 12]], M)),
    ("mask_empty", set_masks(1, M, to_rle([], *SIZE), M)),
    ("mask_flat", set_masks(1, M, mask(2, 20, 1, 30), M)),
    ("mask_whole", set_masks(1, M, mask(0, 0, 40, 60), M)),
    ("masks_same", set_masks(2, M, mask(25, 20), mask(25, 18))),
    ("masks_overlap", set_masks(2, mask(2, 26), mask(25, 20), mask(25, 18))),
    ("box_differs", lambda c: c["annotations"][0].update(bboxes=[[0, 0, 5, 5], None, None])),
    ("box_differs", lambda c: c["annotations"][0].update(bboxes=[[20, 2, 0, 0], None, None])),
    ("object_empty", set_masks(1, None, None, None)),
    ("object_jumps", swap),
    ("object_brief", set_masks(1, M, None, None)),
]


@pytest.mark.parametrize(("kind", "edit"), FILE_FAULTS, ids=[f"{n}-{kind}" for n, (kind, _) in enumerate(FILE_FAULTS)])
def test_faults_of_the_file_are_found(folder, kind, edit):
    change(folder, edit)
    assert counts(folder).get(kind, 0) >= 1


def grey_16(path: Path, largest: int) -> None:
    Image.fromarray(np.linspace(0, largest, 2400).reshape(SIZE).astype(np.uint16)).save(path)


def turned(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.open(path).save(path, exif=exif)


FRAME_FAULTS: list[tuple[str, Callable[[Path], Any]]] = [
    ("frame_missing", lambda path: path.unlink()),
    ("frame_damaged", lambda path: path.write_bytes(path.read_bytes()[:1000])),
    ("frame_damaged", lambda path: path.write_text("<html>")),
    ("frame_size", lambda path: Image.new("RGB", (60, 41)).save(path)),
    ("frame_exif", turned),
    ("frame_repeated", lambda path: shutil.copy(path.with_name("0.png"), path)),
    ("frame_dark", lambda path: grey_16(path, 4095)),
    ("frame_kinds", lambda path: grey_16(path, 65535)),
]


@pytest.mark.parametrize(
    ("kind", "edit"), FRAME_FAULTS, ids=[f"{n}-{kind}" for n, (kind, _) in enumerate(FRAME_FAULTS)]
)
def test_faults_of_frames_are_found_with_their_file(folder, kind, edit):
    edit(folder / "frames/v2/1.png")
    report = examine(folder / "annotations.json", folder / "frames", jobs=1)
    (finding,) = [each for each in report.findings if each.kind == kind]
    assert kind == "frame_kinds" or finding.where == str(folder / "frames/v2/1.png")
    assert finding.video == 2


def test_frames_of_16_bits_and_videos_of_one_frame_are_noted(folder):
    for t in range(3):
        grey_16(folder / f"frames/v1/{t}.png", 65535 - t)
    change(folder, lambda c: c["videos"][1].update(length=1))
    change(folder, lambda c: [a.update(segmentations=a["segmentations"][:1]) for a in c["annotations"][2:]])
    assert counts(folder) == {"frame_16_bit": 1, "video_short": 1}


def test_every_kind_is_tested():
    tested = {kind for kind, _ in [*FILE_FAULTS, *FRAME_FAULTS]} | {
        "frame_16_bit",
        "video_short",
        "queries",
        "queries_video",
    }
    assert tested == set(KINDS)


def test_several_processes_find_the_same(folder):
    change(folder, swap)
    (folder / "frames/v2/1.png").unlink()
    alone, together = (examine(folder / "annotations.json", folder / "frames", jobs=jobs).to_json() for jobs in (1, 2))
    assert alone == together


# ---- the command


def doctor(*arguments: object) -> int:
    return main(["doctor", *map(str, arguments)])


def test_the_command_says_what_where_and_what_to_do_and_its_exit_code_tells(folder, healthy, capsys, tmp_path):
    assert doctor(folder, "--jobs", 1) == 0
    capsys.readouterr()
    (folder / "frames/v1/2.png").unlink()
    assert doctor(folder, "--jobs", 1, "--json", tmp_path / "report.json") == 1
    out = capsys.readouterr().out
    assert "ERROR        1 x frames that are not there" in out and "-> copy them, or convert with --skip-missing" in out
    findings = json.loads((tmp_path / "report.json").read_text())["findings"]
    assert [(each["kind"], each["level"], each["frame"]) for each in findings] == [("frame_missing", "error", 2)]


def test_pictures_show_the_frame_with_its_masks(folder, capsys):
    change(folder, swap)
    change(folder, set_masks(3, M, mask(2, 20, 1, 30), M))
    before = {path: path.read_bytes() for path in folder.rglob("*.*")}
    assert doctor(folder, "--jobs", 1) == 0
    names = sorted(path.name for path in (folder / "doctor").iterdir())
    assert [name[3:] for name in names] == ["mask_flat.png", "object_jumps.png"]
    picture = read_image(folder / "doctor" / names[0])
    assert picture.shape[1] == 960 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 50
    assert before == {path: path.read_bytes() for path in before}
    assert doctor(folder, "--jobs", 1) == 0  # a second visit replaces its own pictures


def test_more_objects_than_queries_are_a_warning_and_a_training_is_measured(folder, capsys):
    settings = folder.parent / "tiny.yaml"
    settings.write_text(
        "_BASE_: " + str(Path(__file__).parents[2] / "configs/synthetic/minvis_R18_tiny.yaml") + "\n"
        "MODEL: {MASK_FORMER: {NUM_OBJECT_QUERIES: 1, DEC_LAYERS: 2, TRAIN_NUM_POINTS: 32}}\n"
        "SOLVER: {IMS_PER_BATCH: 2}\nINPUT: {MIN_SIZE_TRAIN: [32], MAX_SIZE_TRAIN: 48}\n"
    )
    assert doctor(folder, "--jobs", 1, "--model", settings, "--steps", 300) == 0
    out = capsys.readouterr().out
    assert "2 x videos with more objects in a frame than the model has queries" in out
    assert "seconds a step" in out and "for 300 steps (every video 300 times)" in out and "GiB at the peak" in out


@pytest.mark.parametrize(("at_once", "in_all", "kind"), [(5, 6, "queries"), (4, 6, "queries_video"), (4, 4, None)])
def test_objects_in_a_frame_and_in_a_video_are_compared_with_queries(at_once, in_all, kind):
    report = Report("pets", videos=[VideoFacts(1, "v1", num_objects=in_all, most_objects=at_once)])
    note_crowded(report, 4)
    assert [(each.kind, each.where) for each in report.findings] == ([(kind, "video v1")] if kind else [])


def test_what_is_no_annotation_file_is_refused(folder, capsys):
    (folder / "annotations.json").write_text("[1]")
    assert doctor(folder) == 2 and "no list 'videos'" in capsys.readouterr().err
    (folder / "annotations.json").unlink()
    assert doctor(folder) == 2 and "There is no annotation file" in capsys.readouterr().err
