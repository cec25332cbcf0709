"""Where the frames of labelled videos are: images by name or by number, video files, or pictures inside the labels.

Nothing is guessed in silence: an image must lie in a folder that bears the name of its video unless there is only one
video, two images that fit equally well are an error, and sizes are compared with those of the labels.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image

from lbvq.data.formats.labels import Frame, Labels, Video
from lbvq.data.formats.source import VIDEO_SUFFIXES, files_below, natural_key
from lbvq.files.images import IMAGE_SUFFIXES, image_size
from lbvq.video.reader import read_video

MISSING_SHOWN = 3  # names in a message
_ORIENTATION = 0x0112  # EXIF tag


@dataclass(frozen=True)
class FrameSource:
    """Where the frames of one video come from.

    Attributes:
        images: one file per frame, None where it is missing; empty when the frames come from a video file.
        file: the video file.
        numbers: number in the file of each frame.
        remark: how frames were matched, where that is not obvious.
        num_images: images in the folder that the first frame was found in, annotated or not.
    """

    images: tuple[Path | None, ...] = ()
    file: Path | None = None
    numbers: tuple[int, ...] = ()
    remark: str = ""
    num_images: int = 0


class FrameFinder:
    """Looks for frames below several folders; the first that has them is used."""

    def __init__(self, roots: Sequence[Path], labels: Labels | None = None) -> None:
        """Take folders (or single video files).

        Args:
            labels: tell whether names are needed to tell videos apart, and which images are masks, not frames.
        """
        masks = labels.mask_files if labels is not None else frozenset()
        self._places = [_Place(root, masks) for root in roots]
        self._alone = labels is not None and len({video.source or video.name for video in labels.videos}) == 1

    def find(self, video: Video) -> FrameSource:
        """Frames of a video; FileNotFoundError when no root has any."""
        for place in self._places:
            found = self._in_place(video, place)
            if found is not None:
                return found
        if video.frames and all(frame.pixels for frame in video.frames):
            return FrameSource((None,) * len(video.frames))
        looked = ", ".join(str(place.root) for place in self._places) or "nowhere"
        raise FileNotFoundError(
            f"No frames of the video {video.name!r} (first: {video.frames[0] if video.frames else 'none'}) in {looked}."
            " Say with --frames in which folder its images or video file are."
        )

    def _in_place(self, video: Video, place: _Place) -> FrameSource | None:
        named = all(frame.name for frame in video.frames)
        if named:
            images = [place.image(frame, video, self._alone) for frame in video.frames]
            if any(images):
                first = next(image for image in images if image is not None)
                return FrameSource(tuple(images), num_images=place.num_images(first.parent))
        if all(frame.number is not None for frame in video.frames):
            return place.numbered(video, self._alone)
        return None

    def size_of(self, video: str, frame: str, number: int | None) -> tuple[int, int]:
        """(height, width) of a frame, upright: for formats that do not tell sizes."""
        source = self.find(Video(video, [Frame(frame, number)]))
        if source.file is not None:
            with read_video(source.file) as frames:
                return frames.size
        if source.images and source.images[0] is not None:
            return image_size(source.images[0])
        raise FileNotFoundError(f"No image of the video {video!r} tells its size; say where it is with --frames.")


class _Place:
    """The images and video files below one folder."""

    def __init__(self, root: Path, masks: frozenset[Path] = frozenset()) -> None:
        if not root.exists():
            raise FileNotFoundError(f"There is no folder or file of frames {root}.")
        self.root = root if root.is_dir() else root.parent
        files = files_below(root) if root.is_dir() else [PurePosixPath(root.name)]
        self.videos = [file for file in files if file.suffix.lower() in VIDEO_SUFFIXES]
        self.folders: dict[PurePosixPath, list[PurePosixPath]] = {}
        self._stems: dict[str, list[PurePosixPath]] = {}
        for file in files:
            if file.suffix.lower() in IMAGE_SUFFIXES and self.root / file not in masks:
                self.folders.setdefault(file.parent, []).append(file)
                self._stems.setdefault(file.stem, []).append(file)

    def image(self, frame: Frame, video: Video, alone: bool) -> Path | None:
        """The file a frame names, by its last parts; None when there is none."""
        wanted = PurePosixPath(frame.name)
        suffix = wanted.suffix.lower()
        stem = wanted.stem if suffix in IMAGE_SUFFIXES else wanted.name
        found = self._stems.get(stem) or self._same_number(stem)
        exact = [file for file in found if file.suffix.lower() == suffix]
        folders = _folder_parts(wanted.parent), _folder_parts(PurePosixPath(video.source or video.name))
        scored = [
            (max(_common_end(parts, self._full(file.parent)) for parts in folders), file) for file in exact or found
        ]
        best = max((score for score, _ in scored), default=0)
        if not scored or (best == 0 and not alone and any(folders)):
            return None
        fitting = [file for score, file in scored if score == best]
        if len(fitting) > 1:
            raise ValueError(
                f"{self.root}: the frame {frame.name!r} of video {video.name!r} can be {fitting[0]} or {fitting[1]}; "
                "name with --frames a folder that has it once."
            )
        return self.root / fitting[0]

    def num_images(self, folder: Path) -> int:
        """Number of images in a folder below the root."""
        return len(self.folders[PurePosixPath(folder.relative_to(self.root).as_posix())])

    def _full(self, folder: PurePosixPath) -> tuple[str, ...]:
        """Parts of a folder, with the root's own name in front: it may be the video's."""
        return (self.root.resolve().name, *_folder_parts(folder))

    def _same_number(self, stem: str) -> list[PurePosixPath]:
        """Images called by the same number with other zeros in front: 00007 for 7."""
        if not (stem.isascii() and stem.isdigit()):
            return []
        return [f for name, files in self._stems.items() if name.isdigit() and int(name) == int(stem) for f in files]

    def numbered(self, video: Video, alone: bool) -> FrameSource | None:
        """The folder or the file that bears the video's name; the only one there is, where there is only one video."""
        numbers = [int(frame.number or 0) for frame in video.frames]
        found = self._named_like(video, list(self.folders)) or self._named_like(video, self.videos)
        if found is None and alone and len(self.folders) + len(self.videos) == 1:
            found = [*self.folders, *self.videos][0]
        if found is None:
            return None
        if found in self.folders:
            images, remark = _by_number_or_position(self.folders[found], numbers, str(self.root / found))
            return FrameSource(
                tuple(self.root / image for image in images), remark=remark, num_images=len(self.folders[found])
            )
        return FrameSource(file=self.root / found, numbers=tuple(numbers))

    def _named_like(self, video: Video, paths: list[PurePosixPath]) -> PurePosixPath | None:
        wanted = _folder_parts(PurePosixPath(video.source or video.name))
        ends = {path: self._full(path.with_suffix("") if path in self.videos else path) for path in paths}
        scored = [(_common_end(wanted, parts), path) for path, parts in ends.items()]
        best = max((score for score, _ in scored), default=0)
        fitting = [path for score, path in scored if score == best and best > 0]
        if len(fitting) > 1:
            raise ValueError(
                f"{self.root}: the video {video.name!r} can be {fitting[0]} or {fitting[1]}; name with --frames a "
                "folder that has it once."
            )
        return fitting[0] if fitting else None


