"""Small videos with sound."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np

RATE = 16_000
FORMATS = {"aac": "fltp", "pcm_s16le": "s16", "libopus": "flt"}


def film(
    path: Path, codec: str = "aac", *, num_frames: int = 20, first: int = 0, seconds: float = 2.0, movflags: str = ""
) -> Path:
    """10 frames per second from frame `first` on; a tone begins after one second."""
    times = np.arange(int(seconds * RATE)) / RATE
    wave = 0.3 * np.sin(2 * np.pi * 440 * times) * (times > 1)
    samples = (wave * 32767).astype(np.int16) if codec == "pcm_s16le" else wave.astype(np.float32)
    with av.open(str(path), "w", options={"movflags": movflags} if movflags else {}) as target:
        video = target.add_stream("libx264", rate=10)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        audio = target.add_stream(codec, rate=RATE, layout="mono")
        for index in range(num_frames):
            picture = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 10 * index, np.uint8), format="rgb24")
            picture.pts = first + index
            target.mux(video.encode(picture))
        for start in range(0, len(samples), 1024):
            sound = av.AudioFrame.from_ndarray(samples[None, start : start + 1024], FORMATS[codec], "mono")
            sound.sample_rate, sound.pts = RATE, start
            target.mux(audio.encode(sound))
        for stream in (video, audio):
            target.mux(stream.encode(None))
    return path


def packets(path: Path) -> list[bytes]:
    with av.open(str(path)) as source:
        tracks = source.streams.audio
        return [bytes(packet) for packet in source.demux(tracks) if packet.size] if tracks else []
