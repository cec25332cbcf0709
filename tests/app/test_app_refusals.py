"""What `lbvq app` refuses: hostile files, broken uploads, foreign pages; it says why, and keeps nothing."""

from __future__ import annotations

import json
import socket
from dataclasses import replace
from pathlib import Path

import pytest
from app_client import LIMITS, Client, video_bytes
from PIL import Image

from lbvq.app import server as app_server
from lbvq.app.limits import receive
from lbvq.app.server import TOKEN_HEADER, host_names, is_local


def only_page_files(client: Client, before: list[Path]) -> bool:
    return sorted(client.files()) == sorted(before)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"model": "/etc/passwd"}, "there is no model '/etc/passwd'; choose one of the list."),
        ({"refine": "sam3"}, "there is no refinement 'sam3'; choose one of the list."),
        ({"threshold": "nan"}, "the least score must be between 0 and 1, got 'nan'."),
        ({"threshold": "2"}, "the least score must be between 0 and 1, got '2'."),
        ({"opts": "MODEL.DEVICE cpu"}, "there is no setting 'opts'."),
        ({"classes": "cat"}, "red_green.yaml knows the classes it was trained on; leave the names of classes out."),
        ({"model": "ovformer_r50_lvvis"}, "classes must be names that are not empty, got ['']."),
        ({"model": "ovformer_r50_lvvis", "classes": "a\x01"}, "names of classes must be of one line and without "),
        ({"model": "ovformer_r50_lvvis", "classes": "a" * 81}, "at most 100 classes of 80 characters can be named."),
    ],
)
def test_a_setting_that_the_page_does_not_offer_is_refused(client, clip, settings, sentence):
    before = client.files()
    status, answer = client.upload(clip, **settings)
    assert status == 400 and answer["error"].startswith(sentence)
    assert only_page_files(client, before)


def test_a_file_that_is_too_large_is_refused_before_it_is_sent(client):
    with socket.create_connection(("127.0.0.1", client.server.port), timeout=30) as connection:
        connection.sendall(head(client, length=LIMITS.num_bytes + 1))
        assert "413" in (answer := said(connection)) and "at most 0.953674 MB are taken" in answer


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"", "the file is empty."),
        (b"no video at all" * 50, "my film.mp4 cannot be opened as a video"),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "my film.mp4 cannot be opened as a video"),
    ],
)
def test_what_is_no_video_is_refused_by_its_name(client, body, sentence):
    before = client.files()
    status, answer = client.upload(body, name="C:\\films\\my film.mp4")
    assert status == 400 and sentence in answer["error"] and str(client.server.folder) not in answer["error"]
    assert only_page_files(client, before)


def test_frames_that_are_too_large_are_refused(client, tmp_path):
    Image.new("RGB", (400, 200)).save(tmp_path / "wide.png")
    status, answer = client.upload((tmp_path / "wide.png").read_bytes())
    assert status == 400 and "400 x 200 pixels, at most 76800" in answer["error"]


@pytest.mark.parametrize(("num_frames", "sentence"), [(25, "2.4 s, at most 2 s"), (40, "more than 30 frames")])
def test_a_video_that_is_too_long_is_refused(client, tmp_path, num_frames, sentence):
    before = client.files()
    job = client.wait(client.upload(video_bytes(tmp_path, num_frames))[1]["id"])
    assert job["state"] == "failed" and "the video is too long" in job["message"] and sentence in job["message"]
    assert set(client.files()) <= set(before)


def test_a_damaged_video_is_refused_by_its_name(client, tmp_path):
    body = bytearray(video_bytes(tmp_path, 20))
    start = body.index(b"mdat")
    body[start + 900 : start + 1400] = bytes(500)
    job = client.wait(client.upload(bytes(body), name="mine.mp4")[1]["id"])
    assert job["state"] == "failed" and job["message"].startswith("mine.mp4 is damaged"), job


def head(client: Client, length: int | str, **headers: str) -> bytes:
    lines = {"Host": f"127.0.0.1:{client.server.port}", TOKEN_HEADER: client.server.token, **headers}
    text = "".join(f"{name}: {value}\r\n" for name, value in {**lines, "Content-Length": str(length)}.items())
    return f"POST /jobs HTTP/1.1\r\n{text}\r\n".encode()


def said(connection: socket.socket) -> str:
    """Everything that the server says until it closes."""
    parts = []
    while block := connection.recv(2**16):
        parts.append(block)
    return b"".join(parts).decode()


