"""`lbvq app` as a browser meets it: uploads, the queue, results, and what is refused."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from app_client import Client, arguments_of, red_green_video
from helpers import ROOT
from PIL import Image

from lbvq.cli import app
from lbvq.data.formats import ReadOptions, read_labels
from lbvq.data.formats.source import open_source
from lbvq.inference.results import VideoPrediction
from lbvq.masks.rle import decode
from lbvq.video.reader import read_video

HOSTILE = "../../\u732b\"'<img src=x onerror=alert(1)>\n.mp4"


@pytest.fixture(scope="module")
def done(client, clip) -> dict:
    status, job = client.upload(clip, name=HOSTILE, threshold="0.3")
    assert status == 201
    job = client.wait(job["id"])
    assert job["state"] == "done", job
    return job


def get(client: Client, job: dict, name: str) -> bytes:
    status, _, body = client.request("GET", f"/jobs/{job['id']}/{name}")
    assert status == 200
    return body


# -- a video that is taken


def test_tracks_have_names_scores_and_the_times_when_they_are_seen(done):
    result = done["result"]
    assert (result["frames"], result["width"], result["height"], result["num_found"]) == (6, 80, 60, 3)
    assert result["seconds"] == pytest.approx(0.5)
    red, green = result["tracks"]
    assert (red["id"], red["name"], red["score"], red["frames"]) == (1, "giant_panda", 0.9, 5)
    assert (green["id"], green["name"], green["score"], green["frames"]) == (2, "person", 0.4, 6)
    assert np.allclose(red["spans"], [[0, 0.1], [0.3, 0.5]]) and np.allclose(green["spans"], [[0, 0.5]])
    assert re.fullmatch("#[0-9a-f]{6}", red["color"]) and red["color"] != green["color"]


def test_the_video_is_drawn_and_plays(client, done, tmp_path):
    (tmp_path / "got.mp4").write_bytes(get(client, done, "video.mp4"))
    got = read_video(tmp_path / "got.mp4")
    assert len(got) == 6 and got.frame_rate == pytest.approx(10, rel=1e-3)
    assert np.abs(got[3][32:48, 52:68].astype(int) - red_green_video()[3][32:48, 52:68]).max() > 40  # tinted


def test_results_and_cvat_labels_are_what_the_readers_of_this_project_read(client, done, tmp_path):
    entries = json.loads(get(client, done, "results.json"))
    found = VideoPrediction.from_json(entries)
    assert found.masks.shape == (2, 6, 60, 80)
    assert [entry["category_name"] for entry in entries] == ["giant_panda", "person"]
    with zipfile.ZipFile(tmp_path / "cvat.zip", "w") as target:
        target.writestr("annotations.xml", get(client, done, "cvat.xml"))
    with open_source(tmp_path / "cvat.zip") as source:
        labels = read_labels(source, "cvat", ReadOptions())[1]
    (video,) = labels.videos
    assert {labels.categories[track.category_id] for track in video.tracks} == {"giant_panda", "person"}
    red = next(track for track in video.tracks if labels.categories[track.category_id] == "giant_panda")
    assert sorted(red.masks) == [0, 1, 3, 4, 5]
    assert np.array_equal(decode(red.masks[3]), found.frame(3).masks[0])


def test_the_name_of_a_file_is_shown_and_is_no_path(client, done):
    assert done["name"] == "\u732b\"'<img src=x onerror=alert(1)>\n.mp4"
    assert {path.name for path in client.files()} <= {"video.mp4", "results.json", "cvat.xml"}
    assert all(re.fullmatch("[0-9a-f]{32}", path.parent.name) for path in client.files())


def test_a_part_of_the_video_can_be_asked_for_as_players_do(client, done):
    whole, path = get(client, done, "video.mp4"), f"/jobs/{done['id']}/video.mp4"
    size = len(whole)
    for asked, first, end in (("bytes=10-19", 10, 20), ("bytes=-5", size - 5, size), (f"bytes={size - 3}-", -3, None)):
        status, headers, body = client.request("GET", path, Range=asked)
        assert status == 206 and body == whole[first:end]
        assert headers["Content-Range"].endswith(f"/{size}")
    for nonsense in ("bytes=9-2", f"bytes={size}-", "bytes=-", "bytes=\u0661-\u0662", "lines=1-2"):
        assert client.request("GET", path, Range=nonsense.encode())[::2] == (200, whole)


def test_an_image_and_a_threshold_without_objects_have_results_too(client, tmp_path):
    Image.fromarray(red_green_video()[0]).save(tmp_path / "in.png")
    job = client.wait(client.upload((tmp_path / "in.png").read_bytes(), threshold="1")[1]["id"])
    assert job["state"] == "done" and job["result"]["tracks"] == [] and job["result"]["best"] == 0.9
    assert job["result"]["files"] == ["video.mp4", "results.json"]  # nothing to label
    assert client.request("GET", f"/jobs/{job['id']}/cvat.xml")[0] == 404


def test_offers_begin_with_the_model_of_the_command_line_then_what_downloads_by_itself(client):
    offers = json.loads(client.request("GET", "/offers")[2])
    models = offers["models"]
    assert (models[0]["key"], models[0]["title"], models[0]["about"]) == (
        "given",
        "red_green.yaml",
        "weights trained.pth",
    )
    assert models[1]["key"] == "videomt_small_ytvis19"
    groups = [model["group"] for model in models[1:]]
    assert groups == sorted(groups, key="weights to be fetched by hand before".__eq__)
    by_key = {model["key"]: model for model in models}
    assert by_key["ovformer_r50_lvvis"]["open_vocabulary"] and not by_key["videomt_small_ytvis19"]["open_vocabulary"]
    assert "ovformer_r50_lvis" not in by_key  # of images
    assert set(offers["refinements"]) == {"", "sam2", "sam2_video"}


def test_a_job_is_cancelled_from_the_page(client, clip):
    status, job = client.upload(clip)
    assert status == 201
    assert client.post(f"/jobs/{job['id']}/cancel")[0] == 200
    assert client.wait(job["id"])["state"] in ("cancelled", "done")  # whichever was first
    assert client.post(f"/jobs/{'0' * 32}/cancel") == (
        404,
        {"error": "this job is gone; its files are not kept any longer."},
    )


# -- the command


def test_limits_of_nothing_and_ports_in_use_are_errors(client):
    with pytest.raises(ValueError, match="--max-seconds must be more than 0"):
        app.limits_of(arguments_of("--max-seconds", "0"))
    with pytest.raises(ValueError, match="choose another --port"):
        with app.serving(arguments_of("--port", str(client.server.port))):
            pass


@pytest.mark.slow
def test_the_command_serves_a_network_and_ctrl_c_deletes_everything(tmp_path, clip):
    command = [sys.executable, "-u", "-m", "lbvq", "app", "--port", "0", "--weights", ""]
    command += [
        "--model",
        str(ROOT / "configs" / "synthetic" / "minvis_R18_tiny.yaml"),
        "--opts",
        "MODEL.DEVICE",
        "cpu",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as running:
        try:
            line = ""
            while not (found := re.search(r"http://127\.0\.0\.1:(\d+)/", line)):
                line = running.stdout.readline()
                assert line, running.stderr.read()
            client = Client(RunningServer(int(found[1])))
            job = client.wait(client.upload(clip, name="film.mp4")[1]["id"])
            assert job["state"] == "done" and any("UNTRAINED" in note for note in job["result"]["notes"])
            assert len(job["result"]["tracks"]) == 5
            assert list(tmp_path.glob("lbvq-app-*"))
            running.send_signal(signal.SIGINT)
            out, err = running.communicate(timeout=120)
        finally:
            running.kill()
    assert running.returncode == 0 and "videos and results are deleted" in out and "Traceback" not in err
    assert not list(tmp_path.glob("lbvq-app-*"))


class RunningServer:
    """What a client has to know of a server in another process: its port and the token of its page."""

    def __init__(self, port: int) -> None:
        self.port, self.token = port, ""
        page = Client(self).request("GET", "/")[2].decode()
        self.token = re.search(r'name="token" content="([^"]+)"', page)[1]
