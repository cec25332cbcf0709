"""A data folder: annotations.json in YouTube-VIS form and its frames, made from the labels of any tool.

    <folder>/annotations.json
    <folder>/frames/<video>/<frame>
    <folder>/conversion.json         where everything came from, and what could not be kept

Label files and frames of the user are only read. Image files are copied as they are, byte by byte.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from PIL import Image

from lbvq.data.formats import ytvis
from lbvq.data.formats.base import WriteOptions, flat_names
from lbvq.data.formats.frames import MISSING_SHOWN, FrameFinder, FrameSource, asks_for_turning, missing_frames
from lbvq.data.formats.labels import Labels, Notes, Track, Video
from lbvq.files.images import image_size
from lbvq.files.writing import write_text
from lbvq.video.reader import read_video

FRAMES = "frames"
REPORT = "conversion.json"
MAKEABLE = (ytvis.ANNOTATION_FILE, FRAMES, REPORT)
DERIVED = ("train.json", "dev.json", "doctor")  # made from a data folder by other commands

Report = Callable[[str], None]


@dataclass(frozen=True)
class FrameOptions:
    """How frames are brought into the folder.

    Attributes:
        suffix: of frames that are decoded from a video file, ".jpg" or ".png".
        symlink: link image files instead of copying them.
        skip_missing: leave out frames that are not there instead of refusing.
    """

    suffix: str = ".jpg"
    symlink: bool = False
    skip_missing: bool = False


def write_data_folder(
    labels: Labels, folder: Path, finder: FrameFinder, options: FrameOptions, say: Report = lambda text: None
) -> Labels:
    """Write annotations.json and frames into an existing, empty folder; returns what was written.

    Args:
        say: called with one line per video.
    """
    written = []
    for video, name in zip(labels.videos, flat_names(labels.videos), strict=True):
        if not video.frames:
            labels.notes.left_out("videos without an annotated frame", video.name)
            continue
        source = finder.find(video)
        video, source = _without_missing(video, source, options, labels.notes)
        target = folder / FRAMES / name
        target.mkdir(parents=True)
        files = _bring(video, source, target, options, labels.notes)
        frames = [replace(frame, name=f"{name}/{file}") for frame, file in zip(video.frames, files, strict=True)]
        written.append(replace(video, frames=frames, size=_size(video, target / files[0])))
        say(_line(written[-1], source))
    result = Labels(labels.categories, written, labels.notes)
    ytvis.write(result, folder, WriteOptions())
    return result


def _line(video: Video, source: FrameSource) -> str:
    total = video.num_source_frames or source.num_images
    kept = (
        f"{len(video.frames)} frames"
        if not total or total == len(video.frames)
        else f"{len(video.frames)} of {total} frames"
    )
    remark = f" ({source.remark})" if source.remark else ""
    return f"{video.name}: {kept}, {len(video.tracks)} objects{remark}"


def _without_missing(
    video: Video, source: FrameSource, options: FrameOptions, notes: Notes
) -> tuple[Video, FrameSource]:
    """Leave out frames whose image is not there, or refuse."""
    missing = list(missing_frames(video, source))
    if not missing:
        return video, source
    names = ", ".join(str(video.frames[t]) for t in missing[:MISSING_SHOWN])
    if not options.skip_missing or len(missing) == len(video.frames):
        raise FileNotFoundError(
            f"{len(missing)} of the {len(video.frames)} frames of video {video.name!r} are not there: {names}"
            f"{' ...' if len(missing) > MISSING_SHOWN else ''}. Leave them out with --skip-missing, or say where they "
            "are with --frames."
        )
    notes.left_out("frames without an image", f"{video.name}: {names}", len(missing))
    kept = [t for t in range(len(video.frames)) if t not in set(missing)]
    return select_frames(video, kept), replace(source, images=tuple(source.images[t] for t in kept))


def select_frames(video: Video, kept: Sequence[int]) -> Video:
    """The video with only some of its frames; objects that are visible in none of them are gone."""
    place = {t: index for index, t in enumerate(kept)}
    tracks = []
    for track in video.tracks:
        masks = {place[t]: mask for t, mask in track.masks.items() if t in place}
        if masks:
            tracks.append(Track(track.id, track.category_id, masks, track.is_crowd, track.score))
    return replace(video, frames=[video.frames[t] for t in kept], tracks=tracks)


def _bring(video: Video, source: FrameSource, target: Path, options: FrameOptions, notes: Notes) -> list[str]:
    """Put the frames into a folder; returns their file names."""
    if source.file is not None:
        return _decode(video, source, target, options, notes)
    names = _image_names(video, source)
    for frame, image, name in zip(video.frames, source.images, names, strict=True):
        if image is None:
            (target / name).write_bytes(frame.pixels() if frame.pixels else b"")
        elif options.symlink:
            (target / name).symlink_to(image.resolve())
        else:
            shutil.copyfile(image, target / name)
        _check_image(target / name, image, video, notes)
    return names


def _image_names(video: Video, source: FrameSource) -> list[str]:
    names = []
    for frame, image in zip(video.frames, source.images, strict=True):
        name = image.name if image is not None else PurePosixPath(frame.name).name
        names.append(name if PurePosixPath(name).suffix else f"{name}.png")
    if len({name.lower() for name in names}) < len(names):  # from several folders
        return [f"{t:05d}_{name}" for t, name in enumerate(names)]
    return names


def _check_image(path: Path, image: Path | None, video: Video, notes: Notes) -> None:
    size = image_size(path)
    if asks_for_turning(path):
        notes.changed(
            "images that EXIF data turn: the labels must be made on the turned image", str(image or path.name)
        )
    if video.size is not None and size != video.size:
        raise ValueError(
            f"{image or path.name} has {size[0]} x {size[1]} pixels (height x width), but the labels of video "
            f"{video.name!r} are made for {video.size[0]} x {video.size[1]}; name the right frames with --frames."
        )


def _decode(video: Video, source: FrameSource, target: Path, options: FrameOptions, notes: Notes) -> list[str]:
    """Decode the wanted frames of a video file, in order."""
    with read_video(source.file) as frames:  # type: ignore[arg-type]
        if video.size is not None and frames.size != video.size:
            raise ValueError(
                f"{source.file} has {frames.size[0]} x {frames.size[1]} pixels (height x width), but the labels of "
                f"video {video.name!r} are made for {video.size[0]} x {video.size[1]}."
            )
        numbers = list(source.numbers)
        if video.scale_numbers and video.num_source_frames:
            numbers = _scaled(numbers, video.num_source_frames, len(frames), str(source.file), notes)
        wanted = {number: f"{number:05d}{options.suffix}" for number in numbers}
        done = set()
        for number, pixels in enumerate(frames):
            if number in wanted:
                save_image(pixels, target / wanted[number])
                done.add(number)
            if len(done) == len(wanted):
                break
    if len(done) < len(wanted):
        raise ValueError(
            f"{source.file} ends after {number + 1} frames, but the labels speak of frame {max(wanted)} (counted from "
            "0); is it another video?"
        )
    return [wanted[number] for number in numbers]


def _scaled(numbers: list[int], labelled: int, there: int, where: str, notes: Notes) -> list[int]:
    """Numbers of frames on the clock of the labelling tool -> in the file."""
    if labelled == there:
        return numbers
    scaled = [min(round(number * there / labelled), there - 1) for number in numbers]
    notes.changed(f"frame numbers: the labels count {labelled} frames, the file has {there}", where, len(numbers))
    return scaled


def save_image(pixels: object, path: Path) -> None:
    """Write (H, W, 3) uint8 RGB as .png or as .jpg without loss of colour resolution."""
    options = {"quality": 95, "subsampling": 0} if path.suffix == ".jpg" else {"compress_level": 3}
    Image.fromarray(pixels).save(path, **options)  # type: ignore[arg-type]


def _size(video: Video, first: Path) -> tuple[int, int]:
    return video.size or image_size(first)


def write_report(folder: Path, source: str, format_name: str, labels: Labels) -> None:
    """Write conversion.json."""
    content = {"source": source, "format": format_name, "notes": list(labels.notes.entries())}
    write_text(folder / REPORT, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def check_target(folder: Path, overwrite: bool) -> None:
    """Raise unless the folder is new, or with `overwrite` holds nothing but an earlier conversion."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not overwrite:
        raise FileExistsError(f"{folder} exists already; choose another --out, or replace it with --overwrite.")
    others = (
        [item.name for item in folder.iterdir() if item.name not in (*MAKEABLE, *DERIVED)]
        if folder.is_dir()
        else ["a file"]
    )
    if others or not (folder / REPORT).is_file():
        raise FileExistsError(
            f"{folder} is no folder of an earlier conversion alone ({others[:3]}); it is not replaced."
        )
