"""The neutral form of labelled videos, which every reader of a labelling format makes and every writer takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lbvq.files import rules

Rle = dict[str, Any]


@dataclass(frozen=True)
class Frame:
    """One annotated frame.

    Attributes:
        name: file name, with the folders that the labels give; "" where they only count frames.
        number: of the frame in its video, from 0; None where only the name is known.
        pixels: returns the bytes of an image file that the labels carry along.
    """

    name: str = ""
    number: int | None = None
    pixels: Callable[[], bytes] | None = None

    def __str__(self) -> str:
        return self.name or f"frame {self.number}"


@dataclass
class Track:
    """One object of one video.

    Attributes:
        id: unique in its video.
        category_id: key of `Labels.categories`.
        masks: position of the frame in `Video.frames` -> compressed mask in canonical form with at least one pixel.
        is_crowd: a group that counts neither for nor against a prediction.
        score: of a prediction, in [0, 1]; None for labels made by hand.
    """

    id: int
    category_id: int
    masks: dict[int, Rle] = field(default_factory=dict)
    is_crowd: bool = False
    score: float | None = None


@dataclass
class Video:
    """The annotated frames of one video, and its objects.

    Attributes:
        name: unique in the file; a relative path with "/" between its parts.
        frames: ascending in time.
        tracks: objects; those without a mask are dropped by the readers.
        size: (height, width) of every mask; None where a video without a mask does not tell.
        num_source_frames: frames of the whole video where the labels tell, annotated or not.
        source: name of the file or folder of its frames, where it is not the name of the video.
        id: number in the annotation file that it was read from, to which results files refer.
        scale_numbers: frame numbers follow a clock of the tool; where the file has another number of frames than the
            labels say, they are scaled.
    """

    name: str
    frames: list[Frame]
    tracks: list[Track] = field(default_factory=list)
    size: tuple[int, int] | None = None
    num_source_frames: int | None = None
    source: str = ""
    id: int | None = None
    scale_numbers: bool = False

    @property
    def known_size(self) -> tuple[int, int]:
        """The size, for whoever cannot do without; ValueError when nobody knows it."""
        if self.size is None:
            raise ValueError(f"Video {self.name} has no size: it has neither a mask nor an image.")
        return self.size


class Notes:
    """What could not be kept as it was: counted by reason, with the first place of each."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], int] = {}
        self._first: dict[tuple[str, str], str] = {}

    def left_out(self, what: str, where: str, count: int = 1) -> None:
        """Count something that is not in the result, e.g. ("points, which have no area", "frame 3 of a.mp4")."""
        self._add(("left out", what), where, count)

    def changed(self, what: str, where: str, count: int = 1) -> None:
        """Count something that is in the result in another form."""
        self._add(("changed", what), where, count)

    def _add(self, key: tuple[str, str], where: str, count: int) -> None:
        if count:
            self._counts[key] = self._counts.get(key, 0) + count
            self._first.setdefault(key, where)

    def extend(self, other: Notes) -> None:
        """Take over the notes of another list, after our own."""
        for key, count in other._counts.items():
            self._add(key, other._first[key], count)

    def entries(self) -> Iterator[dict[str, Any]]:
        """Yield {"kind", "what", "count", "first"}, kinds together."""
        for key in sorted(self._counts, key=lambda each: each[0], reverse=True):
            yield {"kind": key[0], "what": key[1], "count": self._counts[key], "first": self._first[key]}

    def lines(self) -> list[str]:
        """One line for each reason."""
        return [f"{each['kind']}: {each['count']} x {each['what']} (first: {each['first']})" for each in self.entries()]

    def __bool__(self) -> bool:
        return bool(self._counts)


@dataclass
class Labels:
    """Labelled videos.

    Attributes:
        categories: id -> name, ascending.
        videos: in the order of the source.
        notes: what the reader could not keep.
        mask_files: images that are labels, so that nobody takes them for frames.
    """

    categories: dict[int, str]
    videos: list[Video]
    notes: Notes = field(default_factory=Notes)
    mask_files: frozenset[Path] = frozenset()

    def check(self, where: str) -> None:
        """Raise ValueError where a name or an id occurs twice or a reference leads nowhere; writers rely on it."""
        _all_different([video.name for video in self.videos], "videos are called", where)
        _all_different(list(self.categories.values()), "categories are called", where)
        wrong = [number for number in self.categories if not rules.is_whole(number) or number < 0]
        if wrong:
            raise ValueError(f"{where}: the id of a category is a whole number from 0 on, got {wrong[0]!r:.40}.")
        for video in self.videos:
            place = f"{where}: video {video.name}"
            _all_different([track.id for track in video.tracks], "tracks have the id", place)
            for track in video.tracks:
                if track.category_id not in self.categories:
                    raise ValueError(
                        f"{place}, track {track.id}: there is no category {track.category_id}; there are "
                        f"{dict(list(self.categories.items())[:10])}."
                    )
                if not rules.is_whole(track.id) or track.id < 0:
                    raise ValueError(f"{place}: the id of a track is a whole number from 0 on, got {track.id!r:.40}.")
                if any(not 0 <= t < len(video.frames) for t in track.masks):
                    raise ValueError(f"{place}, track {track.id}: a mask lies outside the {len(video.frames)} frames.")


def _all_different(values: list[Any], words: str, where: str) -> None:
    seen: set[Any] = set()
    for value in values:
        if value in seen:
            raise ValueError(f"{where}: two {words} {value!r}; give them different ones in the labelling tool.")
        seen.add(value)


def number_categories(names: list[str]) -> dict[str, int]:
    """Name -> category id from 1 in the order of the list, names that repeat only once."""
    return {name: index for index, name in enumerate(dict.fromkeys(names), start=1)}
