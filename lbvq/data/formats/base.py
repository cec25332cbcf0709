"""What a labelling format is: how it is recognised, read and written."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lbvq.data.formats.labels import Labels, Notes, Track, Video
from lbvq.data.formats.shapes import is_empty, union
from lbvq.data.formats.source import Source

Rle = dict[str, Any]
SizeOf = Callable[[str, str, "int | None"], "tuple[int, int]"]

NO_PIXEL = "shapes without a pixel inside the image"
BOXES = "boxes: the whole box is the mask"
CROWDS = "crowds, which this format does not know: they are objects now"
NO_CROWDS = "objects marked as crowds only because they are run lengths"
LONELY = "shapes that do not say whose they are: each is an object of one frame (see --join-by-overlap)"


@dataclass(frozen=True)
class ReadOptions:
    """What a reader may need besides the labels.

    Attributes:
        classes: names of the classes in the order of their numbers, for formats without names.
        size_of: (name of the video, name of the frame, its number) -> (height, width), for formats without sizes.
    """

    classes: Sequence[str] = ()
    size_of: SizeOf | None = None

    def size(self, video: str, frame: str, number: int | None, where: str) -> tuple[int, int]:
        """Size of a frame from its image file."""
        if self.size_of is None:
            raise ValueError(f"{where} does not tell the size of the frames; say where they are with --frames.")
        return self.size_of(video, frame, number)


@dataclass(frozen=True)
class WriteOptions:
    """What a writer may need besides the labels.

    Attributes:
        image_root: what `Frame.name` is relative to; None where nobody knows.
        tolerance: pixels by which outlines may be off, to have fewer corners; 0 keeps every mask exactly.
    """

    image_root: Path | None = None
    tolerance: float = 0.0


Writer = Callable[[Labels, Path, WriteOptions], Notes]


@dataclass(frozen=True)
class Format:
    """One labelling format.

    Attributes:
        name: for `--from` and `--to`.
        title: for people.
        recognise: returns what makes a source look like this format, None when nothing does.
        read: source -> labels.
        write: labels -> files in an empty folder; returns what could not be kept. None: the format is only read.
    """

    name: str
    title: str
    recognise: Callable[[Source], str | None]
    read: Callable[[Source, ReadOptions], Labels]
    write: Writer | None = None


def add_mask(track: Track, t: int, mask: Rle, notes: Notes, where: str) -> None:
    """Give a track its mask of frame `t`, or note that there is nothing to give."""
    if is_empty(mask):
        notes.left_out(NO_PIXEL, where)
    else:
        track.masks[t] = mask


class TrackBook:
    """The objects of one video, collected shape by shape from labels that are made image by image."""

    def __init__(self, size_hw: tuple[int, int], notes: Notes) -> None:
        self._size = size_hw
        self._notes = notes
        self._tracks: dict[Hashable, Track] = {}
        self._wanted: dict[Hashable, int | None] = {}
        self._one_frame = 0

    def add(
        self,
        t: int,
        mask: Rle,
        category_id: int,
        identity: Hashable,
        where: str,
        *,
        track_id: int | None = None,
        is_crowd: bool = False,
    ) -> None:
        """Add a mask of frame `t`.

        Args:
            identity: equal for the shapes of one object; None for a shape that does not tell, which becomes an object
                of one frame.
            where: for the notes.
            track_id: the number to give to the object, if nobody else has it.
        """
        if is_empty(mask):
            self._notes.left_out(NO_PIXEL, where)
            return
        if identity is None:
            self._one_frame += 1
            identity = ("one frame", self._one_frame)
            self._notes.changed(LONELY, where)
        track = self._tracks.setdefault(identity, Track(0, category_id, is_crowd=is_crowd))
        self._wanted.setdefault(identity, track_id)
        if track.category_id != category_id:
            self._notes.changed("shapes of another class than the rest of their object: the first class counts", where)
        if t in track.masks:
            self._notes.changed("parts of one object in one frame, joined", where)
            mask = union([track.masks[t], mask], self._size)
        track.masks[t] = mask

    def tracks(self) -> list[Track]:
        """The objects; those without a free number of their own get the next ones."""
        taken: set[int] = set()
        for identity, track in self._tracks.items():
            wanted = self._wanted[identity]
            if wanted is not None and wanted not in taken:
                track.id = wanted
                taken.add(wanted)
            else:
                self._wanted[identity] = None
        free = max([0, *taken]) + 1
        for identity, track in self._tracks.items():
            if self._wanted[identity] is None:
                track.id, free = free, free + 1
        return list(self._tracks.values())


def flat_names(videos: Sequence[Video]) -> list[str]:
    """Name of each video as one part of a path, all different, also where upper and lower case are the same."""
    names: list[str] = []
    taken: set[str] = set()
    for video in videos:
        name = re.sub(r'[\\/:*?"<>|\x00-\x1f]', "_", video.name).strip(". ") or "video"
        number, free = 1, name
        while free.lower() in taken:
            number, free = number + 1, f"{name}_{number + 1}"
        taken.add(free.lower())
        names.append(free)
    return names
