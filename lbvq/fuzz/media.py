"""Targets: images and videos."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
from PIL import Image

from lbvq.fuzz.targets import target
from lbvq.video.reader import read_image, read_video


def _frames(count: int = 6, height: int = 48, width: int = 64) -> list[np.ndarray]:
    """A red square that moves over a grey ramp: (H, W, 3) uint8 each."""
    ramp = np.broadcast_to(np.linspace(20, 120, width, dtype=np.uint8)[None, :, None], (height, width, 3))
    frames = [ramp.copy() for _ in range(count)]
    for t, frame in enumerate(frames):
        frame[10:30, 4 * t : 4 * t + 20] = (220, 40, 40)
    return frames


def write_images(folder: Path) -> None:
    """One image of every kind that is read."""
    picture = Image.fromarray(_frames(1)[0])
    for suffix in ("jpg", "png", "webp", "bmp", "tif", "ppm"):
        picture.save(folder / f"colour.{suffix}")
    picture.save(folder / "progressive.jpg", progressive=True)
    picture.convert("P").save(folder / "palette.png")
    picture.convert("L").save(folder / "grey.png")
    Image.fromarray(np.asarray(picture.convert("L"), dtype=np.uint16) * 257).save(folder / "deep.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(folder / "turned.jpg", exif=exif)
    picture.save(folder / "lossless.webp", lossless=True)


@target("images", write_images)
def read_one_image(path: Path) -> None:
    pixels = read_image(path)
    assert pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.dtype == np.uint8, pixels.shape


_CODECS = {
    "h264.mp4": "libx264",
    "h264.mkv": "libx264",
    "h264.ts": "libx264",
    "mpeg4.avi": "mpeg4",
    "mjpeg.mov": "mjpeg",
    "vp9.webm": "libvpx-vp9",
    "animated.gif": "gif",
}


def write_videos(folder: Path) -> None:
    """One small video of every container that is read."""
    for name, codec in _CODECS.items():
        if codec in av.codecs_available:
            _write_video(folder / name, codec)
    first, *rest = (Image.fromarray(frame) for frame in _frames())
    for name in ("animated.webp", "animated.png", "pages.tif"):
        first.save(folder / name, save_all=True, append_images=rest)
    (folder / "list.mp4").write_text("ffconcat version 1.0\nfile 'h264.mp4'\n")
    (folder / "playlist.mp4").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nh264.ts\n#EXT-X-ENDLIST\n")


def _write_video(path: Path, codec: str) -> None:
    pixels = {"gif": "rgb8", "mjpeg": "yuvj420p"}.get(codec, "yuv420p")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, pixels
        for frame in _frames():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


@target("videos", write_videos)
def read_one_video(path: Path) -> None:
    frames = read_video(path)
    height, width = frames.size
    for t in range(min(len(frames), 20)):
        assert frames[t].shape == (height, width, 3), frames[t].shape