def _folder_parts(path: PurePosixPath) -> tuple[str, ...]:
    return tuple(part for part in path.parts if part not in (".", "/"))


def _common_end(wanted: tuple[str, ...], parts: tuple[str, ...]) -> int:
    """How many of the last parts are the same; upper and lower case count as one."""
    count = 0
    for ours, theirs in zip(reversed(wanted), reversed(parts), strict=False):
        if ours.lower() != theirs.lower():
            break
        count += 1
    return count


def _by_number_or_position(
    images: list[PurePosixPath], numbers: list[int], where: str
) -> tuple[list[PurePosixPath], str]:
    """Images with these numbers of frames from 0.

    The names say which frame an image is when every wanted number is among them and they start at 0 or are too few to
    be counted through; else the images are counted.
    """
    images = sorted(images, key=natural_key)
    named = {int(digits[-1]): image for image in images if (digits := re.findall(r"\d+", image.stem))}
    has_names = len(named) == len(images) and set(numbers) <= set(named)
    if has_names and (min(named) == 0 or max(numbers, default=0) >= len(images)):
        return [named[number] for number in numbers], ""
    if max(numbers, default=0) >= len(images):
        raise ValueError(
            f"{where} holds {len(images)} images, but the labels speak of frame {max(numbers)} (counted from 0); "
            "is it the folder of another video?"
        )
    remark = "" if not named else f"frame {numbers[0]} is {images[numbers[0]].name}: images are counted from 0"
    return [images[number] for number in numbers], remark


def asks_for_turning(path: Path) -> bool:
    """Whether an image's EXIF data ask for turning or mirroring it."""
    with Image.open(path) as image:
        return image.getexif().get(_ORIENTATION, 1) not in (0, 1)


def missing_frames(video: Video, source: FrameSource) -> Iterator[int]:
    """Positions of the frames that have neither an image file nor a picture in the labels."""
    for t, image in enumerate(source.images):
        if image is None and video.frames[t].pixels is None:
            yield t
