"""Copy the sound of a video into the video that is drawn from it, packet by packet, without encoding it again."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import av
from av.error import FFmpegError

from lbvq.video.container import open_container
from lbvq.video.formats import file_url

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sound:
    """Where sound comes from.

    Attributes:
        path: of a video file.
        start: time of the first frame in that file, in seconds.
        is_whole: whether all frames of the file are read, so that all sound after the first one belongs to them.
    """

    path: Path
    start: float
    is_whole: bool = True


def has_sound(path: Path, error_type: type[Exception]) -> bool:
    """Whether a video file has sound."""
    with open_container(file_url(path), str(path), error_type) as container:
        return bool(container.streams.audio)


class SoundCopy:
    """Writes the sound of one file into another one while its frames are written."""

    def __init__(self, sound: Sound, target: av.container.OutputContainer) -> None:
        """Add a stream to `target` for each one that it can hold; what is left out is said.

        Args:
            sound: what is copied.
            target: to which nothing has been written yet.
        """
        self._sound, self._target = sound, target
        self._source = open_container(file_url(sound.path), str(sound.path), ValueError)
        self._streams: dict[int, av.audio.stream.AudioStream] = {}
        self._last: dict[int, int] = {}  # index of the stream -> time stamp of its last packet
        for stream in self._source.streams.audio:
            if _can_hold(target.format.name, stream):
                self._streams[stream.index] = target.add_stream_from_template(stream)
            else:
                logger.warning(
                    "The sound of %s (%s) cannot be stored in a file of the kind %s and is left out; write .mkv",
                    *(sound.path, _codec_name(stream), target.format.name),
                )
        self._packets = self._read()
        self._next: av.Packet | None = next(self._packets, None)

    def write_until(self, time: float | None) -> None:
        """Write what is heard before `time`, in seconds from the first frame; None: all of it."""
        while self._next is not None and (time is None or self._seconds(self._next) < time):
            packet, self._next = self._next, next(self._packets, None)
            try:
                self._target.mux(self._moved(packet))
            except ValueError as error:  # of FFmpeg: an invalid argument, or invalid data
                logger.warning("The sound of %s is left out from here on: %s", self._sound.path, error)
                self._next = None

    def finish(self, end: float, is_whole: bool) -> None:
        """Write the rest: all of it with the last frame of the file, else what is heard before `end`, in seconds."""
        self.write_until(None if is_whole and self._sound.is_whole else end)

    def close(self) -> None:
        """Let go of the file."""
        self._source.close()

    def _read(self) -> Iterator[av.Packet]:
        """Packets from the first frame on; the one before comes along, as decoders begin with it."""
        if not self._streams:
            return
        try:
            for packet in self._source.demux([self._source.streams[index] for index in self._streams]):
                if packet.dts is None or packet.pts is None or packet.is_corrupt:
                    continue
                if self._seconds(packet) + 2 * float((packet.duration or 0) * packet.time_base) <= 0:
                    continue
                if packet.dts > self._last.get(packet.stream.index, packet.dts - 1):
                    self._last[packet.stream.index] = packet.dts
                    yield packet
        except FFmpegError as error:
            logger.warning("The sound of %s ends early: %s", self._sound.path, error)

    def _seconds(self, packet: av.Packet) -> float:
        return float(packet.pts * packet.time_base) - self._sound.start

    def _moved(self, packet: av.Packet) -> av.Packet:
        """The packet in the target, its time counted from the first frame."""
        offset = round(self._sound.start / packet.time_base)
        packet.stream = self._streams[packet.stream.index]
        packet.pts, packet.dts = packet.pts - offset, packet.dts - offset
        return packet


def _can_hold(kind: str, stream: av.audio.stream.AudioStream) -> bool:
    """Whether a container format takes a stream as it is; some list codecs that they refuse in the end."""
    if stream.codec_context is None:
        return False
    try:
        with av.open(BytesIO(), "w", format=kind) as trial:
            trial.add_stream_from_template(stream)
            trial.start_encoding()
    except (FFmpegError, ValueError):
        return False
    return True


def _codec_name(stream: av.audio.stream.AudioStream) -> str:
    return "an unknown codec" if stream.codec_context is None else stream.codec_context.name
