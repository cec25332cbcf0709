"""What is read as a video: the one list of formats, and the files in a folder that are never frames."""

from __future__ import annotations

import os
from pathlib import Path

# FFmpeg's name of a container format -> suffixes it usually has. FFmpeg knows 370 formats; among them are texts that
# name other files to open (concat, playlists), texts that are drawn as pictures, and some that cannot tell where they
# end, so that nobody would notice that a part is missing. A file that is none of these is refused, whatever its name.
VIDEO_FORMATS = {
    "mov": ".mp4 .mov .m4v .3gp",
    "matroska": ".mkv .webm",
    "avi": ".avi",
    "mpegts": ".ts .m2ts",
    "mpeg": ".mpg .vob",
    "flv": ".flv",
    "asf": ".wmv",
    "ogg": ".ogv",
    "ivf": ".ivf",
    "h264": ".h264",
}
# What may come from an address besides; a playlist there may name addresses but no files.
STREAM_FORMATS = (*VIDEO_FORMATS, "hls", "rtsp", "rtp", "sdp", "mpjpeg")
STREAM_PROTOCOLS = (
    "http",
    "https",
    "tls",
    "tcp",
    "udp",
    "rtp",
    "rtsp",
    "rtmp",
    "rtmps",
    "srt",
    "crypto",
    "data",
    "httpproxy",
)
_CLUTTER = (".ds_store", "thumbs.db", "desktop.ini")


def is_clutter(path: Path) -> bool:
    """Whether a file is one that operating systems leave in folders, such as ._0.jpg beside 0.jpg."""
    return path.name.startswith("._") or path.name.lower() in _CLUTTER


def file_url(path: str | os.PathLike[str]) -> str:
    """A path as FFmpeg opens it: no part of the name, such as "10:30", is taken for a protocol."""
    return f"file:{os.path.abspath(path)}"
