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
def page(browser, client):
    """The page, opened; what it complains of fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    page.set_default_timeout(WAIT)
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: (complaints.append("a dialog opened"), dialog.dismiss()))
    page.goto(f"http://127.0.0.1:{client.server.port}/")
    page.wait_for_selector("#model option", state="attached")
    yield page
    context.close()
    assert complaints == []


def upload(page, body: bytes, name: str = "film.mp4") -> None:
    page.set_input_files("#file", {"name": name, "mimeType": "video/mp4", "buffer": body})
    page.click("#start")


def test_a_video_is_uploaded_and_its_tracks_video_and_files_come_back(page, client, tmp_path):
    assert page.input_value("#model") == "given" and page.is_disabled("#start")
    page.evaluate("document.getElementById('threshold').value = 0.4; document.getElementById('threshold').oninput()")
    upload(page, video_bytes(tmp_path))
    page.wait_for_selector(".job.done tbody tr")
    rows = [row.inner_text().split("\t") for row in page.query_selector_all(".job tbody tr")]
    assert [[cell.strip() for cell in row[:6]] for row in rows] == [
        ["1", "giant_panda", "0.90", "0.00 s", "0.50 s", "5 frames"],
        ["2", "person", "0.40", "0.00 s", "0.50 s", "6 frames"],
    ]
    assert [len(row.query_selector_all(".line i")) for row in page.query_selector_all(".job tbody tr")] == [2, 1]
    page.wait_for_function("document.querySelector('.job video').readyState >= 2")  # it plays here
    page.click(".job tbody tr:first-child td:nth-child(5) button")
    assert page.evaluate("document.querySelector('.job video').currentTime") == pytest.approx(0.5, abs=0.01)
    got = {}
    for link in page.query_selector_all(".downloads a"):
        with page.expect_download() as download:
            link.click()
        got[download.value.suggested_filename] = Path(download.value.path())
    assert sorted(got) == ["film_cvat.xml", "film_results.json", "film_segmented.mp4"]
    drawn = tmp_path / "drawn.mp4"
    drawn.write_bytes(got["film_segmented.mp4"].read_bytes())
    assert len(read_video(drawn)) == 6
    assert len(VideoPrediction.from_json(json.loads(got["film_results.json"].read_text()))) == 2
    page.reload()
    page.wait_for_selector(".job.done tbody tr")  # this tab still knows its video


def test_names_are_shown_as_text_and_errors_as_one_sentence(page, client, tmp_path):
    upload(page, video_bytes(tmp_path), NAME)
    page.wait_for_selector(".job.done")
    assert page.text_content(".job .name") == NAME
    assert page.query_selector("#jobs img") is None
    page.set_input_files("#file", {"name": "big.mp4", "mimeType": "video/mp4", "buffer": b"x" * (2 * 10**6 + 1)})
    assert "The file is too large: 1.9 MB, at most 1.9 MB are taken." in page.text_content("#problem")
    upload(page, video_bytes(tmp_path, 95), "long<b>.mp4")
    page.wait_for_selector(".job.failed")
    assert "the video is too long: 9.4 s, at most 8 s" in page.text_content(".job.failed .text")


def test_classes_are_asked_for_where_they_can_be_named(page):
    assert not page.is_visible("#classes")
    page.select_option("#model", "ovformer_r50_lvvis")
    assert page.is_visible("#classes")
    page.select_option("#model", "videomt_small_ytvis19")
    assert not page.is_visible("#classes") and "96 MB" in page.text_content("#model-about")


def test_the_camera_records_for_the_seconds_that_are_chosen(page):
    page.click("#camera")
    page.wait_for_selector("#record")
    page.select_option("#record-seconds", "3")
    page.wait_for_function("document.getElementById('preview').videoWidth > 0")
    page.click("#record")
    assert "Recording" in page.text_content("#record")
    page.wait_for_selector("#start:not([disabled])")
    assert page.text_content("#chosen").startswith("camera.webm")
    page.click("#start")
    page.wait_for_selector(".job.done, .job.failed")
    assert page.text_content(".job .state") == "done", page.text_content(".job .text")
    assert " of 640 x 480" in page.text_content(".job .text")  # how many frames there are depends on the machine
