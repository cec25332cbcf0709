"""The page of `lbvq app` in a real browser: choose, upload, wait, look, download; and nothing that names can break."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from app_client import Client, red_green_server, video_bytes

from lbvq.app.limits import Limits
from lbvq.inference.results import VideoPrediction
from lbvq.video.reader import read_video

WAIT = 120_000  # milliseconds
NAME = "\u732b \"'<img src=x onerror=alert(1)>\n.mp4"


@pytest.fixture(scope="module")
def client(tmp_path_factory) -> Iterator[Client]:
    with red_green_server(tmp_path_factory.mktemp("model"), limits=Limits(num_bytes=2 * 10**6, seconds=8)) as client:
        yield client


@pytest.fixture
def opened(page, client) -> object:
    """The page of the app, with its models."""
    page.set_default_timeout(WAIT)
    page.goto(f"http://127.0.0.1:{client.server.port}/")
    page.wait_for_selector("#model option", state="attached")
    return page


def until(page, condition: str) -> None:
    """Wait for a condition; playwright's own way evaluates text in the page, which the page forbids."""
    for _ in range(WAIT // 100):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(100)
    raise TimeoutError(condition)


def upload(page, body: bytes, name: str = "film.mp4") -> None:
    page.set_input_files("#file", {"name": name, "mimeType": "video/mp4", "buffer": body})
    page.click("#start")


def test_a_video_is_uploaded_and_its_tracks_video_and_files_come_back(opened, tmp_path):
    assert opened.input_value("#model") == "given" and opened.is_disabled("#start")
    opened.evaluate("document.getElementById('threshold').value = 0.4; document.getElementById('threshold').oninput()")
    upload(opened, video_bytes(tmp_path))
    opened.wait_for_selector(".job.done tbody tr")
    rows = [row.inner_text().split("\t") for row in opened.query_selector_all(".job tbody tr")]
    assert [[cell.strip() for cell in row[:6]] for row in rows] == [
        ["1", "giant_panda", "0.90", "0.00 s", "0.50 s", "5 frames"],
        ["2", "person", "0.40", "0.00 s", "0.50 s", "6 frames"],
    ]
    assert [len(row.query_selector_all(".line i")) for row in opened.query_selector_all(".job tbody tr")] == [2, 1]
    until(opened, "document.querySelector('.job video').readyState >= 2")  # it plays here
    opened.click(".job tbody tr:first-child td:nth-child(5) button")
    assert opened.evaluate("document.querySelector('.job video').currentTime") == pytest.approx(0.5, abs=0.01)
    got = {}
    for link in opened.query_selector_all(".downloads a"):
        with opened.expect_download() as download:
            link.click()
        got[download.value.suggested_filename] = Path(download.value.path())
    assert sorted(got) == ["film_cvat.xml", "film_results.json", "film_segmented.mp4"]
    drawn = tmp_path / "drawn.mp4"
    drawn.write_bytes(got["film_segmented.mp4"].read_bytes())
    assert len(read_video(drawn)) == 6
    assert len(VideoPrediction.from_json(json.loads(got["film_results.json"].read_text()))) == 2
    opened.reload()
    opened.wait_for_selector(".job.done tbody tr")  # this tab still knows its video


def test_names_are_shown_as_text_and_errors_as_one_sentence(opened, tmp_path):
    upload(opened, video_bytes(tmp_path), NAME)
    opened.wait_for_selector(".job.done")
    assert opened.text_content(".job .name") == NAME
    assert opened.query_selector("#jobs img") is None
    opened.set_input_files("#file", {"name": "big.mp4", "mimeType": "video/mp4", "buffer": b"x" * (2 * 10**6 + 1)})
    assert "The file is too large: 1.9 MB, at most 1.9 MB are taken." in opened.text_content("#problem")
    upload(opened, video_bytes(tmp_path, 95), "long<b>.mp4")
    opened.wait_for_selector(".job.failed")
    assert "the video is too long: 9.4 s, at most 8 s" in opened.text_content(".job.failed .text")


def test_classes_are_asked_for_where_they_can_be_named(opened):
    assert not opened.is_visible("#classes")
    opened.select_option("#model", "ovformer_r50_lvvis")
    assert opened.is_visible("#classes")
    opened.select_option("#model", "videomt_small_ytvis19")
    assert not opened.is_visible("#classes") and "96 MB" in opened.text_content("#model-about")


def test_the_camera_records_for_the_seconds_that_are_chosen(opened):
    opened.click("#camera")
    opened.wait_for_selector("#record")
    opened.select_option("#record-seconds", "3")
    until(opened, "document.getElementById('preview').videoWidth > 0")
    opened.click("#record")
    assert "Recording" in opened.text_content("#record")
    opened.wait_for_selector("#start:not([disabled])")
    assert opened.text_content("#chosen").startswith("camera.webm")
    opened.click("#start")
    opened.wait_for_selector(".job.done, .job.failed")
    assert opened.text_content(".job .state") == "done", opened.text_content(".job .text")
    assert " of 640 x 480" in opened.text_content(".job .text")  # how many frames there are depends on the machine
