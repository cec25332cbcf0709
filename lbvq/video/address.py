"""Bring a video from an address into a temporary file, which can be read again and in any order."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import unquote, urlsplit

import av
from av.error import FFmpegError

from lbvq.video.container import choose_stream, open_container
from lbvq.video.formats import STREAM_FORMATS, STREAM_PROTOCOLS

SILENCE_S = 30.0  # a server that says nothing for so long has gone
MAX_UNTOLD_BYTES = 2**32  # of a file whose size the server does not tell
_BLOCK = 2**20
_ENDLESS = "what has no end is read by demo/stream.py, while it plays"


def is_address(source: Any) -> bool:
    """Whether a text is an address such as https://... or rtsp://..., not the name of a file."""
    return isinstance(source, str) and re.match(r"[a-z][a-z0-9+.-]+://", source, re.IGNORECASE) is not None


def local_path(address: str) -> Path | None:
    """The file that a file:// address means; None for any other address."""
    parts = urlsplit(address)
    return Path(urllib.request.url2pathname(parts.path)) if parts.scheme.lower() == "file" else None


def name_of(address: str) -> str:
    """The last part of an address, as a file name."""
    return Path(unquote(urlsplit(address).path)).name or urlsplit(address).hostname or "video"


def fetch_video(address: str, error_type: type[Exception]) -> tuple[TemporaryDirectory, Path]:
    """Download a file, or record what a playlist or a server plays, without encoding it again.

    Args:
        error_type: raised when there is no video, or one without an end.

    Returns:
        The folder, which is deleted with this object, and the file in it.
    """
    folder = TemporaryDirectory(prefix="lbvq-")
    path = Path(folder.name) / (name_of(address)[-100:] or "video")
    try:
        if urlsplit(address).scheme.lower() not in ("http", "https") or not _download(address, path):
            path = path.with_name("recording.mkv")
            _record(address, path, error_type)
    except (FFmpegError, OSError) as error:
        folder.cleanup()
        raise error_type(f"{address} cannot be read: {getattr(error, 'reason', None) or error}") from error
    except BaseException:
        folder.cleanup()
        raise
    return folder, path


def _download(address: str, path: Path) -> bool:
    """Copy the bytes; False when they are a playlist."""
    request = urllib.request.Request(address, headers={"User-Agent": "lbvq"})
    with urllib.request.urlopen(request, timeout=SILENCE_S) as response, open(path, "wb") as file:
        length = response.headers.get("Content-Length")
        limit = MAX_UNTOLD_BYTES if length is None else int(length)
        if response.headers.get_content_type() == "multipart/x-mixed-replace":
            limit = 0  # pictures of a camera, one after the other
        while block := response.read(_BLOCK):
            if file.tell() == 0 and block.startswith(b"#EXTM3U"):
                return False
            if file.tell() + len(block) > limit:
                raise OSError(f"it sends more than {limit} bytes; {_ENDLESS}")
            file.write(block)
        if length is not None and file.tell() < limit:
            raise OSError(f"only {file.tell()} of {length} bytes arrived")
    return True


def _record(address: str, path: Path, error_type: type[Exception]) -> None:
    """Copy the packets of picture and sound into a Matroska file."""
    with open_address(address, error_type) as source, av.open(str(path), "w", format="matroska") as target:
        if not source.duration:
            raise error_type(f"{address} plays without an end; {_ENDLESS}")
        streams = [choose_stream(source, address, error_type), *source.streams.audio]
        copies = {stream.index: target.add_stream_from_template(stream) for stream in streams}
        for packet in source.demux(streams):
            if packet.dts is not None:
                packet.stream = copies[packet.stream.index]
                target.mux(packet)


def open_address(address: str, error_type: type[Exception]) -> av.container.InputContainer:
    """Open an address for reading what it plays."""
    options = {"rw_timeout": str(int(SILENCE_S * 1e6))}
    return open_container(
        address, address, error_type, formats=STREAM_FORMATS, protocols=STREAM_PROTOCOLS, options=options
    )
