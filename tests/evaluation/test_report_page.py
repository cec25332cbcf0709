"""The page of a report, without a browser: its numbers, its safety and its size."""

from __future__ import annotations

import base64
import json
import re

import cv2
import numpy as np
import pytest
from helpers import run_tool
from report_case import CLASSES, HOSTILE, NUM_FRAMES, write_report_case

from lbvq.evaluation.page.outlines import ALPHABET, grid_size, outline_text
from lbvq.evaluation.page.pictures import make_pictures, spread
from lbvq.evaluation.page.writing import write_page
from lbvq.masks import rle


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of a report with hostile names; the frames of the last video are missing."""
    folder = tmp_path_factory.mktemp("page")
    write_report_case(folder)
    options = ("--metric", "ytvis", "--frames", folder / "frames", "--report", folder / "report")
    assert run_tool("eval_json", folder / "dt.json", "--gt", folder / "gt.json", *options) == 0
    return folder / "report"


def data_of(page):
    """The document inside a page."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


@pytest.fixture(scope="module")
def data(folder):
    return data_of((folder / "index.html").read_text(encoding="utf-8"))


def test_the_numbers_of_the_page_are_those_of_the_other_files(folder, data):
    analysis = json.loads((folder / "analysis.json").read_text())
    assert data["analysis"] == analysis and analysis["errors"]
    summary = json.loads((folder / "summary.json").read_text())["results"]["segm"]
    assert data["scores"]["segm"] == {name: value for name, value in summary.items() if not name.startswith("AP-")}
    assert [row["AP"] for row in data["classes"]] == [summary[f"AP-{name}"] for name in CLASSES.values()]
    assert data["analysis"]["AP"] == pytest.approx(summary["AP"])
    for name in ("AP", "AP50", "AP75"):
        low, high = data["analysis"]["intervals"][name]
        assert low <= summary[name] <= high
    assert data["curves"]["iou"]["AP"][0] == summary["AP50"]


def test_confused_cases_add_up_to_the_table_and_name_their_videos(data):
    counts = {}
    for case in data["confusion"]["cases"]:
        row = counts.setdefault(case["track_class"], {})
        row[case["found_class"]] = row.get(case["found_class"], 0) + 1
    assert counts == {name: row for name, row in data["confusion"]["table"].items() if row}
    confused = [case["video_id"] for case in data["confusion"]["cases"] if case["found_class"] == "cat"]
    assert sorted(confused) == [1, 2, 3, 3, 4, 5, 6, 6]  # the first track of each, and the second of every third


def test_groups_name_their_videos(data):
    rows = {row["range"]: row for row in data["analysis"]["by"]["size"]}
    assert rows["to 32²"]["video_ids"] == [1, 2, 3, 4, 5, 6] and rows["from 256²"]["video_ids"] == []
    assert data["sets"]["APs"] == [1, 2, 3, 4, 5, 6] and data["sets"]["APl"] == []


@pytest.mark.parametrize(
    "truth", [{"videos": [], "categories": []}, {"videos": [{"id": 1}], "categories": [{"id": 1}]}]
)
def test_a_report_of_nothing_has_a_page(truth, tmp_path):
    (tmp_path / "gt.json").write_text(json.dumps({**truth, "annotations": []}))
    (tmp_path / "dt.json").write_text("[]")
    options = ("--metric", "ytvis", "--report", tmp_path / "report")
    assert run_tool("eval_json", tmp_path / "dt.json", "--gt", tmp_path / "gt.json", *options) == 0
    data = data_of((tmp_path / "report" / "index.html").read_text())
    assert data["analysis"]["AP"] is None and len(data["videos"]) == len(truth["videos"])


def test_no_name_becomes_markup_and_no_address_is_left(folder, data):
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert "<img" not in page and page.count("<script") == page.count("</script>") == 2
    assert [row["class"] for row in data["classes"]] == list(CLASSES.values()) and HOSTILE in data["confusion"]["table"]
    assert "default-src 'none'" in page and "'unsafe" not in page
    assert not re.search(r'(src|href)="(?!#)', page) and "@import" not in page and "url(" not in page


