"""What the doctor can find: how bad each kind is, what it is called, and what to do about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

ERROR, WARNING, NOTE = "error", "warning", "note"
LEVELS = (ERROR, WARNING, NOTE)
MOST_OF_A_KIND = 100  # findings of one kind that are kept for one video; the others are counted


class Kind(NamedTuple):
    """A kind of finding."""

    level: str  # ERROR: training or scoring refuses it; WARNING: it does harm; NOTE: good to know
    title: str
    remedy: str


KINDS: dict[str, Kind] = {
    # the annotation file
    "entry": Kind(ERROR, "entries that are broken", "write them as datasets/README.md shows, or convert again"),
    "id_twice": Kind(ERROR, "ids that occur twice", "give every video, category and object an id of its own"),
    "no_parent": Kind(ERROR, "objects whose video or category is not in the file", "add the entry, or delete them"),
    "name_twice": Kind(ERROR, "classes that have one name", "join them or rename one in the labelling tool"),
    "file_twice": Kind(WARNING, "frames that are listed twice", "list every image once"),
    "no_objects": Kind(ERROR, "files without objects", "label something, or score without annotations"),
    "class_unused": Kind(WARNING, "classes without an object", "delete the class, or label it: nothing can learn it"),
    "class_rare": Kind(NOTE, "classes of a single video", "label another video: such a class cannot be scored"),
    "video_empty": Kind(NOTE, "videos without an object", "keep them as background, or label them"),
    "id_gaps": Kind(NOTE, "ids that jump", "nothing has to be done, they are mapped; some programs want 1, 2, 3"),
    # frames
    "frame_missing": Kind(ERROR, "frames that are not there", "copy them, or convert with --skip-missing"),
    "frame_damaged": Kind(ERROR, "frames that cannot be read", "copy or extract them again"),
    "frame_size": Kind(ERROR, "frames of another size than the labels", "name the right frames, or resize them"),
    "frame_exif": Kind(WARNING, "frames that EXIF data turn", "look whether the labels fit the turned picture"),
    "frame_repeated": Kind(WARNING, "frames that are the same as the one before", "extract again, see --rate"),
    "frame_dark": Kind(WARNING, "frames of 16 bits that use a small part of their range",
                       "scale them to the full range: the upper 8 bits are read"),
    "frame_kinds": Kind(WARNING, "videos with 8 and 16 bits mixed", "write all frames of a video alike"),
    "frame_16_bit": Kind(NOTE, "frames of 16 bits", "nothing has to be done: the upper 8 bits are read"),
    "video_short": Kind(NOTE, "videos of one frame", "nothing has to be done: the frame is repeated in training"),
    # masks
    "mask_broken": Kind(ERROR, "masks that cannot be read", "export them again"),
    "mask_size": Kind(ERROR, "masks of another size than their video", "export the labels at the size of the frames"),
    "mask_outside": Kind(WARNING, "polygons that leave the image", "look at them: what is outside is cut off"),
    "mask_empty": Kind(WARNING, "masks without a pixel", "delete them, or draw them"),
    "mask_flat": Kind(WARNING, "masks that are a line", "delete them: a line of one pixel is no object"),
    "mask_whole": Kind(WARNING, "masks of nearly the whole frame", "look whether the background was labelled"),
    "masks_same": Kind(WARNING, "two objects with the same mask", "delete one of them"),
    "masks_overlap": Kind(NOTE, "objects that overlap", "look at the pictures: usually each pixel is of one object"),
    "box_differs": Kind(WARNING, "boxes that disagree with their masks", "nothing: boxes are made of masks here"),
    "object_empty": Kind(WARNING, "objects without a mask", "delete them, or draw them"),
    "object_jumps": Kind(WARNING, "objects that change places with another one",
                         "look at the pictures: the identity was switched between two frames"),
    "object_brief": Kind(NOTE, "objects of a single frame", "give their shapes an identity, see --join-by-overlap"),
    # training
    "queries": Kind(WARNING, "videos with more objects in a frame than the model has queries",
                    "take a model with more queries, or set MODEL.MASK_FORMER.NUM_OBJECT_QUERIES"),
    "queries_video": Kind(NOTE, "videos with more objects in all than the model has queries, though not at once",
                          "nothing for training, which sees clips; results may need more queries, or parts of a video"),
}  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """One finding.

    Attributes:
        kind: key of `KINDS`.
        where: file, video, object and frame, as a person would look for them.
        detail: expected and found.
        video: id of the video; None for the file as a whole.
        frame: position of the frame in the video.
        track: id of the object.
        weight: findings of a kind with more weight come first; for masks a number of pixels.
    """

    kind: str
    where: str
    detail: str = ""
    video: int | None = None
    frame: int | None = None
    track: int | None = None
    weight: float = 0.0


@dataclass
class VideoFacts:
    """What is known of one video after its examination."""

    id: int
    name: str
    num_frames: int = 0
    num_objects: int = 0
    num_masks: int = 0
    most_objects: int = 0  # in one frame
    size: tuple[int, int] | None = None
    findings: list[Finding] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, kind: str, detail: str = "", weight: float = 0.0, **place: Any) -> None:
        """Count a finding, and keep the first ones of each kind."""
        self.counts[kind] += 1
        if self.counts[kind] <= MOST_OF_A_KIND:
            where = place.pop("where", None) or self._where(place)
            self.findings.append(Finding(kind, where, detail, self.id, weight=weight, **place))

    def _where(self, place: dict[str, Any]) -> str:
        parts = [f"video {self.name}"]
        parts += [f"object {place['track']}"] if place.get("track") is not None else []
        parts += [f"frame {place['frame']}"] if place.get("frame") is not None else []
        return ", ".join(parts)


@dataclass
class Report:
    """Everything that was found in a data folder.

    Attributes:
        name: of the data folder or file.
        classes: name -> number of objects.
        videos: in the order of the file.
        findings: of the file, then of the videos.
        counts: how often each kind was found, also where not every finding was kept.
        estimate: lines about a training on the data; empty when nobody asked.
    """

    name: str
    classes: dict[str, int] = field(default_factory=dict)
    videos: list[VideoFacts] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    estimate: list[str] = field(default_factory=list)

    def add(self, kind: str, where: str, detail: str = "", video: int | None = None) -> None:
        """Add a finding of the file."""
        self.findings.append(Finding(kind, where, detail, video))
        self.counts[kind] += 1

    def extend(self, videos: Iterable[VideoFacts]) -> None:
        """Take over what was found in the videos."""
        for video in videos:
            self.videos.append(video)
            self.findings += video.findings
            self.counts.update(video.counts)

    def of_level(self, level: str) -> Sequence[str]:
        """Kinds of this level that were found, the most frequent first."""
        found = [kind for kind, count in self.counts.items() if count and KINDS[kind].level == level]
        return sorted(found, key=lambda kind: -self.counts[kind])

    @property
    def has_errors(self) -> bool:
        return bool(self.of_level(ERROR))

    def lines(self, everything: bool = False) -> Iterator[str]:
        """The table: a summary, then one line per kind with its first place and what to do; `everything` lists all."""
        yield self._summary()
        for level in LEVELS:
            for kind in self.of_level(level):
                mine = [finding for finding in self.findings if finding.kind == kind]
                yield f"{level.upper():8}{self.counts[kind]:>6} x {KINDS[kind].title}"
                for finding in mine if everything else mine[:1]:
                    yield f"{'':17}{finding.where}{f': {finding.detail}' if finding.detail else ''}"
                yield f"{'':17}-> {KINDS[kind].remedy}"
        yield from self.estimate

    def _summary(self) -> str:
        frames, objects, masks = (
            sum(getattr(video, key) for video in self.videos) for key in ("num_frames", "num_objects", "num_masks")
        )
        most = max((video.most_objects for video in self.videos), default=0)
        return (
            f"{self.name}: {len(self.videos)} videos, {frames} frames, {len(self.classes)} classes, {objects} objects, "
            f"{masks} masks, at most {most} objects in a frame"
        )

    def to_json(self) -> dict[str, Any]:
        """Everything, for programs."""
        findings = [
            {"level": KINDS[each.kind].level, **asdict(each), "remedy": KINDS[each.kind].remedy}
            for each in self.findings
        ]
        keys = ("id", "name", "num_frames", "num_objects", "num_masks", "most_objects")
        videos = [{key: getattr(video, key) for key in keys} for video in self.videos]
        return {
            "name": self.name,
            "classes": self.classes,
            "videos": videos,
            "counts": dict(self.counts),
            "findings": findings,
            "estimate": self.estimate,
        }
