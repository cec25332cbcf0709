"""Files are fetched whole or not at all, whatever a server does; the server runs in the test."""

from __future__ import annotations

import hashlib
import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest
from helpers import ROOT

from lbvq.engine import download as module
from lbvq.engine.download import Checksum, DownloadError, download

CONTENT = bytes(range(256)) * 8192  # 2 MiB
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT under every path; `behave` may answer in its place, and returns whether it did."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.behave: Callable[[Handler], bool] = lambda handler: False
        self.requests: list[dict[str, str]] = []

    def address(self, path: str = "weights.pth") -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{path}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests.append({"path": self.path, **self.headers})
        if self.server.behave(self):
            return
        wanted = self.headers.get("Range", "bytes=0-")
        start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        if "Range" in self.headers and self.headers.get("If-Range") != '"1"':
            start = 0
        self.send(CONTENT[start:], 206 if start else 200)

    def send(self, body: bytes, status: int = 200, length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(length or len(body)), "ETag": '"1"', **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def files_of(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_a_file_arrives_with_its_checksum(server, tmp_path):
    download(server.address(), tmp_path / "cache" / "a.pth", checksum=Checksum("sha256", SHA256[:12]))
    assert (tmp_path / "cache" / "a.pth").read_bytes() == CONTENT
    assert files_of(tmp_path / "cache") == ["a.pth"]


def test_a_file_that_is_there_is_not_fetched_again(server, tmp_path):
    (tmp_path / "a.pth").write_bytes(b"mine")
    download(server.address(), tmp_path / "a.pth")
    assert (tmp_path / "a.pth").read_bytes() == b"mine" and server.requests == []


def test_a_connection_that_breaks_again_and_again_is_taken_up_where_it_broke(server, tmp_path):
    def cut(handler: Handler) -> bool:
        start = int(handler.headers.get("Range", "bytes=0-")[6:-1])
        rest = CONTENT[start:]
        handler.send(rest[:300_000], 206 if start else 200, length=len(rest))
        handler.wfile.flush()
        handler.connection.close()
        return True

    server.behave = cut
    download(server.address(), tmp_path / "a.pth", checksum=Checksum("sha256", SHA256), tries=2)
    assert (tmp_path / "a.pth").read_bytes() == CONTENT
    assert len(server.requests) == 7
    assert [request.get("Range") for request in server.requests[:2]] == [None, "bytes=300000-"]


def test_what_a_killed_process_left_is_continued_only_if_it_is_of_the_same_version(server, tmp_path):
    for version, first in (('"1"', "bytes=1000-"), ('"0"', "bytes=1000-"), (None, None)):
        (tmp_path / ".a.pth.part").write_bytes(CONTENT[:1000] if version == '"1"' else b"other" * 200)
        if version:
            (tmp_path / ".a.pth.part.version").write_text(version)
        download(server.address(), tmp_path / "a.pth")
        assert (tmp_path / "a.pth").read_bytes() == CONTENT
        assert server.requests.pop().get("Range") == first
        (tmp_path / "a.pth").unlink()


def test_a_part_that_is_longer_than_the_file_is_thrown_away(server, tmp_path):
    def refuse(handler: Handler) -> bool:
        if "Range" in handler.headers:
            handler.send_error(416)
            return True
        return False

    server.behave = refuse
    (tmp_path / ".a.pth.part").write_bytes(CONTENT + b"more")
    (tmp_path / ".a.pth.part.version").write_text('"1"')
    download(server.address(), tmp_path / "a.pth")
    assert (tmp_path / "a.pth").read_bytes() == CONTENT


@pytest.mark.parametrize(
    "answer, options, message",
    [
        (lambda h: h.send(b"<!DOCTYPE html><p>Sign in"), {}, "web page"),
        (lambda h: h.send(b"Sign in", Content_Type="text/html; charset=utf-8"), {}, "web page"),
        (lambda h: h.send(CONTENT[:-1]), {"size": len(CONTENT)}, r"2097151 bytes, 2097152 were expected"),
        (lambda h: h.send(CONTENT[:-1] + b"x"), {"checksum": Checksum("sha256", SHA256)}, "sha256"),
        (lambda h: h.send(CONTENT[:-1] + b"x"), {"checksum": Checksum("md5", "abcdef")}, "md5 .* abcdef was expected"),
        (lambda h: h.send(b"x", X_Linked_ETag=f'"{SHA256}"'), {}, "sha256"),
        (lambda h: h.send(b""), {}, "empty file"),
        (lambda h: h.send_error(404), {}, "404"),
        (lambda h: h.send_error(403), {}, r"accepted licence .*HF_TOKEN"),
        (lambda h: h.send_error(503), {"tries": 1}, "503"),
        (lambda h: h.send(b"x", length=1 << 60), {}, "the disk of .* MiB left"),
        (lambda h: h.connection.close(), {"tries": 1}, "connection"),
    ],
)
def test_what_is_not_the_file_is_never_used(server, tmp_path, answer, options, message):
    server.behave = lambda handler: answer(handler) or True
    with pytest.raises(DownloadError, match=message) as failure:
        download(server.address(), tmp_path / "a.pth", **options)
    text = str(failure.value)
    assert server.address() in text and f"Put the file a.pth from {server.address()} into {tmp_path}" in text
    assert files_of(tmp_path) == []


def test_a_disk_that_fills_up_leaves_nothing(server, tmp_path, monkeypatch):
    """/dev/full is a disk without space."""
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    (tmp_path / ".a.pth.part").symlink_to("/dev/full")
    with pytest.raises(DownloadError, match="is full"):
        download(server.address(), tmp_path / "a.pth")
    assert files_of(tmp_path) == []


def test_no_network_is_said_in_one_sentence(tmp_path):
    with Server() as closed:
        address = closed.address()
    with pytest.raises(DownloadError, match="the connection failed") as failure:
        download(address, tmp_path / "a.pth", tries=1)
    assert f"Put the file a.pth from {address} into {tmp_path}" in str(failure.value)
    assert "\n" not in str(failure.value)


def test_nothing_is_asked_when_offline_is_set(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE"):
        download(server.address(), tmp_path / "a.pth")
    assert server.requests == []


def test_a_token_goes_to_the_hub_alone_and_never_into_a_message(server, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(module, "TOKEN_HOST", "127.0.0.1")
    elsewhere = f"http://localhost:{server.server_address[1]}/elsewhere"

    def send_away(handler: Handler) -> bool:
        if handler.path == "/elsewhere":
            return False
        handler.send(b"", 302, Location=elsewhere, X_Linked_ETag=f'"{SHA256}"')
        return True

    server.behave = send_away
    download(server.address(), tmp_path / "a.pth")
    assert [request.get("Authorization") for request in server.requests] == ["Bearer hf_secret", None]
    server.behave = lambda handler: handler.send_error(401) or True
    with pytest.raises(DownloadError) as failure:
        download(server.address(), tmp_path / "b.pth")
    assert "hf_secret" not in caplog.text + str(failure.value)


@pytest.mark.parametrize("address", ["http://example.org/a.pth", "ftp://example.org/a.pth", "file:///etc/passwd"])
def test_only_https_is_asked(tmp_path, address):
    with pytest.raises(ValueError, match="only fetched over https"):
        download(address, tmp_path / "a.pth")


def test_a_server_cannot_send_us_off_https(server, tmp_path):
    server.behave = lambda handler: handler.send(b"", 302, Location="http://example.org/a.pth") or True
    with pytest.raises(ValueError, match=r"http://example\.org/a\.pth: files are only fetched over https"):
        download(server.address(), tmp_path / "a.pth")


def test_two_processes_fetch_a_file_once(server, tmp_path):
    slow = threading.Event()

    def wait(handler: Handler) -> bool:
        slow.wait(1.0)
        return False

    server.behave = wait
    code = (
        "import sys; from pathlib import Path; from lbvq.engine.download import download; "
        "download(sys.argv[1], Path(sys.argv[2])); print(Path(sys.argv[2]).stat().st_size)"
    )
    command = [sys.executable, "-c", code, server.address(), str(tmp_path / "a.pth")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(2)]
    assert [process.communicate(timeout=120)[0].strip() for process in processes] == [str(len(CONTENT))] * 2
    assert len(server.requests) == 1