def test_data_that_look_like_places_of_the_template_stay_data(tmp_path):
    text = "@DATA@ @SCRIPT@ @STYLE@ \u2028 \ud800"
    page = write_page(tmp_path, {"name": text, "nothing": float("nan")}).read_text(encoding="utf-8")
    assert data_of(page) == {"name": text, "nothing": None}


def test_videos_have_pictures_and_those_without_frames_say_so(data):
    videos = {video["id"]: video for video in data["videos"]}
    assert videos[6]["images"] == [] and videos[6]["problem"] == "frames not found"
    assert videos[6]["objects"][0]["outlines"][0]
    assert videos[1]["problem"] == "" and len(videos[1]["images"]) == NUM_FRAMES == len(videos[1]["frames"])
    image = cv2.imdecode(np.frombuffer(base64.b64decode(videos[1]["images"][1].split(",")[1]), np.uint8), 1)
    assert image.shape == (48, 64, 3) and abs(float(image.mean()) - 60) < 2
    fates = {each["score"]: (each["fate"], each["track"]) for each in videos[5]["predictions"]}
    assert fates == {0.9: ("found", 10), 0.7: ("localisation", 11), 0.2: ("background", None)}


def test_a_picture_budget_is_kept_by_smaller_pictures_and_then_by_fewer(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (360, 640, 3), np.uint8)
    paths = [tmp_path / f"{index}.png" for index in range(8)]
    for path in paths:
        path.write_bytes(cv2.imencode(".png", noise)[1].tobytes())
    generous, tight, hopeless = (make_pictures(paths, 8, 36, size) for size in (10**7, 300_000, 20_000))
    assert len(generous.images) == len(tight.images) == 8 and sum(map(len, tight.images)) <= 300_000
    assert 1 <= len(hopeless.images) < 8 and hopeless.frames[0] == 0
    assert len(make_pictures(paths, 8, 3, 10**7).images) == 3
    assert make_pictures(paths[:4], 8, 36, 10**7).problem == "frames not found"
    assert spread(10, 3) == [0, 4, 9] and spread(2, 5) == [0, 1] and spread(0, 5) == []


def fill(text, size):
    """Draw outlines as the page does: (H, W) bool in cells."""
    loops = []
    for loop in text.split("."):
        numbers = [64 * ALPHABET.index(a) + ALPHABET.index(b) for a, b in zip(loop[::2], loop[1::2], strict=True)]
        loops.append(np.array(numbers, np.int32).reshape(-1, 2))
    canvas = np.zeros(grid_size(size), np.uint8)
    cv2.fillPoly(canvas, loops, 1)
    return canvas.astype(bool)


@pytest.mark.parametrize("size", [(48, 64), (480, 320), (720, 1280)])
def test_outlines_give_the_mask_again_with_its_holes(size):
    height, width = size
    y, x = np.mgrid[:height, :width]
    distance = np.hypot(y - height / 2, x - width / 2)
    mask = (distance < height / 3) & (distance > height / 8)
    text = outline_text(json.dumps(rle.encode(mask)["counts"]).encode(), size)
    found = fill(text, size)
    wanted = cv2.resize(mask.astype(np.uint8), found.shape[::-1], interpolation=cv2.INTER_NEAREST).astype(bool)
    assert (found & wanted).sum() / (found | wanted).sum() > 0.95
    assert len(text) < 700


def test_a_mask_thinner_than_a_cell_is_still_seen_and_an_empty_one_is_none():
    mask = np.zeros((1080, 1920), bool)
    assert outline_text(json.dumps(rle.encode(mask)["counts"]).encode(), mask.shape) is None
    mask[500, 100:140] = True
    text = outline_text(json.dumps(rle.encode(mask)["counts"]).encode(), mask.shape)
    assert fill(text, mask.shape).any()