def test_an_upload_that_is_cut_leaves_nothing(client, clip):
    before = client.files()
    with socket.create_connection(("127.0.0.1", client.server.port), timeout=30) as connection:
        connection.sendall(head(client, length=len(clip)) + clip[:200])
        connection.shutdown(socket.SHUT_WR)
        assert f"the upload was cut: 200 of {len(clip)} bytes came." in said(connection)
    assert only_page_files(client, before)


def test_an_upload_that_stands_still_leaves_nothing(client, clip):
    before = client.files()
    with socket.create_connection(("127.0.0.1", client.server.port), timeout=30) as connection:
        connection.sendall(head(client, length=len(clip)) + clip[:200])
        assert "the upload stood still for too long." in said(connection)
    assert only_page_files(client, before)


def test_an_upload_that_trickles_is_ended(tmp_path):
    class Trickle:
        def read1(self, size: int) -> bytes:
            return b"x"

    slow = replace(LIMITS, stall_seconds=0.0, bytes_per_second=10**12)
    with pytest.raises(ConnectionError, match="too slow"):
        receive(Trickle(), 10**5, tmp_path / "file", slow)


@pytest.mark.parametrize(
    ("length", "headers", "status"),
    [("-1", {}, 400), ("1e3", {}, 400), ("0", {}, 400), ("5", {"Transfer-Encoding": "chunked"}, 411)],
)
def test_a_body_has_to_tell_its_length(client, length, headers, status):
    with socket.create_connection(("127.0.0.1", client.server.port), timeout=30) as connection:
        connection.sendall(head(client, length, **headers))
        assert f" {status} " in said(connection).splitlines()[0]


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "[::1", "10.0.0.1"])
def test_a_page_under_another_name_reads_nothing(client, host):
    for path in ("/", "/offers", f"/jobs/{'0' * 32}", "/nowhere"):
        status, _, body = client.request("GET", path, Host=host)
        assert status == 403 and "not known under that name" in json.loads(body)["error"]
        assert client.server.token.encode() not in body


def test_the_names_of_this_computer_are_known(client):
    for host in ("localhost:1", "LOCALHOST", "127.0.0.1", "[::1]:8000"):
        assert client.request("GET", "/offers", Host=host)[0] == 200


def test_only_our_page_may_post(client, clip):
    before = client.files()
    port = client.server.port
    wrong = [{"X_Lbvq_Token": ""}, {"X_Lbvq_Token": "x" * 43}, {"X_Lbvq_Token": client.server.token[:-1]}]
    wrong += [{"Origin": f"http://evil.example:{port}"}, {"Origin": "null"}, {"Origin": "http://127.0.0.1:1"}]
    for headers in wrong:
        status, answer = client.post("/jobs", clip, **headers)
        assert status == 403 and "did not come from the page" in answer["error"], headers
    assert client.request("POST", "/jobs", clip)[0] == 403
    assert only_page_files(client, before)
    status, job = client.post("/jobs", clip, Origin=f"http://127.0.0.1:{port}")
    assert status == 201 and client.wait(job["id"])["state"] == "done"


def test_there_is_no_cross_origin_answer_and_the_page_runs_only_its_own_script(client):
    status, headers, body = client.request("GET", "/", Origin="http://evil.example")
    assert status == 200 and client.server.token.encode() in body
    assert not [name for name in headers if name.lower().startswith("access-control")]
    assert "script-src 'self'" in headers["Content-Security-Policy"] and "unsafe" not in str(headers)
    assert headers["X-Content-Type-Options"] == "nosniff"
    for name in ("app.js", "app.css"):
        assert client.request("GET", f"/{name}")[0] == 200


@pytest.mark.parametrize(
    "path",
    ["/../app.js", "/jobs", "/jobs/x", f"/jobs/{'0' * 32}/upload", "//etc/passwd", "/%2e%2e/app.js"],
)
def test_unknown_routes_are_not_found(client, path):
    status, _, body = client.request("GET", path)
    assert status == 404 and json.loads(body)["error"]


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "HEAD", "TRACE"])
def test_other_methods_are_not_understood(client, method):
    assert client.request(method, "/jobs")[0] == 501


def test_a_server_that_is_open_to_others_takes_addresses_and_no_foreign_names():
    assert is_local("127.0.0.1") and is_local("localhost") and is_local("::1") and not is_local("0.0.0.0")
    assert host_names("0.0.0.0") is None
    known = {name: app_server._is_named(name, None) for name in ("10.0.0.5:8000", "[fe80::1]:80", "evil.example", "")}
    assert known == {"10.0.0.5:8000": True, "[fe80::1]:80": True, "evil.example": False, "": False}
    assert app_server._is_named(f"{socket.gethostname()}:8000", None)
