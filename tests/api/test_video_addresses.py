"""Videos at addresses are read like files."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from small_videos import LEVELS, film, levels, pictures

from lbvq.video import address
from lbvq.video.reader import VideoError, read_video


@pytest.fixture
def server(tmp_path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(tmp_path))) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_) -> None:
        """Requests are not worth a line each."""


def test_a_video_at_an_address_is_read_like_a_file(tmp_path, server):
    film(tmp_path / "a b.mp4")
    video = read_video(f"{server}/a%20b.mp4?token=1")
    assert levels(video) == LEVELS and levels([video[4], video[0]]) == [200, 40]
    assert video.name.startswith("http://") and video.timestamps == pytest.approx(np.arange(5) / 10)
    folder = Path(video.folder.name)
    assert folder.is_dir()
    video.close()
    del video
    assert not folder.exists()
    assert levels(read_video((tmp_path / "a b.mp4").as_uri())) == LEVELS


def test_an_image_at_an_address_is_read(tmp_path, server):
    pictures()[2].save(tmp_path / "a.png")
    assert levels(read_video(f"{server}/a.png")) == [120]


def test_a_playlist_at_an_address_is_recorded(tmp_path, server):
    film(tmp_path / "part.ts")
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:0.5,\npart.ts\n#EXT-X-ENDLIST\n"
    (tmp_path / "list.m3u8").write_text(playlist)
    assert levels(read_video(f"{server}/list.m3u8")) == LEVELS


def test_a_playlist_at_an_address_opens_no_file(tmp_path, server):
    part = film(tmp_path / "part.ts").as_uri()
    (tmp_path / "list.m3u8").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:0.5,\n{part}\n#EXT-X-ENDLIST\n")
    with pytest.raises(VideoError, match=r"list\.m3u8"):
        read_video(f"{server}/list.m3u8")


@pytest.mark.parametrize("path", ["missing.mp4", "notes.txt", "broken.jpg"])
def test_an_address_without_a_video_is_named(tmp_path, server, path):
    (tmp_path / "notes.txt").write_text("no video")
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(VideoError, match=f"{server}/{path} cannot be read"):
        read_video(f"{server}/{path}")
    with pytest.raises(VideoError, match=r"nowhere\.invalid"):
        read_video("http://nowhere.invalid/a.mp4")


class Endless(BaseHTTPRequestHandler):
    """Sends as long as somebody listens, without saying how much; a camera's address names its pictures."""

    protocol_version = "HTTP/1.0"

    def do_GET(self) -> None:
        self.send_response(200)
        kind = "multipart/x-mixed-replace; boundary=x" if "camera" in self.path else "video/mp4"
        self.send_header("Content-Type", kind)
        self.end_headers()
        with suppress(OSError):
            while True:
                self.wfile.write(bytes(10_000))

    def log_message(self, *_) -> None:
        """Requests are not worth a line each."""


@pytest.mark.parametrize("path", ["camera", "radio.mp4"])
def test_what_has_no_end_does_not_fill_the_disk(monkeypatch, path):
    monkeypatch.setattr(address, "MAX_UNTOLD_BYTES", 10**6)
    monkeypatch.setattr(address, "_BLOCK", 10**5)
    with ThreadingHTTPServer(("127.0.0.1", 0), Endless) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        with pytest.raises(VideoError, match=r"is read by demo/stream\.py, while it plays"):
            read_video(f"http://127.0.0.1:{running.server_address[1]}/{path}")
        running.shutdown()


def test_a_download_that_is_cut_off_is_named(tmp_path, server, monkeypatch):
    data = film(tmp_path / "a.mp4").read_bytes()

    def send_half(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2])

    monkeypatch.setattr(QuietHandler, "do_GET", send_half)
    with pytest.raises(VideoError, match=r"a\.mp4 cannot be read: .*(arrived|bytes)"):
        read_video(f"{server}/a.mp4")
